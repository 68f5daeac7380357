//! Files of tensors: named tensors, the weights of a model, the state of a stream.
//!
//! Here lives what writes them whole and reads them with every value checked; what a run makes of them is in run.
//! It may use params; optim, run and trainer may use it.

mod json;
mod stream_state;
mod tensors;
pub(crate) mod weights;

pub(crate) use tensors::shown;

pub use json::json_error;
pub use stream_state::{StateFileError, load_state, load_state_of, save_state, weights_digest};
pub use tensors::{
    HostTensor, Mismatch, TensorMismatch, WeightType, WeightsError, load_metadata, load_tensors, save_tensors,
};
pub use weights::{
    CONFIG_KEY, ImportOptions, SaveOptions, UNKNOWN_BYTE_BIAS, Vocabulary, VocabularyError, import_weights,
    import_weights_from_bytes, load_weights, load_weights_from_bytes, read_config, read_config_from_bytes,
    save_weights, save_weights_as,
};
