//! A file that is mapped into memory, and that another process may cut short meanwhile.
//!
//! The system answers a touch of a page that is gone with SIGBUS, which ends a process. The first map installs a handler that
//! puts zeros in the place of what is missing and notes it: whoever reads asks with [`MappedFile::check`] afterwards whether
//! what it read was the file. A fault anywhere else goes to the handler that was there before.

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::error::DataError;

#[cfg(unix)]
type Map = guard::Guarded<Mmap>;
#[cfg(not(unix))]
type Map = Mmap;

/// A mapped file.
pub(super) struct MappedFile {
    path: PathBuf,
    file: File,
    map: Map,
    /// When it was written last, as far as is known.
    written: Mutex<Option<SystemTime>>,
}

impl MappedFile {
    /// Maps all of a file that is not empty.
    pub(super) fn new(path: &Path, file: File) -> Result<Self, DataError> {
        // SAFETY: the map is private to this value, read-only and never handed out as mutable. Another process may change or
        // truncate the file. Where pages are gone the handler puts others, so that reading stays defined; that the values
        // are then none of the file's is what `check` tells.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| DataError::from_io("map into memory", path, source))?;
        if map.is_empty() {
            return Err(DataError::Empty { path: path.into() });
        }
        let written = Mutex::new(file.metadata().ok().and_then(|metadata| metadata.modified().ok()));
        #[cfg(unix)]
        let map = guard::Guarded::new(map);
        Ok(Self { path: path.into(), file, map, written })
    }

    /// That the file still has all of its bytes, and that none was missing when it was touched.
    pub(super) fn check(&self) -> Result<(), DataError> {
        let found = self.file.metadata().ok().as_ref().map(Metadata::len);
        #[cfg(unix)]
        let torn = self.map.is_torn();
        #[cfg(not(unix))]
        let torn = false;
        let expected = self.map.len() as u64;
        if torn || found.is_some_and(|found| found < expected) {
            return Err(DataError::Shrunk { path: self.path.clone(), expected, found });
        }
        Ok(())
    }

    /// Whether somebody wrote into the file, at its end or anywhere, since it was mapped or since this was asked last.
    pub(super) fn was_written(&self) -> bool {
        let now = self.file.metadata().ok().and_then(|metadata| metadata.modified().ok());
        let mut written = self.written.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut *written, now) != now
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// What keeps a fault in a map from ending the process.
#[cfg(unix)]
mod guard {
    use std::ffi::{c_int, c_void};
    use std::ops::{Deref, Range};
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// A map that the handler knows. It reads these without a lock, so they are never freed, and used again.
    struct Region {
        /// Its first address; 0 while it is of no map.
        start: AtomicUsize,
        end: AtomicUsize,
        torn: AtomicBool,
        next: *const Region,
    }

    impl Region {
        /// The addresses of its map, where it has one. The start is read again, since another thread may be giving the region to
        /// another map: then it is none that a fault is in, whose reader keeps it.
        fn addresses(&self) -> Option<Range<usize>> {
            let start = self.start.load(Ordering::SeqCst);
            let end = self.end.load(Ordering::SeqCst);
            (start != 0 && self.start.load(Ordering::SeqCst) == start).then_some(start..end)
        }
    }

    // SAFETY: `next` is written before the region is shared and never after; all else is atomic.
    unsafe impl Sync for Region {}

