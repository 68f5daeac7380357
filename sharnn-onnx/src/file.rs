//! An ONNX file as a stream of bytes. Sizes are known from shapes, so tensors are computed and written one at a time.

use burn::tensor::f16;
use prost::Message;

use crate::OnnxError;
use crate::proto::{self, DataType};

/// Field 7 of the model, field 5 of the graph and field 9 of a tensor, each of the wire's kind 2: length, then bytes.
const GRAPH: u8 = 7 << 3 | 2;
const INITIALIZER: u8 = 5 << 3 | 2;
const RAW_DATA: u8 = 9 << 3 | 2;

/// Largest message that protobuf's readers take, in bytes.
const LARGEST: usize = i32::MAX as usize;

/// Values that are converted at once.
const CHUNK: usize = 1 << 14;

/// Computes a tensor's values.
type Compute<'a> = Box<dyn Fn() -> Result<Vec<f32>, OnnxError> + 'a>;

/// The values of a tensor and how they are kept.
pub(crate) enum Values<'a> {
    F32(Compute<'a>),
    F16(Compute<'a>),
    I64(Vec<i64>),
}

/// A tensor of the graph.
pub(crate) struct Initializer<'a> {
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Values<'a>,
}

impl Initializer<'_> {
    fn data_bytes(&self) -> usize {
        let size = match self.values {
            Values::F32(_) => 4,
            Values::F16(_) => 2,
            Values::I64(_) => 8,
        };
        size * self.dims.iter().product::<usize>()
    }

    /// All but the values.
    fn head(&self) -> Vec<u8> {
        let data_type = match self.values {
            Values::F32(_) => DataType::Float,
            Values::F16(_) => DataType::Float16,
            Values::I64(_) => DataType::Int64,
        };
        let dims = self.dims.iter().map(|&dim| dim as i64).collect();
        let tensor = proto::Tensor { dims, data_type: data_type.into(), name: self.name.clone() };
        let mut head = tensor.encode_to_vec();
        begin(&mut head, RAW_DATA, self.data_bytes());
        head
    }

    fn write(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), OnnxError>) -> Result<(), OnnxError> {
        let computed = |compute: &Compute<'_>| {
            let values = compute()?;
            assert_eq!(values.len(), self.dims.iter().product::<usize>(), "values of {} {:?}", self.name, self.dims);
            Ok(values)
        };
        match &self.values {
            Values::F32(compute) => convert(&computed(compute)?, f32::to_le_bytes, sink),
            Values::F16(compute) => {
                let values = computed(compute)?;
                if let Some(index) = values.iter().position(|&value| f16::from_f32(value).is_infinite()) {
                    let (tensor, value) = (self.name.clone(), values[index]);
                    return Err(OnnxError::TooLargeForF16 { tensor, index, value });
                }
                convert(&values, |value| f16::from_f32(value).to_le_bytes(), sink)
            }
            Values::I64(values) => convert(values, i64::to_le_bytes, sink),
        }
    }
}

fn convert<T: Copy, const N: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
    sink: &mut dyn FnMut(&[u8]) -> Result<(), OnnxError>,
) -> Result<(), OnnxError> {
    values.chunks(CHUNK).try_for_each(|chunk| sink(&chunk.iter().flat_map(|&value| bytes(value)).collect::<Vec<_>>()))
}

/// Writes the beginning of a field of `len` bytes.
fn begin(out: &mut Vec<u8>, key: u8, len: usize) {
    out.push(key);
    prost::encode_length_delimiter(len, out).expect("a vector grows");
}

/// Bytes of a field of `len` bytes with its beginning.
fn field_len(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

/// An ONNX file, of which only the tensors' values are not computed yet.
pub(crate) struct OnnxFile<'a> {
    /// The model but for its graph.
    model: Vec<u8>,
    /// The graph but for its tensors.
    graph: Vec<u8>,
    tensors: Vec<Initializer<'a>>,
}

impl<'a> OnnxFile<'a> {
    pub(crate) fn new(
        model: &proto::Model,
        graph: &proto::Graph,
        tensors: Vec<Initializer<'a>>,
    ) -> Result<Self, OnnxError> {
        let file = Self { model: model.encode_to_vec(), graph: graph.encode_to_vec(), tensors };
        match file.len() {
            bytes if bytes > LARGEST => Err(OnnxError::TooLarge { bytes: bytes as u64 }),
            _ => Ok(file),
        }
    }

    fn graph_len(&self) -> usize {
        let tensor = |tensor: &Initializer<'_>| field_len(tensor.head().len() + tensor.data_bytes());
        self.graph.len() + self.tensors.iter().map(tensor).sum::<usize>()
    }

    /// Size of the file in bytes.
    pub(crate) fn len(&self) -> usize {
        self.model.len() + field_len(self.graph_len())
    }

    /// Gives the file to `sink`, piece after piece, and stops at the first error.
    pub(crate) fn write(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), OnnxError>) -> Result<(), OnnxError> {
        let mut start = Vec::new();
        begin(&mut start, GRAPH, self.graph_len());
        sink(&self.model)?;
        sink(&start)?;
        sink(&self.graph)?;
        for tensor in &self.tensors {
            let head = tensor.head();
            let mut start = Vec::new();
            begin(&mut start, INITIALIZER, head.len() + tensor.data_bytes());
            sink(&start)?;
            sink(&head)?;
            tensor.write(sink)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one tensor that is never computed.
    fn file(values: usize) -> Result<OnnxFile<'static>, OnnxError> {
        let values_of = Values::F16(Box::new(|| unreachable!("only its size counts")));
        let tensor = Initializer { name: "weight".into(), dims: vec![values], values: values_of };
        OnnxFile::new(&Default::default(), &Default::default(), vec![tensor])
    }

    #[test]
    fn a_file_has_less_than_2_gib() {
        // Some bytes stand around the values.
        assert!(file(LARGEST / 2 - 50).unwrap().len() <= LARGEST);
        let Err(error) = file(LARGEST / 2) else { panic!("there is no limit") };
        assert!(matches!(error, OnnxError::TooLarge { bytes } if bytes > LARGEST as u64), "{error}");
    }
}
