//! Layer normalisation over the last dimension (Ba, Kiros and Hinton 2016).

use burn::tensor::Tensor;

use super::Backend;

/// Added to the variance: SHA-RNN's value, far below the usual 1e-5.
pub const LAYER_NORM_EPS: f64 = 1e-12;

/// `x̂ = (x - mean) / sqrt(var + eps)` and `sqrt(var + eps)`. It divides: a SIMD reciprocal, as burn-ndarray's, is good to
/// 12 bits only.
fn normalise<B: Backend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    let std = (variance + LAYER_NORM_EPS).sqrt();
    (centred / std.clone(), std)
}

/// The body of [`Backend::layer_norm_rows`].
pub fn forward<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, bias: Tensor<B, 1>) -> Tensor<B, 2> {
    normalise(x).0 * weight.unsqueeze() + bias.unsqueeze()
}

/// The body of [`Backend::layer_norm_rows_backward`].
///
/// With cotangent `g` and `u = g ⊙ weight`: `dx = (u - mean(u) - x̂ mean(u ⊙ x̂)) / sqrt(var + eps)`,
/// `dweight = Σ g ⊙ x̂`, `dbias = Σ g`. The statistics are computed again rather than stored.
pub fn backward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    let (normed, std) = normalise(x);
    let u = grad.clone() * weight.unsqueeze();
    let dx = (u.clone() - u.clone().mean_dim(1) - normed.clone() * (u * normed.clone()).mean_dim(1)) / std;
    let dweight = (grad.clone() * normed).sum_dim(0).squeeze_dim(0);
    let dbias = grad.sum_dim(0).squeeze_dim(0);
    (dx, dweight, dbias)
}
