//! What can go wrong.

use std::io;

/// Why something was not compressed or decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The engine's weights are not in a format whose results are the same everywhere.
    #[error("weights in {found} give other bits on other machines: use an engine of format exact")]
    NotExact {
        /// The format.
        found: &'static str,
    },
    /// The model predicts something else than bytes.
    #[error("the model has a vocabulary of {found}: one of 256, the bytes, is needed")]
    Vocabulary {
        /// Its size.
        found: usize,
    },
    /// An option that cannot be used.
    #[error("{option} = {found} cannot be used: use {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// A state that is not one of the model, or another memory of what was read.
    #[error(transparent)]
    State(#[from] sharnn_stream::StateError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file does not begin as one of these does.
    #[error("this is no file of sharnn's codec: it does not begin with its mark")]
    NotCompressed,
    /// It is of a version that this program does not know.
    #[error(
        "the file is of version {found} of the format, this program knows {known}: use the program that wrote it, or a newer one"
    )]
    Version {
        /// The file's.
        found: u16,
        /// What is known.
        known: u16,
    },
    /// The header is damaged: nothing can be decompressed.
    #[error("the header of the file is damaged: without it nothing can be decompressed")]
    Header,
    /// The file was compressed with another model.
    #[error(
        "the file was compressed with model {found}, this is model {own}: name the model that it was compressed with"
    )]
    OtherModel {
        /// The file's, the beginning of its digest.
        found: String,
        /// The digest of the one that was given.
        own: String,
    },
    /// A block is damaged. Others may be whole.
    #[error("block {index} is damaged ({reason}): its {bytes} bytes at {offset} of the text are lost")]
    Damaged {
        /// Its number, from 0.
        index: u32,
        /// Bytes of text in it.
        bytes: u64,
        /// Where they belong in the text.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Something between blocks is damaged.
    #[error("the file is damaged at byte {at}: some blocks are lost there")]
    Lost {
        /// Where in the compressed file.
        at: u64,
    },
    /// The file ends before its end mark.
    #[error("the file is cut short: it ends at byte {at} of it, in block {index} or before")]
    CutShort {
        /// The file's length.
        at: u64,
        /// The block that comes next.
        index: u32,
    },
    /// A message is too long for a record.
    #[error(
        "a message of {bytes} bytes is no record, which has at most {}: compress it as a file",
        crate::Records::LONGEST
    )]
    Long {
        /// Its size.
        bytes: usize,
    },
    /// A record is damaged, or of another model or state.
    #[error("a record of {bytes} bytes is damaged, or was compressed with another model or state")]
    Record {
        /// Its size.
        bytes: usize,
    },
    /// Whoever watched wanted it to stop.
    #[error("stopped")]
    Stopped,
}
