//! Matrix products on packed panels.
//!
//! The right operand of `C = A B` is packed once into panels of some columns' width, each of which is contiguous, so that the
//! inner loop streams through memory in order; weights are packed once a step. What the panels hold and what multiplies them
//! is the [`Format`], which follows from the operands' precision and the CPU:
//!
//! - f32, `[k][two vectors]`, or pairs of bfloat16, `[k / 2][two vectors][2]`, for the [`vectors`](self::vectors) of f32;
//! - pairs of bfloat16, `[k / 2][32][2]`, for [`tiles`](self::tiles), whichever instructions they are made of.
//!
//! The left operand is used as it lies where it can be, and otherwise packed block by block. A tile of `C` stays in
//! registers while a block of terms is added to it, in the order of `k`: the value of an element does not depend on how the
//! work is divided.

mod few;
mod left;
mod near;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod tiles;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::blocks::{for_each_with, product_work};
use crate::buffer::{Buffer, Shared};
use crate::isa::{Bf16Unit, Vectors};
use crate::{Isa, team};

pub(crate) use few::{FEW, add as add_few, rounded};
pub(crate) use left::{Left, LeftCopy, SharedCopy};
pub use panels::Packed;
pub(crate) use panels::Panels;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::amx_is_granted;

/// Rows of `C` that are computed from one packed block of the left operand, at most.
const ROW_BLOCK: usize = 192;

/// A matrix in a slice, with any strides.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    ///
    /// # Panics
    /// If an element would lie outside of `data`.
    pub fn new(data: &'a [f32], [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
            assert!(last < data.len(), "a {rows} x {cols} matrix does not fit into {} values", data.len());
        }
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// `rows` contiguous rows of `cols`.
    pub fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, [rows, cols], [cols, 1])
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Rows `start .. start + len`.
    ///
    /// # Panics
    /// If there are none such.
    pub fn narrow_rows(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows, "rows {start}..{} of {}", start + len, self.rows);
        let data = if len == 0 || self.cols == 0 { &[] } else { &self.data[start * self.row_stride..] };
        Self { data, rows: len, ..self }
    }

    /// Columns `start .. start + len`.
    ///
    /// # Panics
    /// If there are none such.
    pub fn narrow_cols(self, start: usize, len: usize) -> Self {
        self.t().narrow_rows(start, len).t()
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// One row, if the rows are contiguous.
    pub(crate) fn row(self, i: usize) -> &'a [f32] {
        debug_assert!(self.col_stride == 1);
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// The strides of rows and columns.
    pub fn strides(self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
    }
}

/// What the operands of a product are rounded to; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operands {
    /// f32, as they are.
    #[default]
    F32,
    /// Rounded to bfloat16, to nearest with ties to even.
    Bf16,
}

impl Operands {
    /// Those whose products are fastest with the instructions in use.
    pub fn fastest() -> Self {
        match Isa::current().bf16_unit() {
            // Of ARM's no time was measured.
            Bf16Unit::Vectors | Bf16Unit::Software | Bf16Unit::Neon => Self::F32,
            Bf16Unit::Avx512 | Bf16Unit::Amx => Self::Bf16,
        }
    }

    /// How right operands are packed.
    pub(crate) fn format(self) -> Format {
        match (self, Isa::current().bf16_unit()) {
            (Self::F32, _) => Format::F32,
            (Self::Bf16, Bf16Unit::Vectors) => Format::Rounded,
            (Self::Bf16, _) => Format::Pairs,
        }
    }
}

/// What panels hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// f32.
    F32,
    /// bfloat16 of two neighbouring rows side by side, which take the place of one f32; widened when they are multiplied.
    Rounded,
    /// The same in panels as wide as matrix tiles.
    Pairs,
}

impl Format {
    /// Columns of a panel.
    pub(crate) fn width(self) -> usize {
        match (self, Isa::current().vectors()) {
            (Self::Pairs, _) | (_, Vectors::Avx512) => 32,
            (_, Vectors::Portable | Vectors::Avx2 | Vectors::Neon | Vectors::Simd128) => 16,
        }
    }