    static FIRST: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());
    /// Held by whoever takes a region or gives one back.
    static CHANGE: Mutex<()> = Mutex::new(());
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// The regions, newest first.
    fn regions() -> impl Iterator<Item = &'static Region> {
        let mut next = FIRST.load(Ordering::Acquire).cast_const();
        std::iter::from_fn(move || {
            // SAFETY: null, or a region that was leaked.
            let region = unsafe { next.as_ref() }?;
            next = region.next;
            Some(region)
        })
    }

    /// A map that the handler knows for as long as it is mapped. It owns the map: its own drop, which comes before that of what
    /// it owns, makes the handler forget the addresses before others may have them.
    pub(super) struct Guarded<M> {
        region: &'static Region,
        map: M,
    }

    impl<M: Deref<Target = [u8]>> Guarded<M> {
        pub(super) fn new(map: M) -> Self {
            let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
            install();
            let region = regions().find(|region| region.start.load(Ordering::Relaxed) == 0).unwrap_or_else(|| {
                let (start, end, torn) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
                let region = Box::leak(Box::new(Region { start, end, torn, next: FIRST.load(Ordering::Relaxed) }));
                FIRST.store(region, Ordering::Release);
                region
            });
            let start = map.as_ptr() as usize;
            region.torn.store(false, Ordering::SeqCst);
            region.end.store(start + map.len(), Ordering::SeqCst);
            region.start.store(start, Ordering::SeqCst);
            Self { region, map }
        }
    }

    impl<M> Guarded<M> {
        /// Whether bytes were missing when they were touched.
        pub(super) fn is_torn(&self) -> bool {
            self.region.torn.load(Ordering::SeqCst)
        }
    }

    impl<M: Deref<Target = [u8]>> Deref for Guarded<M> {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &self.map
        }
    }

    impl<M> Drop for Guarded<M> {
        fn drop(&mut self) {
            let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
            self.region.start.store(0, Ordering::SeqCst);
        }
    }

    /// Installs the handler, once a process.
    fn install() {
        BEFORE.get_or_init(|| {
            // SAFETY: these calls have no conditions; a sigaction of zeros is one.
            unsafe {
                PAGE.store(libc::sysconf(libc::_SC_PAGESIZE).max(1) as usize, Ordering::Release);
                let mut before: libc::sigaction = std::mem::zeroed();
                libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before);
                before
            }
        });
        static INSTALLED: OnceLock<()> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            // SAFETY: the handler calls nothing but what a handler may: atomic loads and stores, mmap and sigaction. It runs on
            // the stack for signals where there is one.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
            }
        });
    }

    extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the system hands over a valid siginfo.
        let address = unsafe { (*info).si_addr() } as usize;
        if !put_zeros(address) {
            pass_on(signal, info, context);
        }
    }

    /// Puts zeros in the place of a map's bytes from the page of `address` on. Returns whether it is a map's.
    fn put_zeros(address: usize) -> bool {
        let page = PAGE.load(Ordering::Acquire);
        for region in regions() {
            let Some(end) = region.addresses().filter(|map| map.contains(&address)).map(|map| map.end) else {
                continue;
            };
            region.torn.store(true, Ordering::SeqCst);
            let from = address - address % page;
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
            let len = end.next_multiple_of(page) - from;
            // SAFETY: the pages are those of a map that lives, since a thread is reading it; they are replaced by others that
            // can be read, and nobody holds a promise about their values.
            let put = unsafe { libc::mmap(from as *mut c_void, len, libc::PROT_READ, flags, -1, 0) };
            return put != libc::MAP_FAILED;
        }
        false
    }

    /// Does what would have been done without this handler.
    fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let before = BEFORE.get().filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
        // SAFETY: the handler that was there is of the kind that its flags say. Where there was none the default comes back, and
        // the fault that happens again ends the process.
        unsafe {
            match before {
                Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                        std::mem::transmute(before.sa_sigaction);
                    handler(signal, info, context);
                }
                Some(before) => {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(before.sa_sigaction);
                    handler(signal);
                }
                None => {
                    libc::signal(libc::SIGBUS, libc::SIG_DFL);
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn is_known(start: usize) -> bool {
            regions().any(|region| region.addresses().is_some_and(|map| map.contains(&start)))
        }

        /// A map that knows whether its addresses were still the handler's when it went.
        struct Watched<'a> {
            bytes: Vec<u8>,
            known_at_end: &'a AtomicBool,
        }

        impl Deref for Watched<'_> {
            type Target = [u8];

            fn deref(&self) -> &[u8] {
                &self.bytes
            }
        }

        impl Drop for Watched<'_> {
            fn drop(&mut self) {
                self.known_at_end.store(is_known(self.bytes.as_ptr() as usize), Ordering::SeqCst);
            }
        }

        /// Else the handler would put zeros into whatever is mapped next in its place.
        #[test]
        fn the_handler_forgets_a_map_before_it_goes() {
            let known_at_end = AtomicBool::new(true);
            let map = Guarded::new(Watched { bytes: vec![1; 64], known_at_end: &known_at_end });
            let start = map.as_ptr() as usize;
            assert!(is_known(start) && is_known(start + 63));
            drop(map);
            assert!(!known_at_end.load(Ordering::SeqCst));
        }
    }
}
