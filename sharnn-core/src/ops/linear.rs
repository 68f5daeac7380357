//! The affine map `y = x Wᵀ + b`, with the weight in PyTorch's layout `[d_out, d_in]`.

use burn::tensor::Tensor;

use super::{Backend, Precision};

/// Gradients of the affine map; `None` where none was asked for.
#[derive(Debug)]
pub struct LinearGrads<B: Backend> {
    /// `[rows, d_in]`
    pub x: Option<Tensor<B, 2>>,
    /// `[d_out, d_in]`
    pub weight: Option<Tensor<B, 2>>,
    /// `[d_out]`
    pub bias: Option<Tensor<B, 1>>,
}

/// The body of [`Backend::affine`].
pub fn forward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Tensor<B, 1>,
    precision: Precision,
) -> Tensor<B, 2> {
    precision.matmul(x, weight.transpose()) + bias.unsqueeze()
}

/// The body of [`Backend::affine_backward`].
///
/// Of `y = x Wᵀ + b` with cotangent `g`: `dx = g W`, `dW = gᵀ x`, `db = Σ g`.
pub fn backward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    grad: Tensor<B, 2>,
    wanted: [bool; 3],
    precision: Precision,
) -> LinearGrads<B> {
    LinearGrads {
        x: wanted[0].then(|| precision.matmul(grad.clone(), weight)),
        weight: wanted[1].then(|| precision.matmul(grad.clone().transpose(), x)),
        bias: wanted[2].then(|| grad.sum_dim(0).squeeze_dim(0)),
    }
}
