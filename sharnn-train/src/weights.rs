//! A model's weights in a safetensors file, under the published PyTorch model's names.
//!
//! Layouts are PyTorch's, gates are written `[1, 1, d_model]`, and a tied decoder is not written twice. Files of the
//! published model load: the parameters in them that never received a gradient are passed over by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use sharnn_core::{ShaRnn, pytorch_name};

use crate::params::{MapFloat, collect_params, map_params, param_infos};
use crate::tensor_file::{HostTensor, ParsedFile, TensorFile, WeightsError, save_tensors};

const TIED_DECODER: &str = "decoder.weight";
const EMBEDDING: &str = "encoder.weight";

/// Writes the weights of `model` to `path` in f32 and waits until they are on the disk.
///
/// # Errors
/// [`WeightsError::DiskFull`] or [`WeightsError::Io`].
pub fn save_weights<B: Backend>(model: &ShaRnn<B>, path: &Path) -> Result<(), WeightsError> {
    let tensors: Vec<_> = collect_params(model)
        .into_iter()
        .map(|param| (pytorch_name(&param.name), published_shape(&param.name, &param.shape), param.data))
        .collect();
    save_tensors(path, &tensors, &BTreeMap::from([("format".to_string(), "pt".to_string())]))
}

/// Loads weights into `model`, onto its device. Gates may be `[d_model]` or `[1, 1, d_model]`, values F32, F16, BF16 or F64,
/// and a tied `decoder.weight` may be there if it equals the embedding's.
///
/// Published parameters without use are ignored: `attn.qkvs`, `attn.r_gate` and `lnout` of a block, and `lnmid` and
/// `lnmem` of a block that does not attend. Nothing else may be left over.
///
/// # Errors
/// Every other difference between file and model, and whatever makes the file unreadable: see [`WeightsError`].
pub fn load_weights<B: Backend>(model: ShaRnn<B>, path: &Path) -> Result<ShaRnn<B>, WeightsError> {
    let bytes = TensorFile::read(path)?;
    let file = bytes.parse()?;
    check_collapse(&model, &file)?;

    let mut values = BTreeMap::new();
    let mut known = BTreeSet::new();
    for param in param_infos(&model) {
        let name = pytorch_name(&param.path);
        let Some(view) = file.tensors.get(&name) else {
            let hint = "the file is of another model or another configuration".to_string();
            return Err(WeightsError::Missing { file: file.file.into(), tensor: name, expected: param.shape, hint });
        };
        if view.shape() != param.shape && view.shape() != published_shape(&param.path, &param.shape) {
            let found = view.shape().to_vec();
            return Err(WeightsError::Shape { file: file.file.into(), tensor: name, expected: param.shape, found });
        }
        values.insert(param.path, file.values(&name)?);
        known.insert(name);
    }
    for (name, view) in file.tensors.iter().filter(|(name, _)| !known.contains(*name)) {
        if name == TIED_DECODER {
            check_tied(&file, &values[EMBEDDING])?;
        } else if !is_unused(name, &model) {
            let hint = "the file is of another model or another configuration".to_string();
            let (file, found) = (file.file.to_string(), view.shape().to_vec());
            return Err(WeightsError::Unexpected { file, tensor: name.clone(), found, hint });
        }
    }
    Ok(map_params(model, &mut Place(values)))
}

/// Puts values of the right size into parameters.
struct Place(BTreeMap<String, HostTensor>);

impl<B: Backend> MapFloat<B> for Place {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        let HostTensor { data, .. } = self.0.remove(path).expect("every parameter was looked up before");
        Tensor::from_data(TensorData::new(data, tensor.dims()), (&tensor.device(), tensor.dtype()))
    }
}

/// Gates are vectors here and `[1, 1, d_model]` in the published model.
fn published_shape(path: &str, shape: &[usize]) -> Vec<usize> {
    let gate = path.ends_with(".q_gate") || path.ends_with(".k_gate") || path.ends_with(".value_gate.gate");
    if gate { [&[1, 1], shape].concat() } else { shape.to_vec() }
}

/// Refuses a collapsed file for an uncollapsed model, and the other way round.
fn check_collapse<B: Backend>(model: &ShaRnn<B>, file: &ParsedFile<'_>) -> Result<(), WeightsError> {
    for (index, block) in model.blocks.iter().enumerate() {
        let Some(attending) = &block.attending else { continue };
        let name = |suffix: &str| format!("blocks.{index}.attn.{suffix}");
        let [weight, bias] = [name("vq.l1.weight"), name("vq.l1.bias")];
        let linear = [&weight, &bias].into_iter().find(|name| file.tensors.contains_key(*name));
        let attends = file.tensors.contains_key(&name("vs"));
        match (&attending.attention.value_gate.linear, linear) {
            (Some(_), None) if attends => {
                return Err(WeightsError::Collapsed { file: file.file.into(), tensor: weight });
            }
            (None, Some(tensor)) => {
                return Err(WeightsError::Uncollapsed { file: file.file.into(), tensor: tensor.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The decoder's own copy of a tied weight must equal the embedding's.
fn check_tied(file: &ParsedFile<'_>, embedding: &HostTensor) -> Result<(), WeightsError> {
    let decoder = file.values(TIED_DECODER)?;
    if decoder.shape != embedding.shape {
        let (file, tensor) = (file.file.to_string(), TIED_DECODER.to_string());
        return Err(WeightsError::Shape { file, tensor, expected: embedding.shape.clone(), found: decoder.shape });
    }
    match embedding.data.iter().zip(&decoder.data).position(|(encoder, decoder)| encoder != decoder) {
        None => Ok(()),
        Some(index) => Err(WeightsError::NotTied {
            file: file.file.into(),
            index,
            encoder: embedding.data[index],
            decoder: decoder.data[index],
        }),
    }
}

/// Whether the published model carries this tensor without ever giving it a gradient.
fn is_unused<B: Backend>(name: &str, model: &ShaRnn<B>) -> bool {
    let Some((index, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else { return false };
    let Some(block) = index.parse::<usize>().ok().and_then(|index| model.blocks.get(index)) else { return false };
    match rest {
        "lnout.weight" | "lnout.bias" => true,
        "attn.qkvs" | "attn.r_gate" => block.attending.is_some(),
        "lnmid.weight" | "lnmid.bias" | "lnmem.weight" | "lnmem.bias" => block.attending.is_none(),
        _ => false,
    }
}
