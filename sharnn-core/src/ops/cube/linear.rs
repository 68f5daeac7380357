//! The affine map, whose product takes bfloat16 as it is.

use burn::tensor::Tensor;

use super::{OnCube, is_f32, product};
use crate::ops::{LinearGrads, Precision, linear as generic};

pub(super) fn forward<B: OnCube>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Tensor<B, 1>,
    precision: Precision,
) -> Tensor<B, 2> {
    if !is_f32(&x) {
        return generic::forward(x, weight, bias, precision);
    }
    product(x, weight.transpose(), precision) + bias.unsqueeze()
}

pub(super) fn backward<B: OnCube>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    grad: Tensor<B, 2>,
    wanted: [bool; 3],
    precision: Precision,
) -> LinearGrads<B> {
    if !is_f32(&x) {
        return generic::backward(x, weight, grad, wanted, precision);
    }
    LinearGrads {
        x: wanted[0].then(|| product(grad.clone(), weight, precision)),
        weight: wanted[1].then(|| product(grad.clone().transpose(), x, precision)),
        bias: wanted[2].then(|| grad.sum_dim(0).squeeze_dim(0)),
    }
}
