//! Why a model could not be exported.

use std::io;

/// Why a model could not be exported. No file is left or changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// A weight is infinite or not a number.
    #[error(
        "weight {tensor} holds {value} at position {index}, expected finite values: the training run diverged, export older weights"
    )]
    NotFinite {
        /// Path of the weight in the model.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A weight is too large for f16.
    #[error(
        "weight {tensor} holds {value} at position {index} of the file's tensor, and the largest value of an f16 is 65504: export f32 weights"
    )]
    TooLargeForF16 {
        /// Path of the weight in the model.
        tensor: String,
        /// Position of the first such value in the file's tensor, row-major from 0: gates are in ONNX's order there, and matrices
        /// that are multiplied by transposed.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A key of the caller's metadata is one of ours.
    #[error(
        "metadata key {key:?} is reserved: keys that begin with \"sharnn.\" are written by the export, choose another"
    )]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// The file would be larger than an ONNX file can be.
    #[error(
        "the file would have {bytes} bytes, and an ONNX file has less than 2 GiB: export f16 weights or a smaller model"
    )]
    TooLarge {
        /// Size of the file in bytes.
        bytes: u64,
    },
    /// The disk has no room for the file.
    #[error("{file} needs {bytes} bytes, and the disk is full or the quota used up: make room, or write elsewhere")]
    DiskFull {
        /// The file.
        file: String,
        /// Its size in bytes.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried, as in "write".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
