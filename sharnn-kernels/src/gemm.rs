//! Matrix products on packed panels.
//!
//! The right operand of `C = A B` is packed once into panels of two vectors' width, each `[k][width]` and contiguous, so
//! that the inner loop streams through memory in order; weights are packed once a step. The left operand is used as it
//! lies where its rows are contiguous, and packed block by block where they are not. A tile of `C` stays in registers while
//! a block of [`K_BLOCK`] terms is added to it, in the order of `k`: the value of an element does not depend on how the
//! work is divided.

use crate::blocks::{for_each_with, product_work};
use crate::buffer::{Buffer, Shared};
use crate::simd::{Vector, kernel};
use crate::{Isa, team};

/// Terms that are summed in registers before a tile of `C` is written: a panel's block then fills half of a small L1 cache.
const K_BLOCK: usize = 256;

/// Rows of `C` that one task computes, at most.
const ROW_BLOCK: usize = 192;

/// Values between the packed panels of a left operand. Without a gap their distance would be such that the same few sets of
/// the cache hold the beginnings of all of them.
const PANEL_GAP: usize = 16;

/// Columns of a left operand that are fetched ahead of the one being packed: each may begin a page of its own, where the
/// processor does not foresee it.
const PACK_AHEAD: usize = 8;

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

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// The strides of rows and columns.
    pub fn strides(self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
    }

    pub(crate) fn as_ptr(self) -> *const f32 {
        self.data.as_ptr()
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
        match Isa::current() {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => Self::F32,
        }
    }
}

/// Rounds to bfloat16, to nearest with ties to even.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Width of a panel: two vectors.
pub fn panel_width() -> usize {
    match Isa::current() {
        Isa::Portable | Isa::Avx2 => 16,
        Isa::Avx512 => 32,
    }
}

/// A right operand `[k, n]`, packed.
pub struct Packed {
    panels: Buffer,
    k: usize,
    n: usize,
    operands: Operands,
}

impl Packed {
    /// Packs `b`, `[k, n]`.
    pub fn new(b: Mat, operands: Operands) -> Self {
        let mut packed = Self::room(b.rows, b.cols, operands);
        let (width, k) = (panel_width(), b.rows);
        let panels = Shared::new(&mut packed.panels);
        // Tasks of whole panels, large enough to be worth a hand-over.
        let n_panels = b.cols.div_ceil(width);
        let share = (16384 / (k * width).max(1)).clamp(1, n_panels.max(1));
        let pack = |task: usize| {
            for panel in task * share..n_panels.min((task + 1) * share) {
                // SAFETY: each panel is written by one task, and is k * width long.
                let out = unsafe { panels.slice(panel * k * width, k * width) };
                pack_panel(b, panel * width, out, operands);
            }
        };
        match n_panels.div_ceil(share) {
            1 => pack(0),
            tasks => team::for_each(tasks, pack),
        }
        packed
    }

    /// Room for a `[k, n]` operand, every column of which has to be packed. What pads the last panel may be anything.
    pub(crate) fn room(k: usize, n: usize, operands: Operands) -> Self {
        let width = panel_width();
        Self { panels: Buffer::room(n.div_ceil(width) * width * k), k, n, operands }
    }

    pub(crate) fn panels(&self) -> &[f32] {
        &self.panels
    }

