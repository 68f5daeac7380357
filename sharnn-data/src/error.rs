//! What can go wrong with data: every way, with what was expected, what was found and what to do about it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::shell::quoted_path;

/// An error about a corpus, its splits, its lanes or its segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no file of that name.
    #[error(
        "no data file at {}: give the path of a file that exists; enwik8 is the file in {}",
        path.display(),
        crate::enwik8::URL
    )]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The path names a directory, a device, a pipe or a socket.
    #[error("{} is {found}, but a corpus is one regular file: give the path of the file itself", path.display())]
    NotAFile {
        /// The path as it was given.
        path: PathBuf,
        /// What is there instead, with its article: "a directory".
        found: &'static str,
    },

    /// The file exists but this user may not read it.
    #[error("no permission to read {}: check the rights of the file and of the folders above it", path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The file holds nothing.
    #[error("{} is empty (0 bytes): a corpus needs bytes to read; was its download or copy cut short?", path.display())]
    Empty {
        /// The path as it was given.
        path: PathBuf,
    },

    /// A file has lost bytes while it was read.
    #[error(
        "{} was cut short while it was read: it had {expected} bytes{}. Read a copy that nobody writes to, as of a log: cp {} copy",
        path.display(),
        found.map_or(String::new(), |found| format!(" and has {found}")),
        quoted_path(path)
    )]
    Shrunk {
        /// The path as it was given.
        path: PathBuf,
        /// Its bytes when it was opened.
        expected: u64,
        /// Its bytes now, where that is known.
        found: Option<u64>,
    },

    /// Bytes of a file were written over while it was read.
    #[error(
        "{corpus} was written over while it was read: its bytes are others than at the start. Read a copy that nobody writes to"
    )]
    Changed {
        /// Name of the corpus.
        corpus: String,
    },

    /// Any other failure of the system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done: "open", "map into memory".
        action: &'static str,
        /// The path as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A byte range that does not lie inside the corpus.
    #[error("bytes {}..{} of {corpus} do not exist: it has {len} bytes", range.start, range.end)]
    Range {
        /// Name of the corpus.
        corpus: String,
        /// The range that was asked for.
        range: Range<usize>,
        /// Length of the corpus in bytes.
        len: usize,
    },

    /// Fractions that leave nothing to train on or nothing to score.
    #[error(
        "fractions of {valid} for validation and {test} for test cannot split a corpus: \
         each must be above 0 and together they must stay below 1"
    )]
    Fractions {
        /// The fraction asked for validation.
        valid: f64,
        /// The fraction asked for test.
        test: f64,
    },

    /// A corpus so short that one of its splits could not score a single byte.
    #[error(
        "{corpus} has {len} bytes, too few to split: that is {train} for training, {valid} for validation and {test} \
         for test, and each needs at least {MIN_SCORED} (one byte to read, one to predict); \
         with these fractions {needed} bytes would do"
    )]
    TooShort {
        /// Name of the corpus.
        corpus: String,
        /// Its length in bytes.
        len: usize,
        /// Bytes that would go to training.
        train: usize,
        /// Bytes that would go to validation.
        valid: usize,
        /// Bytes that would go to test.
        test: usize,
        /// How many bytes these fractions can split.
        needed: usize,
    },

    /// A file that should be enwik8 has another length.
    #[error(
        "{corpus} has {found} bytes, but enwik8 has exactly {}: was its download or copy cut short? \
         Fetch {} again, or open the file as a corpus of its own",
        crate::enwik8::SIZE,
        crate::enwik8::URL
    )]
    NotEnwik8 {
        /// Name of the corpus.
        corpus: String,
        /// Its length in bytes.
        found: usize,
    },

    /// A part of what should be enwik8 holds other bytes.
    #[error(
        "the {part} split of {corpus} (bytes {}..{}) is not that of enwik8: expected SHA-256 {expected}, found {found}; \
         fetch {} again",
        range.start, range.end, crate::enwik8::URL
    )]
    Checksum {
        /// Name of the corpus.
        corpus: String,
        /// `train`, `valid` or `test`.
        part: &'static str,
        /// Where that split lies, in bytes.
        range: Range<usize>,
        /// The digest of the real one, in hexadecimal.
        expected: &'static str,
        /// The digest of what is there, in hexadecimal.
        found: String,
    },

    /// No lanes, or more lanes than the data can fill.
    #[error(
        "cannot cut {len} bytes into {n_lanes} lanes: a lane needs at least {MIN_SCORED} bytes (one to read, one to \
         predict), so {}",
        allowed_lanes(*max)
    )]
    Lanes {
        /// Length of the data in bytes.
        len: usize,
        /// The number of lanes asked for.
        n_lanes: usize,
        /// The largest batch that the data allows; 0 if it allows none.
        max: usize,
    },

    /// A selection of lanes that is empty or reaches past the last one.
    #[error("cannot select lanes {}..{}: pick at least one of the lanes 0..{n_lanes}", range.start, range.end)]
    LaneRange {
        /// The lanes asked for.
        range: Range<usize>,
        /// How many lanes there are.
        n_lanes: usize,
    },

    /// A setting of the segment lengths that makes no sense.
    #[error("segment lengths: `{field}` is {found}, but {expected}")]
    SegmentLengths {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be, as the rest of a sentence.
        expected: String,
    },

    /// A saved position in a stream that does not belong to these lanes.
    #[error(
        "cannot resume the stream: the saved state has {what} {found}, but here it must be {expected}; \
         resume with the data and the number of lanes that it was saved with"
    )]
    State {
        /// Which part of the state.
        what: &'static str,
        /// What the state says.
        found: u64,
        /// What these lanes ask for.
        expected: String,
    },
}

/// The fewest bytes in which one byte can be scored: the first is only read.
pub(crate) const MIN_SCORED: usize = 2;

fn allowed_lanes(max: usize) -> String {
    match max {
        0 => "this data is too short for any".to_owned(),
        1 => "only one works".to_owned(),
        _ => format!("use 1 to {max}"),
    }
}

impl DataError {
    /// Sorts a failure of the system on `path` into the variant that says most about it.
    pub(crate) fn from_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            io::ErrorKind::PermissionDenied => Self::Unreadable { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}
