//! From the archive to the file: one named entry, checked while it is written, then renamed into place.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use super::{BUFFER, Expected, FetchError, FetchProgress};
use crate::whole_file::sync_place;

/// Unpacks the expected entry to `temporary` and, if it is what it should be, renames that to `dest`.
pub(super) fn unpack(
    archive: &File,
    expected: &Expected,
    dest: &Path,
    temporary: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), FetchError> {
    let result = write_checked(archive, expected, temporary, progress)
        .and_then(|()| fs::rename(temporary, dest).map_err(FetchError::io("create", dest)));
    if result.is_err() {
        // Whatever is there is no use; failing to delete it must not hide the first error.
        let _ = fs::remove_file(temporary);
        return result;
    }
    sync_place(dest);
    Ok(())
}

fn write_checked(
    mut archive: &File,
    expected: &Expected,
    temporary: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), FetchError> {
    archive.rewind().map_err(bad_archive)?;
    let mut zip = ZipArchive::new(BufReader::new(archive)).map_err(bad_archive)?;
    // The name is compared, byte for byte, and never used as a path.
    let Some(index) = zip.index_for_name_raw(expected.entry.as_bytes()) else {
        return Err(FetchError::MissingEntry { entry: expected.entry.clone(), found: names(&zip) });
    };
    let entry = zip.by_index(index).map_err(bad_archive)?;
    let wrong_size =
        |found: u64| FetchError::WrongSize { entry: expected.entry.clone(), expected: expected.size, found };
    if entry.size() != expected.size {
        return Err(wrong_size(entry.size()));
    }
    // What the archive says of its entry may be untrue: never write more than a byte too many.
    let mut entry = entry.take(expected.size.saturating_add(1));
    let mut file = File::create(temporary).map_err(FetchError::io("create", temporary))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        progress(FetchProgress::Unpacking { bytes, total: expected.size });
        let n = entry.read(&mut buffer).map_err(bad_archive)?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        hash.update(&buffer[..n]);
        file.write_all(&buffer[..n]).map_err(FetchError::io("write", temporary))?;
    }
    if bytes != expected.size {
        return Err(wrong_size(bytes));
    }
    let found = format!("{:x}", hash.finalize());
    if found != expected.sha256 {
        return Err(FetchError::WrongChecksum {
            entry: expected.entry.clone(),
            expected: expected.sha256.clone(),
            found,
        });
    }
    file.sync_all().map_err(FetchError::io("write", temporary))
}

fn bad_archive(error: impl Into<ZipError>) -> FetchError {
    FetchError::Archive { reason: error.into().to_string() }
}

/// The first few names in an archive, for a message: escaped, and cut where they are long.
fn names(zip: &ZipArchive<impl Read + Seek>) -> String {
    const SHOWN: usize = 3;
    let mut names: Vec<String> = zip
        .file_names_raw()
        .take(SHOWN)
        .map(|name| format!("`{}`", name[..name.len().min(60)].escape_ascii()))
        .collect();
    match zip.len() {
        0 => return "nothing".into(),
        n if n > SHOWN => names.push(format!("{} more", n - SHOWN)),
        _ => {}
    }
    names.join(", ")
}
