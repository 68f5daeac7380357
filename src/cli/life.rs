//! The life of the process: what ends it from outside, decided here once for every command.
//!
//! A command that has nothing to keep ends at once where a signal comes. One that has says so ([`heed`]), looks at the
//! [`Interrupt`], keeps what it has and returns [`stopped`]. A file is written to its end ([`whole`]).

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Error, Result};

use crate::data::whole_file;
use crate::train::{EXIT_STATUS, Interrupt};

static INTERRUPT: OnceLock<Interrupt> = OnceLock::new();

/// Why a command has ended: a signal came. It was told, or there is nothing to tell.
#[derive(Debug, thiserror::Error)]
#[error("stopped by a signal")]
struct Stopped;

/// Hears signals from now on, the first of which ends the process. A file that grows beyond the limit on sizes is an error of its
/// writer, which says so, and not a signal that ends the process without a word.
pub fn begin() {
    #[cfg(unix)]
    // SAFETY: To ignore a signal runs no code in its place, and no thread of this process has set anything else for it.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    // A program that calls this as a function, and hears signals itself, goes on to do so.
    let _ = INTERRUPT.set(Interrupt::on_signals(0).unwrap_or_default());
}

/// What signals raise.
pub fn interrupt() -> &'static Interrupt {
    INTERRUPT.get_or_init(Interrupt::default)
}

/// From now on the command attends to so many signals; one more ends the process at once.
pub fn heed(signals: usize) -> &'static Interrupt {
    let interrupt = interrupt();
    interrupt.heed(signals);
    interrupt
}

/// Writes a file, or several, to the end though a signal comes, so that nothing half-written is left; the command ends then. A
/// second signal ends the process at once.
pub fn whole<T, E: Into<Error>>(write: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let interrupt = heed(1);
    let written = write().map_err(Into::into)?;
    interrupt.heed(0);
    if interrupt.is_raised() { Err(Stopped.into()) } else { Ok(written) }
}

/// The same for what goes to this path. A pipe, which may never be read, leaves nothing half-written: a signal ends the process at once,
/// and nothing is written where one has come before.
pub fn whole_at<T, E: Into<Error>>(path: &Path, write: impl FnOnce() -> Result<T, E>) -> Result<T> {
    if !whole_file::is_stream(path) {
        return whole(write);
    }
    if heed(0).is_raised() { Err(Stopped.into()) } else { write().map_err(Into::into) }
}

/// The exit code of a command that has kept what it had.
pub fn stopped() -> ExitCode {
    ExitCode::from(EXIT_STATUS as u8)
}

/// Whether an error says no more than that a signal came.
pub fn is_stopped(error: &Error) -> bool {
    error.chain().any(|cause| cause.is::<Stopped>() || cause.downcast_ref().is_some_and(is_stopped_io))
}

/// A writer that takes no more once a signal came.
pub struct UntilStopped<W>(pub W);

impl<W: Write> Write for UntilStopped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if interrupt().is_raised() { Err(stopped_io()) } else { self.0.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What a writer returns that takes no more.
pub fn stopped_io() -> io::Error {
    io::Error::other(Stopped)
}

fn is_stopped_io(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<Stopped>())
}