    pub(crate) fn panels_mut(&mut self) -> &mut [f32] {
        &mut self.panels
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
}

/// Columns `col ..` of `b` into one panel; columns past the end are zeros.
pub(crate) fn pack_panel(b: Mat, col: usize, panel: &mut [f32], operands: Operands) {
    let width = panel_width();
    let cols = width.min(b.cols - col);
    debug_assert_eq!(panel.len(), b.rows * width);
    if cols < width {
        panel.fill(0.0);
    }
    let start = col * b.col_stride;
    if b.col_stride == 1 {
        for (i, out) in panel.chunks_exact_mut(width).enumerate() {
            let row = &b.data[start + i * b.row_stride..][..cols];
            match operands {
                Operands::F32 => out[..cols].copy_from_slice(row),
                Operands::Bf16 => out.iter_mut().zip(row).for_each(|(out, &x)| *out = round_bf16(x)),
            }
        }
        return;
    }
    // Columns are far apart: blocks of rows, so that the lines of a block stay in the cache.
    for block in (0..b.rows).step_by(16) {
        let rows = 16.min(b.rows - block);
        for j in 0..cols {
            let column = &b.data[start + j * b.col_stride + block * b.row_stride..];
            for i in 0..rows {
                let x = column[i * b.row_stride];
                panel[(block + i) * width + j] = match operands {
                    Operands::F32 => x,
                    Operands::Bf16 => round_bf16(x),
                };
            }
        }
    }
}

/// A product of some rows with packed panels, as raw parts: for kernels that divide the work themselves.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Element `(i, k)` of the left operand is at `a + i * a_row + k * a_col`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_col: usize,
    pub rows: usize,
    pub k: usize,
    /// The first panel.
    pub panels: *const f32,
    /// Rows of a panel as it lies in memory: at least `k`.
    pub panel_rows: usize,
    pub operands: Operands,
    /// Columns from the first panel on.
    pub cols: usize,
    /// Element `(i, j)` of the result is at `c + i * c_row + j`.
    pub c: *mut f32,
    pub c_row: usize,
    pub start: Start,
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

/// Room for the packed block of a left operand.
pub(crate) fn scratch() -> Buffer {
    Buffer::room((ROW_BLOCK / 4 + 1) * (K_BLOCK * 4 + PANEL_GAP) + 16 * K_BLOCK)
}

#[inline(always)]
unsafe fn product_body<V: Vector>(product: &Product, scratch: &mut [f32]) {
    let &Product { rows, k, cols, c, c_row, .. } = product;
    let width = 2 * V::LANES;
    let packs = product.a_col != 1 || product.operands == Operands::Bf16;
    // SAFETY: the caller's for all pointers; tiles stay inside of rows, cols and k.
    unsafe {
        if k == 0 {
            for i in 0..rows {
                let row = std::slice::from_raw_parts_mut(c.add(i * c_row), cols);
                match product.start {
                    Start::Zero => row.fill(0.0),
                    Start::Result => {}
                    Start::Row(start) => row.copy_from_slice(std::slice::from_raw_parts(start, cols)),
                }
            }
        }
        let row_block = if packs { ROW_BLOCK } else { rows.max(1) };
        for row in (0..rows).step_by(row_block) {
            let rows = row_block.min(rows - row);
            let c = c.add(row * c_row);
            for start in (0..k).step_by(K_BLOCK) {
                let terms = K_BLOCK.min(k - start);
                let a = product.a.add(row * product.a_row + start * product.a_col);
                if packs {
                    pack_left::<V>(a, product, rows, terms, scratch);
                }
                let first = if start > 0 { Start::Result } else { product.start };
                for col in (0..cols).step_by(width) {
                    let panel = product.panels.add(col * product.panel_rows + start * width);
                    // The block after this one: weights may lie in a far cache.
                    let distance = if cols > width { product.panel_rows } else { terms } * width;
                    let cols = width.min(cols - col);
                    let first = match first {
                        Start::Row(row) => Start::Row(row.add(col)),
                        other => other,
                    };
                    // Tiles as equal as can be: few rows would leave the multipliers waiting for their own results.
                    let n_tiles = rows.div_ceil(V::TILE_ROWS);
                    for tile in 0..n_tiles {
                        let (i, end) = match packs {
                            true => (tile * V::TILE_ROWS, rows.min((tile + 1) * V::TILE_ROWS)),
                            false => (rows * tile / n_tiles, rows * (tile + 1) / n_tiles),
                        };
                        let tile = Tile {
                            a: if packs {
                                scratch.as_ptr().add(i / V::TILE_ROWS * panel_stride::<V>(terms))
                            } else {
                                a.add(i * product.a_row)
                            },
                            a_row: product.a_row,
                            terms,
                            panel,
                            ahead: if tile + 1 == n_tiles { panel.wrapping_add(distance) } else { panel },
                            c: c.add(i * c_row + col),
                            c_row,
                            cols,
                            start: first,
                        };
                        match packs {
                            true => tile.compute::<V, true>(end - i),
                            false => tile.compute::<V, false>(end - i),
                        }
                    }
                }
            }
        }
    }
}

/// Packs rows of the left operand into panels of a tile's height, `[terms][height]` each.
#[inline(always)]
unsafe fn pack_left<V: Vector>(a: *const f32, product: &Product, rows: usize, terms: usize, scratch: &mut [f32]) {
    let &Product { a_row, a_col, operands, .. } = product;
    let height = V::TILE_ROWS;
    let stride = panel_stride::<V>(terms);
    let panels = &mut scratch[..rows.div_ceil(height) * stride];
    // SAFETY: inside of the left operand, which is the caller's, and of the panels.
    unsafe {
        let out = panels.as_mut_ptr();
        if a_row == 1 {
            // Along the columns, each of which is a contiguous piece: to go along the rows would miss the cache at each.
            for k in 0..terms {
                let column = a.add(k * a_col);
                for i in (0..rows).step_by(16) {
                    V::prefetch(column.wrapping_add(PACK_AHEAD * a_col + i));
                }
                for i in (0..rows).step_by(height) {
                    let to = out.add(i / height * stride + k * height);
                    if i + height <= rows {
                        std::ptr::copy_nonoverlapping(column.add(i), to, V::TILE_ROWS);
                    } else {
                        std::ptr::copy_nonoverlapping(column.add(i), to, rows - i);
                    }
                }
            }
        } else {
            for i in 0..rows {
                let to = out.add(i / height * stride + i % height);
                let row = a.add(i * a_row);
                for k in 0..terms {
                    *to.add(k * height) = *row.add(k * a_col);
                }
            }
        }
    }
    if operands == Operands::Bf16 {
        panels.iter_mut().for_each(|x| *x = round_bf16(*x));
    }
}

/// Distance of the packed panels of a left operand.
#[inline(always)]
fn panel_stride<V: Vector>(terms: usize) -> usize {
    terms * V::TILE_ROWS + PANEL_GAP
}

struct Tile {
    a: *const f32,
    a_row: usize,
    terms: usize,
    panel: *const f32,
    /// What will be read next, or the panel itself.
    ahead: *const f32,
    c: *mut f32,
    c_row: usize,
    cols: usize,
    start: Start,
}

impl Tile {
    /// `PACKED`: the left operand lies in panels of a tile's height; otherwise its rows are contiguous.
    #[inline(always)]
    unsafe fn compute<V: Vector, const PACKED: bool>(self, rows: usize) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: the caller's.
                    $($n if $n <= V::TILE_ROWS => unsafe { self.rows::<V, PACKED, $n>() },)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }

