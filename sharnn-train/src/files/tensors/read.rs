//! Reading a safetensors file: the header first, then one tensor at a time.
//!
//! ```text
//! 8 bytes    length of the header, little-endian
//! header     JSON: type, shape and place of every tensor by name, and metadata
//! data       the tensors, row-major and little-endian, without gaps
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sharnn_data::whole_file;

use super::write::scale_name;
use super::{MAX_HEADER, WeightsError, shown};
use crate::files::json_error;

/// An open file whose header has been checked against its length.
#[derive(Debug)]
pub(crate) struct TensorFile {
    /// Its path, for messages.
    pub(crate) file: String,
    pub(crate) metadata: BTreeMap<String, String>,
    source: Source,
    data_start: u64,
    infos: BTreeMap<String, Stored>,
}

/// Where and how a tensor is stored.
#[derive(Clone, Debug)]
struct Stored {
    info: TensorInfo,
    /// What one is worth, where its values are whole numbers of 8 bits.
    scales: Option<TensorInfo>,
}

/// Tensors by name, and those of whole numbers with their scales, which are no tensors by themselves then.
fn stored(mut infos: BTreeMap<String, TensorInfo>) -> BTreeMap<String, Stored> {
    let whole: Vec<_> =
        infos.iter().filter(|(_, info)| info.dtype == Dtype::I8).map(|(name, _)| name.clone()).collect();
    let mut scales: BTreeMap<_, _> =
        whole.into_iter().filter_map(|name| infos.remove(&scale_name(&name)).map(|info| (name, info))).collect();
    let stored = |(name, info)| {
        let scales = scales.remove(&name);
        (name, Stored { info, scales })
    };
    infos.into_iter().map(stored).collect()
}

/// Where the bytes are.
#[derive(Debug)]
enum Source {
    File(File),
    Memory(&'static [u8]),
}

impl Source {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
            Self::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                rest.unwrap_or_default().read_exact(buffer)
            }
        }
    }
}

