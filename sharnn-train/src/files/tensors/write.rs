//! Writing a safetensors file.
//!
//! The header is written here and not by the safetensors crate, which puts metadata in an order that differs from run to
//! run: the same weights are to give the same file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use sharnn_data::whole_file;
use sharnn_kernels::int8;

use super::{MAX_HEADER, WeightsError};

/// The type in which tensors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits: exact.
    #[default]
    F32,
    /// 16 bits, of which 10 for the fraction: up to 65504, relative error 2⁻¹¹.
    F16,
    /// 16 bits, of which 7 for the fraction: as far as f32, relative error 2⁻⁸.
    Bf16,
    /// Matrices in whole numbers of 8 bits, times a scale: off by at most 1/254 of the largest value that has the same scale. A row has a
    /// scale, or so many short rows as hold 64 values together. All else is in f32.
    Int8,
}

impl WeightType {
    /// Every type, and its name for people.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::F32, "f32"), (Self::F16, "f16"), (Self::Bf16, "bf16"), (Self::Int8, "int8")];

    /// Its name in a safetensors file: "F32", "F16", "BF16" or "I8".
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Int8 => "I8",
        }
    }

    /// Size of a value in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::Int8 => Dtype::I8,
        }
    }

    /// Whether it can hold a finite value.
    fn holds(self, x: f32) -> bool {
        match self {
            Self::F32 | Self::Int8 => true,
            Self::F16 => f16::from_f32(x).is_finite(),
            Self::Bf16 => bf16::from_f32(x).is_finite(),
        }
    }
}

/// A tensor as it stands in the file.
struct Stored<'a> {
    shape: Vec<usize>,
    dtype: WeightType,
    values: Cow<'a, [f32]>,
    /// Of whole numbers: what one is worth, for so many values.
    scales: Option<(Vec<f32>, usize)>,
}

impl<'a> Stored<'a> {
    fn float(dtype: WeightType, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self { shape: shape.to_vec(), dtype, values: values.into(), scales: None }
    }

    /// What stands in the file of a tensor of a name, with the names: itself, and scales.
    fn of(name: &str, dtype: WeightType, shape: &[usize], values: &'a [f32]) -> Vec<(String, Self)> {
        let stored = match (dtype, shape) {
            (WeightType::Int8, &[rows, cols]) if rows * cols > 0 => {
                let together = int8::rows_of_a_scale([rows, cols]) * cols;
                let scales: Vec<_> = values.chunks_exact(together).map(int8::scale).collect();
                let own = Self { scales: Some((scales.clone(), together)), ..Self::float(dtype, shape, values) };
                return vec![
                    (name.into(), own),
                    (scale_name(name), Self::float(WeightType::F32, &[scales.len()], scales)),
                ];
            }
            (WeightType::Int8, _) => Self::float(WeightType::F32, shape, values),
            _ => Self::float(dtype, shape, values),
        };
        vec![(name.into(), stored)]
    }

    /// Appends the bytes of some of its values.
    fn append(&self, bytes: &mut Vec<u8>, range: Range<usize>) {
        let values = &self.values[range.clone()];
        match self.dtype {
            WeightType::F32 => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
            WeightType::F16 => values.iter().for_each(|&x| bytes.extend(f16::from_f32(x).to_le_bytes())),
            WeightType::Bf16 => values.iter().for_each(|&x| bytes.extend(bf16::from_f32(x).to_le_bytes())),
            WeightType::Int8 => {
                let (scales, together) = self.scales.as_ref().expect("whole numbers have scales");
                let whole = |(place, &x): (usize, &f32)| int8::whole(x, scales[place / together]);
                bytes.extend(range.zip(values).map(|of| whole(of).cast_unsigned()));
            }
        }
    }
}

/// What the scales of a tensor are called.
pub(super) fn scale_name(tensor: &str) -> String {
    format!("{tensor}_scale")
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
    dtype: WeightType,
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
        if let Some(index) = data.iter().position(|&x| x.is_finite() && !dtype.holds(x)) {
            let (tensor, value, dtype) = (tensor.clone(), data[index], dtype.name());
            return Err(WeightsError::TooLarge { file, tensor, index, value, dtype });
        }
    }
    let stored = tensors.iter().flat_map(|(name, shape, data)| Stored::of(name, dtype, shape, data));
    let mut names = 0;
    let by_name: BTreeMap<_, _> = stored.inspect(|_| names += 1).collect();
    assert_eq!(by_name.len(), names, "tensors of {file} have names in common");
    let mut end = 0;
    let mut header = Header { metadata, tensors: BTreeMap::new() };
    for (name, tensor) in &by_name {
        let start = end;
        end += tensor.dtype.size() * tensor.values.len();
        let info = TensorInfo { dtype: tensor.dtype.dtype(), shape: tensor.shape.clone(), data_offsets: (start, end) };
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
        by_name.values().try_for_each(|tensor| {
            (0..tensor.values.len()).step_by(1 << 14).try_for_each(|start| {
                let range = start..tensor.values.len().min(start + (1 << 14));
                let mut bytes = Vec::with_capacity(tensor.dtype.size() * range.len());
                tensor.append(&mut bytes, range);
                out.write_all(&bytes)
            })
        })
    });
    written.map_err(|source: io::Error| match whole_file::is_full(&source) {
        true => WeightsError::DiskFull { file, bytes: end as u64, source },
        false => WeightsError::Io { file, action: "write", source },
    })
}
