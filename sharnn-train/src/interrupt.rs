//! Stopping a run from outside: Ctrl-C, a termination signal, or another thread.
//!
//! Here lives what hears signals; what is saved then, whoever was interrupted decides.
//! It uses no other room; all may use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared by whoever asks and whoever stops. Clones are the same request.
///
/// ```
/// use sharnn_train::Interrupt;
///
/// let interrupt = Interrupt::default();
/// let other = interrupt.clone();
/// other.raise();
/// assert!(interrupt.is_raised());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The exit status of a process that is ended by a second Ctrl-C: 128 + SIGINT.
pub const EXIT_STATUS: i32 = 130;

/// The signal handler could not be installed: one process can have one.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle Ctrl-C: {0}; install the handler once a process, and share the `Interrupt` by cloning it")]
pub struct InterruptError(#[from] ctrlc::Error);

impl Interrupt {
    /// Raised by Ctrl-C (and by SIGTERM or SIGHUP, where there are such). The first one asks to save and stop; a second
    /// one ends the process at once, with status [`EXIT_STATUS`].
    ///
    /// # Errors
    /// If this process has a handler already.
    pub fn on_ctrl_c() -> Result<Self, InterruptError> {
        let interrupt = Self::default();
        let handle = interrupt.clone();
        ctrlc::set_handler(move || {
            if handle.0.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_STATUS);
            }
        })?;
        Ok(interrupt)
    }

    /// Asks to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
