//! Input that may pause: a pipe whose writer thinks, or a file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::data::format;
use crate::train::Interrupt;

const BUFFER: usize = 1 << 16;
/// Milliseconds between two looks at the interrupt while nothing comes.
const PATIENCE: i32 = 100;

/// A file or standard input. Where its bytes are evidently not text, that is said in one line.
pub struct Input {
    from: BufReader<File>,
    /// Where it is no standard input.
    path: Option<PathBuf>,
    /// Whether its first bytes were looked at.
    is_known: bool,
}

impl Input {
    /// Opens a file; `-` is standard input.
    pub fn open(path: &Path) -> Result<Self> {
        let is_stdin = path == Path::new("-");
        let file = if is_stdin { stdin() } else { File::open(path) };
        let file = file.with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(!file.metadata().is_ok_and(|file| file.is_dir()), "{} is a directory: name a file", path.display());
        let path = (!is_stdin).then(|| path.into());
        Ok(Self { from: BufReader::with_capacity(BUFFER, file), path, is_known: false })
    }

    /// Waits for bytes and returns those that are there, none at the end; `None` if somebody asked to stop while none came.
    pub fn wait(&mut self, interrupt: &Interrupt) -> io::Result<Option<&[u8]>> {
        while self.from.buffer().is_empty() && !self.has_more(PATIENCE) {
            if interrupt.is_raised() {
                return Ok(None);
            }
        }
        self.fill_buf().map(Some)
    }

    /// Whether whoever writes has paused: nothing more is there to be read now.
    pub fn pauses(&self) -> bool {
        self.from.buffer().is_empty() && !self.has_more(0)
    }

    /// Whether a read would return within so many milliseconds: with bytes, at the end, or with an error.
    #[cfg(unix)]
    fn has_more(&self, milliseconds: i32) -> bool {
        use std::os::fd::AsRawFd;
        let mut asked = libc::pollfd { fd: self.from.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: One struct, which lives as long as the call; the descriptor is open as long as the file.
        match unsafe { libc::poll(&mut asked, 1, milliseconds) } {
            0 => false,
            // A signal came. Whatever else is wrong, a read will say.
            -1 => io::Error::last_os_error().kind() != io::ErrorKind::Interrupted,
            _ => true,
        }
    }

    /// Elsewhere it isn't known: each line is answered at once, and a read waits.
    #[cfg(not(unix))]
    fn has_more(&self, milliseconds: i32) -> bool {
        milliseconds > 0
    }
}

/// For whoever has nothing to do while no bytes come.
impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while let Err(error) = self.from.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let bytes = self.from.buffer();
        if !std::mem::replace(&mut self.is_known, true)
            && let Some(format) = format::recognize(bytes)
        {
            tell!("{}", self.path.as_ref().map_or_else(|| format.describe_stdin(), |path| format.describe(path)));
        }
        Ok(bytes)
    }

    fn consume(&mut self, bytes: usize) {
        self.from.consume(bytes);
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(unix)]
fn stdin() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn stdin() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(io::stdin().as_handle().try_clone_to_owned()?.into())
}
