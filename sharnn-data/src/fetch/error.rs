//! What can go wrong while fetching.

use std::io;
use std::path::{Path, PathBuf};

use super::Expected;
use crate::whole_file::is_full;

/// An error while fetching a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The server cannot be reached: no network, no such host, connection refused, no valid certificate.
    #[error(
        "cannot reach {url}: {reason}. Without a network, get that archive on another machine, unpack `{entry}` and put \
         it at {}, or name the file with `--data PATH`; its SHA-256 is {sha256}",
        dest.display()
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What failed.
        reason: String,
        /// What the archive holds.
        entry: String,
        /// Where to put that by hand.
        dest: PathBuf,
        /// The digest it must have.
        sha256: String,
    },

    /// The transfer broke off, and trying again did not help.
    #[error(
        "the transfer of {url} broke off: {reason}. {received} bytes{} are kept in {}; run again to resume from there",
        total.map(|total| format!(" of {total}")).unwrap_or_default(),
        part.display()
    )]
    Interrupted {
        /// What was being fetched.
        url: String,
        /// What failed last.
        reason: String,
        /// Bytes on disk.
        received: u64,
        /// Bytes of the whole archive, where the server told.
        total: Option<u64>,
        /// The file that keeps them.
        part: PathBuf,
    },

    /// The server answers with an error.
    #[error("{url} answers with HTTP status {status}: check the address, or try later or another mirror")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },

    /// The server answers with something that is no answer to the question.
    #[error("{url} answers against the rules of HTTP ({reason}): try another mirror")]
    Response {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// The address cannot be used.
    #[error("`{url}` is no address to fetch from ({reason}): give one that begins with https://")]
    Url {
        /// The address as it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The server sends more than the file can be.
    #[error(
        "{url} sends more than {limit} bytes, so it is not the archive looked for; nothing was kept, try another mirror"
    )]
    TooLarge {
        /// What was being fetched.
        url: String,
        /// The most bytes that were accepted.
        limit: u64,
    },

    /// What came is no zip archive that can be read.
    #[error("what was fetched is no sound zip archive ({reason}): it was deleted, run again to fetch it afresh")]
    Archive {
        /// What is wrong with it.
        reason: String,
    },

    /// The archive holds other things.
    #[error("the archive has no entry `{entry}` but {found}: it was deleted; is the address that of the right file?")]
    MissingEntry {
        /// The entry looked for.
        entry: String,
        /// What is there, the first few.
        found: String,
    },

    /// The unpacked file has another length.
    #[error(
        "`{entry}` unpacks to {found} bytes, expected {expected}: the archive was deleted, run again to fetch it \
         afresh or try another mirror"
    )]
    WrongSize {
        /// The entry.
        entry: String,
        /// The length expected, in bytes.
        expected: u64,
        /// The length found, in bytes.
        found: u64,
    },

    /// The unpacked file has the right length and the wrong content.
    #[error(
        "`{entry}` has SHA-256 {found}, expected {expected}: the archive and the unpacked file were deleted, run again \
         to fetch it afresh or try another mirror"
    )]
    WrongChecksum {
        /// The entry.
        entry: String,
        /// The digest expected.
        expected: String,
        /// The digest found.
        found: String,
    },

    /// Something else is where the file should go. It is left alone.
    #[error("will not write to {}: {found}; move it away or give another path", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// What is there.
        found: String,
    },

    /// Another process is fetching to the same place.
    #[error("{} is in use: another process is fetching the same file; wait for it", part.display())]
    Busy {
        /// The file that it holds.
        part: PathBuf,
    },

    /// The system refuses to create, read, write or rename a file.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchError {
    /// Wraps what the system says about `path`.
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> FetchError + 'a {
        move |source| Self::Io { action, path: path.into(), source }
    }

    pub(super) fn unreachable(url: &str, reason: String, expected: &Expected, dest: &Path) -> Self {
        Self::Unreachable {
            url: url.into(),
            reason,
            entry: expected.entry.clone(),
            dest: dest.into(),
            sha256: expected.sha256.clone(),
        }
    }

    /// Whether the downloaded archive itself is at fault.
    pub(super) fn is_bad_archive(&self) -> bool {
        matches!(
            self,
            Self::Archive { .. } | Self::MissingEntry { .. } | Self::WrongSize { .. } | Self::WrongChecksum { .. }
        )
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => {
            "; make room (enwik8 needs 100 MB, and 36 MB more while it is unpacked) and run again: what was received \
             is kept"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; give a path in a folder that you may write to"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_forbidden_folder_say_what_to_do() {
        let message = |kind: io::ErrorKind| FetchError::io("write", Path::new("enwik8.part"))(kind.into()).to_string();
        assert!(message(io::ErrorKind::StorageFull).contains("make room"));
        assert!(message(io::ErrorKind::PermissionDenied).contains("you may write to"));
        assert!(message(io::ErrorKind::StorageFull).starts_with("cannot write enwik8.part: "));
    }
}
