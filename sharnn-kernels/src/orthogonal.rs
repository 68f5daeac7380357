//! The orthogonal factor of a matrix, about: the Newton-Schulz iteration of Muon (Jordan et al. 2024).
//!
//! ```text
//! X = G / (‖G‖ + ε);   so many times  X = (a I + b A + c A²) X,  A = X Xᵀ
//! ```
//!
//! A matrix with more rows than columns is transposed. A and A² are symmetric, and half of them is computed. Matrices are
//! small, so each is one thread's.

use crate::blocks::{for_each_with, product_work};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{self, Mat, Operands, Packed, Start, multiply};
use crate::lamb::squares;

/// The iteration.
#[derive(Clone, Copy, Debug)]
pub struct NewtonSchulz {
    /// `a`, `b` and `c`.
    pub coefficients: [f32; 3],
    /// Times that it is made.
    pub iterations: usize,
    /// Added to the norm before it divides: a matrix of zeros stays one.
    pub eps: f64,
    /// What the operands of its products are rounded to.
    pub operands: Operands,
}

/// Rows from which on half of a symmetric product takes less time than a whole one.
const LARGE: usize = 96;

/// Replaces each of the matrices, `[rows, cols]` and one after another in `x`, by its orthogonal factor.
///
/// # Panics
/// If `x` does not hold whole matrices.
pub fn orthogonalize(x: &mut [f32], [rows, cols]: [usize; 2], how: NewtonSchulz) {
    let size = rows * cols;
    if size == 0 {
        return;
    }
    assert!(x.len().is_multiple_of(size), "{} values are not matrices of {rows} x {cols}", x.len());
    let n = x.len() / size;
    let small = rows.min(cols);
    let work = 3 * how.iterations * n * product_work(small, small, rows.max(cols));
    let shared = Shared::new(x);
    for_each_with(n, work, Scratch::default, |scratch, i| {
        // SAFETY: each matrix is one task's.
        orthogonalize_one(unsafe { shared.slice(i * size, size) }, [rows, cols], how, scratch);
    });
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    wide: [Vec<f32>; 2],
    square: [Vec<f32>; 2],
    product: Option<Buffer>,
}

fn orthogonalize_one(g: &mut [f32], [rows, cols]: [usize; 2], how: NewtonSchulz, scratch: &mut Scratch) {
    let (small, large) = (rows.min(cols), rows.max(cols));
    let Scratch { wide, square, product } = scratch;
    wide.iter_mut().for_each(|x| x.resize(small * large, 0.0));
    square.iter_mut().for_each(|x| x.resize(small * small, 0.0));
    let product = product.get_or_insert_with(gemm::scratch);
    let ([x, next], [gram, poly]) = (wide, square);
    let mut symmetric = |a: Mat, b: Mat, c: &mut [f32]| match small < LARGE {
        true => multiply(a, b, how.operands, c, |_| Start::Zero),
        false => gemm::symmetric(a, &Packed::new(b, how.operands), c, product),
    };

    let scale = (1.0 / (squares(g).sqrt() + how.eps)) as f32;
    let place = |i: usize| if rows > cols { i % large * cols + i / large } else { i };
    x.iter_mut().enumerate().for_each(|(i, x)| *x = g[place(i)] * scale);
    let [a, b, c] = how.coefficients;
    for _ in 0..how.iterations {
        let of_x = Mat::row_major(x, small, large);
        symmetric(of_x, of_x.t(), gram);
        let of_gram = Mat::row_major(gram, small, small);
        symmetric(of_gram, of_gram, poly);
        poly.iter_mut().zip(gram.iter()).for_each(|(poly, gram)| *poly = b * gram + c * *poly);
        (0..small).for_each(|i| poly[i * small + i] += a);
        multiply(Mat::row_major(poly, small, small), of_x, how.operands, next, |_| Start::Zero);
        std::mem::swap(x, next);
    }
    x.iter().enumerate().for_each(|(i, &x)| g[place(i)] = x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, assert_near, f64s, matmul, random, skip, transposed};

    const MUON: NewtonSchulz =
        NewtonSchulz { coefficients: [3.4445, -4.7750, 2.0315], iterations: 5, eps: 1e-30, operands: Operands::F32 };

    /// The iteration in double precision, in the order of the formula.
    fn reference(g: &[f32], [rows, cols]: [usize; 2]) -> Vec<f64> {
        let tall = rows > cols;
        let (m, n) = (rows.min(cols), rows.max(cols));
        let mut x = if tall { transposed(&f64s(g), rows) } else { f64s(g) };
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= norm);
        for _ in 0..5 {
            let gram = matmul(&x, &transposed(&x, m), [m, n, m]);
            let square = matmul(&gram, &gram, [m, m, m]);
            let poly: Vec<f64> = gram.iter().zip(&square).map(|(a, aa)| -4.7750 * a + 2.0315 * aa).collect();
            let step = matmul(&poly, &x, [m, m, n]);
            x.iter_mut().zip(step).for_each(|(x, step)| *x = 3.4445 * *x + step);
        }
        if tall { transposed(&x, m) } else { x }
    }

    #[test]
    fn it_agrees_with_double_precision() {
        for [n, rows, cols] in [
            [1, 1, 1],
            [3, 4, 4],
            [2, 5, 7],
            [2, 7, 5],
            [1, 1, 9],
            [1, 9, 1],
            [4, 33, 17],
            [2, 96, 50],
            [1, 64, 256],
            [2, 131, 100],
        ] {
            if skip(n * rows * cols) {
                continue;
            }
            let g = random(n * rows * cols, 1);
            let mut got = g.clone();
            orthogonalize(&mut got, [rows, cols], MUON);
            for (i, (got, g)) in got.chunks(rows * cols).zip(g.chunks(rows * cols)).enumerate() {
                assert_near(&format!("{i} of {rows} x {cols}"), got, &reference(g, [rows, cols]), 1e-4);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_scale_does_not_matter() {
        let mut zeros = [0.0; 12];
        orthogonalize(&mut zeros, [3, 4], MUON);
        assert_eq!(zeros, [0.0; 12]);
        let mut small: Vec<f32> = random(12, 2);
        let mut large: Vec<f32> = small.iter().map(|x| x * 1024.0).collect();
        orthogonalize(&mut small, [3, 4], MUON);
        orthogonalize(&mut large, [3, 4], MUON);
        assert_eq!(small, large);
        orthogonalize(&mut [], [3, 4], MUON);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let dims = if skip(4000) { [2, 3] } else { [40, 20] };
        let all = || {
            let mut x = random(5 * dims[0] * dims[1], 3);
            orthogonalize(&mut x, dims, MUON);
            x
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    fn nan_stays_in_its_matrix() {
        let mut x = random(2 * 6, 4);
        x[7] = f32::NAN;
        orthogonalize(&mut x, [2, 3], MUON);
        assert!(x[..6].iter().all(|x| x.is_finite()) && x[6..].iter().all(|x| x.is_nan()));
    }

    #[test]
    #[should_panic(expected = "13 values are not matrices of 3 x 4")]
    fn parts_of_matrices_are_refused() {
        orthogonalize(&mut [0.0; 13], [3, 4], MUON);
    }
}
