//! Writing a model.

use std::collections::BTreeMap;
use std::path::Path;

use sharnn_core::{Backend, ShaRnn, pytorch_name};

use super::layout::published_shape;
use super::{DECODER, ENCODER};
use crate::files::tensors::{WeightType, WeightsError, write_tensors};
use crate::params::collect_params;

/// The key of a file's metadata under which the model's configuration stands, as JSON.
pub const CONFIG_KEY: &str = "sharnn.config";

/// How a model is written. Whatever the choice, [`import_weights`](crate::import_weights) makes a model of the file, and
/// PyTorch reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Type of the tensors: F32 by default. BF16 halves the file.
    pub dtype: WeightType,
    /// Whether a tied decoder is written too, as `decoder.weight`: the published model's `load_state_dict` wants it.
    pub tied_twice: bool,
    /// Whether value gates are collapsed in the file: fewer tensors, the same outputs, and no more training. A model that is
    /// collapsed already is written so in any case.
    pub collapse: bool,
}

/// Writes the weights of `model` to `path` in f32, a tied decoder once, and waits until they are on the disk. The file's
/// metadata hold the configuration. A file that was there is replaced only when all that has succeeded.
///
/// # Errors
/// [`WeightsError::DiskFull`], [`WeightsError::Io`], or [`WeightsError::NotFinite`] where a weight is not finite; nothing
/// is written then.
pub fn save_weights<B: Backend>(model: &ShaRnn<B>, path: &Path) -> Result<(), WeightsError> {
    save_weights_as(model, path, &SaveOptions::default())
}

/// As [`save_weights`], with a choice of how.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// # fn main() -> Result<(), sharnn_train::WeightsError> {
/// use burn::backend::Flex;
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_train::{WeightType, SaveOptions, save_weights_as};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("small.safetensors");
/// let model = ShaRnnConfig { d_model: 8, d_ff: 16, ..ShaRnnConfig::xs() }.init_seeded::<Flex>(1, &Default::default());
/// save_weights_as(&model, &path, &SaveOptions { dtype: WeightType::Bf16, ..SaveOptions::default() })?;
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
///
/// # Errors
/// As [`save_weights`], and [`WeightsError::TooLarge`] where a weight does not fit the type.
pub fn save_weights_as<B: Backend>(model: &ShaRnn<B>, path: &Path, options: &SaveOptions) -> Result<(), WeightsError> {
    let params = if options.collapse { collect_params(&model.clone().collapse()) } else { collect_params(model) };
    let mut tensors = Vec::with_capacity(params.len() + 1);
    for param in params {
        if let Some(index) = param.data.iter().position(|value| !value.is_finite()) {
            let (file, value) = (path.display().to_string(), param.data[index]);
            return Err(WeightsError::NotFinite { file, tensor: pytorch_name(&param.name), index, value });
        }
        let name = pytorch_name(&param.name);
        let shape = published_shape(&name, &param.shape);
        tensors.push((name, shape, param.data));
    }
    let config = model.config();
    if options.tied_twice && config.tied {
        let embedding = tensors.iter().find(|(name, ..)| name == ENCODER);
        let (_, shape, data) = embedding.expect("every model has an embedding").clone();
        tensors.push((DECODER.to_string(), shape, data));
    }
    let config = serde_json::to_string(&config).expect("a configuration has only string keys");
    let metadata = [("format", "pt"), (CONFIG_KEY, &config)].map(|(key, value)| (key.to_string(), value.to_string()));
    write_tensors(path, options.dtype, &tensors, &BTreeMap::from(metadata))
}
