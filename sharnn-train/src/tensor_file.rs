//! Named f32 tensors in safetensors files: written whole and synced, read with every value checked.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::tensor::{TensorView, View};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::whole_file::write_whole;

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Vec<f32>,
}

/// Why tensors could not be written, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The disk has no room for the file.
    #[error("{file} needs {bytes} bytes, and the disk is full or the quota used up: make room, or write elsewhere")]
    DiskFull {
        /// The file.
        file: String,
        /// Size of its tensors in bytes.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be opened, read or written.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried: "read" or "write".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a whole safetensors file.
    #[error(
        "{file} ({bytes} bytes) is not a complete safetensors file: {reason}; it is truncated, damaged or of another format: copy or make it again"
    )]
    Format {
        /// The file.
        file: String,
        /// Its size in bytes.
        bytes: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is a pickle, which may run any program when it is read.
    #[error(
        "{file} is a PyTorch pickle, which is never read: convert it in Python, by safetensors.torch.save_file({{k: v.contiguous() for k, v in torch.load(\"model.pt\", weights_only=True).items()}}, \"model.safetensors\")"
    )]
    Pickle {
        /// The file.
        file: String,
    },
    /// Several tensors do not fit the model.
    #[error("{file} does not fit the model: {}{}", problems.join("; "), more(*left_out))]
    Several {
        /// The file.
        file: String,
        /// What is wrong with each of the first of them.
        problems: Vec<String>,
        /// Number of others.
        left_out: usize,
    },
    /// The tensors are of a model that can't be built.
    #[error("{file} holds no model that can be built: {source}")]
    Config {
        /// The file.
        file: String,
        /// What can't be.
        source: sharnn_core::ConfigError,
    },
    /// The file says of itself what its tensors do not.
    #[error(
        "{file} says in its metadata that {field} is {said}, and its tensors say {found}: it was put together wrongly, make it again"
    )]
    Metadata {
        /// The file.
        file: String,
        /// The field of the configuration.
        field: &'static str,
        /// What the metadata say.
        said: String,
        /// What the tensors say.
        found: String,
    },
    /// It is not known which bytes the symbols are.
    #[error("{file} has {symbols} symbols, and {hint}")]
    Vocabulary {
        /// The file.
        file: String,
        /// Number of symbols.
        symbols: usize,
        /// What to do.
        hint: String,
    },
    /// A tensor is of a type that is not a float of 16, 32 or 64 bits.
    #[error("tensor {tensor} in {file} holds {found}, expected F32, F16, BF16 or F64")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor is not there.
    #[error("tensor {tensor} of shape {expected:?} is missing from {file}: {hint}")]
    Missing {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape that the model has.
        expected: Vec<usize>,
        /// What to do.
        hint: String,
    },
    /// A tensor is there that the model does not have.
    #[error("tensor {tensor} of shape {found:?} in {file} is unknown to the model: {hint}")]
    Unexpected {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What to do.
        hint: String,
    },
    /// A tensor has another shape than the model's.
    #[error(
        "tensor {tensor} in {file} has shape {found:?}, the model expects {expected:?}: load it with the configuration that it was saved with"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape that the model has.
        expected: Vec<usize>,
        /// The shape that was found.
        found: Vec<usize>,
    },
    /// A tensor's values do not fill its shape.
    #[error("tensor {tensor} in {file} has {found} values, its shape {shape:?} needs {expected}")]
    Length {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Values that the shape needs.
        expected: usize,
        /// Values that there are.
        found: usize,
    },
    /// A value is infinite or not a number, or does not fit an f32.
    #[error(
        "tensor {tensor} in {file} holds {value} at position {index}, expected finite values: the run that wrote it diverged, use an older file"
    )]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A moment of the optimizer holds a value that no moment has.
    #[error(
        "{tensor} in {file} holds {value} at position {index}, expected a finite value, of a second moment at least 0: use an older checkpoint"
    )]
    BadMoment {
        /// Where the moments came from.
        file: String,
        /// The moment.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A tied model meets a decoder of its own.
    #[error(
        "decoder.weight in {file} holds {decoder} at position {index} where encoder.weight holds {encoder}, but the model ties them: load it with tied = false"
    )]
    NotTied {
        /// The file.
        file: String,
        /// Position of the first difference, row-major from 0.
        index: usize,
        /// The embedding's value.
        encoder: f32,
        /// The decoder's value.
        decoder: f32,
    },
    /// A collapsed file meets an uncollapsed model.
    #[error(
        "{file} holds a collapsed model (no {tensor}), this one is not collapsed: call collapse() on the model before loading; a collapsed model cannot be trained as before"
    )]
    Collapsed {
        /// The file.
        file: String,
        /// The tensor that collapsing removes.
        tensor: String,
    },
    /// An uncollapsed file meets a collapsed model.
    #[error(
        "{file} holds an uncollapsed model (it has {tensor}), this one is collapsed: load it into a fresh model and collapse that"
    )]
    Uncollapsed {
        /// The file.
        file: String,
        /// The tensor that collapsing removes.
        tensor: String,
    },
}

