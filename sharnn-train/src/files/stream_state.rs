//! A stream's state in a file: written whole or not at all, read with bounded memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use burn::tensor::backend::Backend;
use sha2::{Digest, Sha256};
use sharnn_core::{ShaRnn, StateError, StreamShape, StreamState};
use sharnn_data::whole_file;

use crate::params::collect_params;

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
    /// The state was computed with other weights of the same sizes.
    #[error(
        "cannot go on from {file}: it is the state of a stream of other weights (digest {found}, this model's is {expected}): go \
         on with the model that it is of"
    )]
    OtherWeights {
        /// The file.
        file: String,
        /// Beginning of the digest of the model's weights.
        expected: String,
        /// Beginning of the digest that was noted in the file.
        found: String,
    },
}

/// SHA-256 of a model's weights, by which a stream's state knows them: of each parameter, in the order of their names, the name and
/// the values in f32. Neither the memory's length nor the format in which weights are packed for decoding makes a difference.
pub fn weights_digest<B: Backend>(model: &ShaRnn<B>) -> [u8; 32] {
    let mut params = collect_params(model);
    params.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sha = Sha256::new();
    for param in params {
        sha.update(param.name.as_bytes());
        sha.update([0]);
        param.data.chunks(1 << 14).for_each(|values| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            sha.update(&bytes);
        });
    }
    sha.finalize().into()
}

/// [`load_state`], of streams of the weights that have this [`weights_digest`]. A state that says nothing of its weights, as those
/// of earlier versions, is taken: its [`weights`](StreamState::weights) are `None`.
///
/// # Errors
/// As [`load_state`], and [`StateFileError::OtherWeights`].
pub fn load_state_of(path: &Path, shape: &StreamShape, weights: &[u8; 32]) -> Result<StreamState, StateFileError> {
    let state = load_state(path, shape)?;
    match state.weights() {
        Some(found) if found != weights => {
            let begin = |digest: &[u8; 32]| digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
            let file = path.display().to_string();
            Err(StateFileError::OtherWeights { file, expected: begin(weights), found: begin(found) })
        }
        _ => Ok(state),
    }
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
    let mut read = |file: &mut File| -> io::Result<()> {
        file.take(shape.most_bytes() as u64).read_to_end(&mut bytes)?;
        let rest = (StreamState::most_bytes(&bytes, shape) - bytes.len()).saturating_add(1);
        file.take(rest as u64).read_to_end(&mut bytes)?;
        Ok(())
    };
    whole_file::open(path).and_then(|mut file| read(&mut file)).map_err(|source| StateFileError::Io {
        file: file(),
        action: "read",
        source,
    })?;
    StreamState::from_bytes(&bytes, shape).map_err(|source| StateFileError::State { file: file(), source })
}
