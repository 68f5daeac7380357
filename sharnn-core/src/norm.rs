//! Layer normalisation with SHA-RNN's epsilon of 1e-12.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::Backend;
use crate::init::Initializer;

/// `y = (x - mean) / sqrt(var + 1e-12) ⊙ weight + bias` over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm<B: burn::tensor::backend::Backend> {
    /// `[d]`
    pub weight: Param<Tensor<B, 1>>,
    /// `[d]`
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: burn::tensor::backend::Backend> LayerNorm<B> {
    pub(crate) fn new(d: usize, init: &Initializer<B>) -> Self {
        Self { weight: init.ones([d]), bias: init.zeros([d]) }
    }
}

impl<B: Backend> LayerNorm<B> {
    /// Normalises every row.
    ///
    /// # Shapes
    /// - `x` and result: `[a, b, d]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [a, b, d] = x.dims();
        B::layer_norm_rows(x.reshape([a * b, d]), self.weight.val(), self.bias.val()).reshape([a, b, d])
    }
}
