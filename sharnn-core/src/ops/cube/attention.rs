//! What lies between the attention's products: mask, softmax and dropout in one pass over the scores, and the same
//! backward. In bfloat16 the weights are kept as the products take them.

use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use half::bf16;

use super::dropout::{Mask, apply_from, factor, mask};
use super::{OnCube, UNITS, arg, for_rows, is_f32, product, reduce, room_of, tensor, values};
use crate::ops::attention::{self as generic, merge_heads, split_heads};
use crate::ops::{AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved, Dropout, LaneAxis, Precision};

/// Softmax over the keys that a query sees, and the weights after their dropout. The weights may take the place of the scores.
///
/// `scores` and `weights` are `[lanes, heads * seq_len, key_len]`, `dropped` too, or anything where nothing `drops`.
#[cube(launch)]
pub(super) fn softmax_kernel<E: Float>(
    scores: &Array<f32>,
    weights: &mut Array<E>,
    dropped: &mut Array<E>,
    mask: &Mask,
    rows: u32,
    rows_of_lane: u32,
    seq_len: u32,
    key_len: u32,
    #[comptime] drops: bool,
) {
    let row = CUBE_POS as u32;
    if row >= rows {
        terminate!();
    }
    // Query i of the segment stands at key `key_len - seq_len + i`, and sees it.
    let visible = (key_len - seq_len + row % seq_len + 1) as usize;
    let start = row as usize * key_len as usize;
    let units = comptime!(UNITS as usize);
    let mut shared = reduce::shared();
    let mut part = scores[start];
    let mut i = UNIT_POS as usize;
    while i < visible {
        part = max(part, scores[start + i]);
        i += units;
    }
    let largest = reduce::largest(part, &mut shared);
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < visible {
        part += (scores[start + i] - largest).exp();
        i += units;
    }
    let sum = reduce::sum(part, &mut shared);
    let mut i = UNIT_POS as usize;
    while i < key_len as usize {
        let mut weight = 0.0f32;
        if i < visible {
            weight = (scores[start + i] - largest).exp() / sum;
        }
        weights[start + i] = E::cast_from(weight);
        if comptime!(drops) {
            let kept = factor(mask, row / rows_of_lane, row % rows_of_lane, i as u32);
            dropped[start + i] = E::cast_from(weight * kept);
        }
        i += units;
    }
}

/// From the gradients of the dropped weights to those of the scores, which may take their place, and the dropped weights
/// again.
#[cube(launch)]
pub(super) fn backward_kernel<E: Float>(
    grads: &Array<f32>,
    weights: &Array<E>,
    scores: &mut Array<E>,
    dropped: &mut Array<E>,
    mask: &Mask,
    rows: u32,
    rows_of_lane: u32,
    key_len: u32,
    #[comptime] drops: bool,
) {
    let row = CUBE_POS as u32;
    if row >= rows {
        terminate!();
    }
    let start = row as usize * key_len as usize;
    let units = comptime!(UNITS as usize);
    let mut shared = reduce::shared();
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < key_len as usize {
        let weight = f32::cast_from(weights[start + i]);
        let mut grad = grads[start + i];
        if comptime!(drops) {
            let kept = factor(mask, row / rows_of_lane, row % rows_of_lane, i as u32);
            grad *= kept;
            dropped[start + i] = E::cast_from(weight * kept);
        }
        part += weight * grad;
        i += units;
    }
    let sum = reduce::sum(part, &mut shared);
    let mut i = UNIT_POS as usize;
    while i < key_len as usize {
        let weight = f32::cast_from(weights[start + i]);
        let mut grad = grads[start + i];
        if comptime!(drops) {
            grad *= factor(mask, row / rows_of_lane, row % rows_of_lane, i as u32);
        }
        scores[start + i] = E::cast_from(weight * (grad - sum));
        i += units;
    }
}

/// Sizes of the weights, `[lanes, heads, seq_len, key_len]`.
fn sizes<R: CubeRuntime>(x: &CubeTensor<R>) -> [u32; 4] {
    let [lanes, heads, seq_len, key_len] = x.meta.shape().dims::<4>().map(|n| n as u32);
    [lanes * heads * seq_len, heads * seq_len, seq_len, key_len]
}

/// Where a kernel writes what may take the place of its first argument, `of` f32: there, where it is f32 as well.
fn in_place_of<R: CubeRuntime>(of: &CubeTensor<R>, dtype: DType) -> (CubeTensor<R>, ArrayArg<R>) {
    if dtype == DType::F32 {
        return (of.clone(), of.as_tensor_alias(0).into_array_arg());
    }
    let out = room_of(of, of.shape(), dtype);
    let place = arg(&out);
    (out, place)
}

/// Type of the weights, and of the gradients of the scores, where the inputs are `of_inputs`: that of the operands of the
/// products they go to.
pub(super) fn weight_dtype(precision: Precision, of_inputs: DType) -> DType {
    match (precision, of_inputs) {
        (Precision::Bf16, DType::F32) => DType::BF16,
        _ => of_inputs,
    }
}

