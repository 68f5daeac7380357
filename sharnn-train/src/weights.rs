//! A model's weights in a safetensors file, under the published PyTorch model's names.
//!
//! Layouts are PyTorch's, gates are written `[1, 1, d_model]`, and a tied decoder is not written twice. Files of the
//! published model load: the parameters in them that never received a gradient are passed over by name.

mod infer;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, TensorData};
use sharnn_core::{Backend, ShaRnn, ShaRnnConfig, pytorch_name};

use infer::{Inferred, infer};
use vocabulary::UNKNOWN_BIAS;
pub use vocabulary::{Vocabulary, VocabularyError};

use crate::params::{MapFloat, collect_params, map_params, param_infos};
use crate::tensor_file::{HostTensor, ParsedFile, TensorFile, WeightsDtype, WeightsError, save_tensors_as};

const TIED_DECODER: &str = "decoder.weight";
const EMBEDDING: &str = "encoder.weight";
const DECODER_BIAS: &str = "decoder.bias";
/// Metadata: the configuration as JSON.
const CONFIG_KEY: &str = "sharnn.config";
/// Metadata that PyTorch's own files have.
const FORMAT: (&str, &str) = ("format", "pt");
/// Problems that one error tells.
const TOLD: usize = 12;

/// Writes the weights of `model` to `path` in f32 and waits until they are on the disk. Until the new file is whole, `path` holds
/// what it held before.
///
/// # Errors
/// [`WeightsError::DiskFull`] or [`WeightsError::Io`].
pub fn save_weights<B: BurnBackend>(model: &ShaRnn<B>, path: &Path) -> Result<(), WeightsError> {
    let metadata = BTreeMap::from([(FORMAT.0.to_string(), FORMAT.1.to_string())]);
    save_tensors_as(path, &published(model), &metadata, WeightsDtype::F32)
}

/// Every parameter under its published name.
fn published<B: BurnBackend>(model: &ShaRnn<B>) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let params = collect_params(model).into_iter();
    params.map(|p| (pytorch_name(&p.name), published_shape(&p.name, &p.shape), p.data)).collect()
}

/// How to write weights for others to use. The file explains itself: its metadata hold the configuration.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_train::{ImportOptions, WeightsDtype, WeightsExport, import_weights};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// let config = ShaRnnConfig { d_model: 16, d_ff: 32, ..ShaRnnConfig::xs() };
/// let model = config.init_seeded::<Flex>(1, &Default::default());
/// let export = WeightsExport { dtype: WeightsDtype::Bf16, ..WeightsExport::default() };
/// export.save(&model.collapse(), &path).unwrap();
///
/// let model = import_weights::<Flex>(&path, &ImportOptions::default(), &Default::default()).unwrap();
/// assert_eq!(model.vocab_size(), 256);
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsExport {
    /// Type of the values, to which they are rounded.
    pub dtype: WeightsDtype,
    /// Whether a tied decoder's weight is written too, as PyTorch's `state_dict` has it.
    pub tied_copy: bool,
    /// More metadata: provenance, a licence.
    pub metadata: BTreeMap<String, String>,
}

impl WeightsExport {
    /// Writes the weights of `model`, collapsed or not, to `path`.
    ///
    /// # Errors
    /// As [`save_weights`], and [`WeightsError::NotFinite`] for a value that is infinite or not a number, or is in f16.
    pub fn save<B: BurnBackend>(&self, model: &ShaRnn<B>, path: &Path) -> Result<(), WeightsError> {
        let mut tensors = published(model);
        for (name, _, data) in &tensors {
            let beyond = |value: &f32| match self.dtype {
                WeightsDtype::F16 => !burn::tensor::f16::from_f32(*value).is_finite(),
                WeightsDtype::F32 => !value.is_finite(),
                WeightsDtype::Bf16 => !burn::tensor::bf16::from_f32(*value).is_finite(),
            };
            if let Some(index) = data.iter().position(beyond) {
                let (file, tensor) = (path.display().to_string(), name.clone());
                return Err(WeightsError::NotFinite { file, tensor, index, value: data[index] });
            }
        }
        if self.tied_copy
            && model.decoder.weight.is_none()
            && let Some((_, shape, data)) = tensors.iter().find(|(name, ..)| name == EMBEDDING).cloned()
        {
            tensors.push((TIED_DECODER.into(), shape, data));
        }
        let mut metadata = self.metadata.clone();
        let config = serde_json::to_string(&ShaRnnConfig::of(model)).expect("a configuration has only string keys");
        metadata.insert(CONFIG_KEY.into(), config);
        metadata.insert(FORMAT.0.into(), FORMAT.1.into());
        save_tensors_as(path, &tensors, &metadata, self.dtype)
    }
}

