//! Standard output and standard error. Either may be a pipe that is full since its reader has paused: a write waits for it, and a
//! signal ends the waiting.

use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(unix)]
use std::time::{Duration, Instant};

#[cfg(unix)]
use super::life;

/// How long a full pipe is waited for once a signal came.
#[cfg(unix)]
const PATIENCE: Duration = Duration::from_millis(400);
/// Milliseconds between two looks at the interrupt.
#[cfg(unix)]
const LOOK: i32 = 50;

/// Why a command has failed that could not say what it had to say.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct Unwritten;

/// One of the two, not buffered.
#[derive(Clone, Copy)]
pub struct Pipe(&'static Stream);

struct Stream {
    /// `None` where there is none: nothing is written then.
    file: Option<File>,
    /// Nobody has read for too long.
    #[cfg(unix)]
    is_given_up: AtomicBool,
}

/// Standard output.
pub fn stdout() -> Pipe {
    static STREAM: OnceLock<Stream> = OnceLock::new();
    Pipe(STREAM.get_or_init(|| Stream::of(io::stdout())))
}

/// Standard error.
pub fn stderr() -> Pipe {
    static STREAM: OnceLock<Stream> = OnceLock::new();
    Pipe(STREAM.get_or_init(|| Stream::of(io::stderr())))
}

impl Stream {
    #[cfg(unix)]
    fn of(stream: impl std::os::fd::AsFd) -> Self {
        let file = stream.as_fd().try_clone_to_owned().ok().map(File::from);
        Self { file, is_given_up: AtomicBool::new(false) }
    }

    #[cfg(windows)]
    fn of(stream: impl std::os::windows::io::AsHandle) -> Self {
        Self { file: stream.as_handle().try_clone_to_owned().ok().map(File::from) }
    }

    /// Waits until a write of `PIPE_BUF` bytes returns at once.
    #[cfg(unix)]
    fn wait(&self, file: &File) -> io::Result<()> {
        let mut since = None;
        while !has_room(file, if self.is_given_up.load(Ordering::SeqCst) { 0 } else { LOOK }) {
            if !life::interrupt().is_raised() {
                continue;
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                self.is_given_up.store(true, Ordering::SeqCst);
            }
            if self.is_given_up.load(Ordering::SeqCst) {
                return Err(life::stopped_io());
            }
        }
        self.is_given_up.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Write for Pipe {
    #[cfg(unix)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mut file) = self.0.file.as_ref() else { return Ok(bytes.len()) };
        self.0.wait(file)?;
        file.write(&bytes[..bytes.len().min(libc::PIPE_BUF)])
    }

    #[cfg(not(unix))]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mut file) = self.0.file.as_ref() else { return Ok(bytes.len()) };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write would return within so many milliseconds: having written, or with an error.
#[cfg(unix)]
fn has_room(file: &File, milliseconds: i32) -> bool {
    use std::os::fd::AsRawFd;
    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: One struct, which lives as long as the call; the descriptor is open as long as the file.
    match unsafe { libc::poll(&mut asked, 1, milliseconds) } {
        0 => false,
        // A signal came. Whatever else is wrong, a write will say.
        -1 => io::Error::last_os_error().kind() != io::ErrorKind::Interrupted,
        _ => true,
    }
}