    /// Places for f32 that `rows` of a column take.
    pub(crate) fn places(self, rows: usize) -> usize {
        match self {
            Self::F32 => rows,
            Self::Rounded | Self::Pairs => rows.div_ceil(2),
        }
    }
}

/// Rounds to bfloat16, to nearest with ties to even.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// A product of some rows with packed panels, as raw parts: for kernels that divide the work themselves.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub left: Left,
    pub rows: usize,
    pub k: usize,
    /// The first panel, at the first of `k` rows.
    pub panels: *const f32,
    /// Distance of the panels.
    pub panel_len: usize,
    pub format: Format,
    pub cols: Columns,
    /// Element `(i, j)` of the result is at `c + i * c_row + j`.
    pub c: *mut f32,
    pub c_row: usize,
    pub start: Start,
}

/// The columns of a product.
#[derive(Clone, Copy)]
pub(crate) enum Columns {
    /// So many from the first panel on.
    Dense(usize),
    /// So many from each of four panels.
    Gates(usize),
}

impl Columns {
    /// Number of panels.
    #[inline(always)]
    fn panels(self, width: usize) -> usize {
        match self {
            Self::Dense(cols) => cols.div_ceil(width),
            Self::Gates(_) => 4,
        }
    }

    /// Where a panel's columns begin in the result, and how many they are.
    #[inline(always)]
    fn of_panel(self, panel: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Dense(cols) => (panel * width, width.min(cols - panel * width)),
            Self::Gates(units) => (panel * units, units),
        }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Nothing.
    Zero,
    /// What the result holds.
    Result,
    /// A row, of which the first value belongs to the first column.
    Row(*const f32),
}

impl Start {
    /// For the columns from `offset` on.
    #[inline(always)]
    unsafe fn at_col(self, offset: usize) -> Self {
        match self {
            // SAFETY: the caller's.
            Self::Row(row) => Self::Row(unsafe { row.add(offset) }),
            other => other,
        }
    }

    /// Writes what `n` columns of a row of the result begin with.
    #[inline(always)]
    unsafe fn write(self, c: *mut f32, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Zero => c.write_bytes(0, n),
                Self::Result => {}
                Self::Row(row) => std::ptr::copy_nonoverlapping(row, c, n),
            }
        }
    }
}

/// Room for the packed block of a left operand.
pub(crate) fn scratch() -> Buffer {
    Buffer::room(vectors::SCRATCH.max(tiles::SCRATCH))
}

/// Computes a product on the calling thread.
///
/// # Safety
/// All pointers are valid for what their fields say, and no one else uses the result. `scratch` is what [`scratch`] makes,
/// or empty where the left operand is a [`SharedCopy`]'s, or f32 with contiguous rows.
pub(crate) unsafe fn product(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe {
        if product.k == 0 {
            return without_terms(product);
        }
        match product.format {
            Format::F32 | Format::Rounded => vectors::product(product, scratch),
            Format::Pairs => tiles::product(product, scratch),
        }
    }
}

unsafe fn without_terms(&Product { rows, format, cols, c, c_row, start, .. }: &Product) {
    let width = format.width();
    for row in 0..rows {
        for panel in 0..cols.panels(width) {
            let (offset, n) = cols.of_panel(panel, width);
            // SAFETY: the caller's.
            unsafe { start.at_col(offset).write(c.add(row * c_row + offset), n) };
        }
    }
}

/// Rows of a task: whole tiles, at most [`ROW_BLOCK`], and as many for each thread. Many rows are divided into three rounds or
/// more, so that a thread that is held up leaves its share to the others.
fn task_rows(rows: usize, format: Format) -> usize {
    let rounds = rows.div_ceil(team::threads() * ROW_BLOCK).max(if rows < 512 { 1 } else { 3 });
    let tile = match (format, Isa::current().vectors()) {
        (Format::Pairs, _) => 32,
        (_, Vectors::Avx512) => 8,
        (_, Vectors::Portable | Vectors::Avx2 | Vectors::Neon | Vectors::Simd128) => 6,
    };
    rows.div_ceil(team::threads() * rounds).next_multiple_of(tile).clamp(tile, ROW_BLOCK)
}

