//! Layer normalisation: a cube for each row.

use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::{OnCube, UNITS, arg, for_rows, is_f32, reduce, room, tensor, values};
use crate::ops::{LAYER_NORM_EPS, layer_norm as generic};

/// Mean and standard deviation of a row, in two passes as the reference has them.
#[cube]
fn statistics(x: &Array<f32>, start: usize, d: usize, eps: f32, shared: &mut SharedMemory<f32>) -> (f32, f32) {
    let units = comptime!(UNITS as usize);
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < d {
        part += x[start + i];
        i += units;
    }
    let n = f32::cast_from(d as u32);
    let mean = reduce::sum(part, shared) / n;
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < d {
        let centred = x[start + i] - mean;
        part += centred * centred;
        i += units;
    }
    let variance = reduce::sum(part, shared) / n;
    (mean, (variance + eps).sqrt())
}

#[cube(launch)]
pub(super) fn forward_kernel(
    x: &Array<f32>,
    weight: &Array<f32>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    rows: u32,
    eps: f32,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let d = weight.len();
    let start = row * d;
    let mut shared = reduce::shared();
    let (mean, std) = statistics(x, start, d, eps, &mut shared);
    let mut i = UNIT_POS as usize;
    while i < d {
        out[start + i] = (x[start + i] - mean) / std * weight[i] + bias[i];
        i += comptime!(UNITS as usize);
    }
}

/// `dx`, and `grad ⊙ x̂`, whose column sums are the gradient of the weight.
#[cube(launch)]
pub(super) fn backward_kernel(
    x: &Array<f32>,
    weight: &Array<f32>,
    grad: &Array<f32>,
    dx: &mut Array<f32>,
    scaled: &mut Array<f32>,
    rows: u32,
    eps: f32,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let d = weight.len();
    let start = row * d;
    let units = comptime!(UNITS as usize);
    let mut shared = reduce::shared();
    let (mean, std) = statistics(x, start, d, eps, &mut shared);
    let mut of_u = 0.0f32;
    let mut of_product = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < d {
        let normed = (x[start + i] - mean) / std;
        let u = grad[start + i] * weight[i];
        of_u += u;
        of_product += u * normed;
        i += units;
    }
    let n = f32::cast_from(d as u32);
    let mean_u = reduce::sum(of_u, &mut shared) / n;
    let mean_product = reduce::sum(of_product, &mut shared) / n;
    let mut i = UNIT_POS as usize;
    while i < d {
        let normed = (x[start + i] - mean) / std;
        let g = grad[start + i];
        dx[start + i] = (g * weight[i] - mean_u - normed * mean_product) / std;
        scaled[start + i] = g * normed;
        i += units;
    }
}

pub(super) fn forward<B: OnCube>(x: Tensor<B, 2>, weight: Tensor<B, 1>, bias: Tensor<B, 1>) -> Tensor<B, 2> {
    if !is_f32(&x) {
        return generic::forward(x, weight, bias);
    }
    let [rows, d] = x.dims();
    let [x, weight, bias] = [values(x), values(weight), values(bias)];
    let out = room(&x, [rows, d]);
    if rows * d > 0 {
        let (count, dim) = for_rows(&x, rows);
        forward_kernel::launch::<B::Runtime>(
            &x.client,
            count,
            dim,
            arg(&x),
            arg(&weight),
            arg(&bias),
            arg(&out),
            rows as u32,
            LAYER_NORM_EPS as f32,
        );
    }
    tensor(out)
}

pub(super) fn backward<B: OnCube>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    if !is_f32(&x) {
        return generic::backward(x, weight, grad);
    }
    let [rows, d] = x.dims();
    let [x, weight] = [values(x), values(weight)];
    let [dx, scaled] = [room(&x, [rows, d]), room(&x, [rows, d])];
    if rows * d > 0 {
        let (count, dim) = for_rows(&x, rows);
        backward_kernel::launch::<B::Runtime>(
            &x.client,
            count,
            dim,
            arg(&x),
            arg(&weight),
            arg(&values(grad.clone())),
            arg(&dx),
            arg(&scaled),
            rows as u32,
            LAYER_NORM_EPS as f32,
        );
    }
    let scaled: Tensor<B, 2> = tensor(scaled);
    (tensor(dx), scaled.sum_dim(0).squeeze_dim(0), grad.sum_dim(0).squeeze_dim(0))
}
