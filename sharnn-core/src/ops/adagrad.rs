//! A step of Adagrad on some rows of a table.
//!
//! ```text
//! S[r] = S[r] + Σ mean(g_i²)            over the times i that row r was used; one number a row
//! T[r] = T[r] - lr Σ g_i / (√S[r] + ε)
//! ```
//!
//! After Duchi, Hazan and Singer 2011, with one sum for a row in place of one for each of its values, and each use of a row adding its own
//! square, where theirs adds that of the uses together: these need not be brought together first.

use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

use super::Backend;

/// What a step is made of.
#[derive(Clone, Debug)]
pub struct AdagradStep<B: Backend> {
    /// Learning rate.
    pub lr: f64,
    /// Added to the root of the sum of squares.
    pub eps: f64,
    /// Which rows, `[n]`; one may be there often.
    pub rows: Tensor<B, 1, Int>,
    /// Their gradients, `[n, width]`.
    pub grad: Tensor<B, 2>,
    /// Whether the step counts for nothing, `[1]`: then no bit changes.
    pub skip: Tensor<B, 1, Bool>,
}

/// The body of [`Backend::adagrad_rows`].
pub fn rows<B: Backend>(
    table: Tensor<B, 2>,
    squares: Tensor<B, 1>,
    step: AdagradStep<B>,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let AdagradStep { lr, eps, rows, grad, skip } = step;
    let skip = skip.unsqueeze::<2>().expand(grad.dims());
    let grad = grad.mask_fill(skip, 0.0);
    let square = grad.clone().square().mean_dim(1).squeeze_dim::<1>(1);
    let squares = squares.select_assign(0, rows.clone(), square, IndexingUpdateOp::Add);
    let root = squares.clone().select(0, rows.clone()).sqrt() + eps;
    let update = grad * -lr / root.unsqueeze_dim(1);
    (table.select_assign(0, rows, update, IndexingUpdateOp::Add), squares)
}