/// What a file of weights does not say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Number of attention heads; else the file's, else 1.
    pub n_heads: Option<usize>,
    /// Rows of memory; else the file's, else the paper's 5000.
    pub mem_len: Option<usize>,
    /// Which bytes its symbols are. It has to be named for a file that has not 256 of them, which are bytes.
    pub vocabulary: Option<Vocabulary>,
}

/// A file of weights in memory, of a model that is not known before.
#[derive(Debug)]
pub struct WeightsFile(TensorFile);

impl WeightsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`WeightsError::Io`].
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        TensorFile::read(path).map(Self)
    }

    /// The bytes of a file; errors call it `name`.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self(TensorFile::from_bytes(name.into(), bytes))
    }

    /// The configuration, from names and shapes of the tensors, from the metadata where they are ours, and from `options`.
    ///
    /// # Errors
    /// Whatever makes the file unreadable or no model of ours: see [`WeightsError`].
    pub fn config(&self, options: &ImportOptions) -> Result<ShaRnnConfig, WeightsError> {
        Ok(infer(&self.0.parse()?, options)?.config)
    }

    /// The metadata.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn metadata(&self) -> Result<BTreeMap<String, String>, WeightsError> {
        Ok(self.0.parse()?.metadata)
    }

    /// The model. It is collapsed where the file's is.
    ///
    /// # Errors
    /// As [`config`](Self::config) and [`load_weights`].
    pub fn load<B: Backend>(&self, options: &ImportOptions, device: &B::Device) -> Result<ShaRnn<B>, WeightsError> {
        let file = self.0.parse()?;
        let Inferred { config, collapsed } = infer(&file, options)?;
        let model = config.init_seeded::<B>(0, device);
        let model = if collapsed { model.collapse() } else { model };
        load(model, &file, options.vocabulary.as_ref().and_then(Vocabulary::bytes))
    }
}

/// [`WeightsFile::config`] of the file at `path`.
///
/// # Errors
/// As there.
pub fn read_config(path: &Path, options: &ImportOptions) -> Result<ShaRnnConfig, WeightsError> {
    WeightsFile::open(path)?.config(options)
}

/// [`WeightsFile::load`] of the file at `path`.
///
/// # Errors
/// As there.
pub fn import_weights<B: Backend>(
    path: &Path,
    options: &ImportOptions,
    device: &B::Device,
) -> Result<ShaRnn<B>, WeightsError> {
    WeightsFile::open(path)?.load(options, device)
}

/// Loads weights into `model`, onto its device. Gates may be `[d_model]` or `[1, 1, d_model]`, values F32, F16, BF16 or F64,
/// and a tied `decoder.weight` may be there if it equals the embedding's.
///
/// Published parameters without use are ignored: `attn.qkvs`, `attn.r_gate` and `lnout` of a block, and `lnmid` and
/// `lnmem` of a block that does not attend. Nothing else may be left over. Where all names begin with `module.`, as
/// PyTorch's parallel wrappers write them, they are read without it.
///
/// # Errors
/// Every other difference between file and model, and whatever makes the file unreadable: see [`WeightsError`].
pub fn load_weights<B: BurnBackend>(model: ShaRnn<B>, path: &Path) -> Result<ShaRnn<B>, WeightsError> {
    load(model, &TensorFile::read(path)?.parse()?, None)
}

