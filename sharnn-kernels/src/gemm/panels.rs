//! Right operands, packed.

use std::ops::Range;

use super::left::lines;
use super::{Columns, Format, Left, Mat, Operands, Product, Start};
use crate::buffer::{Buffer, Shared};
use crate::simd::{Vector, kernel};
use crate::{math, team};

/// Values that are worth a task of packing.
const TASK: usize = 16384;

/// Rows that are written at once where rows are contiguous: they may lie pages apart, and each panel takes a cache line of
/// each.
const ROWS: usize = 8;

/// A right operand `[k, n]`, packed.
pub struct Packed {
    data: Buffer,
    k: usize,
    n: usize,
    operands: Operands,
}

impl Packed {
    /// Packs `b`, `[k, n]`.
    pub fn new(b: Mat, operands: Operands) -> Self {
        let mut packed = Self::room(b.rows, b.cols, operands);
        let panels = packed.share();
        let width = panels.format.width();
        let n_panels = b.cols.div_ceil(width);
        // Tasks of whole panels, large enough to be worth a hand-over.
        let share = (TASK / (b.rows * width).max(1)).clamp(1, n_panels.max(1)) * width;
        let pack = |task: usize| {
            let cols = task * share..b.cols.min((task + 1) * share);
            // SAFETY: each panel is written by one task, and inside of the operand.
            unsafe { panels.set(b.narrow_cols(cols.start, cols.len()), [0, cols.start]) };
        };
        match b.cols.div_ceil(share) {
            0 => {}
            1 => pack(0),
            tasks => team::for_each(tasks, pack),
        }
        packed
    }

    /// Room for a `[k, n]` operand, all of which has to be packed. What pads the last panel may be anything.
    pub(crate) fn room(k: usize, n: usize, operands: Operands) -> Self {
        let format = operands.format();
        let data = Buffer::room(n.next_multiple_of(format.width()) * format.places(k));
        Self { data, k, n, operands }
    }

    /// Number of rows: terms of each sum.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// What the operands are rounded to.
    pub fn operands(&self) -> Operands {
        self.operands
    }

    /// The panels, to multiply with.
    pub(crate) fn panels(&self) -> Panels {
        let &Self { ref data, k, n, operands } = self;
        Panels { data: Shared::read_only(data), k, n, format: operands.format() }
    }

    /// A product with all of it. The result is left open.
    pub(crate) fn product(&self, a: Mat) -> Product {
        debug_assert!(a.cols == self.k);
        Product { left: Left::of(a), rows: a.rows, ..self.panels().product(0..self.k, 0..self.n) }
    }

    /// The panels, to pack.
    pub(crate) fn share(&mut self) -> Panels {
        Panels { data: Shared::new(&mut self.data), ..self.panels() }
    }
}

/// The panels of a [`Packed`], which the members of a team pack and multiply with.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    data: Shared<f32>,
    k: usize,
    n: usize,
    format: Format,
}

impl Panels {
    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// Number of rows.
    pub(crate) fn k(self) -> usize {
        self.k
    }

    /// The same memory for fewer rows, if nothing else is packed in it.
    pub(crate) fn with_rows(self, k: usize) -> Self {
        debug_assert!(k <= self.k);
        Self { k, ..self }
    }

    /// Packs a block of the operand, which begins at a row and a column.
    ///
    /// # Safety
    /// The block lies inside of the operand, and no one else uses it in the panels.
    pub(crate) unsafe fn set(self, block: Mat, at: [usize; 2]) {
        debug_assert!(at[0] + block.rows <= self.k && at[1] + block.cols <= self.n);
        // SAFETY: the caller's.
        unsafe { set(self, block, at) }
    }

    /// A product with some rows, of which the first is even, and some columns, which begin with a panel. Left operand and
    /// result are left open.
    pub(crate) fn product(self, rows: Range<usize>, cols: Range<usize>) -> Product {
        let (width, panel_len) = (self.format.width(), self.panel_len());
        debug_assert!(rows.end <= self.k && cols.end <= self.n);
        debug_assert!(cols.start.is_multiple_of(width) && rows.start.is_multiple_of(2));
        let at = match cols.is_empty() {
            true => 0,
            false => cols.start / width * panel_len + self.format.places(rows.start) * width,
        };
        Product {
            left: Left::NONE,
            rows: 0,
            k: rows.len(),
            // SAFETY: inside of a panel, or the first value of none.
            panels: unsafe { self.data.at(at) },
            panel_len,
            format: self.format,
            cols: Columns::Dense(cols.len()),
            c: std::ptr::null_mut(),
            c_row: 0,
            start: Start::Zero,
        }
    }

    fn panel_len(self) -> usize {
        self.format.places(self.k) * self.format.width()
    }
}

/// A block inside of one panel.
struct Part {
    from: *const f32,
    row_stride: usize,
    col_stride: usize,
    rows: usize,
    cols: usize,
    /// The panel.
    to: *mut f32,
    width: usize,
    /// The block's first row and column in the panel.
    row: usize,
    col: usize,
    /// Whether the block's last row is the operand's, and has no other to share its place with.
    ends_odd: bool,
}

