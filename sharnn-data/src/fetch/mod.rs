//! Fetching enwik8: download over HTTPS, resume where a transfer was cut off, unpack, verify, put in place.
//!
//! Beside the destination, and only until it is there, lie `NAME.zip.part` (the archive so far), `NAME.zip.part.json`
//! (which version of it that is) and `NAME.part` (what is being unpacked). The destination itself appears at once and
//! whole, after its SHA-256 was found right.

mod bar;
mod download;
mod error;
mod part;
mod unpack;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

pub use bar::progress;
pub use error::FetchError;

use crate::enwik8::{SHA256, SIZE, URL};
use part::Part;

/// What an archive must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Name of the archive's entry, exactly. It never becomes part of a path.
    pub entry: String,
    /// Length of the unpacked entry in bytes.
    pub size: u64,
    /// SHA-256 of the unpacked entry, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Expected {
    /// enwik8 itself.
    pub fn enwik8() -> Self {
        Self { entry: "enwik8".to_owned(), size: SIZE as u64, sha256: SHA256.to_owned() }
    }

    /// No honest archive of this entry is longer, in bytes: stored without compression, plus room for headers.
    fn max_archive_len(&self) -> u64 {
        self.size.saturating_add(1 << 20)
    }
}

/// How far a fetch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchProgress {
    /// A file was there already and is being checked.
    Verifying {
        /// Bytes checked.
        bytes: u64,
        /// Bytes to check.
        total: u64,
    },
    /// The archive is coming in.
    Downloading {
        /// Bytes of it that are on disk, those of earlier runs too.
        bytes: u64,
        /// Length of the archive in bytes, where the server tells.
        total: Option<u64>,
    },
    /// The transfer failed and is tried again after a pause.
    Retrying {
        /// Which new attempt this will be, from 1.
        attempt: u32,
        /// The pause before it.
        wait: Duration,
        /// Why the last one failed.
        reason: String,
    },
    /// The archive is being unpacked and checked.
    Unpacking {
        /// Bytes unpacked.
        bytes: u64,
        /// Bytes to unpack.
        total: u64,
    },
    /// The file is in place.
    Done,
}

/// Fetches enwik8 to the file `dest` and returns its path. If it is there already and right, the network is not used.
///
/// # Errors
/// If the file cannot be had or put in place; the error says what to do. See [`FetchError`].
pub fn enwik8(dest: &Path, progress: &mut dyn FnMut(FetchProgress)) -> Result<PathBuf, FetchError> {
    enwik8_from(URL, &Expected::enwik8(), dest, progress)
}

/// Fetches one file out of a zip archive at `url`, a mirror for example, to the file `dest` and returns its path. If
/// it is there already and right, the network is not used.
///
/// # Errors
/// If the file cannot be had or put in place; the error says what to do. See [`FetchError`].
pub fn enwik8_from(
    url: &str,
    expected: &Expected,
    dest: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<PathBuf, FetchError> {
    if is_in_place(dest, expected, progress)? {
        progress(FetchProgress::Done);
        return Ok(dest.to_path_buf());
    }
    let Some(name) = dest.file_name() else {
        return Err(FetchError::Destination { path: dest.into(), found: "it names no file".into() });
    };
    if let Some(folder) = dest.parent().filter(|path| !path.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(FetchError::io("create the folder", folder))?;
    }
    let beside = |suffix: &str| {
        let mut name = name.to_os_string();
        name.push(suffix);
        dest.with_file_name(name)
    };
    let mut part = Part::open(beside(".zip.part"), beside(".zip.part.json"), url)?;
    if let Err(error) = download::download(url, expected, dest, &mut part, progress) {
        if part.len() == 0 {
            part.remove();
        }
        return Err(error);
    }
    match unpack::unpack(part.file(), expected, dest, &beside(".part"), progress) {
        Ok(()) => part.remove(),
        Err(error) => {
            // An archive that is no good must not be resumed; one that only lacked room on the disk can be kept.
            if error.is_bad_archive() {
                part.remove();
            }
            return Err(error);
        }
    }
    progress(FetchProgress::Done);
    Ok(dest.to_path_buf())
}

/// Whether `dest` holds the expected bytes; an error if something else is in its place.
fn is_in_place(dest: &Path, expected: &Expected, progress: &mut dyn FnMut(FetchProgress)) -> Result<bool, FetchError> {
    let refuse = |found: String| FetchError::Destination { path: dest.into(), found };
    let metadata = match fs::metadata(dest) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FetchError::io("look at", dest)(error)),
    };
    if !metadata.is_file() {
        return Err(refuse("it is no regular file".into()));
    }
    if metadata.len() != expected.size {
        return Err(refuse(format!(
            "a file of {} bytes is there, not the {} bytes of {}",
            metadata.len(),
            expected.size,
            expected.entry
        )));
    }
    let mut file = File::open(dest).map_err(FetchError::io("open", dest))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(FetchError::io("read", dest))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
        progress(FetchProgress::Verifying { bytes, total: expected.size });
    }
    let found = format!("{:x}", hash.finalize());
    if found != expected.sha256 {
        return Err(refuse(format!(
            "a file with SHA-256 {found} is there, not the {} of {}",
            expected.sha256, expected.entry
        )));
    }
    Ok(true)
}

/// Bytes moved at a time.
const BUFFER: usize = 128 * 1024;