/// Loads a file whose symbols are these bytes, or what the model's are.
fn load<B: BurnBackend>(
    model: ShaRnn<B>,
    file: &ParsedFile<'_>,
    symbols: Option<&[u8]>,
) -> Result<ShaRnn<B>, WeightsError> {
    check_collapse(&model, file)?;
    let mut wrong = Vec::new();
    let (mut known, mut params) = (BTreeSet::new(), Vec::new());
    for param in param_infos(&model) {
        let name = pytorch_name(&param.path);
        let mut expected = param.shape.clone();
        if let (Some(symbols), EMBEDDING | TIED_DECODER | DECODER_BIAS) = (symbols, name.as_str()) {
            expected[0] = symbols.len();
        }
        match file.tensors.get(&name).map(|view| view.shape()) {
            None => {
                let hint = "the file is of another model or another configuration".to_string();
                wrong.push(WeightsError::Missing { file: file.file.into(), tensor: name.clone(), expected, hint });
            }
            Some(found) if found != expected && found != published_shape(&param.path, &expected) => {
                let found = found.to_vec();
                wrong.push(WeightsError::Shape { file: file.file.into(), tensor: name.clone(), expected, found });
            }
            Some(_) => params.push((param.path, name.clone())),
        }
        known.insert(name);
    }
    for (name, view) in file.tensors.iter().filter(|(name, _)| !known.contains(*name)) {
        if name != TIED_DECODER && !is_unused(name, &model) {
            let hint = "the file is of another model or another configuration".to_string();
            let (file, found) = (file.file.to_string(), view.shape().to_vec());
            wrong.push(WeightsError::Unexpected { file, tensor: name.clone(), found, hint });
        }
    }
    problems(file.file, wrong)?;

    let mut values = BTreeMap::new();
    for (path, name) in params {
        let tensor = file.values(&name)?;
        if name == EMBEDDING && !known.contains(TIED_DECODER) && file.tensors.contains_key(TIED_DECODER) {
            check_tied(file, &tensor)?;
        }
        let tensor = match symbols {
            Some(symbols) => spread(&name, tensor, symbols),
            None => tensor,
        };
        values.insert(path, tensor);
    }
    Ok(map_params(model, &mut Place(values)))
}

/// Nothing where nothing is wrong, the error where one thing is, and a list of several.
fn problems(file: &str, mut wrong: Vec<WeightsError>) -> Result<(), WeightsError> {
    if wrong.len() > 1 {
        let told = wrong.iter().take(TOLD).map(|problem| match problem {
            WeightsError::Missing { tensor, expected, .. } => format!("{tensor} {expected:?} is missing"),
            WeightsError::Unexpected { tensor, found, .. } => format!("{tensor} {found:?} is unknown"),
            WeightsError::Shape { tensor, expected, found, .. } => {
                format!("{tensor} has shape {found:?}, expected {expected:?}")
            }
            other => other.to_string(),
        });
        let problems = told.collect();
        return Err(WeightsError::Several { file: file.into(), problems, left_out: wrong.len().saturating_sub(TOLD) });
    }
    wrong.pop().map_or(Ok(()), Err)
}

/// The rows of symbols in the places of their bytes. Rows of other bytes are zero, and their bias leaves them no probability.
fn spread(name: &str, tensor: HostTensor, symbols: &[u8]) -> HostTensor {
    let unknown = match name {
        EMBEDDING | TIED_DECODER => 0.0,
        DECODER_BIAS => UNKNOWN_BIAS,
        _ => return tensor,
    };
    let HostTensor { mut shape, data } = tensor;
    let width = data.len() / symbols.len();
    let mut spread = vec![unknown; 256 * width];
    for (row, &byte) in data.chunks_exact(width).zip(symbols) {
        spread[usize::from(byte) * width..][..width].copy_from_slice(row);
    }
    shape[0] = 256;
    HostTensor { shape, data: spread }
}

/// Puts values of the right size into parameters.
struct Place(BTreeMap<String, HostTensor>);

impl<B: BurnBackend> MapFloat<B> for Place {
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
fn check_collapse<B: BurnBackend>(model: &ShaRnn<B>, file: &ParsedFile<'_>) -> Result<(), WeightsError> {
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
fn is_unused<B: BurnBackend>(name: &str, model: &ShaRnn<B>) -> bool {
    let Some((index, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else { return false };
    let Some(block) = index.parse::<usize>().ok().and_then(|index| model.blocks.get(index)) else { return false };
    match rest {
        "lnout.weight" | "lnout.bias" => true,
        "attn.qkvs" | "attn.r_gate" => block.attending.is_some(),
        "lnmid.weight" | "lnmid.bias" | "lnmem.weight" | "lnmem.bias" => block.attending.is_none(),
        _ => false,
    }
}
