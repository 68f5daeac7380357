//! Named f32 tensors in safetensors files: written whole and synced, read with every value checked.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::tensor::{TensorView, View};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

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

/// Writes tensors to `path` and waits until they are on the disk. A file that could not be written whole is removed.
///
/// # Errors
/// [`WeightsError::DiskFull`], [`WeightsError::Io`], or [`WeightsError::Length`] where values do not fill their shape.
pub fn save_tensors(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let file = path.display().to_string();
    for (tensor, shape, data) in tensors {
        let expected = shape.iter().product();
        if data.len() != expected {
            let (tensor, shape, found) = (tensor.clone(), shape.clone(), data.len());
            return Err(WeightsError::Length { file, tensor, shape, expected, found });
        }
    }
    let views = tensors.iter().map(|(name, shape, data)| (name.as_str(), F32View { shape, data }));
    let metadata: Option<HashMap<_, _>> = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
    // Opened first, so that a file that cannot be opened is left alone; the serializer then writes to the same one.
    let handle = match File::create(path) {
        Ok(handle) => handle,
        Err(source) => return Err(write_error(file, tensors, source)),
    };
    let written = safetensors::serialize_to_file(views, metadata, path).and_then(|()| Ok(handle.sync_all()?));
    written.map_err(|error| {
        // A device or a pipe is not ours to remove. The error that counts is the first one.
        if path.is_file() {
            let _ = fs::remove_file(path);
        }
        let source = match error {
            SafeTensorError::IoError(source) => source,
            error => io::Error::new(io::ErrorKind::InvalidInput, error),
        };
        write_error(file, tensors, source)
    })
}

fn write_error(file: String, tensors: &[(String, Vec<usize>, Vec<f32>)], source: io::Error) -> WeightsError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let bytes = tensors.iter().map(|(_, _, data)| 4 * data.len() as u64).sum();
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
struct F32View<'a> {
    shape: &'a [usize],
    data: &'a [f32],
}

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.data.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        4 * self.data.len()
    }
}

/// The bytes of a safetensors file.
pub(crate) struct TensorFile {
    file: String,
    bytes: Vec<u8>,
}

impl TensorFile {
    pub(crate) fn read(path: &Path) -> Result<Self, WeightsError> {
        let file = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Ok(Self { file, bytes }),
            Err(source) => Err(WeightsError::Io { file, action: "read", source }),
        }
    }

    pub(crate) fn parse(&self) -> Result<ParsedFile<'_>, WeightsError> {
        let parsed = SafeTensors::deserialize(&self.bytes).map_err(|error| self.format(&error))?;
        Ok(ParsedFile { file: &self.file, tensors: parsed.tensors().into_iter().collect() })
    }

    fn format(&self, error: &SafeTensorError) -> WeightsError {
        let bytes = self.bytes.len() as u64;
        WeightsError::Format { file: self.file.clone(), bytes, reason: error.to_string() }
    }
}

/// The tensors of a safetensors file, not yet converted.
pub(crate) struct ParsedFile<'a> {
    pub(crate) file: &'a str,
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
