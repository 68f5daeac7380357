//! Products of a few rows, or of a few terms, as an operation on one byte or a short segment has them: to pack the right
//! operand would take longer than to multiply with it, so it is read as it lies.

use std::ops::Range;

use super::{Mat, Operands, Start, round_bf16};
use crate::blocks::{for_each_with, product_work};
use crate::buffer::{Buffer, Shared};
use crate::math;
use crate::simd::{Vector, kernel};
use crate::team;

/// The most rows, or terms, that are few. More meet each value of the right operand often enough to have it packed.
pub(crate) const FEW: usize = 8;

/// Rows of one operand and columns of the other whose products are summed together.
const TILE: usize = 4;

/// Columns of a task: whole tiles and vectors.
const COLUMNS: usize = 32;

/// Rows of a task, where terms are few: whole tiles.
const ROWS: usize = 32;

/// Whether the rows of `a` are few, and the right operand lies so that vectors can be read from it.
pub(super) fn are_few(a: Mat, b: Mat) -> bool {
    (1..=FEW).contains(&a.rows) && a.col_stride == 1 && (b.row_stride == 1 || b.col_stride == 1)
}

/// [`super::multiply`] where [they are few](are_few).
pub(super) fn multiply(a: Mat, b: Mat, operands: Operands, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    let (rows, k, n) = (a.rows, b.rows, b.cols);
    let mut room = Buffer::room(if operands == Operands::F32 { 0 } else { rows * k });
    let a = rounded(a, operands, &mut room);
    let out = Shared::new(c);
    let blocks = n.div_ceil(COLUMNS);
    let tasks = blocks.min(4 * team::threads());
    for_each_with(
        tasks,
        product_work(rows, k, n),
        || (),
        |(), task| {
            let cols = blocks * task / tasks * COLUMNS..n.min(blocks * (task + 1) / tasks * COLUMNS);
            // SAFETY: shapes were checked, and each task writes columns of its own.
            unsafe {
                let start = start(cols.start);
                (0..rows).for_each(|row| start.write(out.at(row * n + cols.start), cols.len()));
                add(a, b, operands, cols, out.at(0), n);
            }
        },
    );
}

/// Whether the terms of each sum are few, and vectors can be read from them: the gradient of a weight after a few rows.
pub(super) fn are_few_terms(b: Mat) -> bool {
    (1..=FEW).contains(&b.rows) && b.col_stride == 1
}

/// [`super::multiply`] where [terms are few](are_few_terms).
pub(super) fn multiply_terms(a: Mat, b: Mat, operands: Operands, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    let (k, n) = (b.rows, b.cols);
    let mut room = Buffer::room(if operands == Operands::F32 { 0 } else { k * n });
    let b = rounded(b, operands, &mut room);
    let out = Shared::new(c);
    let blocks = a.rows.div_ceil(ROWS);
    let tasks = blocks.min(4 * team::threads());
    // What is written takes longer than what is multiplied.
    let work = a.rows * n;
    for_each_with(
        tasks,
        work,
        || (),
        |(), task| {
            let first = blocks * task / tasks * ROWS;
            let last = a.rows.min(blocks * (task + 1) / tasks * ROWS);
            let a = a.narrow_rows(first, last - first);
            // SAFETY: shapes were checked, and each task writes rows of its own.
            unsafe { sum_terms(a, b, operands, out.at(first * n), start(0)) };
        },
    );
}

/// A few contiguous rows as an operand: a rounded copy in `room` where operands are rounded.
pub(crate) fn rounded<'a>(a: Mat<'a>, operands: Operands, room: &'a mut [f32]) -> Mat<'a> {
    if operands == Operands::F32 {
        return a;
    }
    for (i, out) in room.chunks_exact_mut(a.cols.max(1)).take(a.rows).enumerate() {
        out.iter_mut().zip(a.row(i)).for_each(|(out, &x)| *out = round_bf16(x));
    }
    Mat::row_major(&room[..a.rows * a.cols], a.rows, a.cols)
}

