//! What lies between the attention's products: mask, softmax and dropout in one pass over the scores, and the same backward.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::dropout::{Mask, apply_from, factor, mask};
use super::{OnCube, UNITS, arg, for_rows, is_f32, product, reduce, room, tensor, values};
use crate::ops::attention::{self as generic, merge_heads, split_heads};
use crate::ops::{AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved, Dropout, LaneAxis, Precision};

/// Softmax over the keys that a query sees, in place, and the weights after their dropout.
///
/// `scores` is `[lanes, heads * seq_len, key_len]`, `dropped` too, or anything where nothing `drops`.
#[cube(launch)]
pub(super) fn softmax_kernel(
    scores: &mut Array<f32>,
    dropped: &mut Array<f32>,
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
        let e = (scores[start + i] - largest).exp();
        scores[start + i] = e;
        part += e;
        i += units;
    }
    let sum = reduce::sum(part, &mut shared);
    let mut i = UNIT_POS as usize;
    while i < key_len as usize {
        let mut weight = 0.0f32;
        if i < visible {
            weight = scores[start + i] / sum;
        }
        scores[start + i] = weight;
        if comptime!(drops) {
            dropped[start + i] = weight * factor(mask, row / rows_of_lane, row % rows_of_lane, i as u32);
        }
        i += units;
    }
}

/// From the gradients of the dropped weights to those of the scores, in place, and the dropped weights again.
#[cube(launch)]
pub(super) fn backward_kernel(
    weights: &Array<f32>,
    grads: &mut Array<f32>,
    dropped: &mut Array<f32>,
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
        let weight = weights[start + i];
        if comptime!(drops) {
            let kept = factor(mask, row / rows_of_lane, row % rows_of_lane, i as u32);
            let grad = grads[start + i] * kept;
            grads[start + i] = grad;
            dropped[start + i] = weight * kept;
            part += weight * grad;
        } else {
            part += weight * grads[start + i];
        }
        i += units;
    }
    let sum = reduce::sum(part, &mut shared);
    let mut i = UNIT_POS as usize;
    while i < key_len as usize {
        grads[start + i] = weights[start + i] * (grads[start + i] - sum);
        i += units;
    }
}

/// Sizes of the weights, `[lanes, heads, seq_len, key_len]`.
fn sizes<R: CubeRuntime>(x: &CubeTensor<R>) -> [u32; 4] {
    let [lanes, heads, seq_len, key_len] = x.meta.shape().dims::<4>().map(|n| n as u32);
    [lanes * heads * seq_len, heads * seq_len, seq_len, key_len]
}

/// Turns scores into weights in place; the weights after their dropout.
///
/// # Shapes
/// - `scores` and result: `[lanes, heads, seq_len, key_len]`
fn softmax<R: CubeRuntime>(scores: &CubeTensor<R>, dropout: Option<&Dropout>) -> CubeTensor<R> {
    let [rows, rows_of_lane, seq_len, key_len] = sizes(scores);
    let dropped = dropout.map(|_| room(scores, scores.meta.shape().clone()));
    let unused = || room(scores, [1]);
    if rows > 0 {
        let (count, dim) = for_rows(scores, rows as usize);
        softmax_kernel::launch::<R>(
            &scores.client,
            count,
            dim,
            arg(scores),
            arg(&dropped.clone().unwrap_or_else(unused)),
            mask(dropout),
            rows,
            rows_of_lane,
            seq_len,
            key_len,
            dropout.is_some(),
        );
    }
    dropped.unwrap_or_else(|| scores.clone())
}

/// Turns gradients of the dropped weights into those of the scores, in place; the dropped weights.
///
/// # Shapes
/// - `weights`, `grads` and result: `[lanes, heads, seq_len, key_len]`
fn score_grads<R: CubeRuntime>(
    weights: &CubeTensor<R>,
    grads: &CubeTensor<R>,
    dropout: Option<&Dropout>,
) -> CubeTensor<R> {
    let [rows, rows_of_lane, _, key_len] = sizes(weights);
    let dropped = dropout.map(|_| room(weights, weights.meta.shape().clone()));
    let unused = || room(weights, [1]);
    if rows > 0 {
        let (count, dim) = for_rows(weights, rows as usize);
        backward_kernel::launch::<R>(
            &weights.client,
            count,
            dim,
            arg(weights),
            arg(grads),
            arg(&dropped.clone().unwrap_or_else(unused)),
            mask(dropout),
            rows,
            rows_of_lane,
            key_len,
            dropout.is_some(),
        );
    }
    dropped.unwrap_or_else(|| weights.clone())
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
    let weights = values(product(split_heads(inputs.query.clone(), heads), keys, precision));
    let kept: Tensor<B, 4> = tensor(softmax(&weights, inputs.weight_dropout.as_ref()));
    let of_values = split_heads(dropped(0, rows, inputs.value_dropout), heads);
    let out = merge_heads(product(kept, of_values, precision));
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
    let scores = values(product(grad.clone(), of_values, precision));
    let kept: Tensor<B, 4> = tensor(score_grads(&values(weights), &scores, inputs.weight_dropout.as_ref()));
    let scores: Tensor<B, 4> = tensor(scores);
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
