//! Left operands.

use super::{Format, Mat};
use crate::buffer::{Buffer, Shared};
use crate::math::round_bf16;
use crate::simd::{Vector, kernel};

/// Terms that a tile adds at once: rows of a copy are padded to them with zeros.
const PAD: usize = 32;

/// Rows of a tile: a copy has room for as many after its last one.
const TILE: usize = 16;

/// Where a product finds its left operand.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// Element `(i, k)` is at `at + i * row + k * col`.
    pub at: *const f32,
    pub row: usize,
    pub col: usize,
    /// Whether it is a [`LeftCopy`]'s, which is used as it lies: of f32 or, for pairs, of bfloat16.
    pub is_copy: bool,
}

impl Left {
    /// Left open.
    pub(super) const NONE: Self = Self { at: std::ptr::null(), row: 0, col: 1, is_copy: false };

    pub(crate) fn of(Mat { data, row_stride: row, col_stride: col, .. }: Mat) -> Self {
        Self { at: data.as_ptr(), row, col, is_copy: false }
    }

    /// Rows of f32, so far apart.
    pub(crate) fn rows(at: *const f32, row: usize) -> Self {
        Self { at, row, col: 1, is_copy: false }
    }

    /// Columns of f32, so far apart.
    pub(crate) fn columns(at: *const f32, col: usize) -> Self {
        Self { at, row: 1, col, is_copy: false }
    }

    /// From a row and a term on.
    #[inline(always)]
    pub(super) unsafe fn from(self, i: usize, k: usize, format: Format) -> Self {
        // SAFETY: the caller's.
        let at = unsafe {
            match self.is_copy && format == Format::Pairs {
                true => self.at.cast::<u16>().add(i * self.row + k).cast(),
                false => self.at.add(i * self.row + k * self.col),
            }
        };
        Self { at, ..self }
    }
}

/// A copy of rows that are the left operand of more than one product, rounded as these want it.
pub(crate) struct LeftCopy {
    data: Buffer,
    row: usize,
    format: Format,
}

impl LeftCopy {
    /// Room for `rows` of `k` terms; `None` where products use the rows themselves.
    pub(crate) fn room(rows: usize, k: usize, format: Format) -> Option<Self> {
        // Not a power of two, which would crowd the rows into a few sets of the cache.
        let row = k.next_multiple_of(PAD) + PAD;
        let data = match format {
            Format::F32 => return None,
            Format::Rounded => Buffer::room(rows * row),
            // Zeros pad the rows.
            Format::Pairs => Buffer::zeros((rows + TILE) * row / 2),
        };
        Some(Self { data, row, format })
    }

    pub(crate) fn share(&mut self) -> SharedCopy {
        SharedCopy { data: Shared::new(&mut self.data), row: self.row, format: self.format }
    }
}

/// A [`LeftCopy`] that members of a team write and multiply.
#[derive(Clone, Copy)]
pub(crate) struct SharedCopy {
    data: Shared<f32>,
    row: usize,
    format: Format,
}

impl SharedCopy {
    /// Writes `n` values of a row.
    ///
    /// # Safety
    /// As [`Vector`]'s; there is such a row, and no one else uses these values of it.
    #[inline(always)]
    pub(crate) unsafe fn put<V: Vector>(self, row: usize, col: usize, x: V, n: usize) {
        let at = row * self.row + col;
        // SAFETY: the caller's.
        unsafe {
            match self.format {
                Format::Pairs => {
                    let mut values = [0.0; 16];
                    round_bf16(x).store(values.as_mut_ptr());
                    let to = self.data.at(0).cast::<u16>().add(at);
                    if n >= V::LANES {
                        (0..V::LANES).for_each(|i| *to.add(i) = high_half(values[i]));
                    } else {
                        (0..n).for_each(|i| *to.add(i) = high_half(values[i]));
                    }
                }
                Format::F32 | Format::Rounded => round_bf16(x).store_up_to(self.data.at(at), n),
            }
        }
    }

    /// Copies rows that lie one after another, from a first one on.
    ///
    /// # Safety
    /// There are such rows, and no one else uses them.
    pub(crate) unsafe fn put_rows(self, row: usize, rows: Mat) {
        // SAFETY: the caller's.
        unsafe { put_rows(self, row, rows) }
    }

    /// From a row on.
    ///
    /// # Safety
    /// There is such a row.
    pub(crate) unsafe fn left(self, row: usize) -> Left {
        let left = Left { row: self.row, is_copy: true, ..Left::NONE };
        // SAFETY: the caller's.
        unsafe { Left { at: self.data.at(0), ..left }.from(row, 0, self.format) }
    }
}

/// Eight columns of contiguous values, so far apart, as lines of eight: those of `n` columns and up to `height` lines, of which
/// there are as many as a vector has lanes at most; zeros elsewhere.
#[inline(always)]
pub(super) unsafe fn lines<V: Vector, const ROUND: bool>(
    from: *const f32,
    stride: usize,
    n: usize,
    height: usize,
) -> [[f32; 8]; 16] {
    let mut lines = [[0.0; 8]; 16];
    // SAFETY: the caller's; all lines of a vector fit.
    unsafe {
        let mut columns = [V::splat(0.0); 8];
        for (k, column) in columns.iter_mut().enumerate().take(n) {
            let x = V::load_up_to(from.add(k * stride), height);
            *column = if ROUND { round_bf16(x) } else { x };
        }
        let out = lines.as_mut_ptr().cast::<f32>();
        for (k, line) in V::interleave(columns).into_iter().enumerate() {
            line.store(out.add(k * V::LANES));
        }
    }
    lines
}

/// The bits of a bfloat16 in an f32.
#[inline(always)]
pub(super) fn high_half(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

#[inline(always)]
unsafe fn put_rows_body<V: Vector>(copy: SharedCopy, first: usize, rows: Mat) {
    debug_assert!(rows.col_stride == 1);
    for i in 0..rows.rows {
        for j in (0..rows.cols).step_by(V::LANES) {
            let n = rows.cols - j;
            // SAFETY: inside of the row; the rest is the caller's.
            unsafe {
                let x = V::load_up_to(rows.data.as_ptr().add(i * rows.row_stride + j), n);
                copy.put(first + i, j, x, n);
            }
        }
    }
}
kernel!(unsafe fn put_rows(copy: SharedCopy, first: usize, rows: Mat) => put_rows_body);