/// How many more problems there are than were told.
fn more(left_out: usize) -> String {
    if left_out > 0 { format!("; and {left_out} more") } else { String::new() }
}

/// Writes tensors to `path` in f32 and waits until they are on the disk. Until the new file is whole, `path` holds what it held
/// before.
///
/// # Errors
/// [`WeightsError::DiskFull`], [`WeightsError::Io`], or [`WeightsError::Length`] where values do not fill their shape.
pub fn save_tensors(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    save_tensors_as(path, tensors, metadata, WeightsDtype::F32)
}

/// [`save_tensors`] in another type of values, to which they are rounded.
pub(crate) fn save_tensors_as(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: &BTreeMap<String, String>,
    dtype: WeightsDtype,
) -> Result<(), WeightsError> {
    let file = path.display().to_string();
    for (tensor, shape, data) in tensors {
        let expected = shape.iter().product();
        if data.len() != expected {
            let (tensor, shape, found) = (tensor.clone(), shape.clone(), data.len());
            return Err(WeightsError::Length { file, tensor, shape, expected, found });
        }
    }
    let views = tensors.iter().map(|(name, shape, data)| (name.as_str(), HostView { shape, data, dtype }));
    let metadata: Option<HashMap<_, _>> = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
    let written = write_whole(path, |aside| {
        safetensors::serialize_to_file(views, metadata, aside).map_err(|error| match error {
            SafeTensorError::IoError(source) => source,
            error => io::Error::new(io::ErrorKind::InvalidInput, error),
        })
    });
    written.map_err(|source| write_error(file, tensors, dtype, source))
}

/// Type of the values in a file of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightsDtype {
    /// 32 bits: as they are trained.
    #[default]
    F32,
    /// 16 bits with 10 of mantissa. Values beyond 65504 can't be written.
    F16,
    /// 16 bits with 7 of mantissa, and the range of f32.
    Bf16,
}

impl WeightsDtype {
    /// Every type and its name.
    pub const ALL: [(Self, &'static str); 3] = [(Self::F32, "f32"), (Self::F16, "f16"), (Self::Bf16, "bf16")];

    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

fn write_error(
    file: String,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    dtype: WeightsDtype,
    source: io::Error,
) -> WeightsError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let bytes = tensors.iter().map(|(_, _, data)| (dtype.bytes() * data.len()) as u64).sum();
            WeightsError::DiskFull { file, bytes, source }
        }
        _ => WeightsError::Io { file, action: "write", source },
    }
}

/// Reads every tensor of a file as f32.
///
/// # Errors
/// [`WeightsError::Io`], [`WeightsError::Format`], [`WeightsError::Dtype`] or [`WeightsError::NotFinite`].
pub fn load_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let bytes = TensorFile::read(path)?;
    let file = bytes.parse()?;
    file.tensors.keys().map(|name| Ok((name.clone(), file.values(name)?))).collect()
}

