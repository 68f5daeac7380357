//! What surrounds the Boom's products: bias, GELU, dropout and the sum of the chunks in one pass.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::dropout::{Mask, factor, mask};
use super::{OnCube, arg, for_elements, is_f32, linear, product, room, sigmoid, tensor, values};
use crate::activation::GELU_SLOPE;
use crate::ops::{BoomGrads, BoomInputs, BoomSaved, Dropout, LinearGrads, Precision, boom as generic};

/// `z` is without bias, `[rows, d_ff]`; `out` is `[rows, d]`. Rows are time-major.
#[cube(launch)]
pub(super) fn forward_kernel(
    z: &Array<f32>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    mask: &Mask,
    d: u32,
    lanes: u32,
    slope: f32,
    #[comptime] drops: bool,
) {
    if ABSOLUTE_POS < out.len() {
        let at = ABSOLUTE_POS as u32;
        let (row, column) = (at / d, at % d);
        let d_ff = bias.len() as u32;
        let mut sum = 0.0f32;
        for chunk in 0..d_ff / d {
            let unit = chunk * d + column;
            let x = z[(row * d_ff + unit) as usize] + bias[unit as usize];
            let mut u = x * sigmoid(slope * x);
            if comptime!(drops) {
                u *= factor(mask, row % lanes, row / lanes, unit);
            }
            sum += u;
        }
        out[ABSOLUTE_POS] = sum;
    }
}

/// The gradient of `z`, from that of the output, `[rows, d]`.
#[cube(launch)]
pub(super) fn backward_kernel(
    z: &Array<f32>,
    bias: &Array<f32>,
    grad: &Array<f32>,
    dz: &mut Array<f32>,
    mask: &Mask,
    d: u32,
    lanes: u32,
    slope: f32,
    #[comptime] drops: bool,
) {
    if ABSOLUTE_POS < dz.len() {
        let at = ABSOLUTE_POS as u32;
        let d_ff = bias.len() as u32;
        let (row, unit) = (at / d_ff, at % d_ff);
        let mut result = 0.0f32;
        // What is left over after the last whole chunk has no part in the output.
        if unit < d_ff / d * d {
            let x = z[ABSOLUTE_POS] + bias[unit as usize];
            let s = sigmoid(slope * x);
            result = grad[(row * d + unit % d) as usize] * (s + x * slope * s * (1.0f32 - s));
            if comptime!(drops) {
                result *= factor(mask, row % lanes, row / lanes, unit);
            }
        }
        dz[ABSOLUTE_POS] = result;
    }
}

/// The output, `[rows, d]`, from the product without bias, `[rows, d_ff]`.
fn sum_chunks<R: CubeRuntime>(
    z: &CubeTensor<R>,
    bias: &CubeTensor<R>,
    [d, lanes]: [usize; 2],
    dropout: Option<&Dropout>,
) -> CubeTensor<R> {
    let [rows, _] = z.meta.shape().dims();
    let out = room(z, [rows, d]);
    if rows * d > 0 {
        let (count, dim) = for_elements(z, rows * d);
        forward_kernel::launch::<R>(
            &z.client,
            count,
            dim,
            arg(z),
            arg(bias),
            arg(&out),
            mask(dropout),
            d as u32,
            lanes as u32,
            GELU_SLOPE as f32,
            dropout.is_some(),
        );
    }
    out
}

/// The gradient of the product, `[rows, d_ff]`.
fn chunks_backward<R: CubeRuntime>(
    z: &CubeTensor<R>,
    bias: &CubeTensor<R>,
    grad: &CubeTensor<R>,
    lanes: usize,
    dropout: Option<&Dropout>,
) -> CubeTensor<R> {
    let [rows, d_ff] = z.meta.shape().dims();
    let [_, d] = grad.meta.shape().dims();
    let dz = room(z, [rows, d_ff]);
    if rows * d_ff > 0 {
        let (count, dim) = for_elements(z, rows * d_ff);
        backward_kernel::launch::<R>(
            &z.client,
            count,
            dim,
            arg(z),
            arg(bias),
            arg(grad),
            arg(&dz),
            mask(dropout),
            d as u32,
            lanes as u32,
            GELU_SLOPE as f32,
            dropout.is_some(),
        );
    }
    dz
}

/// What is kept of the pre-activations is the product, without the bias.
pub(super) fn forward<B: OnCube>(inputs: BoomInputs<B>, precision: Precision) -> (Tensor<B, 3>, BoomSaved<B>) {
    if !is_f32(&inputs.x) {
        return generic::forward(inputs, precision);
    }
    let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
    let [seq_len, lanes, d] = x.dims();
    let z = product(x.clone().reshape([seq_len * lanes, d]), weight.clone().transpose(), precision);
    let y = sum_chunks(&values(z.clone()), &values(bias.clone()), [d, lanes], dropout.as_ref());
    let y: Tensor<B, 2> = tensor(y);
    let z = (!recompute).then_some(z);
    (y.reshape([seq_len, lanes, d]), BoomSaved { x, weight, bias, z, dropout, precision })
}

pub(super) fn backward<B: OnCube>(saved: BoomSaved<B>, grad: Tensor<B, 3>) -> BoomGrads<B> {
    if !is_f32(&saved.x) {
        return generic::backward(saved, grad);
    }
    let BoomSaved { x, weight, bias, z, dropout, precision } = saved;
    let [seq_len, lanes, d] = x.dims();
    let x = x.reshape([seq_len * lanes, d]);
    let z = z.unwrap_or_else(|| product(x.clone(), weight.clone().transpose(), precision));
    let grad = values(grad.reshape([seq_len * lanes, d]));
    let dz = chunks_backward(&values(z), &values(bias), &grad, lanes, dropout.as_ref());
    let LinearGrads { x, weight, bias } = linear::backward(x, weight, tensor(dz), [true; 3], precision);
    let (Some(x), Some(weight), Some(bias)) = (x, weight, bias) else {
        unreachable!("all three gradients were asked for")
    };
    BoomGrads { x: x.reshape([seq_len, lanes, d]), weight, bias }
}
