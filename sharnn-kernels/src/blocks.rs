//! Rows in blocks of a fixed size, and column sums that are added block by block.
//!
//! A block does not depend on the number of threads, so neither does the order of a sum over rows.

use crate::buffer::Shared;
use crate::simd::{Vector, kernel};
use crate::team;

/// Rows of a block: whole tiles of a matrix product for every set of instructions, few enough to stay in the cache.
pub(crate) const BLOCK: usize = 48;

/// Element-wise operations on fewer values than this are done before another thread has woken up.
const SMALL: usize = 1 << 14;

/// Multiplications of a matrix product that take as long as an element-wise operation on one value.
const PRODUCT_TERMS: usize = 16;

/// The work of a matrix product, in values of an element-wise operation.
pub(crate) fn product_work(rows: usize, k: usize, n: usize) -> usize {
    rows * n * k.div_ceil(PRODUCT_TERMS)
}

/// Whether there are enough blocks to keep all threads at work to the end. A matrix product of fewer rows is divided by
/// columns too, before or after the pass over blocks.
pub(crate) fn enough_blocks(rows: usize) -> bool {
    rows.div_ceil(BLOCK) >= 4 * team::threads()
}

/// [`team::for_each_with`], or a loop where there is so little `work` that a hand-over would take longer.
pub(crate) fn for_each_with<S>(
    n_tasks: usize,
    work: usize,
    init: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, usize) + Sync,
) {
    if n_tasks > 1 && work >= SMALL {
        return team::for_each_with(n_tasks, init, task);
    }
    if n_tasks > 0 {
        let mut scratch = init();
        (0..n_tasks).for_each(|i| task(&mut scratch, i));
    }
}

/// Calls `task` with the first row of each block and the number of its rows. `row_work` is the work of a row, in values of
/// an element-wise operation.
pub(crate) fn for_each_block<S>(
    rows: usize,
    row_work: usize,
    init: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, usize, usize) + Sync,
) {
    let per_task = (SMALL / 4 / (BLOCK * row_work).max(1)).max(1);
    let n_blocks = rows.div_ceil(BLOCK);
    for_each_with(n_blocks.div_ceil(per_task), rows * row_work, init, |scratch, i| {
        for block in i * per_task..n_blocks.min((i + 1) * per_task) {
            task(scratch, block * BLOCK, BLOCK.min(rows - block * BLOCK));
        }
    });
}

/// Sums of columns, one for each block of rows, to be added in the order of the blocks.
pub(crate) struct ColumnSums {
    partial: Vec<f32>,
    cols: usize,
}

impl ColumnSums {
    /// Zeros for each block.
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        Self { partial: vec![0.0; rows.div_ceil(BLOCK) * cols], cols }
    }

    pub(crate) fn share(&mut self) -> SharedSums {
        SharedSums { partial: Shared::new(&mut self.partial), cols: self.cols }
    }

    /// Adds up the blocks.
    pub(crate) fn finish(self, out: &mut [f32]) {
        let Self { partial, cols } = self;
        assert_eq!(out.len(), cols, "{cols} columns are summed into {} values", out.len());
        const STRIPE: usize = 256;
        let out = Shared::new(out);
        for_each_with(
            cols.div_ceil(STRIPE),
            partial.len(),
            || (),
            |(), stripe| {
                let start = stripe * STRIPE;
                let n = STRIPE.min(cols - start);
                // SAFETY: each stripe is written by one task.
                let out = unsafe { out.slice(start, n) };
                out.fill(0.0);
                for block in partial.chunks_exact(cols) {
                    out.iter_mut().zip(&block[start..start + n]).for_each(|(out, x)| *out += x);
                }
            },
        );
    }
}

/// [`ColumnSums`] that blocks are written to, each by one task.
#[derive(Clone, Copy)]
pub(crate) struct SharedSums {
    partial: Shared<f32>,
    cols: usize,
}

impl SharedSums {
    /// The sums of the block that begins with `row`.
    ///
    /// # Safety
    /// There is such a block, and no one else uses its sums while the slice lives.
    pub(crate) unsafe fn block<'a>(self, row: usize) -> &'a mut [f32] {
        debug_assert!(row.is_multiple_of(BLOCK));
        // SAFETY: the caller's.
        unsafe { self.partial.slice(row / BLOCK * self.cols, self.cols) }
    }
}

/// `to += from`.
///
/// # Safety
/// As [`Vector`]'s; both are valid for `n` values.
#[inline(always)]
pub(crate) unsafe fn add_to<V: Vector>(from: *const f32, to: *mut f32, n: usize) {
    for i in (0..n).step_by(V::LANES) {
        // SAFETY: `n - i` values are left; the rest is the caller's.
        unsafe {
            let (from, to, left) = (from.add(i), to.add(i), n - i);
            V::load_up_to(to, left).add(V::load_up_to(from, left)).store_up_to(to, left);
        }
    }
}

#[inline(always)]
unsafe fn add_rows_body<V: Vector>(x: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        // SAFETY: a row is as long as the sums; the instructions are the caller's.
        unsafe { add_to::<V>(row.as_ptr(), sums.as_mut_ptr(), row.len()) }
    }
}
kernel!(
    /// Adds rows to the sums of their columns.
    ///
    /// # Safety
    /// None beyond the instructions. There is a column.
    pub(crate) unsafe fn add_rows(x: &[f32], sums: &mut [f32]) => add_rows_body
);

/// The sum of `term`, a vector of the values from `i` on of which `left` count, over `n` values; others must be zeros.
macro_rules! sum_of {
    ($V:ident, $n:expr, |$i:ident, $left:ident| $term:expr) => {{
        let n: usize = $n;
        // Four sums, which need not wait for each other.
        let mut sums = [$V::splat(0.0); 4];
        let mut start = 0;
        while start + 4 * $V::LANES <= n {
            for (k, sum) in sums.iter_mut().enumerate() {
                let ($i, $left) = (start + k * $V::LANES, $V::LANES);
                *sum = sum.add($term);
            }
            start += 4 * $V::LANES;
        }
        while start < n {
            let ($i, $left) = (start, n - start);
            sums[0] = sums[0].add($term);
            start += $V::LANES;
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }};
}
pub(crate) use sum_of;
