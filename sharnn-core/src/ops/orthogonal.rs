//! The orthogonal factor of a matrix, about: the Newton-Schulz iteration of Muon.
//!
//! ```text
//! X = G / ‖G‖;   five times  X = a X + (b A + c A²) X,  A = X Xᵀ       (a, b, c) = (3.4445, -4.7750, 2.0315)
//! ```
//!
//! After Jordan et al. 2024 (<https://kellerjordan.github.io/posts/muon/>). Every singular value goes to somewhere between 0.68
//! and 1.13. A matrix with more rows than columns is transposed.

use burn::tensor::Tensor;

use super::{Backend, Precision};

/// Coefficients of the iteration.
pub(super) const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Times that it is made.
pub(super) const ITERATIONS: usize = 5;

/// Added to what divides: a matrix of zeros stays one.
pub(super) const EPS: f64 = 1e-30;

/// The body of [`Backend::orthogonalize`].
pub fn orthogonalize<B: Backend>(x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
    let [_, rows, cols] = x.dims();
    let tall = rows > cols;
    let x = if tall { x.swap_dims(1, 2) } else { x };
    // Squares of small values would be zeros.
    let x = x.clone() / (x.abs().max_dim(1).max_dim(2) + EPS);
    let norm = x.clone().square().sum_dim(1).sum_dim(2).sqrt();
    let mut x = x / (norm + EPS);
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let gram = precision.matmul(x.clone(), x.clone().swap_dims(1, 2));
        let poly = gram.clone() * b + precision.matmul(gram.clone(), gram) * c;
        x = x.clone() * a + precision.matmul(poly, x);
    }
    if tall { x.swap_dims(1, 2) } else { x }
}