/// `C = A B`, or `C += A B` with `add`, on all threads. `c` is `[a.rows, b.n]`, row-major.
///
/// # Panics
/// If the shapes do not agree.
pub fn gemm(a: Mat, b: &Packed, c: &mut [f32], add: bool) {
    assert_eq!(a.cols, b.k(), "the left operand has {} columns, the right one {} rows", a.cols, b.k());
    assert_eq!(c.len(), a.rows * b.n(), "the result is {} x {}", a.rows, b.n());
    on_all_threads(a, b, c, |_| if add { Start::Result } else { Start::Zero });
}

/// `C = A B`, with a right operand that is used once, added to what `start` gives for the columns from a first one on. Shapes
/// have been checked.
pub(crate) fn multiply(a: Mat, b: Mat, operands: Operands, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    if few::are_few(a, b) {
        few::multiply(a, b, operands, c, start);
    } else if few::are_few_terms(b) && operands.format() != Format::Pairs {
        // Tiles add up pairs of terms in an order of their own, and whoever divides an operation into blocks multiplies with
        // tiles: the bits would depend on who does.
        few::multiply_terms(a, b, operands, c, start);
    } else if near::are_near(a, b, operands) {
        near::multiply(a, b, c, start);
    } else {
        on_all_threads(a, &Packed::new(b, operands), c, start);
    }
}

/// `C = A B` where that is symmetric, on the calling thread: what lies above the diagonal is copied from below it. `scratch` is what
/// [`scratch`] makes. The bits are those of [`gemm`]. `c` is `[a.rows, a.rows]`.
///
/// # Panics
/// If the shapes do not agree.
pub(crate) fn symmetric(a: Mat, b: &Packed, c: &mut [f32], scratch: &mut [f32]) {
    /// Whole tiles of every kind.
    const BLOCK: usize = 48;
    let n = a.rows;
    assert!(a.cols == b.k() && b.n() == n && c.len() == n * n, "a product of {n} x {n}");
    let out = Shared::new(c);
    for row in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - row);
        let left = Left::of(a.narrow_rows(row, rows));
        // SAFETY: shapes were checked, and no one else uses the result.
        unsafe {
            let below = b.panels().product(0..b.k(), 0..row + rows);
            product(&Product { left, rows, c: out.at(row * n), c_row: n, start: Start::Zero, ..below }, scratch);
        }
    }
    for row in 0..n {
        for col in row / BLOCK * BLOCK + BLOCK..n {
            c[row * n + col] = c[col * n + row];
        }
    }
}