/// Reads the metadata of a file: what [`save_tensors`] was given beside the tensors.
///
/// # Errors
/// [`WeightsError::Io`] or [`WeightsError::Format`].
pub fn load_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let file = TensorFile::read(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&file.bytes).map_err(|error| file.format(&error))?;
    Ok(metadata.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// A tensor that is converted to bytes when its turn to be written comes.
struct HostView<'a> {
    shape: &'a [usize],
    data: &'a [f32],
    dtype: WeightsDtype,
}

impl View for HostView<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            WeightsDtype::F32 => Dtype::F32,
            WeightsDtype::F16 => Dtype::F16,
            WeightsDtype::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.data.iter();
        let bytes: Vec<u8> = match self.dtype {
            WeightsDtype::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            WeightsDtype::F16 => values.flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            WeightsDtype::Bf16 => values.flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        };
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.dtype.bytes() * self.data.len()
    }
}

/// What PyTorch's parallel wrappers put before every name.
const WRAPPED: &str = "module.";

/// The bytes of a safetensors file.
pub(crate) struct TensorFile {
    file: String,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile").field("file", &self.file).field("bytes", &self.bytes.len()).finish()
    }
}

impl TensorFile {
    pub(crate) fn read(path: &Path) -> Result<Self, WeightsError> {
        let file = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Ok(Self { file, bytes }),
            Err(source) => Err(WeightsError::Io { file, action: "read", source }),
        }
    }

    pub(crate) fn from_bytes(file: String, bytes: Vec<u8>) -> Self {
        Self { file, bytes }
    }

    pub(crate) fn parse(&self) -> Result<ParsedFile<'_>, WeightsError> {
        // What `torch.save` writes: a zip archive, or before that a pickle.
        if self.bytes.starts_with(b"PK\x03\x04") || self.bytes.starts_with(b"\x80\x02") {
            return Err(WeightsError::Pickle { file: self.file.clone() });
        }
        let parsed = SafeTensors::deserialize(&self.bytes).map_err(|error| self.format(&error))?;
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|error| self.format(&error))?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut tensors: BTreeMap<_, _> = parsed.tensors().into_iter().collect();
        if !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(WRAPPED)) {
            tensors = tensors.into_iter().map(|(name, view)| (name[WRAPPED.len()..].to_string(), view)).collect();
        }
        Ok(ParsedFile { file: &self.file, bytes: self.bytes.len() as u64, tensors, metadata })
    }

    fn format(&self, error: &SafeTensorError) -> WeightsError {
        let bytes = self.bytes.len() as u64;
        WeightsError::Format { file: self.file.clone(), bytes, reason: error.to_string() }
    }
}

/// The tensors of a safetensors file, not yet converted.
pub(crate) struct ParsedFile<'a> {
    pub(crate) file: &'a str,
    /// Its size.
    pub(crate) bytes: u64,
    pub(crate) metadata: BTreeMap<String, String>,
    /// By name, without what PyTorch's parallel wrappers put before all names.
    pub(crate) tensors: BTreeMap<String, TensorView<'a>>,
}

impl ParsedFile<'_> {
    /// The values of the tensor `name`, which must be there.
    pub(crate) fn values(&self, name: &str) -> Result<HostTensor, WeightsError> {
        let view = &self.tensors[name];
        let bytes = view.data();
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            found => {
                let (file, tensor) = (self.file.to_string(), name.to_string());
                return Err(WeightsError::Dtype { file, tensor, found: found.to_string() });
            }
        };
        if let Some(index) = data.iter().position(|value| !value.is_finite()) {
            let (file, tensor, value) = (self.file.to_string(), name.to_string(), data[index]);
            return Err(WeightsError::NotFinite { file, tensor, index, value });
        }
        Ok(HostTensor { shape: view.shape().to_vec(), data })
    }
}
