//! Stopping from outside: Ctrl-C, a termination signal, or another thread.
//!
//! Here lives what hears signals; what is saved then, whoever was interrupted decides.
//! It uses no other room; all may use it.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests to stop, shared by whoever asks and whoever stops. Clones are the same requests.
///
/// ```
/// use sharnn_train::Interrupt;
///
/// let interrupt = Interrupt::default();
/// let other = interrupt.clone();
/// other.raise();
/// assert!(interrupt.is_raised() && !interrupt.is_pressing());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Requests>);

#[derive(Debug, Default)]
struct Requests {
    asked: AtomicUsize,
    /// Signals that somebody attends to; the next one ends the process.
    heeded: AtomicUsize,
    /// What a signal's handler says; null for nothing. What it points to is never freed: a handler may be reading it.
    notice: AtomicPtr<String>,
}

/// The exit status of a process that a signal has ended: 128 + SIGINT, whichever signal it was.
pub const EXIT_STATUS: i32 = 130;

/// Signals cannot be handled: the system refuses, or they are handled already.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals: {0}; do it once a process, and share the `Interrupt` by cloning it")]
pub struct InterruptError(#[from] io::Error);

/// Those that ask to stop: Ctrl-C, what schedulers and service managers send, a terminal that was closed, and a limit on
/// processor time.
#[cfg(unix)]
const SIGNALS: [i32; 6] = [
    signal_hook::consts::SIGINT,
    signal_hook::consts::SIGTERM,
    signal_hook::consts::SIGHUP,
    signal_hook::consts::SIGUSR1,
    signal_hook::consts::SIGUSR2,
    AGAIN_AND_AGAIN,
];
#[cfg(not(unix))]
const SIGNALS: [i32; 2] = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];

/// One that the system sends each second from the limit on: it is one request.
#[cfg(unix)]
const AGAIN_AND_AGAIN: i32 = signal_hook::consts::SIGXCPU;
#[cfg(not(unix))]
const AGAIN_AND_AGAIN: i32 = -1;

impl Interrupt {
    /// [`on_signals`](Self::on_signals) of which the first one is attended to: a second one ends the process at once.
    ///
    /// # Errors
    /// If this process handles them already.
    pub fn on_ctrl_c() -> Result<Self, InterruptError> {
        Self::on_signals(1)
    }

    /// Raised by Ctrl-C, and by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU where there are such. So many of them, from the very
    /// first on, ask to save and stop; one more ends the process at once, with status [`EXIT_STATUS`].
    /// [`heed`](Self::heed) changes how many. SIGXCPU, which comes again each second, counts once.
    ///
    /// A signal that was ignored when the process began stays ignored: SIGHUP under `nohup`, SIGINT of a script's background
    /// job.
    ///
    /// # Errors
    /// If this process handles them already.
    pub fn on_signals(heeded: usize) -> Result<Self, InterruptError> {
        static HANDLED: AtomicBool = AtomicBool::new(false);
        if HANDLED.swap(true, Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "this process does so already").into());
        }
        let interrupt = Self::default();
        interrupt.heed(heeded);
        for signal in SIGNALS.into_iter().filter(|&signal| !is_ignored(signal)) {
            let (requests, repeats) = (interrupt.0.clone(), AtomicBool::new(false));
            let act = move || {
                if signal != AGAIN_AND_AGAIN || !repeats.swap(true, Ordering::SeqCst) {
                    requests.signal();
                }
            };
            // SAFETY: The action may be run in a signal's handler: it neither allocates nor locks, and calls what may be called
            // there alone: atomics, `poll`, `write` and `_exit`.
            unsafe { signal_hook::low_level::register(signal, act) }?;
        }
        Ok(interrupt)
    }

    /// So many signals in all are attended to by looking at [`is_raised`](Self::is_raised); the next one ends the process at once.
    pub fn heed(&self, signals: usize) {
        self.0.heeded.store(signals, Ordering::SeqCst);
    }

    /// What is written to standard error, as a line, at the moment in which a first signal comes. A text that comes again takes no
    /// more memory.
    pub fn set_notice(&self, text: &str) {
        // A terminal shows ^C where the cursor stands.
        let line = interned(format!("\n{text}\n"));
        self.0.notice.store(std::ptr::from_ref(line).cast_mut(), Ordering::SeqCst);
    }

    /// Asks to stop.
    pub fn raise(&self) {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether somebody asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) > 0
    }

    /// Whether somebody asked more than once: what is under way is to be given up.
    pub fn is_pressing(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) > 1
    }
}

/// The one text of these letters that is never freed.
fn interned(text: String) -> &'static String {
    static TEXTS: Mutex<BTreeSet<&'static String>> = Mutex::new(BTreeSet::new());
    // A set that a panic has left is whole.
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = texts.get(&text) {
        return known;
    }
    let text: &'static String = Box::leak(Box::new(text));
    texts.insert(text);
    text
}

impl Requests {
    /// In a signal's handler.
    fn signal(&self) {
        let before = self.asked.fetch_add(1, Ordering::SeqCst);
        if before >= self.heeded.load(Ordering::SeqCst) {
            signal_hook::low_level::exit(EXIT_STATUS);
        }
        if before == 0 {
            // SAFETY: Null, or `interned`, and so never freed or changed.
            if let Some(text) = unsafe { self.notice.load(Ordering::SeqCst).as_ref() } {
                say(text.as_bytes());
            }
        }
    }
}

/// Writes to standard error from within a signal's handler, unless that is a full pipe, for which it would wait.
#[cfg(unix)]
fn say(text: &[u8]) {
    let mut asked = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: One struct, which lives as long as the call, and bytes that are valid for their length; what is not written is
    // dropped. `poll` and `write` may be called in a handler.
    unsafe {
        if libc::poll(&mut asked, 1, 0) > 0 {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        }
    }
}

#[cfg(not(unix))]
fn say(_: &[u8]) {}

/// Whether whoever started the process wants a signal ignored.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` writes to a struct of its own type, for which zeros are valid, and changes nothing where it is given no
    // action.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn is_ignored(_: i32) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_that_comes_again_takes_no_more_memory() {
        let interrupt = Interrupt::default();
        let notice = |text| {
            interrupt.set_notice(text);
            interrupt.0.notice.load(Ordering::SeqCst)
        };
        let [first, other, again] = ["about 2 s", "about 3 s", "about 2 s"].map(notice);
        assert!(first == again && first != other);
    }
}