/// Adds `A B` to some columns of a result that begins at `c`, on the calling thread. The left operand has been rounded.
///
/// # Safety
/// The rows of `b` are contiguous, or its columns and the rows of `a`. Row `i` of the result is at
/// `c + i * c_row`, and no one else uses these columns.
pub(crate) unsafe fn add(a: Mat, b: Mat, operands: Operands, cols: Range<usize>, c: *mut f32, c_row: usize) {
    // SAFETY: the caller's.
    unsafe {
        match (operands, a.col_stride == 1 && b.row_stride == 1) {
            (Operands::F32, true) => add_dots(a, b, cols, c, c_row),
            (Operands::F32, false) => add_rows(a, b, cols, c, c_row),
            (Operands::Bf16, true) => add_dots_rounded(a, b, cols, c, c_row),
            (Operands::Bf16, false) => add_rows_rounded(a, b, cols, c, c_row),
        }
    }
}

/// Columns of `b` are contiguous: dot products with the rows of `a`.
#[inline(always)]
unsafe fn add_dots_to<V: Vector, const ROUND: bool>(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) {
    let k = b.rows;
    for col in cols.clone().step_by(TILE) {
        let width = TILE.min(cols.end - col);
        for row in (0..a.rows).step_by(TILE) {
            let height = TILE.min(a.rows - row);
            let mut sums = [[0.0; TILE]; TILE];
            // SAFETY: rows and columns of the operands and the result.
            unsafe {
                // Those that are not there stand for the last one.
                let column = |j: usize| b.data.as_ptr().add((col + j.min(width - 1)) * b.col_stride);
                let columns = [column(0), column(1), column(2), column(3)];
                let of_row = |i: usize| a.data.as_ptr().add((row + i.min(height - 1)) * a.row_stride);
                match height {
                    1 => dots::<V, ROUND, 1>([of_row(0)], columns, k, &mut sums),
                    2 => dots::<V, ROUND, 2>([of_row(0), of_row(1)], columns, k, &mut sums),
                    3 => dots::<V, ROUND, 3>([of_row(0), of_row(1), of_row(2)], columns, k, &mut sums),
                    _ => dots::<V, ROUND, 4>([of_row(0), of_row(1), of_row(2), of_row(3)], columns, k, &mut sums),
                }
                for (i, sums) in sums.iter().enumerate().take(height) {
                    for (j, sum) in sums.iter().enumerate().take(width) {
                        *c.add((row + i) * c_row + col + j) += sum;
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn dots<V: Vector, const ROUND: bool, const R: usize>(
    rows: [*const f32; R],
    columns: [*const f32; TILE],
    k: usize,
    out: &mut [[f32; TILE]; TILE],
) {
    // SAFETY: `k` values of each; the rest is the caller's.
    unsafe {
        let mut sums = [[V::splat(0.0); TILE]; R];
        for at in (0..k).step_by(V::LANES) {
            let mut x = [V::splat(0.0); R];
            for (x, row) in x.iter_mut().zip(rows) {
                *x = V::load_up_to(row.add(at), k - at);
            }
            for (j, column) in columns.into_iter().enumerate() {
                let y = V::load_up_to(column.add(at), k - at);
                let y = if ROUND { math::round_bf16(y) } else { y };
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[j] = x.mul_add(y, sums[j]);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum.sum();
            }
        }
    }
}

/// Rows of `b` are contiguous: multiples of them are added to the rows of the result, four at once.
#[inline(always)]
unsafe fn add_rows_to<V: Vector, const ROUND: bool>(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) {
    let k = b.rows;
    for term in (0..k).step_by(TILE) {
        let terms = TILE.min(k - term);
        for col in cols.clone().step_by(V::LANES) {
            let left = cols.end - col;
            // SAFETY: rows and columns of the operands and the result; a row that is not there counts for nothing.
            unsafe {
                let mut y = [V::splat(0.0); TILE];
                for (t, y) in y.iter_mut().enumerate().take(terms) {
                    let row = b.data.as_ptr().add((term + t) * b.row_stride + col);
                    *y = V::load_up_to(row, left);
                    if ROUND {
                        *y = math::round_bf16(*y);
                    }
                }
                for i in 0..a.rows {
                    let x = a.data.as_ptr().add(i * a.row_stride + term * a.col_stride);
                    let to = c.add(i * c_row + col);
                    let mut sum = V::load_up_to(to, left);
                    for (t, y) in y.iter().enumerate().take(terms) {
                        sum = V::splat(*x.add(t * a.col_stride)).mul_add(*y, sum);
                    }
                    sum.store_up_to(to, left);
                }
            }
        }
    }
}

/// Each row of the result, `b.cols` long, is a sum of multiples of the few rows of `b`, which have been rounded.
#[inline(always)]
unsafe fn sum_terms_body<V: Vector>(a: Mat, b: Mat, operands: Operands, c: *mut f32, start: Start) {
    let (k, n) = (b.rows, b.cols);
    for row in (0..a.rows).step_by(TILE) {
        let height = TILE.min(a.rows - row);
        let mut x = [[0.0; FEW]; TILE];
        for (i, x) in x.iter_mut().enumerate().take(height) {
            for (t, x) in x.iter_mut().enumerate().take(k) {
                // SAFETY: a value of the operand.
                let value = unsafe { *a.data.as_ptr().add((row + i) * a.row_stride + t * a.col_stride) };
                *x = if operands == Operands::F32 { value } else { round_bf16(value) };
            }
        }
        // SAFETY: rows of the operand and the result.
        unsafe {
            let c = c.add(row * n);
            match height {
                TILE => sums::<V, TILE>(&x, b, c, start),
                _ => (0..height).for_each(|i| sums::<V, 1>(&x[i..], b, c.add(i * n), start)),
            }
        }
    }
}

kernel!(unsafe fn sum_terms(a: Mat, b: Mat, operands: Operands, c: *mut f32, start: Start) => sum_terms_body);

/// `R` rows of the result.
#[inline(always)]
unsafe fn sums<V: Vector, const R: usize>(x: &[[f32; FEW]], b: Mat, c: *mut f32, start: Start) {
    let n = b.cols;
    for col in (0..n).step_by(V::LANES) {
        let left = n - col;
        // SAFETY: rows and columns of the operand and the result.
        unsafe {
            let mut sums = [V::splat(0.0); R];
            for (i, sum) in sums.iter_mut().enumerate() {
                match start {
                    Start::Zero => {}
                    Start::Result => *sum = V::load_up_to(c.add(i * n + col), left),
                    Start::Row(row) => *sum = V::load_up_to(row.add(col), left),
                }
            }
            for t in 0..b.rows {
                let y = V::load_up_to(b.data.as_ptr().add(t * b.row_stride + col), left);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = V::splat(x[t]).mul_add(y, *sum);
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                sum.store_up_to(c.add(i * n + col), left);
            }
        }
    }
}

macro_rules! both_precisions {
    ($exact:ident, $exact_body:ident, $rounded:ident, $rounded_body:ident, $generic:ident) => {
        #[inline(always)]
        unsafe fn $exact_body<V: Vector>(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) {
            // SAFETY: the caller's.
            unsafe { $generic::<V, false>(a, b, cols, c, c_row) }
        }
        kernel!(unsafe fn $exact(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) => $exact_body);

        #[inline(always)]
        unsafe fn $rounded_body<V: Vector>(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) {
            // SAFETY: the caller's.
            unsafe { $generic::<V, true>(a, b, cols, c, c_row) }
        }
        kernel!(unsafe fn $rounded(a: Mat, b: Mat, cols: Range<usize>, c: *mut f32, c_row: usize) => $rounded_body);
    };
}
both_precisions!(add_dots, add_dots_body, add_dots_rounded, add_dots_rounded_body, add_dots_to);
both_precisions!(add_rows, add_rows_body, add_rows_rounded, add_rows_rounded_body, add_rows_to);
