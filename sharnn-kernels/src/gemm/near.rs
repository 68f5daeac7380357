//! Products with a small result, of operands in a near cache, as the gradient of a small weight is: each value is multiplied
//! too few times to have it packed, so both operands are read as they lie.

use super::vectors::{add_term, by_rows, write_tile};
use super::{Mat, Operands, Start};
use crate::blocks::{for_each_with, product_work};
use crate::buffer::Shared;
use crate::simd::{Vector, kernel};
use crate::team;

/// Values of both operands that stay in a near cache.
const NEAR: usize = 1 << 17;

/// Values of a small result.
const SMALL: usize = 1 << 14;

/// Rows of a task: a multiple of every tile's, or two tiles of 6.
const ROWS: usize = 12;

/// Whether the operands are near and the result is small, and vectors can be read from the right operand.
pub(super) fn are_near(a: Mat, b: Mat, operands: Operands) -> bool {
    let near = b.rows * (a.rows + b.cols) <= NEAR && a.rows * b.cols <= SMALL;
    near && operands == Operands::F32 && b.col_stride == 1 && b.rows > 0
}

/// [`super::multiply`] where [they are near](are_near).
pub(super) fn multiply(a: Mat, b: Mat, c: &mut [f32], start: impl Fn(usize) -> Start + Sync) {
    let (rows, n) = (a.rows, b.cols);
    let out = Shared::new(c);
    let blocks = rows.div_ceil(ROWS);
    let tasks = blocks.min(4 * team::threads());
    for_each_with(
        tasks,
        product_work(rows, b.rows, n),
        || (),
        |(), task| {
            let first = blocks * task / tasks * ROWS;
            let last = rows.min(blocks * (task + 1) / tasks * ROWS);
            // SAFETY: shapes were checked, and each task writes rows of its own.
            unsafe { product(a.narrow_rows(first, last - first), b, out.at(first * n), start(0)) };
        },
    );
}

/// `C = A B`, added to `start`, with `C` contiguous at `c`.
#[inline(always)]
unsafe fn product_body<V: Vector>(a: Mat, b: Mat, c: *mut f32, start: Start) {
    let n = b.cols;
    let n_tiles = a.rows.div_ceil(V::TILE_ROWS);
    for col in (0..n).step_by(2 * V::LANES) {
        for tile in 0..n_tiles {
            // Tiles as equal as can be.
            let (row, end) = (a.rows * tile / n_tiles, a.rows * (tile + 1) / n_tiles);
            // SAFETY: rows and columns of the operands and the result.
            unsafe {
                let (a, c) = (a.narrow_rows(row, end - row), c.add(row * n + col));
                let start = start.at_col(col);
                by_rows!(V, end - row, R => tile_of::<V, R>(a, b, col, c, start));
            }
        }
    }
}
kernel!(unsafe fn product(a: Mat, b: Mat, c: *mut f32, start: Start) => product_body);

/// `R` rows and two vectors of columns from `col` on, or what is left of them.
#[inline(always)]
unsafe fn tile_of<V: Vector, const R: usize>(a: Mat, b: Mat, col: usize, c: *mut f32, start: Start) {
    let left = b.cols - col;
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        let rows: [*const f32; R] = std::array::from_fn(|r| a.data.as_ptr().add(r * a.row_stride));
        let panel = b.data.as_ptr().add(col);
        if left >= 2 * V::LANES {
            for k in 0..b.rows {
                let from = panel.add(k * b.row_stride);
                add_term(&mut sums, &rows, k * a.col_stride, V::load(from), V::load(from.add(V::LANES)));
            }
        } else {
            let (first, second) = (left.min(V::LANES), left.saturating_sub(V::LANES));
            for k in 0..b.rows {
                let from = panel.add(k * b.row_stride);
                let (y0, y1) = (V::load_up_to(from, first), V::load_part(from.wrapping_add(V::LANES), second));
                add_term(&mut sums, &rows, k * a.col_stride, y0, y1);
            }
        }
        write_tile(&sums, c, b.cols, left, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, random};

    /// Few enough values for Miri, for which the tests of whole products take too long.
    #[test]
    fn edges_of_tiles_agree_with_double_precision() {
        for [m, k, n] in [[9, 10, 17], [13, 3, 8], [4, 1, 33]] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let want: Vec<f64> = (0..m * n)
                .map(|e| (0..k).map(|t| f64::from(a[t * m + e / n]) * f64::from(b[t * n + e % n])).sum())
                .collect();
            let mut c = vec![f32::NAN; m * n];
            multiply(Mat::row_major(&a, k, m).t(), Mat::row_major(&b, k, n), &mut c, |_| Start::Zero);
            assert_near(&format!("{m} x {k} x {n}"), &c, &want, 1e-6);
        }
    }
}
