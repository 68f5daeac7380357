//! Which byte each symbol of a model is.

use serde_json::Value;

/// What the rows of an embedding stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// Symbols as they are, any number of them: the model keeps its own vocabulary.
    Symbols,
    /// The 205 symbols of the published enwik8 model.
    Enwik8,
    /// The bytes in the order of the symbols.
    Bytes(Vec<u8>),
}

/// A list of bytes that can't be a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// It is something else.
    #[error("not a list of bytes: {problem}; write a JSON array of numbers from 0 to 255, in the order of the symbols")]
    Format {
        /// What is wrong.
        problem: String,
    },
    /// A byte is there twice.
    #[error("byte {byte} stands for symbol {first} and for symbol {second}: name each byte once")]
    Twice {
        /// The byte.
        byte: u8,
        /// The symbol that it stands for.
        first: usize,
        /// Another one.
        second: usize,
    },
}

/// Bias of a byte that the model has no symbol for. Its logit is this very number, as its row is zero: beside a logit of 0 its
/// probability is e^-100, which changes no sum in f32. A text that has such a byte pays some 150 bits for it.
pub(super) const UNKNOWN_BIAS: f32 = -100.0;

/// Bytes of enwik8's training split (its first 90 million bytes) by falling frequency; symbol 20 is `<eos>` there, which
/// stands in place of the newline. `<` and `>` are equally frequent: the one that comes first in the text stands first.
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

impl Vocabulary {
    /// From a JSON array of byte values in the order of the symbols.
    ///
    /// # Errors
    /// If it is something else, or a byte is in it twice.
    pub fn from_json(json: &[u8]) -> Result<Self, VocabularyError> {
        let format = |problem: String| VocabularyError::Format { problem };
        let value: Value = serde_json::from_slice(json).map_err(|error| format(error.to_string()))?;
        let Value::Array(values) = value else { return Err(format("it is no array".into())) };
        let byte = |value: &Value| value.as_u64().and_then(|value| u8::try_from(value).ok());
        let bytes: Vec<u8> = values
            .iter()
            .map(|value| byte(value).ok_or_else(|| format(format!("{value} is in it"))))
            .collect::<Result<_, _>>()?;
        if bytes.is_empty() {
            return Err(format("it is empty".into()));
        }
        for (second, byte) in bytes.iter().enumerate() {
            if let Some(first) = bytes[..second].iter().position(|other| other == byte) {
                return Err(VocabularyError::Twice { byte: *byte, first, second });
            }
        }
        Ok(Self::Bytes(bytes))
    }

    /// The bytes in the order of the symbols; `None` where symbols stay what they are.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Symbols => None,
            Self::Enwik8 => Some(&ENWIK8),
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use sharnn_data::enwik8;

    use super::*;

    #[test]
    fn the_published_symbols_are_bytes_of_enwik8_each_once() {
        let json = serde_json::to_vec(&ENWIK8.to_vec()).unwrap();
        assert_eq!(Vocabulary::from_json(&json).unwrap().bytes(), Some(&ENWIK8[..]));
        let splits = enwik8::sample();
        for byte in splits.train.iter().chain(&splits.valid[..]).chain(&splits.test[..]) {
            assert!(ENWIK8.contains(byte), "{byte}");
        }
    }

    /// With the real corpus: `SHARNN_ENWIK8` names it.
    #[test]
    fn the_published_order_is_that_of_the_training_split() {
        let Some(path) = std::env::var_os("SHARNN_ENWIK8") else { return };
        let splits = enwik8::open(std::path::Path::new(&path)).unwrap();
        let (mut counts, mut first) = ([0u64; 256], [usize::MAX; 256]);
        for (i, &byte) in splits.train.iter().enumerate() {
            counts[usize::from(byte)] += 1;
            first[usize::from(byte)] = first[usize::from(byte)].min(i);
        }
        let mut order: Vec<u8> = (0..=255).filter(|&byte| counts[usize::from(byte)] > 0).collect();
        order.sort_by_key(|&byte| (std::cmp::Reverse(counts[usize::from(byte)]), first[usize::from(byte)]));
        assert_eq!(order, ENWIK8);
    }

    #[test]
    fn what_is_no_vocabulary_is_refused() {
        for (json, said) in [
            ("{}", "no array"),
            ("[1, 256]", "256 is in it"),
            ("[1, -1]", "-1 is in it"),
            ("[", "EOF"),
            ("[]", "empty"),
            ("[7, 8, 7]", "byte 7 stands for symbol 0 and for symbol 2"),
        ] {
            let error = Vocabulary::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
    }
}
