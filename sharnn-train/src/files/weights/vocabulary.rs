//! Which bytes the symbols of a model are.

use std::io::Read;
use std::path::Path;

use sharnn_data::whole_file;

use super::{DECODER, DECODER_BIAS, ENCODER};
use crate::files::json_error;

/// The bias of a byte that the model has no symbol for, and so its logit: its rows of embedding and decoder are 0.
///
/// Beside the largest logit m of a known byte such bytes weigh at most 256 exp(-1024 - m) together: no difference to a
/// log-probability in f32 or f64 as long as m > -275. One that does occur costs some 1024 nats (1477 bits), where the
/// published model cannot be asked at all: a score shows it at once. A power of 2 is exact in bf16 and f16 too.
pub const UNKNOWN_BYTE_BIAS: f32 = -1024.0;

/// The bytes of enwik8 in the order of the published model's symbols: by falling frequency in the training split, with
/// `<eos>` in place of the newline. All 205 are in the training split. One pair is equally frequent there, `<` and `>`, 241,151 times:
/// the one that comes first in the text stands first.
const ENWIK8: [u8; 205] = [
    32, 101, 116, 97, 105, 111, 110, 114, 115, 108, 104, 100, 99, 117, 93, 91, 109, 112, 103, 102, 10, 121, 98, 39,
    119, 46, 44, 118, 59, 38, 124, 49, 47, 107, 61, 48, 65, 67, 58, 45, 84, 83, 60, 62, 50, 113, 57, 42, 73, 120, 41,
    40, 66, 77, 80, 69, 68, 53, 51, 70, 72, 71, 56, 52, 82, 54, 76, 55, 78, 87, 122, 125, 123, 79, 106, 85, 74, 75,
    208, 95, 195, 86, 35, 215, 34, 90, 209, 89, 128, 224, 131, 184, 92, 37, 227, 176, 33, 169, 206, 226, 130, 63, 88,
    81, 161, 188, 129, 43, 153, 179, 216, 164, 181, 189, 148, 190, 173, 187, 225, 186, 229, 177, 167, 178, 168, 217,
    149, 185, 144, 207, 147, 197, 194, 180, 196, 156, 132, 170, 166, 191, 136, 182, 230, 160, 141, 175, 36, 140, 152,
    145, 94, 165, 163, 183, 137, 171, 157, 174, 9, 133, 134, 135, 151, 236, 231, 201, 155, 158, 143, 138, 150, 162,
    139, 159, 154, 172, 126, 232, 146, 235, 233, 228, 202, 203, 214, 142, 237, 219, 234, 204, 213, 218, 64, 96, 199,
    210, 239, 211, 198, 212, 240, 205, 220, 222, 200,
];

