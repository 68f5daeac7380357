//! SHA-RNN's GELU: the sigmoid approximation of Hendrycks and Gimpel (2016).

use burn::tensor::{Tensor, activation::sigmoid, backend::Backend};

/// Slope of the sigmoid in [`gelu`].
pub(crate) const GELU_SLOPE: f64 = 1.702;

/// `GELU(x) = x σ(1.702 x)`, element-wise.
///
/// # Shapes
/// - `x` and the result: any shape
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    sigmoid(x.clone() * GELU_SLOPE) * x
}
