//! A file on the disk: whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use sharnn_data::whole_file;

use crate::OnnxError;
use crate::file::OnnxFile;

/// What stops a file on its way to the disk.
enum Stopped {
    Io(io::Error),
    Onnx(OnnxError),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes `onnx` beside `path`, brings it to the disk and renames it.
pub(crate) fn save(onnx: &OnnxFile<'_>, path: &Path) -> Result<(), OnnxError> {
    let bytes = onnx.len() as u64;
    let failed = |action: &'static str, source: io::Error| {
        let file = path.display().to_string();
        match whole_file::is_full(&source) {
            true => OnnxError::DiskFull { file, bytes, source },
            false => OnnxError::Io { file, action, source },
        }
    };
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is there and no file: give the name of a file");
        return Err(failed("replace", source));
    }
    let written = whole_file::write(path, |out| {
        onnx.write(&mut |piece| out.write_all(piece).map_err(|source| failed("write", source))).map_err(Stopped::Onnx)
    });
    written.map_err(|stopped| match stopped {
        Stopped::Io(source) => failed("write", source),
        Stopped::Onnx(error) => error,
    })
}
