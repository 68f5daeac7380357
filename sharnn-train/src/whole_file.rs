//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Lets `write` write a file, under the name that it is given, and puts it in the place of `path`, or of the file that it is a
/// link to, once all of it is on the disk. Until then, and whatever goes wrong, `path` holds what it held before. A device or a
/// pipe is written to as it is.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Ok(target) if target.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
        Ok(target) if !target.is_file() => return write(&target),
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(error) => return Err(error),
    };
    let Some(name) = target.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no file name"));
    };
    let dir = match target.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    // Another process that writes the same file at the same moment writes aside elsewhere.
    let mut aside = OsString::from(".tmp-");
    aside.push(name);
    aside.push(format!("-{}", std::process::id()));
    let aside = dir.join(aside);
    let fill = || {
        write(&aside)?;
        File::options().write(true).open(&aside)?.sync_all()?;
        fs::rename(&aside, &target)
    };
    if let Err(error) = fill() {
        // The first error is the one to report.
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    // Only Unix lets a directory be opened to bring its entries to the disk.
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