#[inline(always)]
unsafe fn set_body<V: Vector>(panels: Panels, block: Mat, [row, col]: [usize; 2]) {
    let (width, panel_len) = (panels.format.width(), panels.panel_len());
    let at_once = if block.col_stride == 1 { ROWS } else { block.rows.max(1) };
    for first in (0..block.rows).step_by(at_once) {
        let rows = at_once.min(block.rows - first);
        let mut done = 0;
        while done < block.cols {
            let (panel, in_panel) = ((col + done) / width, (col + done) % width);
            let cols = (width - in_panel).min(block.cols - done);
            // SAFETY: inside of the block and, by the caller's word, of the panels.
            unsafe {
                let part = Part {
                    from: block.data.as_ptr().add(first * block.row_stride + done * block.col_stride),
                    row_stride: block.row_stride,
                    col_stride: block.col_stride,
                    rows,
                    cols,
                    to: panels.data.at(panel * panel_len),
                    width,
                    row: row + first,
                    col: in_panel,
                    ends_odd: row + first + rows == panels.k && panels.k % 2 == 1,
                };
                match panels.format {
                    Format::F32 => part.write::<V>(),
                    Format::Rounded | Format::Pairs => part.write_pairs::<V>(),
                }
            }
            done += cols;
        }
    }
}
kernel!(unsafe fn set(panels: Panels, block: Mat, at: [usize; 2]) => set_body);

// SAFETY of the unsafe blocks below: inside of the block and of the panel, by the caller's word.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
impl Part {
    #[inline(always)]
    unsafe fn value(&self, i: usize, j: usize) -> f32 {
        unsafe { *self.from.add(i * self.row_stride + j * self.col_stride) }
    }

    #[inline(always)]
    unsafe fn write<V: Vector>(&self) {
        let &Self { rows, cols, width, .. } = self;
        unsafe {
            let to = self.to.add(self.row * width + self.col);
            if self.col_stride == 1 {
                for i in 0..rows {
                    let (from, to) = (self.from.add(i * self.row_stride), to.add(i * width));
                    for j in (0..cols).step_by(V::LANES) {
                        V::load_up_to(from.add(j), cols - j).store_up_to(to.add(j), cols - j);
                    }
                }
            } else if self.row_stride == 1 {
                self.by_squares::<V, false>(rows, |i, j, lines, n| {
                    for (k, line) in lines.iter().enumerate() {
                        let to = to.add((i + k) * width + j);
                        match n {
                            8 => to.cast::<[f32; 8]>().write_unaligned(*line),
                            _ => (0..n).for_each(|e| *to.add(e) = line[e]),
                        }
                    }
                });
            } else {
                for i in 0..rows {
                    for j in 0..cols {
                        *to.add(i * width + j) = self.value(i, j);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write_pairs<V: Vector>(&self) {
        let &Self { rows, cols, width, row, .. } = self;
        // Where rows share their places with rows of other blocks they are written by halves.
        let first = row % 2;
        let whole = rows.saturating_sub(first) / 2 * 2;
        unsafe {
            let place = |i: usize| self.to.add((row + i) / 2 * width + self.col);
            if self.col_stride == 1 {
                for i in (first..first + whole).step_by(2) {
                    let (from, to) = (self.from.add(i * self.row_stride), place(i));
                    for j in (0..cols).step_by(V::LANES) {
                        let low = math::round_bf16(V::load_up_to(from.add(j), cols - j));
                        let high = math::round_bf16(V::load_up_to(from.add(self.row_stride + j), cols - j));
                        low.high_half().xor_bits(high).store_up_to(to.add(j), cols - j);
                    }
                }
            } else if self.row_stride == 1 && first == 0 {
                self.by_squares::<V, true>(whole, |i, j, lines, n| {
                    for (k, pair) in lines.chunks_exact(2).enumerate() {
                        let to = place(i + 2 * k).add(j).cast::<u32>();
                        let both: [u32; 8] = std::array::from_fn(|e| pair[0][e].to_bits() >> 16 | pair[1][e].to_bits());
                        match n {
                            8 => to.cast::<[u32; 8]>().write_unaligned(both),
                            _ => (0..n).for_each(|e| *to.add(e) = both[e]),
                        }
                    }
                });
            } else {
                (first..first + whole).for_each(|i| self.write_half(i));
            }
            if first == 1 && rows > 0 {
                self.write_half(0);
            }
            if first + whole < rows {
                self.write_half(rows - 1);
            }
        }
    }

    /// One row of bfloat16, between those of its neighbour.
    #[inline(always)]
    unsafe fn write_half(&self, i: usize) {
        let row = self.row + i;
        unsafe {
            let to = self.to.add(row / 2 * self.width + self.col).cast::<u16>();
            for j in 0..self.cols {
                *to.add(2 * j + row % 2) = half::bf16::from_f32(self.value(i, j)).to_bits();
                if self.ends_odd && i + 1 == self.rows {
                    *to.add(2 * j + 1) = 0;
                }
            }
        }
    }

    /// Calls `write` with lines of eight columns, of which `n` count: the first row and column, and the lines of some rows.
    /// Columns are contiguous, and read a cache line each.
    #[inline(always)]
    unsafe fn by_squares<V: Vector, const ROUND: bool>(
        &self,
        rows: usize,
        mut write: impl FnMut(usize, usize, &[[f32; 8]], usize),
    ) {
        for block in (0..rows).step_by(16) {
            let end = rows.min(block + 16);
            for j in (0..self.cols).step_by(8) {
                let n = 8.min(self.cols - j);
                for i in (block..end).step_by(V::LANES) {
                    let height = V::LANES.min(end - i);
                    let from = unsafe { self.from.add(j * self.col_stride + i) };
                    let lines = unsafe { lines::<V, ROUND>(from, self.col_stride, n, height) };
                    write(i, j, &lines[..height], n);
                }
            }
        }
    }
}
