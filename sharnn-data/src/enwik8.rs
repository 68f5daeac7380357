//! enwik8: the first 100,000,000 bytes of the English Wikipedia dump of March 3, 2006, the usual benchmark of
//! byte-level language models, split 90 / 5 / 5 million bytes. Its home is <https://mattmahoney.net/dc/textdata.html>.

use std::ops::Range;
use std::path::Path;

use crate::corpus::{Corpus, Splits};
use crate::error::DataError;

/// Length of enwik8 in bytes.
pub const SIZE: usize = 100_000_000;
/// The bytes to train on.
pub const TRAIN: Range<usize> = 0..90_000_000;
/// The bytes to validate on.
pub const VALID: Range<usize> = 90_000_000..95_000_000;
/// The bytes to test on.
pub const TEST: Range<usize> = 95_000_000..SIZE;

/// SHA-256 of all of enwik8.
pub const SHA256: &str = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8";
/// SHA-256 of the bytes in [`TRAIN`].
pub const TRAIN_SHA256: &str = "f8978bd9ca51fbea387d5145d310652ab39904bcbc8ab2647932c8c2e0539e64";
/// SHA-256 of the bytes in [`VALID`].
pub const VALID_SHA256: &str = "16b8b889f05ebeb5684d497d49383e8e55eb3634cee2f9a023dcab68cbf64f17";
/// SHA-256 of the bytes in [`TEST`].
pub const TEST_SHA256: &str = "86f62c0adeb6c27763f308b8913bec743626421a4d2b4010f1e177a40eef7750";

/// Where enwik8 is published, as a zip archive of 36 MB with one entry.
pub const URL: &str = "https://mattmahoney.net/dc/enwik8.zip";

/// How the dump begins.
const FIRST_BYTES: &[u8] = b"<mediawiki ";

/// Fractions for validation and test where a file is not enwik8: the same proportions.
const FRACTIONS: (f64, f64) = (0.05, 0.05);

/// Whether a file of this length, in bytes, can be enwik8.
pub fn is_enwik8_size(len: u64) -> bool {
    len == SIZE as u64
}

/// Opens enwik8 and splits it. The length is checked, the content is not: see [`verify`].
///
/// # Errors
/// If the file cannot be opened (see [`Corpus::open`]) or does not have exactly [`SIZE`] bytes.
pub fn open(path: impl AsRef<Path>) -> Result<Splits, DataError> {
    splits(&Corpus::open(path)?)
}

/// Opens any file: as enwik8 if it has exactly [`SIZE`] bytes and begins like a MediaWiki dump, else as a corpus of
/// its own whose last tenth is halved into validation and test.
///
/// # Errors
/// If the file cannot be opened (see [`Corpus::open`]) or is too short to split.
pub fn open_any(path: impl AsRef<Path>) -> Result<Splits, DataError> {
    let corpus = Corpus::open(path)?;
    if is_enwik8_size(corpus.len() as u64) && corpus.starts_with(FIRST_BYTES) {
        splits(&corpus)
    } else {
        Splits::by_fractions(corpus, FRACTIONS.0, FRACTIONS.1)
    }
}

/// Splits a corpus that is enwik8. The length is checked, the content is not: see [`verify`].
///
/// # Errors
/// If it does not have exactly [`SIZE`] bytes.
pub fn splits(corpus: &Corpus) -> Result<Splits, DataError> {
    check_size(corpus)?;
    Ok(Splits {
        train: corpus.split(TRAIN)?,
        valid: corpus.split(VALID)?,
        test: corpus.split(TEST)?,
        name: "enwik8".to_owned(),
    })
}

/// Checks every byte of enwik8 against the published splits. Takes a fraction of a second.
///
/// # Errors
/// If the length differs, or else at the first split whose SHA-256 differs.
pub fn verify(corpus: &Corpus) -> Result<(), DataError> {
    check_size(corpus)?;
    for (part, range, expected) in [
        ("train", TRAIN, TRAIN_SHA256),
        ("valid", VALID, VALID_SHA256),
        ("test", TEST, TEST_SHA256),
    ] {
        let found = corpus.split(range.clone())?.sha256();
        if found != expected {
            return Err(DataError::Checksum {
                corpus: corpus.name().to_owned(),
                part,
                range,
                expected,
                found,
            });
        }
    }
    Ok(())
}

fn check_size(corpus: &Corpus) -> Result<(), DataError> {
    if is_enwik8_size(corpus.len() as u64) {
        Ok(())
    } else {
        Err(DataError::NotEnwik8 {
            corpus: corpus.name().to_owned(),
            found: corpus.len(),
        })
    }
}

/// The beginning of enwik8 that is bundled with this crate: its first mebibyte, cut back to the end of a line.
/// Text of Wikipedia contributors; see `data/LICENSE-enwik8-sample.md`.
#[cfg(feature = "sample")]
pub const SAMPLE: &[u8] = include_bytes!("../data/enwik8-sample");

/// SHA-256 of [`SAMPLE`].
#[cfg(feature = "sample")]
pub const SAMPLE_SHA256: &str = "c4ed9600132dd814242b2e8d88bfc0d540cb61494b86b55c85d3b6b5fc83fc57";

/// The bundled beginning of enwik8, 1,047,718 bytes split 90 / 5 / 5 percent: enough for a first run without a
/// download, too little for a result.
#[cfg(feature = "sample")]
pub fn sample() -> Splits {
    let corpus = Corpus::from_bytes(SAMPLE).with_name("enwik8 sample");
    Splits::by_fractions(corpus, FRACTIONS.0, FRACTIONS.1)
        .expect("the bundled sample is long enough to split")
}
