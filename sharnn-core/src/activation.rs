//! SHA-RNN's GELU: the sigmoid approximation of Hendrycks and Gimpel (2016).

use burn::tensor::{DType, Tensor, backend::Backend};

/// Slope of the sigmoid in [`gelu`].
pub const GELU_SLOPE: f64 = 1.702;

/// `GELU(x) = x σ(1.702 x)`, element-wise.
///
/// # Shapes
/// - `x` and the result: any shape
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    sigmoid(x.clone() * GELU_SLOPE) * x
}

/// The logistic function `σ(x) = 1 / (1 + exp(-x))`, element-wise, in the tensor's own precision.
///
/// Burn's own computes in f32 whatever the type, so double precision takes another path.
pub(crate) fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        DType::F64 => {
            let one_plus = x.neg().exp() + 1.0;
            Tensor::ones_like(&one_plus) / one_plus
        }
        _ => burn::tensor::activation::sigmoid(x),
    }
}
