//! The affine map `y = x Wᵀ + b` as a module.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::init::Initializer;
use crate::{Backend, Precision};

/// An affine map with the weight in PyTorch's layout.
#[derive(Module, Debug)]
pub struct Linear<B: burn::tensor::backend::Backend> {
    /// `[d_out, d_in]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_out]`
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: burn::tensor::backend::Backend> Linear<B> {
    pub(crate) fn new(d_in: usize, d_out: usize, init: &mut Initializer<B>) -> Self {
        Self { weight: init.weight([d_out, d_in]), bias: init.zeros([d_out]) }
    }
}

impl<B: Backend> Linear<B> {
    /// Applies the map to the last dimension.
    ///
    /// # Shapes
    /// - `x`: `[a, b, d_in]`
    /// - result: `[a, b, d_out]`
    pub fn forward(&self, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
        let [a, b, d_in] = x.dims();
        let [d_out, _] = self.weight.dims();
        B::affine(x.reshape([a * b, d_in]), self.weight.val(), self.bias.val(), precision).reshape([a, b, d_out])
    }
}
