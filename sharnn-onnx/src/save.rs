//! A file on the disk: whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::OnnxError;
use crate::file::OnnxFile;

/// Writes `onnx` beside `path`, brings it to the disk and renames it.
pub(crate) fn save(onnx: &OnnxFile<'_>, path: &Path) -> Result<(), OnnxError> {
    let bytes = onnx.len() as u64;
    let failed = |action: &'static str| {
        move |source: io::Error| {
            let file = path.display().to_string();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    OnnxError::DiskFull { file, bytes, source }
                }
                _ => OnnxError::Io { file, action, source },
            }
        }
    };
    // A link stays one: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is there and no file: give the name of a file");
        return Err(failed("replace")(source));
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut builder = tempfile::Builder::new();
    builder.prefix(".tmp-").suffix(".onnx");
    // As for any new file, what the process's mask leaves of this.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut aside = builder.tempfile_in(dir).map_err(failed("write beside"))?;
    let mut writer = BufWriter::new(aside.as_file_mut());
    onnx.write(&mut |piece| writer.write_all(piece).map_err(failed("write")))?;
    writer.flush().map_err(failed("write"))?;
    drop(writer);
    aside.as_file().sync_all().map_err(failed("write"))?;
    aside.persist(&target).map_err(|error| failed("replace")(error.error))?;
    // Only Unix lets a directory be opened to bring its entries to the disk.
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write"))?;
    }
    Ok(())
}
