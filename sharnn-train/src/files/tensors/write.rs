//! Writing a safetensors file.
//!
//! The header is written here and not by the safetensors crate, which puts metadata in an order that differs from run to
//! run: the same weights are to give the same file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use sharnn_data::whole_file;

use super::{MAX_HEADER, WeightsError};

/// The type in which tensors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits: exact.
    #[default]
    F32,
    /// 16 bits, of which 10 for the fraction: up to 65504, relative error 2⁻¹¹.
    F16,
    /// 16 bits, of which 7 for the fraction: as far as f32, relative error 2⁻⁸.
    Bf16,
}

impl FloatType {
    /// Its name in a safetensors file: "F32", "F16" or "BF16".
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Size of a value in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// The value that is read back.
    fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    fn append(self, bytes: &mut Vec<u8>, values: &[f32]) {
        match self {
            Self::F32 => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
            Self::F16 => values.iter().for_each(|&x| bytes.extend(f16::from_f32(x).to_le_bytes())),
            Self::Bf16 => values.iter().for_each(|&x| bytes.extend(bf16::from_f32(x).to_le_bytes())),
        }
    }
}

/// Everything of the file that is no value; maps by name, so that their order is always the same.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// As [`save_tensors`](super::save_tensors), in another type. A finite value that the type cannot hold is refused.
pub(crate) fn write_tensors(
    path: &Path,
    float: FloatType,
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
        if let Some(index) = data.iter().position(|&x| x.is_finite() && !float.round(x).is_finite()) {
            let (tensor, value, dtype) = (tensor.clone(), data[index], float.name());
            return Err(WeightsError::TooLarge { file, tensor, index, value, dtype });
        }
    }
    let by_name: BTreeMap<_, _> = tensors.iter().map(|(name, shape, data)| (name.as_str(), (shape, data))).collect();
    assert_eq!(by_name.len(), tensors.len(), "tensors of {file} have names in common");
    let mut end = 0;
    let mut header = Header { metadata, tensors: BTreeMap::new() };
    for (name, (shape, data)) in &by_name {
        let start = end;
        end += float.size() * data.len();
        let info = TensorInfo { dtype: float.dtype(), shape: shape.to_vec(), data_offsets: (start, end) };
        header.tensors.insert(name, info);
    }
    let mut header = serde_json::to_vec(&header).expect("names are strings, and all else is plain");
    // Spaces, so that the data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');

    let written = whole_file::write(path, |out| {
        if header.len() as u64 > MAX_HEADER {
            let told = format!("its header would have {} bytes, more than {MAX_HEADER}", header.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, told));
        }
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        by_name.values().flat_map(|(_, data)| data.chunks(1 << 14)).try_for_each(|values| {
            let mut bytes = Vec::with_capacity(float.size() * values.len());
            float.append(&mut bytes, values);
            out.write_all(&bytes)
        })
    });
    written.map_err(|source: io::Error| match whole_file::is_full(&source) {
        true => WeightsError::DiskFull { file, bytes: end as u64, source },
        false => WeightsError::Io { file, action: "write", source },
    })
}