/// [`multiply`] with a packed right operand.
fn on_all_threads(a: Mat, b: &Packed, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    if c.is_empty() {
        return;
    }
    let (n, panels) = (b.n(), b.panels());
    let task_rows = task_rows(a.rows, panels.format());
    // Few rows: divide the columns too.
    let n_row_tasks = a.rows.div_ceil(task_rows);
    let width = panels.format().width();
    let n_panels = n.div_ceil(width);
    let n_col_tasks = (4 * team::threads()).div_ceil(n_row_tasks).min(n_panels);
    let out = Shared::new(c);
    let work = product_work(a.rows, b.k(), n);
    for_each_with(n_row_tasks * n_col_tasks, work, scratch, |scratch, task| {
        let (row, part) = (task / n_col_tasks * task_rows, task % n_col_tasks);
        let col = n_panels * part / n_col_tasks * width;
        let end = (n_panels * (part + 1) / n_col_tasks * width).min(n);
        let a = a.narrow_rows(row, task_rows.min(a.rows - row));
        // SAFETY: shapes were checked, and each task writes rows and columns of its own.
        unsafe {
            let (left, c, start) = (Left::of(a), out.at(row * n + col), start(col));
            product(&Product { left, rows: a.rows, c, c_row: n, start, ..panels.product(0..b.k(), col..end) }, scratch);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, random};

    fn reference(a: Mat, b: Mat, c: &[f32], operands: Operands) -> Vec<f64> {
        let round = |x: f32| match operands {
            Operands::F32 => f64::from(x),
            Operands::Bf16 => f64::from(round_bf16(x)),
        };
        let at = |m: Mat, i: usize, j: usize| round(m.data[i * m.row_stride + j * m.col_stride]);
        (0..a.rows * b.cols)
            .map(|e| {
                let (i, j) = (e / b.cols, e % b.cols);
                f64::from(c[e]) + (0..a.cols).map(|k| at(a, i, k) * at(b, k, j)).sum::<f64>()
            })
            .collect()
    }

    #[test]
    fn products_agree_with_sums_in_double_precision() {
        let sizes: &[[usize; 3]] = match cfg!(miri) {
            true => &[[1, 1, 1], [7, 3, 17]],
            false => &[
                [1, 1, 1],
                [1, 5, 33],
                [5, 0, 3],
                [16, 64, 256],
                [17, 300, 31],
                [6, 513, 16],
                [200, 257, 47],
                [3, 7, 1],
                [4, 300, 65],
                [8, 33, 70],
                [2, 9, 5],
                [97, 20, 130],
                [97, 5, 130],
                [33, 1, 47],
                [40, 8, 17],
            ],
        };
        for &[m, k, n] in sizes {
            let (a, b, c) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
            for case in 0..16 {
                let [a_t, b_t, add, rounds] = [1, 2, 4, 8].map(|bit| case & bit != 0);
                let operands = if rounds { Operands::Bf16 } else { Operands::F32 };
                let a = if a_t { Mat::row_major(&a, k, m).t() } else { Mat::row_major(&a, m, k) };
                let b = if b_t { Mat::row_major(&b, n, k).t() } else { Mat::row_major(&b, k, n) };
                let before = if add { c.clone() } else { vec![f32::NAN; m * n] };
                let want = reference(a, b, if add { &c } else { &[0.0; 70_000][..m * n] }, operands);
                let (mut packed, mut direct) = (before.clone(), before);
                gemm(a, &Packed::new(b, operands), &mut packed, add);
                multiply(a, b, operands, &mut direct, |_| if add { Start::Result } else { Start::Zero });
                // A sum of k terms below 1: rounding errors of each term add up to at most k 2⁻²⁴ · k / 2; in truth far less.
                let tolerance = 1e-6 * (k as f64).sqrt().max(1.0);
                assert_near(&format!("{m} x {k} x {n} packed {case}"), &packed, &want, tolerance);
                assert_near(&format!("{m} x {k} x {n} {case}"), &direct, &want, tolerance);
            }
        }
    }

    #[test]
    fn a_symmetric_product_is_that_of_all_its_elements() {
        for [n, k] in if cfg!(miri) { [[1, 2]; 3] } else { [[47, 30], [48, 64], [131, 96]] } {
            let x = random(n * k, 1);
            for operands in [Operands::F32, Operands::Bf16] {
                let x = Mat::row_major(&x, n, k);
                let b = Packed::new(x.t(), operands);
                let (mut all, mut half) = (vec![f32::NAN; n * n], vec![f32::NAN; n * n]);
                gemm(x, &b, &mut all, false);
                symmetric(x, &b, &mut half, &mut scratch());
                assert_eq!(all, half, "{n} x {k}, {operands:?}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_of_nothing_to_sum_is_zero() {
        let mut c = [f32::NAN; 6];
        gemm(Mat::row_major(&[], 2, 0), &Packed::new(Mat::row_major(&[], 0, 3), Operands::F32), &mut c, false);
        assert_eq!(c, [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_must_fit_its_data() {
        Mat::row_major(&[0.0; 5], 2, 3);
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        for (x, rounded) in
            [(1.0, 1.0), (1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0), (-0.1, -0.100_097_656)]
        {
            assert_eq!(round_bf16(x), rounded);
        }
    }
}
