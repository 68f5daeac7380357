//! Room for f32 that an operation needs while it runs.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// f32 whose first lies on a cache line, so that no vector of a packed panel straddles two.
///
/// When a large one is dropped its memory is kept for the next: to get megabytes from the system, page by page and zeroed,
/// takes as long as to pack a matrix into them. A training step asks for the same sizes as the one before it.
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

/// Memory of dropped buffers, at most [`KEPT`] of them.
static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// More than the tensors of a training step; beyond it the smallest go.
const KEPT: usize = 256;

/// Cache lines from which on a buffer's memory is kept: 64 KiB.
const LARGE: usize = 1024;

fn pool() -> MutexGuard<'static, Vec<Vec<Line>>> {
    POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Buffer {
    /// Room for `len` values, which are whatever an earlier operation left, or zeros.
    pub fn room(len: usize) -> Self {
        let n = len.div_ceil(16);
        let lines = if n < LARGE { None } else { take(n) };
        Self { lines: lines.unwrap_or_else(|| fresh(n)), len }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::room(len);
        buffer.fill(0.0);
        buffer
    }

    /// The values' memory as it may be handed to an owner of bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: f32 are bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), 4 * self.len) }
    }

    /// [`as_bytes`](Self::as_bytes), to be written to.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively; every pattern of bytes is an f32.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), 4 * self.len) }
    }
}

/// The smallest kept memory of at least `n` lines that is not much larger.
fn take(n: usize) -> Option<Vec<Line>> {
    let mut pool = pool();
    let fits = |i: &usize| (n..=n + n / 2).contains(&pool[*i].len());
    let best = (0..pool.len()).filter(fits).min_by_key(|&i| pool[i].len())?;
    Some(pool.swap_remove(best))
}

fn fresh(n: usize) -> Vec<Line> {
    let mut lines = Vec::with_capacity(n);
    ask_for_huge_pages(&mut lines);
    lines.resize(n, Line([0.0; 16]));
    lines
}

/// Where the system gives huge pages to who asks, ask for them before the memory is touched: a step of the LSTM goes through
/// more pages than the processor remembers.
#[cfg(all(target_os = "linux", not(miri)))]
fn ask_for_huge_pages(lines: &mut Vec<Line>) {
    const HUGE: usize = 2 << 20;
    let memory = lines.spare_capacity_mut();
    let (start, bytes) = (memory.as_ptr().addr(), size_of_val(memory));
    let first = start.next_multiple_of(HUGE);
    if start + bytes >= first + HUGE {
        let whole = (start + bytes - first) / HUGE * HUGE;
        // SAFETY: whole pages inside of the allocation. It is advice: nothing depends on whether it is taken.
        unsafe {
            libc::madvise(memory.as_mut_ptr().cast::<u8>().add(first - start).cast(), whole, libc::MADV_HUGEPAGE)
        };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn ask_for_huge_pages(_lines: &mut Vec<Line>) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.lines.len() < LARGE {
            return;
        }
        let mut pool = pool();
        pool.push(std::mem::take(&mut self.lines));
        if pool.len() > KEPT
            && let Some(smallest) = (0..pool.len()).min_by_key(|&i| pool[i].len())
        {
            pool.swap_remove(smallest);
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the lines are contiguous arrays of f32 without padding, at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// A pointer into a slice that the members of a team write to in disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever dereferences it promises disjointness or a barrier in between.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// For those who only read.
    pub(crate) fn read_only(slice: &[T]) -> Self {
        Self(slice.as_ptr().cast_mut())
    }

    /// The pointer to element `i`.
    ///
    /// # Safety
    /// `i` is in bounds or one past the end.
    #[inline(always)]
    pub(crate) unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(i) }
    }

    /// Elements `i .. i + len`.
    ///
    /// # Safety
    /// They are in bounds, and no one else uses them while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, i: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(i), len) }
    }
}
