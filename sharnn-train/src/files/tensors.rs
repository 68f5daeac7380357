//! Named tensors in safetensors files: written whole and synced, read with every value checked.

mod error;
mod read;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use error::shown;
pub use error::{Mismatch, TensorMismatch, WeightsError};
pub(crate) use read::TensorFile;
pub use write::WeightType;
pub(crate) use write::write_tensors;

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Vec<f32>,
}

/// The largest header of a file, in bytes: names, shapes and places of its tensors. The moments of a model of a thousand
/// blocks need less than half of it. Parsing one takes up to 40 times as much memory, to which a test holds it.
const MAX_HEADER: u64 = 16 << 20;

/// Writes tensors to `path` in f32 and waits until they are on the disk. A file that was there is replaced only when that
/// has succeeded, so for a while both need room. The same tensors and metadata give the same bytes.
///
/// # Errors
/// [`WeightsError::DiskFull`], [`WeightsError::Io`], or [`WeightsError::Length`] where values do not fill their shape.
///
/// # Panics
/// If two tensors have one name.
pub fn save_tensors(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    write_tensors(path, WeightType::F32, tensors, metadata)
}

/// Reads every tensor of a file as f32.
///
/// # Errors
/// [`WeightsError::Io`], [`WeightsError::Format`], [`WeightsError::Pickle`], [`WeightsError::Dtype`] or
/// [`WeightsError::NotFinite`].
pub fn load_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>, WeightsError> {
    let file = TensorFile::open(path)?;
    let tensor = |(name, shape): (&str, &[usize])| {
        Ok((name.to_string(), HostTensor { shape: shape.to_vec(), data: file.values(name)? }))
    };
    file.shapes().map(tensor).collect()
}

/// Reads the metadata of a file: what [`save_tensors`] was given beside the tensors.
///
/// # Errors
/// [`WeightsError::Io`], [`WeightsError::Format`] or [`WeightsError::Pickle`].
pub fn load_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    Ok(TensorFile::open(path)?.metadata)
}
