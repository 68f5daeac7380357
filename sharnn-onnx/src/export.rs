//! From a model to a file.

use std::collections::BTreeMap;
use std::path::Path;

use sharnn_core::{Backend, ShaRnn};

use crate::file::OnnxFile;
use crate::proto::{Entry, Model, OperatorSet};
use crate::{OnnxError, metadata, network, save};

/// Version of the standard operators that the graph uses: the first with LayerNormalization.
const OPSET: i64 = 17;

/// Version of the file format, the one of that opset.
const IR_VERSION: i64 = 8;

/// How a file keeps the matrices. Vectors, which are few, are kept in f32, and all is computed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnnxWeights {
    /// As they are.
    #[default]
    F32,
    /// In half of the bytes, rounded to 11 bits. The file is half as large; runtimes widen matrices once when they load it.
    F16,
}

/// How a model is exported.
///
/// ```
/// use burn::backend::Flex;
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_onnx::{OnnxExport, OnnxWeights};
///
/// let model = ShaRnnConfig::xs().init_seeded::<Flex>(1, &Default::default());
/// let export = OnnxExport { weights: OnnxWeights::F16, single_step: true, ..Default::default() };
/// let bytes = export.encode(&model)?;
/// assert!(bytes.len() < 2_000_000);
/// # Ok::<(), sharnn_onnx::OnnxError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnnxExport {
    /// How matrices are kept.
    pub weights: OnnxWeights,
    /// Whether the graph takes one token at a time, for decoding: it needs no mask. Else segments are of any length.
    pub single_step: bool,
    /// What the file's metadata holds beside the export's own keys, as in `license`, or where the weights come from. Keys that
    /// begin with `sharnn.` are the export's.
    pub metadata: BTreeMap<String, String>,
}

impl OnnxExport {
    /// The bytes of the file. Beside them, no more than one of the model's tensors is copied at a time.
    ///
    /// # Errors
    /// [`OnnxError::NotFinite`], [`OnnxError::TooLargeForF16`], [`OnnxError::ReservedKey`] or [`OnnxError::TooLarge`].
    pub fn encode<B: Backend>(&self, model: &ShaRnn<B>) -> Result<Vec<u8>, OnnxError> {
        let file = self.file(model)?;
        let mut bytes = Vec::with_capacity(file.len());
        file.write(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Writes the file to `path` and waits until it is on the disk. It is written beside `path` first, one tensor at a time,
    /// and renamed when it is whole: what was at `path` stays until then.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode), [`OnnxError::DiskFull`] or [`OnnxError::Io`].
    pub fn save<B: Backend>(&self, model: &ShaRnn<B>, path: impl AsRef<Path>) -> Result<(), OnnxError> {
        save::save(&self.file(model)?, path.as_ref())
    }

    fn file<'a, B: Backend>(&self, model: &'a ShaRnn<B>) -> Result<OnnxFile<'a>, OnnxError> {
        let metadata = metadata::metadata(model, self)?;
        let graph = network::network(model, self);
        let doc_string = match self.single_step {
            true => "A SHA-RNN language model that reads one token at a time.",
            false => "A SHA-RNN language model that reads segments of a stream.",
        };
        let head = Model {
            ir_version: IR_VERSION,
            producer_name: "sharnn".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            doc_string: doc_string.into(),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
            metadata_props: metadata.into_iter().map(|(key, value)| Entry { key, value }).collect(),
        };
        OnnxFile::new(&head, &graph.proto, graph.tensors)
    }
}
