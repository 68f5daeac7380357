//! Attention over one stored memory.
//!
//! Keys and values are the same rows `K = [memory ; current]`; query `i` sees the memory and the current rows up to its own:
//!
//! ```text
//! P = softmax(q Kᵀ)        out = (P ⊙ M_w) (K ⊙ M_v)
//! ```
//!
//! Lanes and heads come one after another, and inside of one all members of the team work together: the keys are packed
//! once, then blocks of query rows are handed out, each against all the keys that it sees. The weights are never stored; the
//! backward computes them again from the logarithms of their sums.

mod backward;
mod few;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::buffer::Buffer;
use crate::dropout::Mask;
use crate::gemm::{Mat, Operands, Panels};
use crate::rows::Rows;
use crate::simd::{Vector, kernel};
use crate::team::Member;

/// Columns that a mask draws at once: those that it is asked for begin at a multiple of it.
const MASK_GROUP: usize = 8;

/// Keys whose values are masked at once, and of which members pack whole numbers: a multiple of every panel's width.
const VALUES: usize = 32;

/// Scores of a block of query rows, about: a MiB, which is in the cache still when it is used next.
const BLOCK_SCORES: usize = 262_144;

/// Fewest and most query rows of a block, where there are so many. Each block reads all keys, so that with few rows the
/// memory is what it waits for.
const BLOCK_ROWS: [usize; 2] = [36, 96];

/// Inputs of the operation, which forward and backward share.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries with key gate and scale folded in, `[lanes, seq_len, d]`.
    pub query: Rows<'a>,
    /// Rows kept from earlier segments, `[lanes, mem_len, d]`.
    pub memory: Option<Rows<'a>>,
    /// Rows of the current segment, `[lanes, seq_len, d]`.
    pub current: Rows<'a>,
    /// Number of heads; it divides `d`.
    pub heads: usize,
    /// Dropout of the values: rows of its mask are keys, memory first.
    pub value_dropout: Option<Mask>,
    /// Dropout of the weights: rows of its mask are `head * seq_len + query`, columns keys.
    pub weight_dropout: Option<Mask>,
    /// What the operands of all products are rounded to.
    pub operands: Operands,
}

/// Runs work on so many members of a team, or fewer.
type Run<'a> = &'a dyn Fn(usize, &(dyn Fn(&Member) + Sync));

#[derive(Clone, Copy)]
struct Sizes {
    lanes: usize,
    queries: usize,
    memory: usize,
    /// Memory and current rows.
    keys: usize,
    heads: usize,
    d_head: usize,
}

impl Sizes {
    fn is_empty(self) -> bool {
        self.lanes * self.queries * self.heads * self.d_head == 0
    }

    /// Members that are worth waking.
    fn members(self) -> usize {
        self.lanes * self.queries * self.keys * self.heads * self.d_head / 65_536
    }

    /// Query rows of a task. No result depends on it.
    fn block_rows(self, members: usize) -> usize {
        let [fewest, most] = BLOCK_ROWS;
        let most = (BLOCK_SCORES / self.keys).clamp(fewest, most);
        most.min(self.queries.div_ceil(2 * members)).next_multiple_of(12)
    }

    /// A member's share of the keys, in whole panels however wide these are.
    fn share_of_keys(self, member: &Member) -> Range<usize> {
        let share = member.share(self.keys.div_ceil(VALUES));
        (share.start * VALUES).min(self.keys)..(share.end * VALUES).min(self.keys)
    }

    /// The keys that some of the queries before `end` see.
    fn visible(self, end: usize) -> usize {
        self.memory + end
    }

    /// Each lane and head, in order.
    fn places(self) -> impl Iterator<Item = Place> {
        (0..self.lanes).flat_map(move |lane| (0..self.heads).map(move |head| Place { lane, head }))
    }
}

/// What the members work on together.
#[derive(Clone, Copy)]
struct Place {
    lane: usize,
    head: usize,
}

/// Distance of rows in a scratch: an odd number of cache lines, so that neighbours do not compete for the same places in the
/// cache, and room for whole vectors.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(16) | 16
}

/// The next of `n` tasks.
fn take(next: &AtomicUsize, n: usize) -> Option<usize> {
    Some(next.fetch_add(1, Relaxed)).filter(|&task| task < n)
}

impl<'a> Attention<'a> {
    fn sizes(&self) -> Sizes {
        let shape @ [lanes, queries, d] = self.query.shape();
        assert_eq!(self.current.shape(), shape, "queries are {shape:?}");
        let memory = self.memory.map_or([lanes, 0, d], |memory| memory.shape());
        assert!(memory[0] == lanes && memory[2] == d, "the memory is {memory:?}, queries are {shape:?}");
        let heads = self.heads;
        assert!(heads > 0 && d.is_multiple_of(heads), "{heads} heads do not divide {d} columns");
        Sizes { lanes, queries, memory: memory[1], keys: memory[1] + queries, heads, d_head: d / heads }
    }

