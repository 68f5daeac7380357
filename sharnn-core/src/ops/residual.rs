//! The sum that ends a block: `y = LN(h) + dropout(x)`, of the normalised residual and the feed-forward's output.

use burn::tensor::Tensor;

use super::dropout::drop;
use super::{Backend, Dropout};

/// What is summed.
#[derive(Clone, Debug)]
pub struct ResidualInputs<B: Backend> {
    /// The residual, which is normalised: `[seq_len, batch_size, d]`.
    pub h: Tensor<B, 3>,
    /// The norm's weight, `[d]`.
    pub weight: Tensor<B, 1>,
    /// The norm's bias, `[d]`.
    pub bias: Tensor<B, 1>,
    /// What is added, `[seq_len, batch_size, d]`.
    pub x: Tensor<B, 3>,
    /// Dropout of what is added.
    pub dropout: Option<Dropout>,
}

/// What the backward needs.
#[derive(Clone, Debug)]
pub struct ResidualSaved<B: Backend> {
    /// The residual, `[seq_len, batch_size, d]`.
    pub h: Tensor<B, 3>,
    /// The norm's weight, `[d]`.
    pub weight: Tensor<B, 1>,
    /// Dropout of what was added.
    pub dropout: Option<Dropout>,
}

/// Gradients of [`Backend::norm_residual`], shaped as the inputs.
#[derive(Clone, Debug)]
pub struct ResidualGrads<B: Backend> {
    /// Of the residual.
    pub h: Tensor<B, 3>,
    /// Of the norm's weight.
    pub weight: Tensor<B, 1>,
    /// Of the norm's bias.
    pub bias: Tensor<B, 1>,
    /// Of what was added.
    pub x: Tensor<B, 3>,
}

/// The body of [`Backend::norm_residual`].
pub fn forward<B: Backend>(inputs: ResidualInputs<B>) -> Tensor<B, 3> {
    let ResidualInputs { h, weight, bias, x, dropout } = inputs;
    let dims @ [seq_len, batch_size, d] = h.dims();
    let normed = B::layer_norm_rows(h.reshape([seq_len * batch_size, d]), weight, bias).reshape(dims);
    normed + drop(x, dropout)
}

/// The body of [`Backend::norm_residual_backward`]: that of the norm, and the dropout of the gradient.
pub fn backward<B: Backend>(saved: ResidualSaved<B>, grad: Tensor<B, 3>) -> ResidualGrads<B> {
    let ResidualSaved { h, weight, dropout } = saved;
    let dims @ [seq_len, batch_size, d] = h.dims();
    let rows = [seq_len * batch_size, d];
    let (h, weight, bias) = B::layer_norm_rows_backward(h.reshape(rows), weight, grad.clone().reshape(rows));
    ResidualGrads { h: h.reshape(dims), weight, bias, x: drop(grad, dropout) }
}