/// The weights of some scores, and the weights after their dropout.
///
/// # Shapes
/// - `scores` and results: `[lanes, heads, seq_len, key_len]`
fn softmax<R: CubeRuntime>(
    scores: CubeTensor<R>,
    dropout: Option<&Dropout>,
    precision: Precision,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [rows, rows_of_lane, seq_len, key_len] = sizes(&scores);
    let dtype = weight_dtype(precision, DType::F32);
    let (weights, place) = in_place_of(&scores, dtype);
    let dropped = dropout.map(|_| room_of(&scores, scores.shape(), dtype));
    let unused = || room_of(&scores, [1], dtype);
    if rows > 0 {
        let (count, dim) = for_rows(&scores, rows as usize);
        let launch = match precision {
            Precision::F32 => softmax_kernel::launch::<f32, R>,
            Precision::Bf16 => softmax_kernel::launch::<bf16, R>,
        };
        launch(
            &scores.client,
            count,
            dim,
            arg(&scores),
            place,
            arg(&dropped.clone().unwrap_or_else(unused)),
            mask(dropout),
            rows,
            rows_of_lane,
            seq_len,
            key_len,
            dropout.is_some(),
        );
    }
    (weights.clone(), dropped.unwrap_or(weights))
}

/// The gradients of the scores from those of the dropped weights, and the dropped weights again.
///
/// # Shapes
/// - `weights`, `grads` and results: `[lanes, heads, seq_len, key_len]`
fn score_grads<R: CubeRuntime>(
    weights: CubeTensor<R>,
    grads: CubeTensor<R>,
    dropout: Option<&Dropout>,
    precision: Precision,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [rows, rows_of_lane, _, key_len] = sizes(&weights);
    let dtype = weight_dtype(precision, DType::F32);
    let (scores, place) = in_place_of(&grads, dtype);
    let dropped = dropout.map(|_| room_of(&weights, weights.shape(), dtype));
    let unused = || room_of(&weights, [1], dtype);
    if rows > 0 {
        let (count, dim) = for_rows(&weights, rows as usize);
        let launch = match precision {
            Precision::F32 => backward_kernel::launch::<f32, R>,
            Precision::Bf16 => backward_kernel::launch::<bf16, R>,
        };
        launch(
            &weights.client,
            count,
            dim,
            arg(&grads),
            arg(&weights),
            place,
            arg(&dropped.clone().unwrap_or_else(unused)),
            mask(dropout),
            rows,
            rows_of_lane,
            key_len,
            dropout.is_some(),
        );
    }
    (scores, dropped.unwrap_or(weights))
}

/// The rows after their dropout; they are counted from `first_row` on.
fn dropped<B: OnCube>(first_row: usize, rows: Tensor<B, 3>, dropout: Option<Dropout>) -> Tensor<B, 3> {
    match dropout {
        Some(dropout) => apply_from(first_row, rows, dropout, LaneAxis::First),
        None => rows,
    }
}

pub(super) fn forward<B: OnCube>(
    inputs: AttentionInputs<B>,
    precision: Precision,
) -> (Tensor<B, 3>, AttentionSaved<B>) {
    if !is_f32(&inputs.query) {
        return generic::forward(inputs, precision);
    }
    let heads = inputs.n_heads;
    let rows = inputs.rows();
    let keys = split_heads(rows.clone(), heads).transpose();
    let scores = values(product(split_heads(inputs.query.clone(), heads), keys, precision));
    let (weights, kept) = softmax(scores, inputs.weight_dropout.as_ref(), precision);
    let of_values = split_heads(dropped(0, rows, inputs.value_dropout), heads);
    let out = merge_heads(product::<B, 4>(tensor(kept), of_values, precision));
    (out, AttentionSaved { inputs, kept: AttentionKept::Weights(tensor(weights)), precision })
}

/// As [`generic::backward`], of which the formulas are.
pub(super) fn backward<B: OnCube>(
    saved: AttentionSaved<B>,
    grad: Tensor<B, 3>,
    memory_wanted: bool,
) -> AttentionGrads<B> {
    let AttentionSaved { inputs, kept: AttentionKept::Weights(weights), precision } = saved else {
        unreachable!("the forward pass keeps the weights")
    };
    if !is_f32(&inputs.query) {
        let saved = AttentionSaved { inputs, kept: AttentionKept::Weights(weights), precision };
        return generic::backward(saved, grad, memory_wanted);
    }
    let (heads, rows) = (inputs.n_heads, inputs.rows());
    let ([_, key_len, _], [_, seq_len, _]) = (rows.dims(), inputs.query.dims());
    let mem_len = key_len - seq_len;
    let (first, count) = if memory_wanted { (0, key_len) } else { (mem_len, seq_len) };
    let grad = split_heads(grad, heads);

    let of_values = split_heads(dropped(0, rows.clone(), inputs.value_dropout), heads).transpose();
    let grads = values(product(grad.clone(), of_values, precision));
    let (scores, kept) = score_grads(values(weights), grads, inputs.weight_dropout.as_ref(), precision);
    let [scores, kept]: [Tensor<B, 4>; 2] = [scores, kept].map(tensor);
    let query = product(scores.clone(), split_heads(rows, heads), precision);
    let seen = |x: Tensor<B, 4>| x.narrow(3, first, count).transpose();
    let from_keys = merge_heads(product(seen(scores), split_heads(inputs.query, heads), precision));
    let from_values = merge_heads(product(seen(kept), grad, precision));
    let rows = from_keys + dropped(first, from_values, inputs.value_dropout);
    let (memory, current) = match memory_wanted && mem_len > 0 {
        true => (Some(rows.clone().narrow(1, 0, mem_len)), rows.narrow(1, mem_len, seq_len)),
        false => (None, rows),
    };
    AttentionGrads { query: merge_heads(query), memory, current }
}
