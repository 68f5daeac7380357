//! Room for f32 that an operation needs while it runs.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// f32 whose first lies on a cache line, so that no vector of a packed panel straddles two.
///
/// When it is dropped its memory is kept for the next one: to get megabytes from the system, page by page and zeroed, takes
/// as long as to pack a matrix into them.
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

/// Memory of dropped buffers, at most [`KEPT`] of them.
static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// As many as the largest operation uses, and its threads.
const KEPT: usize = 16;

fn pool() -> MutexGuard<'static, Vec<Vec<Line>>> {
    POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Buffer {
    /// Room for `len` values, which are whatever an earlier operation left, or zeros.
    pub fn room(len: usize) -> Self {
        let n = len.div_ceil(16);
        let mut pool = pool();
        // The smallest that is large enough, or else the largest, which grows.
        let best = (0..pool.len()).min_by_key(|&i| match pool[i].len() {
            have if have >= n => (false, have),
            have => (true, usize::MAX - have),
        });
        let mut lines = best.map_or_else(Vec::new, |i| pool.swap_remove(i));
        drop(pool);
        if lines.len() < n {
            // What it holds need not be copied.
            lines = Vec::new();
            lines.resize(n, Line([0.0; 16]));
        }
        Self { lines, len }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::room(len);
        buffer.fill(0.0);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
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
