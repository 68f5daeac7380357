//! A stream's state in a file: written whole or not at all, read with bounded memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sharnn_core::{StateError, StreamShape, StreamState};
use sharnn_data::whole_file;

/// Why a stream's state could not be written, read or used: the file, and as the error's source what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// The disk has no room for the file.
    #[error(
        "{file} needs {bytes} bytes, and the disk is full or the quota used up: make room, or write elsewhere; what was there before is intact"
    )]
    DiskFull {
        /// The file.
        file: String,
        /// Its size in bytes.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be opened, read or written.
    #[error("cannot {action} {file}")]
    Io {
        /// The file.
        file: String,
        /// What was tried: "read" or "write".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds no state that the streams can go on from.
    #[error("cannot go on from {file}")]
    State {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: StateError,
    },
}

/// Writes a stream's state to `path` and waits until it is on the disk. It is written aside and renamed: at every moment
/// `path` holds the whole new state or what was there before. A device or a pipe is written to as it is.
///
/// # Errors
/// [`StateFileError::DiskFull`] or [`StateFileError::Io`].
pub fn save_state(state: &StreamState, path: &Path) -> Result<(), StateFileError> {
    let bytes = state.to_bytes();
    whole_file::write(path, |file| file.write_all(&bytes)).map_err(|source| {
        let file = path.display().to_string();
        match whole_file::is_full(&source) {
            true => StateFileError::DiskFull { file, bytes: bytes.len(), source },
            false => StateFileError::Io { file, action: "write", source },
        }
    })
}

/// Reads a state that streams of this shape can go on from. Of a file that is larger than any such state, no more is read.
///
/// # Errors
/// [`StateFileError::Io`], or [`StateFileError::State`] for what is no such state.
pub fn load_state(path: &Path, shape: &StreamShape) -> Result<StreamState, StateFileError> {
    let file = || path.display().to_string();
    let mut bytes = Vec::new();
    let most = (shape.most_bytes() as u64).saturating_add(1);
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|source| StateFileError::Io { file: file(), action: "read", source })?;
    StreamState::from_bytes(&bytes, shape).map_err(|source| StateFileError::State { file: file(), source })
}