    /// A head's part of some keys: first those of the memory, then the current ones.
    fn keys(&self, Place { lane, head }: Place, keys: Range<usize>) -> [Mat<'a>; 2] {
        let [_, queries, d] = self.current.shape();
        let (mem_len, d_head) = (self.memory.map_or(0, |memory| memory.shape()[1]), d / self.heads);
        debug_assert!(keys.end <= mem_len + queries);
        let cols = head * d_head..(head + 1) * d_head;
        let current = keys.start.saturating_sub(mem_len)..keys.end.saturating_sub(mem_len);
        let memory = keys.start.min(mem_len)..keys.end.min(mem_len);
        let empty = Mat::row_major(&[], 0, d_head);
        [
            self.memory.map_or(empty, |rows| rows.mat(lane, memory, cols.clone())),
            self.current.mat(lane, current, cols.clone()),
        ]
    }

    /// Packs keys as rows.
    ///
    /// # Safety
    /// No one else uses them in the panels.
    unsafe fn pack_rows(&self, place: Place, keys: Range<usize>, panels: Panels) {
        let [memory, current] = self.keys(place, keys.clone());
        // SAFETY: the caller's.
        unsafe {
            panels.set(memory, [keys.start, 0]);
            panels.set(current, [keys.start + memory.rows(), 0]);
        }
    }

    /// Packs keys as columns.
    ///
    /// # Safety
    /// No one else uses them in the panels.
    unsafe fn pack_columns(&self, place: Place, keys: Range<usize>, panels: Panels) {
        let [memory, current] = self.keys(place, keys.clone());
        // SAFETY: the caller's.
        unsafe {
            panels.set(memory.t(), [0, keys.start]);
            panels.set(current.t(), [0, keys.start + memory.rows()]);
        }
    }

    /// Calls `pack` with a few keys after the other and their values, which are masked; what it needs for that is in `values`.
    fn for_masked_values(
        &self,
        mask: Mask,
        place: Place,
        keys: Range<usize>,
        values: &mut [f32],
        mut pack: impl FnMut(usize, Mat),
    ) {
        let d_head = self.sizes().d_head;
        for first in keys.clone().step_by(VALUES) {
            let keys = first..keys.end.min(first + VALUES);
            let mats = self.keys(place, keys.clone());
            let rows = mats.into_iter().flat_map(|mat| (0..mat.rows()).map(move |i| mat.row(i)));
            for ((out, from), row) in values.chunks_exact_mut(d_head).zip(rows).zip(keys.clone()) {
                out.copy_from_slice(from);
                let mask = RowMask { mask, lane: place.lane, row };
                // SAFETY: as many values as are given.
                unsafe { multiply(mask, place.head * d_head, out.as_mut_ptr(), d_head) };
            }
            pack(first, Mat::row_major(values, keys.len(), d_head));
        }
    }
}

/// One row of a mask.
#[derive(Clone, Copy)]
struct RowMask {
    mask: Mask,
    lane: usize,
    row: usize,
}

impl RowMask {
    /// Multiplies the row's first `n` columns.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: *mut f32, n: usize) {
        // SAFETY: the caller's.
        unsafe { self.mask.apply::<V>(self.lane, self.row, 0, x, n) }
    }
}

#[inline(always)]
unsafe fn multiply_body<V: Vector>(RowMask { mask, lane, row }: RowMask, first_col: usize, x: *mut f32, n: usize) {
    let before = first_col % MASK_GROUP;
    let mut done = 0;
    // SAFETY: `x` is the caller's; the group is as long as it says.
    unsafe {
        if before > 0 {
            let mut group = [1.0; MASK_GROUP];
            mask.apply::<V>(lane, row, first_col - before, group.as_mut_ptr(), MASK_GROUP);
            done = n.min(MASK_GROUP - before);
            for (i, multiplier) in group[before..][..done].iter().enumerate() {
                *x.add(i) *= multiplier;
            }
        }
        if done < n {
            mask.apply::<V>(lane, row, first_col + done, x.add(done), n - done);
        }
    }
}

kernel!(
    /// Multiplies columns of a row by its mask, whatever the first one is.
    ///
    /// # Safety
    /// `x` is valid for `n` values.
    unsafe fn multiply(mask: RowMask, first_col: usize, x: *mut f32, n: usize) => multiply_body
);

/// `x`, a weight, or 0 where it is below 2⁻¹⁰⁰: divided by a sum or multiplied it might no more be a normal number, and such
/// are slow. NaN stays.
#[inline(always)]
unsafe fn without_traces<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        let magnitude = x.and_bits(V::splat_bits(0x7FFF_FFFF));
        magnitude.select_if_bits_below(V::splat(f32::from_bits(27 << 23)), V::splat(0.0), x)
    }
}

/// What one member keeps for itself.
struct Scratch {
    /// For products.
    left: Buffer,
    /// Masked values of a few keys.
    values: Buffer,
    /// Distance of the rows of blocks.
    stride: usize,
}

impl Scratch {
    fn new(sizes: Sizes) -> Self {
        Self { left: crate::gemm::scratch(), values: Buffer::room(VALUES * sizes.d_head), stride: padded(sizes.keys) }
    }
}
