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
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::buffer::{Buffer, Shared};
use crate::dropout::Mask;
use crate::gemm::{Operands, Packed, Product, Start, panel_width, round_bf16};
use crate::rows::Rows;
use crate::simd::{Vector, kernel};
use crate::team::Member;

/// Columns that a mask draws at once: those that it is asked for begin at a multiple of it.
const MASK_GROUP: usize = 8;

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

    /// A head's part of a key.
    fn key(&self, Place { lane, head }: Place, key: usize) -> &'a [f32] {
        let row = match self.memory {
            Some(memory) if key < memory.shape()[1] => memory.row(lane, key),
            Some(memory) => self.current.row(lane, key - memory.shape()[1]),
            None => self.current.row(lane, key),
        };
        let d_head = row.len() / self.heads;
        &row[head * d_head..][..d_head]
    }

    /// Writes the values of some keys, which are masked, to `values`, one after another.
    fn mask_values(&self, mask: Mask, place: Place, keys: Range<usize>, values: &mut [f32]) {
        for (i, key) in keys.enumerate() {
            let from = self.key(place, key);
            let out = &mut values[i * from.len()..][..from.len()];
            out.copy_from_slice(from);
            let mask = RowMask { mask, lane: place.lane, row: key };
            // SAFETY: as many values as are given.
            unsafe { multiply(mask, place.head * from.len(), out.as_mut_ptr(), out.len()) };
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

/// A right operand of one lane and head, which the members of a team pack together.
#[derive(Clone, Copy)]
struct Panels {
    data: Shared<f32>,
    k: usize,
    n: usize,
    operands: Operands,
}

impl Panels {
    fn new(packed: &mut Packed) -> Self {
        let (k, n, operands) = (packed.k(), packed.n(), packed.operands());
        Self { data: Shared::new(packed.panels_mut()), k, n, operands }
    }

    /// Packs `count` rows from `first` on: `row` of 0 and so on.
    ///
    /// # Safety
    /// There are such rows, they are `n` long, and no one else uses them in the panels.
    unsafe fn set_rows<'r>(self, first: usize, count: usize, row: impl Fn(usize) -> &'r [f32]) {
        let width = panel_width();
        for i in 0..count {
            let row = row(i);
            debug_assert!(first + i < self.k && row.len() == self.n);
            for (panel, part) in row.chunks(width).enumerate() {
                // SAFETY: a row of the panel; the caller's.
                let out = unsafe { self.data.slice((panel * self.k + first + i) * width, part.len()) };
                match self.operands {
                    Operands::F32 => out.copy_from_slice(part),
                    Operands::Bf16 => out.iter_mut().zip(part).for_each(|(out, &x)| *out = round_bf16(x)),
                }
            }
        }
    }

    /// Packs `count` columns of one panel from `first` on, its first: `column` of 0 and so on.
    ///
    /// # Safety
    /// There are such columns, they are `k` long, and no one else uses the panel.
    unsafe fn set_columns<'r>(self, first: usize, count: usize, column: impl Fn(usize) -> &'r [f32]) {
        let width = panel_width();
        debug_assert!(first.is_multiple_of(width) && count <= width && first + count <= self.n);
        // SAFETY: one panel; the caller's.
        let panel = unsafe { self.data.slice(first * self.k, width * self.k) };
        // Blocks of a cache line, so that one is used up while it is there.
        for start in (0..self.k).step_by(16) {
            let end = self.k.min(start + 16);
            for j in 0..count {
                let rows = panel[start * width..end * width].chunks_exact_mut(width);
                for (row, &x) in rows.zip(&column(j)[start..end]) {
                    row[j] = match self.operands {
                        Operands::F32 => x,
                        Operands::Bf16 => round_bf16(x),
                    };
                }
            }
        }
    }

    /// A product with the first `cols` columns of rows `rows`. The left operand and the result are left open.
    fn product(self, rows: Range<usize>, cols: usize) -> Product {
        debug_assert!(rows.end <= self.k && cols <= self.n);
        Product {
            a: std::ptr::null(),
            a_row: 0,
            a_col: 1,
            rows: 0,
            k: rows.len(),
            // SAFETY: inside of the first panel.
            panels: unsafe { self.data.at(rows.start * panel_width()) },
            panel_rows: self.k,
            operands: self.operands,
            cols,
            c: std::ptr::null_mut(),
            c_row: 0,
            start: Start::Zero,
        }
    }
}

/// What one member keeps for itself.
struct Scratch {
    /// For products.
    left: Buffer,
    /// Masked values of a panel of keys.
    values: Buffer,
    /// Distance of the rows of blocks.
    stride: usize,
}

impl Scratch {
    fn new(sizes: Sizes) -> Self {
        Self {
            left: crate::gemm::scratch(),
            values: Buffer::room(panel_width() * sizes.d_head),
            stride: padded(sizes.keys),
        }
    }
}
