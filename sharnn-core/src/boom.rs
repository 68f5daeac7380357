//! The Boom feed-forward as a module; the equation is in [`ops`](crate::ops).

use burn::module::Module;
use burn::tensor::Tensor;

use crate::init::Initializer;
use crate::ops::BoomInputs;
use crate::{Backend, Dropout, Linear, Pass, Precision};

/// A linear map to `d_ff` dimensions, GELU, dropout, and the sum of the `d_model`-wide chunks: no second matrix.
#[derive(Module, Debug)]
pub struct Boom<B: burn::tensor::backend::Backend> {
    /// `d_model` to `d_ff`.
    pub linear: Linear<B>,
}

impl<B: burn::tensor::backend::Backend> Boom<B> {
    pub(crate) fn new(d_model: usize, d_ff: usize, init: &mut Initializer<B>) -> Self {
        Self { linear: Linear::new(d_model, d_ff, init) }
    }
}

impl<B: Backend> Boom<B> {
    /// Applies the feed-forward without dropout.
    ///
    /// # Shapes
    /// - `x` and result: `[batch_size, seq_len, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
        self.forward_time_major(x, None, &Pass { precision, ..Pass::default() })
    }

    /// With dropout of the activations, in the inner layout `[seq_len, batch_size, d_model]`.
    pub(crate) fn forward_time_major(&self, x: Tensor<B, 3>, dropout: Option<Dropout>, pass: &Pass) -> Tensor<B, 3> {
        let (weight, bias) = (self.linear.weight.val(), self.linear.bias.val());
        B::boom(BoomInputs { x, weight, bias, dropout, recompute: pass.recompute }, pass.precision)
    }
}
