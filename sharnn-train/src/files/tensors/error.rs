//! What can go wrong with files of tensors.

use std::fmt;
use std::io;

use sharnn_core::ConfigError;

use crate::files::VocabularyError;

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
    /// The file is a pickle, or an archive of one: reading it would run whatever code is in it.
    #[error(
        "{file} is a {kind}, as torch.save writes: it is not read, since unpickling runs code that is in the file. Convert it with PyTorch:\n\
         \x20 import torch; from safetensors.torch import save_file\n\
         \x20 state = torch.load({}, map_location=\"cpu\", weights_only=True)\n\
         \x20 save_file({{name: x.clone().contiguous() for name, x in state.items()}}, \"model.safetensors\")",
        python(file)
    )]
    Pickle {
        /// The file.
        file: String,
        /// "zip archive" or "pickle".
        kind: &'static str,
    },
    /// A tensor is of a type that is not a float of 16, 32 or 64 bits, nor whole numbers of 8 bits with scales for its rows.
    #[error(
        "tensor {tensor} in {file} holds {found}, expected F32, F16, BF16, F64, or I8 with one scale for each row or for as many rows"
    )]
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
    #[error("tensor {tensor} of shape {} in {file} is unknown to the model: {hint}", Shape(found))]
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
        "tensor {tensor} in {file} has shape {}, the model expects {expected:?}: load it with the configuration that it was saved with",
        Shape(found)
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
    /// The tensors of a file are not those of the model.
    #[error("{mismatch}, in {file}: load it with the configuration that it was saved with")]
    Mismatch {
        /// The file.
        file: String,
        /// What differs.
        mismatch: Mismatch,
    },
    /// The file has none of the tensors by which a model is known.
    #[error(
        "{file} holds no SHA-RNN: among its {tensors} tensors is no {tensor} of {rank} dimensions; save a state_dict under the published names"
    )]
    NotAModel {
        /// The file.
        file: String,
        /// How many tensors it has.
        tensors: usize,
        /// One that every model has.
        tensor: &'static str,
        /// Its number of dimensions.
        rank: usize,
    },
    /// The configuration that belongs to the file cannot be built.
    #[error("the model of {file}: {source}")]
    Unusable {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The configuration in the file's metadata is not that of a model.
    #[error(
        "the metadata {key} of {file} is no configuration of this program: {reason}; it was written by another version, or by hand"
    )]
    Metadata {
        /// The file.
        file: String,
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration in the file's metadata is another than the model's, or than that of the tensors beside it.
    #[error("{file} says that it was saved with {field} = {saved}, but {what} {found}: load it as what it is")]
    Config {
        /// The file.
        file: String,
        /// The first field that differs.
        field: &'static str,
        /// What the metadata says.
        saved: String,
        /// Whose the other value is, as in "the model has".
        what: &'static str,
        /// The other value.
        found: String,
    },
    /// Which bytes the symbols of the model are is not known, or cannot be so.
    #[error("the symbols of {file}: {source}")]
    Vocabulary {
        /// The file.
        file: String,
        /// What is wrong.
        source: VocabularyError,
    },
    /// A value is too large for the type in which it is to be written.
    #[error(
        "tensor {tensor} holds {value} at position {index}, which {dtype} cannot hold: {file} is not written, use F32"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value.
        value: f32,
        /// The type.
        dtype: &'static str,
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
    /// A state holds what is no token of its model.
    #[error(
        "{tensor} in {file} holds {value} at position {index}, expected tokens below {vocab_size}: use an older checkpoint"
    )]
    NotAToken {
        /// Path of the file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value.
        value: f32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A tied model meets a decoder of its own.
    #[error(
        "decoder.weight in {file} holds {decoder} at position {index} where encoder.weight holds {encoder}, but the model ties them: load it into one that does not"
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
        "{file} holds a collapsed model (no {tensor}), this one is not collapsed: load it into a collapsed one, which scores and writes text; to train, use weights from before the collapse"
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

/// How the tensors of a file differ from those of a model: how many in which way, and the first of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// How many of the model's tensors are not in the file.
    pub missing: usize,
    /// How many of the file's are not in the model.
    pub unexpected: usize,
    /// How many have another shape.
    pub misshapen: usize,
    /// The first [`LISTED`](Self::LISTED): those that are missing or misshapen in the order of the model, then the others.
    pub listed: Vec<TensorMismatch>,
}

