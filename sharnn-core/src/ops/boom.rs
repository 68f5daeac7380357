//! The Boom feed-forward: a wide linear map, GELU, dropout, and the SUM of the `d_model`-wide chunks in place of a
//! second matrix (Merity 2019, section 3.2).
//!
//! `u = GELU(x Wᵀ + b)` in `d_ff` dimensions, `y = Σ_k u[k d .. (k+1) d]`. Where `d` does not divide `d_ff` the tail of
//! `u` is dropped.

use burn::tensor::Tensor;

use super::{Backend, Dropout, LaneAxis, Precision};
use crate::activation::{GELU_SLOPE, gelu, sigmoid};

/// Inputs of the Boom operation.
#[derive(Clone, Debug)]
pub struct BoomInputs<B: Backend> {
    /// `[seq_len, batch_size, d_model]`
    pub x: Tensor<B, 3>,
    /// `[d_ff, d_model]`
    pub weight: Tensor<B, 2>,
    /// `[d_ff]`
    pub bias: Tensor<B, 1>,
    /// Dropout of the activations.
    pub dropout: Option<Dropout>,
    /// Whether the backward computes the pre-activations again, so that they need not be kept.
    pub recompute: bool,
}

/// Gradients of the Boom.
#[derive(Debug)]
pub struct BoomGrads<B: Backend> {
    /// `[seq_len, batch_size, d_model]`
    pub x: Tensor<B, 3>,
    /// `[d_ff, d_model]`
    pub weight: Tensor<B, 2>,
    /// `[d_ff]`
    pub bias: Tensor<B, 1>,
}

/// What the forward pass leaves for the backward.
#[derive(Clone, Debug)]
pub struct BoomSaved<B: Backend> {
    /// The input, `[seq_len, batch_size, d_model]`.
    pub x: Tensor<B, 3>,
    /// The weight, `[d_ff, d_model]`.
    pub weight: Tensor<B, 2>,
    /// The bias, `[d_ff]`.
    pub bias: Tensor<B, 1>,
    /// The pre-activations, `[seq_len * batch_size, d_ff]`, unless they are computed again.
    pub z: Option<Tensor<B, 2>>,
    /// The dropout that was applied.
    pub dropout: Option<Dropout>,
    /// The precision that was used.
    pub precision: Precision,
}

/// The mask as two-dimensional rows, time-major.
fn mask<B: Backend>(dropout: Dropout, dims: [usize; 3], like: &Tensor<B, 3>) -> Tensor<B, 2> {
    let [seq_len, batch_size, d_ff] = dims;
    dropout.mask(dims, LaneAxis::Second, like).reshape([seq_len * batch_size, d_ff])
}

/// The body of [`Backend::boom_forward`].
pub fn forward<B: Backend>(inputs: BoomInputs<B>, precision: Precision) -> (Tensor<B, 3>, BoomSaved<B>) {
    let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
    let [seq_len, batch_size, d] = x.dims();
    let [d_ff, _] = weight.dims();
    let rows = seq_len * batch_size;
    let z = super::linear::forward(x.clone().reshape([rows, d]), weight.clone(), bias.clone(), precision);
    let mut u = gelu(z.clone());
    if let Some(dropout) = dropout {
        u = u * mask(dropout, [seq_len, batch_size, d_ff], &x);
    }
    let y = (1..d_ff / d).fold(u.clone().narrow(1, 0, d), |sum, k| sum + u.clone().narrow(1, k * d, d));
    let z = (!recompute).then_some(z);
    (y.reshape([seq_len, batch_size, d]), BoomSaved { x, weight, bias, z, dropout, precision })
}

/// The body of [`Backend::boom_backward`].
pub fn backward<B: Backend>(saved: BoomSaved<B>, grad: Tensor<B, 3>) -> BoomGrads<B> {
    let BoomSaved { x, weight, bias, z, dropout, precision } = saved;
    let [seq_len, batch_size, d] = x.dims();
    let [d_ff, _] = weight.dims();
    let rows = seq_len * batch_size;
    let z = z.unwrap_or_else(|| super::linear::forward(x.clone().reshape([rows, d]), weight.clone(), bias, precision));
    let chunks = d_ff / d;
    let mut du = grad.reshape([rows, d]).repeat_dim(1, chunks);
    if chunks * d < d_ff {
        let tail = Tensor::zeros([rows, d_ff - chunks * d], (&du.device(), du.dtype()));
        du = Tensor::cat(vec![du, tail], 1);
    }
    if let Some(dropout) = dropout {
        du = du * mask(dropout, [seq_len, batch_size, d_ff], &x);
    }
    // GELU'(z) = s + 1.702 z s (1 - s) with s = σ(1.702 z).
    let s = sigmoid(z.clone() * GELU_SLOPE);
    let slope = s.clone() + z * GELU_SLOPE * s.clone() * (s.neg() + 1.0);
    let grads = super::linear::backward(x.reshape([rows, d]), weight, du * slope, [true; 3], precision);
    let (Some(dx), Some(weight), Some(bias)) = (grads.x, grads.weight, grads.bias) else {
        unreachable!("all three gradients were asked for")
    };
    BoomGrads { x: dx.reshape([seq_len, batch_size, d]), weight, bias }
}
