//! A model's weights in a safetensors file, under the published PyTorch model's names: docs/weights.md.
//!
//! Layouts are PyTorch's, and gates are written `[1, 1, d_model]`. Files of the published model load: the parameters in
//! them that never received a gradient are passed over by name.

mod import;
mod layout;
mod model_file;
mod save;
mod vocabulary;

use std::path::Path;

use burn::tensor::{Tensor, TensorData, backend::Backend as BurnBackend};
use sharnn_core::{Backend, ShaRnn, ShaRnnConfig, pytorch_name};

pub use import::{ImportOptions, import_weights, import_weights_from_bytes, read_config, read_config_from_bytes};
use model_file::ModelFile;
pub(crate) use model_file::validate;
pub use save::{CONFIG_KEY, SaveOptions, save_weights, save_weights_as};
pub use vocabulary::{UNKNOWN_BYTE_BIAS, Vocabulary, VocabularyError};

use crate::files::tensors::WeightsError;
use crate::params::{MapFloat, map_params};

const ENCODER: &str = "encoder.weight";
const DECODER: &str = "decoder.weight";
const DECODER_BIAS: &str = "decoder.bias";

/// Loads weights into `model`, onto its device. Gates may be `[d_model]` or `[1, 1, d_model]`, values F32, F16, BF16 or F64,
/// and a tied `decoder.weight` may be there if it equals the embedding's. A beginning that all names share, as `module.`,
/// is passed over.
///
/// Published parameters without use are ignored: `attn.qkvs`, `attn.r_gate` and `lnout` of a block, and `lnmid` and
/// `lnmem` of a block that does not attend. Nothing else may be left over. A configuration in the file's metadata must
/// agree with the model's, but for what no tensor depends on: dropouts and the length of the memory.
///
/// # Errors
/// Every other difference between file and model, and whatever makes the file unreadable: see [`WeightsError`].
pub fn load_weights<B: BurnBackend>(model: ShaRnn<B>, path: &Path) -> Result<ShaRnn<B>, WeightsError> {
    load(model, &ModelFile::open(path)?)
}

/// [`load_weights`] of a file in memory, as one that is part of the program; errors call it `name`.
///
/// # Errors
/// As [`load_weights`].
pub fn load_weights_from_bytes<B: BurnBackend>(
    model: ShaRnn<B>,
    name: &str,
    bytes: &'static [u8],
) -> Result<ShaRnn<B>, WeightsError> {
    load(model, &ModelFile::in_memory(name, bytes)?)
}

fn load<B: BurnBackend>(model: ShaRnn<B>, file: &ModelFile) -> Result<ShaRnn<B>, WeightsError> {
    let config = model.config();
    let attending = |block: usize| model.blocks[block].attending.as_ref();
    file.check(&config, |block| attending(block).is_some_and(|part| part.attention.value_gate.linear.is_none()))?;
    place(model, file, &Vocabulary::Bytes)
}

/// A fresh model of `config`, not collapsed, with weights that were saved from one. The file is compared with the
/// configuration before anything is allocated for it, so neither need be trusted.
pub(crate) fn load_config<B: Backend>(
    config: &ShaRnnConfig,
    path: &Path,
    device: &B::Device,
) -> Result<ShaRnn<B>, WeightsError> {
    let file = ModelFile::open(path)?;
    file.validate(config)?;
    file.check(config, |_| false)?;
    place(config.init_seeded(0, device), &file, &Vocabulary::Bytes)
}

/// Puts the values of a file that has been checked into a model, one tensor after the other.
fn place<B: BurnBackend>(
    model: ShaRnn<B>,
    file: &ModelFile,
    vocabulary: &Vocabulary,
) -> Result<ShaRnn<B>, WeightsError> {
    let mut place = Place { file, vocabulary, error: None };
    let model = map_params(model, &mut place);
    match place.error {
        None => Ok(model),
        Some(error) => Err(error),
    }
}

struct Place<'a> {
    file: &'a ModelFile,
    vocabulary: &'a Vocabulary,
    /// The first one, after which no more is read.
    error: Option<WeightsError>,
}

impl<B: BurnBackend> MapFloat<B> for Place<'_> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        if self.error.is_some() {
            return tensor;
        }
        let name = pytorch_name(path);
        match self.file.values(&name) {
            Ok(values) => {
                let values = self.vocabulary.expand(&name, values);
                Tensor::from_data(TensorData::new(values, tensor.dims()), (&tensor.device(), tensor.dtype()))
            }
            Err(error) => {
                self.error = Some(error);
                tensor
            }
        }
    }
}