/// One tensor that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorMismatch {
    /// Its name.
    pub tensor: String,
    /// The shape that the model has; `None` where it has no such tensor.
    pub expected: Option<Vec<usize>>,
    /// The shape in the file; `None` where it has no such tensor.
    pub found: Option<Vec<usize>>,
}

impl Mismatch {
    /// How many tensors are listed by name.
    pub const LISTED: usize = 20;

    /// How many tensors differ.
    pub fn len(&self) -> usize {
        self.missing + self.unexpected + self.misshapen
    }

    /// Whether none differs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts a tensor whose shapes differ.
    pub(crate) fn add(&mut self, tensor: &str, expected: Option<&[usize]>, found: Option<&[usize]>) {
        *match (expected, found) {
            (_, None) => &mut self.missing,
            (None, _) => &mut self.unexpected,
            _ => &mut self.misshapen,
        } += 1;
        if self.listed.len() < Self::LISTED {
            let [expected, found] = [expected, found].map(|shape| shape.map(<[usize]>::to_vec));
            self.listed.push(TensorMismatch { tensor: shown(tensor), expected, found });
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_or_many = if self.len() == 1 { "tensor differs" } else { "tensors differ" };
        write!(f, "{} {one_or_many} from the model\'s", self.len())?;
        for (i, TensorMismatch { tensor, expected, found }) in self.listed.iter().enumerate() {
            f.write_str(if i == 0 { ": " } else { "; " })?;
            match (expected.as_deref().map(Shape), found.as_deref().map(Shape)) {
                (Some(expected), Some(found)) => write!(f, "{tensor} has shape {found}, not {expected}")?,
                (Some(expected), None) => write!(f, "{tensor} {expected} is missing")?,
                (None, Some(found)) => write!(f, "{tensor} {found} is unknown")?,
                (None, None) => write!(f, "{tensor}")?,
            }
        }
        match self.len() - self.listed.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// A shape, of which a file may have made a long one.
struct Shape<'a>(&'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [a, b, c, d, _, ..] => write!(f, "[{a}, {b}, {c}, {d}, ...] of {} dimensions", self.0.len()),
            shape => write!(f, "{shape:?}"),
        }
    }
}

/// A text as Python takes it, which knows the escapes of JSON.
fn python(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What a file holds, for a message: no control characters, and not the whole of a long text.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 160;
    let mut shown = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_python_can_be_typed() {
        let said = WeightsError::Pickle { file: "a \"b\"\u{1b}é.pt".into(), kind: "pickle" }.to_string();
        assert!(said.contains(r#"torch.load("a \"b\"\u001bé.pt", map_location="cpu""#), "{said}");
    }

    #[test]
    fn a_message_does_not_grow_with_what_a_file_holds() {
        assert_eq!(shown("blocks.0.attn.qs"), "blocks.0.attn.qs");
        assert_eq!(shown("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
        assert_eq!(shown(&"x".repeat(1000)).len(), 163);
        let mut mismatch = Mismatch::default();
        for i in 0..1000 {
            mismatch.add(&format!("{i}{}", "y".repeat(1000)), None, Some(&[1; 1000]));
        }
        assert_eq!((mismatch.listed.len(), mismatch.len()), (20, 1000));
        let text = mismatch.to_string();
        assert!(text.len() < 6000, "{} bytes", text.len());
        assert!(text.contains("[1, 1, 1, 1, ...] of 1000 dimensions is unknown; "), "{text}");
        assert!(text.ends_with("; and 980 more"), "{text}");
    }
}