impl TensorFile {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = path.display().to_string();
        let read = |source| WeightsError::Io { file: file.clone(), action: "read", source };
        let handle = whole_file::open(path).map_err(read)?;
        let len = handle.metadata().map_err(read)?.len();
        Self::new(file, Source::File(handle), len)
    }

    /// The same of a file in memory, called `file` in messages.
    pub(crate) fn in_memory(file: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::new(file.into(), Source::Memory(bytes), bytes.len() as u64)
    }

    fn new(file: String, source: Source, len: u64) -> Result<Self, WeightsError> {
        let header = read_header(&source, len);
        match header.map_err(|source| WeightsError::Io { file: file.clone(), action: "read", source })? {
            Ok((data_start, header)) => {
                let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
                let infos = header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
                Ok(Self { file, metadata, source, data_start, infos: stored(infos) })
            }
            Err(reason) => Err(match pickle_kind(&source) {
                Some(kind) => WeightsError::Pickle { file, kind },
                None => WeightsError::Format { file, bytes: len, reason },
            }),
        }
    }

    /// Name and shape of every tensor, by name.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.infos.iter().map(|(name, stored)| (name.as_str(), stored.info.shape.as_slice()))
    }

    /// The shape of a tensor, where it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.infos.get(name).map(|stored| stored.info.shape.as_slice())
    }

    /// Gives every tensor another name, unless two would have the same.
    pub(crate) fn rename(mut self, name: impl Fn(&str) -> String) -> Self {
        let renamed: BTreeMap<_, _> = self.infos.iter().map(|(old, info)| (name(old), info.clone())).collect();
        if renamed.len() == self.infos.len() {
            self.infos = renamed;
        }
        self
    }

    /// Lets the tensor `of`, where it is there, be found under `name` too, where nothing is.
    pub(crate) fn alias(&mut self, name: &str, of: &str) {
        if let (None, Some(info)) = (self.infos.get(name), self.infos.get(of)) {
            self.infos.insert(name.into(), info.clone());
        }
    }

    /// Reads the tensor `name`, which must be there, as f32.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let Stored { info, scales } = &self.infos[name];
        let wrong_type = |found: String| WeightsError::Dtype { file: self.file.clone(), tensor: shown(name), found };
        let mut values = self.numbers(info)?.ok_or_else(|| wrong_type(info.dtype.to_string()))?;
        if info.dtype == Dtype::I8 {
            let Some(scales) = scales else {
                return Err(wrong_type(format!("I8 without {}", shown(&scale_name(name)))));
            };
            let rows = info.shape.first().copied().unwrap_or(1);
            let n = scales.shape.iter().product::<usize>();
            if scales.dtype == Dtype::I8 || n == 0 || !rows.is_multiple_of(n) {
                return Err(wrong_type(format!("I8 with {n} scales of {} for {rows} rows", scales.dtype)));
            }
            let worth =
                self.numbers(scales)?.ok_or_else(|| wrong_type(format!("I8 with scales of {}", scales.dtype)))?;
            let together = values.len() / n;
            for (values, scale) in values.chunks_mut(together.max(1)).zip(worth) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let (file, tensor, value) = (self.file.clone(), shown(name), values[index]);
                Err(WeightsError::NotFinite { file, tensor, index, value })
            }
        }
    }

    /// The numbers of a tensor as they stand in the file; `None` where they are of a type that is not read.
    fn numbers(&self, info: &TensorInfo) -> Result<Option<Vec<f32>>, WeightsError> {
        let TensorInfo { dtype, data_offsets: (start, end), .. } = info;
        if !matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16 | Dtype::I8) {
            return Ok(None);
        }
        let mut bytes = vec![0; end - start];
        self.source.read_at(self.data_start + *start as u64, &mut bytes).map_err(|source| WeightsError::Io {
            file: self.file.clone(),
            action: "read",
            source,
        })?;
        Ok(Some(match dtype {
            Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::I8 => bytes.iter().map(|&b| f32::from(b.cast_signed())).collect(),
            _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }))
    }
}

/// Where the data begin, and the header; or what is wrong with it. No more is read than a header may be long.
fn read_header(source: &Source, len: u64) -> io::Result<Result<(u64, Metadata), String>> {
    let mut start = [0; 8];
    if len < 8 {
        return Ok(Err("it is too short for the length of a header".into()));
    }
    source.read_at(0, &mut start)?;
    let header_len = u64::from_le_bytes(start);
    let rest = len - 8;
    if header_len > rest {
        return Ok(Err(format!("its header should have {header_len} bytes, and {rest} are there")));
    }
    if header_len > MAX_HEADER {
        return Ok(Err(format!("its header has {header_len} bytes, expected at most {MAX_HEADER}")));
    }
    let mut header = vec![0; header_len as usize];
    source.read_at(8, &mut header)?;
    // Offsets follow each other without gaps, and every shape needs just the bytes that it has.
    let metadata: Metadata = match serde_json::from_slice(&header) {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Err(json_error(&error))),
    };
    let (expected, found) = (metadata.data_len() as u64, rest - header_len);
    if expected != found {
        return Ok(Err(format!("its tensors need {expected} bytes of data, and {found} are there")));
    }
    Ok(Ok((8 + header_len, metadata)))
}

/// What `torch.save` writes, by its first bytes: a zip archive, or before PyTorch 1.6 a bare pickle. Asked of files that are
/// no safetensors: a header's length may begin like a pickle.
fn pickle_kind(source: &Source) -> Option<&'static str> {
    let mut magic = [0; 4];
    source.read_at(0, &mut magic).ok()?;
    match magic {
        [b'P', b'K', 3, 4] => Some("zip archive"),
        [0x80, 2..=5, ..] => Some("pickle"),
        _ => None,
    }
}