/// Which bytes the symbols of a model are, in the order of its vocabulary.
///
/// Models of this crate predict bytes. One of other symbols is expanded when it is imported: to 256 rows of embedding and
/// decoder, where bytes without a symbol get rows of zeros and [`UNKNOWN_BYTE_BIAS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// Symbol i is byte i. Nothing is expanded.
    Bytes,
    /// The 205 symbols of the published enwik8 models.
    PublishedEnwik8,
    /// Symbol i is the byte at place i, each once.
    Custom(Vec<u8>),
}

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// Nobody said which bytes the symbols are.
    #[error(
        "there are {symbols}, and nothing tells which bytes they are: name the vocabulary, for the published \
         enwik8 models with their 205 symbols by `sharnn import FILE --vocabulary enwik8`, else by `--vocabulary LIST.json`, a list of \
         {symbols} bytes"
    )]
    Unnamed {
        /// Number of the model's symbols.
        symbols: usize,
    },
    /// The vocabulary has another size than the model's.
    #[error("there are {symbols}, and {vocabulary} has {expected}: name the one that the model was trained with")]
    Size {
        /// Name of the vocabulary.
        vocabulary: &'static str,
        /// Number of its symbols.
        expected: usize,
        /// Number of the model's.
        symbols: usize,
    },
    /// Two symbols are the same byte.
    #[error("symbols {first} and {second} are both byte {byte}: name each byte once")]
    Twice {
        /// The byte.
        byte: u8,
        /// The first symbol, from 0.
        first: usize,
        /// The second.
        second: usize,
    },
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no list of bytes.
    #[error("{file} is not a JSON array of up to 256 numbers from 0 to 255: {reason}")]
    List {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Vocabulary {
    /// Reads a vocabulary from a JSON array of byte values in the order of the symbols, as `[32, 101, 116]`.
    ///
    /// # Errors
    /// If the file cannot be read, is no such array, or names a byte twice.
    pub fn read(path: &Path) -> Result<Self, VocabularyError> {
        const LONGEST: u64 = 16 << 10;
        let file = path.display().to_string();
        let mut json = String::new();
        let read = whole_file::open(path).and_then(|list| list.take(LONGEST + 1).read_to_string(&mut json));
        if let Err(source) = read {
            return Err(VocabularyError::Io { file, source });
        }
        if json.len() as u64 > LONGEST {
            return Err(VocabularyError::List { file, reason: format!("it is longer than {LONGEST} bytes") });
        }
        let bytes: Vec<u8> =
            serde_json::from_str(&json).map_err(|error| VocabularyError::List { file, reason: json_error(&error) })?;
        check_distinct(&bytes)?;
        Ok(Self::Custom(bytes))
    }

    /// The vocabulary that the published code makes of a training split: its bytes by falling frequency, of equally frequent
    /// ones the one that comes first in the text first.
    pub fn by_frequency(train: &[u8]) -> Self {
        let (mut counts, mut in_order) = ([0u64; 256], Vec::new());
        for &byte in train {
            if counts[usize::from(byte)] == 0 {
                in_order.push(byte);
            }
            counts[usize::from(byte)] += 1;
        }
        // Stable: ties stay in the order of their first appearance.
        in_order.sort_by_key(|&byte| std::cmp::Reverse(counts[usize::from(byte)]));
        Self::Custom(in_order)
    }

    /// The byte of every symbol; `None` where symbol i is byte i.
    pub fn symbols(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes => None,
            Self::PublishedEnwik8 => Some(&ENWIK8),
            Self::Custom(bytes) => Some(bytes),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Bytes => "the vocabulary of all bytes",
            Self::PublishedEnwik8 => "that of the published enwik8 models",
            Self::Custom(_) => "the list of bytes that was given",
        }
    }

    /// The vocabulary of a model with so many symbols, if `named` can be it.
    pub(super) fn of_model(named: Option<&Self>, symbols: usize) -> Result<Self, VocabularyError> {
        let Some(vocabulary) = named else {
            return if symbols == 256 { Ok(Self::Bytes) } else { Err(VocabularyError::Unnamed { symbols }) };
        };
        if let Some(bytes) = vocabulary.symbols() {
            if bytes.len() != symbols {
                let (vocabulary, expected) = (vocabulary.name(), bytes.len());
                return Err(VocabularyError::Size { vocabulary, expected, symbols });
            }
            check_distinct(bytes)?;
        }
        Ok(vocabulary.clone())
    }

    /// Size of the vocabulary of the expanded model.
    pub(super) fn size(&self, symbols: usize) -> usize {
        if self.symbols().is_some() { 256 } else { symbols }
    }

    /// The values of a tensor in the expanded model, from those of the model.
    pub(super) fn expand(&self, tensor: &str, values: Vec<f32>) -> Vec<f32> {
        let unknown = match tensor {
            ENCODER | DECODER => 0.0,
            DECODER_BIAS => UNKNOWN_BYTE_BIAS,
            _ => return values,
        };
        let Some(bytes) = self.symbols() else { return values };
        let width = values.len() / bytes.len();
        let mut expanded = vec![unknown; 256 * width];
        for (row, &byte) in values.chunks_exact(width).zip(bytes) {
            expanded[usize::from(byte) * width..][..width].copy_from_slice(row);
        }
        expanded
    }
}

fn check_distinct(bytes: &[u8]) -> Result<(), VocabularyError> {
    let mut symbols = [None; 256];
    for (second, &byte) in bytes.iter().enumerate() {
        if let Some(first) = symbols[usize::from(byte)].replace(second) {
            return Err(VocabularyError::Twice { byte, first, second });
        }
    }
    Ok(())
}