    #[inline(always)]
    unsafe fn rows<V: Vector, const PACKED: bool, const R: usize>(&self) {
        // SAFETY: the caller's: `terms` columns of `R` rows of `a`, `terms` rows of the panel, `cols` columns of `c`.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; R];
            let rows: [*const f32; R] = std::array::from_fn(|r| self.a.add(if PACKED { r } else { r * self.a_row }));
            let step = if PACKED { V::TILE_ROWS } else { 1 };
            let mut k = 0;
            // Four terms a turn, at constant distances from one running index.
            while k + 4 <= self.terms {
                for unrolled in 0..4 {
                    self.term(&mut sums, &rows, k + unrolled, (k + unrolled) * step);
                }
                k += 4;
            }
            while k < self.terms {
                self.term(&mut sums, &rows, k, k * step);
                k += 1;
            }
            for (r, sums) in sums.iter().enumerate() {
                let c = self.c.add(r * self.c_row);
                for (half, &sum) in sums.iter().enumerate() {
                    let from = half * V::LANES;
                    if self.cols > from {
                        let n = self.cols - from;
                        let sum = match self.start {
                            Start::Zero => sum,
                            Start::Result => sum.add(V::load_up_to(c.add(from), n)),
                            Start::Row(row) => sum.add(V::load_up_to(row.add(from), n)),
                        };
                        sum.store_up_to(c.add(from), n);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn term<V: Vector, const R: usize>(
        &self,
        sums: &mut [[V; 2]; R],
        rows: &[*const f32; R],
        k: usize,
        at: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let panel = self.panel.add(k * 2 * V::LANES);
            let (b0, b1) = (V::load(panel), V::load(panel.add(V::LANES)));
            V::prefetch(self.ahead.wrapping_add(k * 2 * V::LANES));
            for ([sum0, sum1], row) in sums.iter_mut().zip(rows) {
                let x = V::splat(*row.add(at));
                *sum0 = x.mul_add(b0, *sum0);
                *sum1 = x.mul_add(b1, *sum1);
            }
        }
    }
}

kernel!(
    /// Computes a product on the calling thread.
    ///
    /// # Safety
    /// All pointers are valid for what their fields say, and no one else uses the result.
    pub(crate) unsafe fn product(product: &Product, scratch: &mut [f32]) => product_body
);

/// Rows of a task: whole tiles, at most [`ROW_BLOCK`], and as many for each thread. Many rows are divided into three rounds or
/// more, so that a thread that is held up leaves its share to the others.
fn task_rows(rows: usize) -> usize {
    let rounds = rows.div_ceil(team::threads() * ROW_BLOCK).max(if rows < 512 { 1 } else { 3 });
    let tile = if panel_width() == 32 { 12 } else { 6 };
    rows.div_ceil(team::threads() * rounds).next_multiple_of(tile).clamp(tile, ROW_BLOCK)
}

/// `C = A B`, or `C += A B` with `add`, on all threads. `c` is `[a.rows, b.n]`, row-major.
///
/// # Panics
/// If the shapes do not agree.
pub fn gemm(a: Mat, b: &Packed, c: &mut [f32], add: bool) {
    assert_eq!(a.cols, b.k, "the left operand has {} columns, the right one {} rows", a.cols, b.k);
    assert_eq!(c.len(), a.rows * b.n, "the result is {} x {}", a.rows, b.n);
    on_all_threads(a, b, c, |_| if add { Start::Result } else { Start::Zero });
}

/// `C = A B` added to what `start` gives for the columns from a first one on. Shapes have been checked.
pub(crate) fn on_all_threads(a: Mat, b: &Packed, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    if c.is_empty() {
        return;
    }
    let task_rows = task_rows(a.rows);
    // Few rows: divide the columns too.
    let n_row_tasks = a.rows.div_ceil(task_rows);
    let width = panel_width();
    let n_panels = b.n.div_ceil(width);
    let n_col_tasks = (4 * team::threads()).div_ceil(n_row_tasks).min(n_panels);
    let out = Shared::new(c);
    let work = product_work(a.rows, b.k, b.n);
    for_each_with(n_row_tasks * n_col_tasks, work, scratch, |scratch, task| {
        let (row, part) = (task / n_col_tasks * task_rows, task % n_col_tasks);
        let col = n_panels * part / n_col_tasks * width;
        let end = (n_panels * (part + 1) / n_col_tasks * width).min(b.n);
        let a = a.narrow_rows(row, task_rows.min(a.rows - row));
        // SAFETY: shapes were checked, and each task writes rows and columns of its own.
        unsafe {
            let (c, c_row) = (out.at(row * b.n + col), b.n);
            product(&Product { cols: end - col, c, c_row, start: start(col), ..b.with(a, col) }, scratch);
        }
    });
}

impl Packed {
    /// A product of all rows of `a` with the columns from `col` on, which begins a panel. The result is left open.
    pub(crate) fn with(&self, a: Mat, col: usize) -> Product {
        debug_assert!(a.cols == self.k && col.is_multiple_of(panel_width()));
        Product {
            a: a.as_ptr(),
            a_row: a.row_stride,
            a_col: a.col_stride,
            rows: a.rows,
            k: self.k,
            panels: self.panels[col * self.k..].as_ptr(),
            panel_rows: self.k,
            operands: self.operands,
            cols: self.n - col,
            c: std::ptr::null_mut(),
            c_row: 0,
            start: Start::Zero,
        }
    }
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
                [97, 20, 130],
            ],
        };
        for &[m, k, n] in sizes {
            let (a, b, c) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
            for (a_t, b_t, add, operands) in [
                (false, false, false, Operands::F32),
                (true, false, true, Operands::F32),
                (false, true, true, Operands::F32),
                (false, true, false, Operands::Bf16),
                (true, false, false, Operands::Bf16),
            ] {
                let a = if a_t { Mat::row_major(&a, k, m).t() } else { Mat::row_major(&a, m, k) };
                let b = if b_t { Mat::row_major(&b, n, k).t() } else { Mat::row_major(&b, k, n) };
                let mut out = if add { c.clone() } else { vec![f32::NAN; m * n] };
                let want = reference(a, b, if add { &c } else { &[0.0; 70_000][..m * n] }, operands);
                gemm(a, &Packed::new(b, operands), &mut out, add);
                // A sum of k terms below 1: rounding errors of each term add up to at most k 2⁻²⁴ · k / 2; in truth far less.
                assert_near(&format!("{m} x {k} x {n}"), &out, &want, 1e-6 * (k as f64).sqrt().max(1.0));
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
