//! The archive as far as it has come: a locked file, and a note of which version of the archive its bytes belong to.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FetchError;
use crate::whole_file::{self, Lock};

/// Which version of which archive a partial file belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub url: String,
    /// A strong entity tag, or else the date of the last change: what the server needs to tell whether the archive is
    /// still the same.
    pub validator: Option<String>,
    /// Length of the archive in bytes, where the server told.
    pub total: Option<u64>,
}

/// A partial archive on disk. No other process can hold it at the same time.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    note: PathBuf,
    len: u64,
    version: Option<Version>,
}

impl Part {
    /// Opens what an earlier run left, or starts anew: bytes of another address or of an unknown version are dropped.
    pub fn open(path: PathBuf, note: PathBuf, url: &str) -> Result<Self, FetchError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = whole_file::open_with(&options, &path).map_err(FetchError::io("open", &path))?;
        if whole_file::lock(&file).map_err(FetchError::io("lock", &path))? == Lock::Theirs {
            return Err(FetchError::Busy { part: path });
        }
        let len = file.metadata().map_err(FetchError::io("look at", &path))?.len();
        let version = fs::read(&note)
            .ok()
            .and_then(|json| serde_json::from_slice::<Version>(&json).ok())
            .filter(|version| version.url == url && version.total.is_none_or(|total| len <= total));
        let mut part = Self { file, path, note, len, version };
        if part.version.is_none() {
            part.clear()?;
        }
        Ok(part)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes on disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The version that those bytes belong to, if there are any.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref().filter(|_| self.len > 0)
    }

    /// Length of the whole archive, as far as known.
    pub fn total(&self) -> Option<u64> {
        self.version().and_then(|version| version.total)
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.total() == Some(self.len)
    }

    /// Drops all bytes.
    pub fn clear(&mut self) -> Result<(), FetchError> {
        self.version = None;
        self.len = 0;
        self.file.set_len(0).map_err(FetchError::io("empty", &self.path))
    }

    /// Drops all bytes and notes the version of those to come.
    pub fn begin(&mut self, version: Version) -> Result<(), FetchError> {
        self.clear()?;
        self.write_note(version)
    }

    /// Notes the length of the whole archive, where only a later answer tells it.
    pub fn learn_total(&mut self, total: Option<u64>) -> Result<(), FetchError> {
        match self.version.clone() {
            Some(version) if version.total.is_none() && total.is_some() => {
                self.write_note(Version { total, ..version })
            }
            _ => Ok(()),
        }
    }

    fn write_note(&mut self, version: Version) -> Result<(), FetchError> {
        let json = serde_json::to_vec(&version).expect("two strings and a number become JSON");
        fs::write(&self.note, json).map_err(FetchError::io("write", &self.note))?;
        self.version = Some(version);
        Ok(())
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .seek(SeekFrom::Start(self.len))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(FetchError::io("write", &self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Deletes the file and its note.
    pub fn remove(self) {
        // Failing to is no reason to fail: a leftover is replaced by the next run.
        let _ = fs::remove_file(&self.note);
        let _ = fs::remove_file(&self.path);
    }
}
