//! Layer normalisation, and its sum with a residual after that one's dropout: a cube for each row.

use burn::tensor::{Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::dropout::{Mask, factor, mask};
use super::{OnCube, UNITS, arg, for_rows, is_f32, reduce, room, tensor, values};
use crate::ops::{
    Dropout, LAYER_NORM_EPS, ResidualGrads, ResidualInputs, ResidualSaved, layer_norm as generic,
    residual as generic_residual,
};

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

/// The norm of each row, and where there is a `residual` what is added to it, where that `drops` after its dropout.
#[cube(launch)]
pub(super) fn forward_kernel(
    x: &Array<f32>,
    weight: &Array<f32>,
    bias: &Array<f32>,
    added: &Array<f32>,
    out: &mut Array<f32>,
    mask: &Mask,
    rows: u32,
    lanes: u32,
    eps: f32,
    #[comptime] residual: bool,
    #[comptime] drops: bool,
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
        let mut y = (x[start + i] - mean) / std * weight[i] + bias[i];
        if comptime!(residual) {
            let mut more = added[start + i];
            if comptime!(drops) {
                more *= factor(mask, row as u32 % lanes, row as u32 / lanes, i as u32);
            }
            y += more;
        }
        out[start + i] = y;
        i += comptime!(UNITS as usize);
    }
}

/// `dx`, and `grad ⊙ x̂`, whose column sums are the gradient of the weight; where the residual `drops`, its gradient.
#[cube(launch)]
pub(super) fn backward_kernel(
    x: &Array<f32>,
    weight: &Array<f32>,
    grad: &Array<f32>,
    dx: &mut Array<f32>,
    scaled: &mut Array<f32>,
    dropped: &mut Array<f32>,
    mask: &Mask,
    rows: u32,
    lanes: u32,
    eps: f32,
    #[comptime] drops: bool,
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
        if comptime!(drops) {
            dropped[start + i] = g * factor(mask, row as u32 % lanes, row as u32 / lanes, i as u32);
        }
        i += units;
    }
}

/// Launches [`forward_kernel`] over rows; of what is added, the lanes and the dropout are given too.
fn launch_forward<R: CubeRuntime>(
    [x, weight, bias]: [&CubeTensor<R>; 3],
    added: Option<(&CubeTensor<R>, usize, Option<Dropout>)>,
) -> CubeTensor<R> {
    let (n, d) = (x.shape().num_elements(), weight.shape().num_elements());
    let out = room(x, x.shape());
    if n > 0 {
        let (count, dim) = for_rows(x, n / d);
        let (residual, lanes, dropout) = added.map_or((x, 1, None), |(added, lanes, dropout)| (added, lanes, dropout));
        forward_kernel::launch::<R>(
            &x.client,
            count,
            dim,
            arg(x),
            arg(weight),
            arg(bias),
            arg(residual),
            arg(&out),
            mask(dropout.as_ref()),
            (n / d) as u32,
            lanes as u32,
            LAYER_NORM_EPS as f32,
            added.is_some(),
            dropout.is_some(),
        );
    }
    out
}

/// Launches [`backward_kernel`] over rows: `dx`, `grad ⊙ x̂`, and the residual's gradient where it has a dropout.
fn launch_backward<R: CubeRuntime>(
    [x, weight, grad]: [&CubeTensor<R>; 3],
    lanes: usize,
    dropout: Option<Dropout>,
) -> (CubeTensor<R>, CubeTensor<R>, Option<CubeTensor<R>>) {
    let (n, d) = (x.shape().num_elements(), weight.shape().num_elements());
    let [dx, scaled] = [room(x, x.shape()), room(x, [n / d.max(1), d])];
    let dropped = dropout.map(|_| room(x, x.shape()));
    let unused = || room(x, [1]);
    if n > 0 {
        let (count, dim) = for_rows(x, n / d);
        backward_kernel::launch::<R>(
            &x.client,
            count,
            dim,
            arg(x),
            arg(weight),
            arg(grad),
            arg(&dx),
            arg(&scaled),
            arg(&dropped.clone().unwrap_or_else(unused)),
            mask(dropout.as_ref()),
            (n / d) as u32,
            lanes as u32,
            LAYER_NORM_EPS as f32,
            dropout.is_some(),
        );
    }
    (dx, scaled, dropped)
}

fn sum_of_rows<B: OnCube>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    x.sum_dim(0).squeeze_dim(0)
}

pub(super) fn forward<B: OnCube>(x: Tensor<B, 2>, weight: Tensor<B, 1>, bias: Tensor<B, 1>) -> Tensor<B, 2> {
    if !is_f32(&x) {
        return generic::forward(x, weight, bias);
    }
    tensor(launch_forward([&values(x), &values(weight), &values(bias)], None))
}

pub(super) fn backward<B: OnCube>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    if !is_f32(&x) {
        return generic::backward(x, weight, grad);
    }
    let (dx, scaled, _) = launch_backward([&values(x), &values(weight), &values(grad.clone())], 1, None);
    (tensor(dx), sum_of_rows::<B>(tensor(scaled)), sum_of_rows(grad))
}

pub(super) fn residual<B: OnCube>(inputs: ResidualInputs<B>) -> Tensor<B, 3> {
    if !is_f32(&inputs.h) {
        return generic_residual::forward(inputs);
    }
    let ResidualInputs { h, weight, bias, x, dropout } = inputs;
    let [_, lanes, _] = h.dims();
    let added = values(x);
    tensor(launch_forward([&values(h), &values(weight), &values(bias)], Some((&added, lanes, dropout))))
}

pub(super) fn residual_backward<B: OnCube>(saved: ResidualSaved<B>, grad: Tensor<B, 3>) -> ResidualGrads<B> {
    if !is_f32(&saved.h) {
        return generic_residual::backward(saved, grad);
    }
    let ResidualSaved { h, weight, dropout } = saved;
    let [seq_len, lanes, d] = h.dims();
    let of_grad = values(grad.clone());
    let (dh, scaled, dropped) = launch_backward([&values(h), &values(weight), &of_grad], lanes, dropout);
    ResidualGrads {
        h: tensor(dh),
        weight: sum_of_rows::<B>(tensor(scaled)),
        bias: sum_of_rows(grad.clone().reshape([seq_len * lanes, d])),
        x: dropped.map_or(grad, tensor),
    }
}
