//! Bias, log-softmax and the negative log-likelihood of the targets in one pass: a cube for each row.

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{OnCube, UNITS, arg, for_elements, for_rows, is_f32, linear, product, reduce, room, tensor, values};
use crate::ops::{DecoderLossInputs, DecoderLossSaved, LinearGrads, Precision, decoder_loss as generic};

/// The lowest f32: not every shading language can write down minus infinity.
const LOWEST: f32 = f32::MIN;

#[cube(launch)]
pub(super) fn forward_kernel<I: Numeric>(
    logits: &Array<f32>,
    bias: &Array<f32>,
    targets: &Array<I>,
    log_probs: &mut Array<f32>,
    losses: &mut Array<f32>,
) {
    let row = CUBE_POS;
    if row >= losses.len() {
        terminate!();
    }
    let n = bias.len();
    let start = row * n;
    let units = comptime!(UNITS as usize);
    let mut shared = reduce::shared();
    let mut part = LOWEST.runtime();
    let mut i = UNIT_POS as usize;
    while i < n {
        part = max(part, logits[start + i] + bias[i]);
        i += units;
    }
    let largest = reduce::largest(part, &mut shared);
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < n {
        part += (logits[start + i] + bias[i] - largest).exp();
        i += units;
    }
    let log_sum = reduce::sum(part, &mut shared).ln() + largest;
    let target = u32::cast_from(targets[row]) as usize;
    let mut i = UNIT_POS as usize;
    while i < n {
        let log_prob = logits[start + i] + bias[i] - log_sum;
        log_probs[start + i] = log_prob;
        if i == target {
            losses[row] = -log_prob;
        }
        i += units;
    }
}

#[cube(launch)]
pub(super) fn backward_kernel<I: Numeric>(
    log_probs: &Array<f32>,
    targets: &Array<I>,
    grad: &Array<f32>,
    out: &mut Array<f32>,
    n: u32,
    per_row: f32,
) {
    if ABSOLUTE_POS < out.len() {
        let at = ABSOLUTE_POS as u32;
        let target = u32::cast_from(targets[(at / n) as usize]);
        let expected = select(at % n == target, 1.0f32, 0.0f32);
        out[ABSOLUTE_POS] = (log_probs[ABSOLUTE_POS].exp() - expected) * grad[0] * per_row;
    }
}

/// Log-probabilities, `[rows, vocab_size]`, and losses, `[rows]`, from logits without bias. Targets are of type `I`.
fn log_softmax<R: CubeRuntime, I: Numeric>(
    logits: CubeTensor<R>,
    bias: CubeTensor<R>,
    targets: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let [rows, n] = logits.meta.shape().dims();
    let (log_probs, losses) = (room(&logits, [rows, n]), room(&logits, [rows]));
    let (count, dim) = for_rows(&logits, rows);
    forward_kernel::launch::<I, R>(
        &logits.client,
        count,
        dim,
        arg(&logits),
        arg(&bias),
        arg(&targets),
        arg(&log_probs),
        arg(&losses),
    );
    [log_probs, losses]
}

/// The gradient of the logits, `[rows, vocab_size]`.
fn logit_grads<R: CubeRuntime, I: Numeric>(
    log_probs: CubeTensor<R>,
    targets: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let [rows, n] = log_probs.meta.shape().dims();
    let out = room(&log_probs, [rows, n]);
    let (count, dim) = for_elements(&log_probs, rows * n);
    backward_kernel::launch::<I, R>(
        &log_probs.client,
        count,
        dim,
        arg(&log_probs),
        arg(&targets),
        arg(&grad),
        arg(&out),
        n as u32,
        (1.0 / rows as f64) as f32,
    );
    out
}

/// The targets' values, where they are of a type that the kernels read.
fn indices<B: OnCube>(targets: &Tensor<B, 1, Int>) -> Option<CubeTensor<B::Runtime>> {
    matches!(targets.dtype(), DType::I32 | DType::I64).then(|| into_contiguous(targets.clone().into_primitive()))
}

pub(super) fn forward<B: OnCube>(
    inputs: DecoderLossInputs<B>,
    precision: Precision,
) -> (Tensor<B, 1>, DecoderLossSaved<B>) {
    let Some(indices) = indices(&inputs.targets).filter(|_| is_f32(&inputs.h)) else {
        return generic::forward(inputs, precision);
    };
    let DecoderLossInputs { h, weight, bias, targets } = inputs;
    let logits = values(product(h.clone(), weight.clone().transpose(), precision));
    let bias = values(bias);
    let [log_probs, losses] = match indices.dtype {
        DType::I32 => log_softmax::<_, i32>(logits, bias, indices),
        _ => log_softmax::<_, i64>(logits, bias, indices),
    };
    let losses: Tensor<B, 1> = tensor(losses);
    (losses.mean(), DecoderLossSaved { h, weight, log_probs: tensor(log_probs), targets, precision })
}

pub(super) fn backward<B: OnCube>(saved: DecoderLossSaved<B>, grad: Tensor<B, 1>, wanted: [bool; 3]) -> LinearGrads<B> {
    let Some(indices) = indices(&saved.targets).filter(|_| is_f32(&saved.h)) else {
        return generic::backward(saved, grad, wanted);
    };
    let DecoderLossSaved { h, weight, log_probs, precision, .. } = saved;
    let (log_probs, grad) = (values(log_probs), values(grad));
    let logits = match indices.dtype {
        DType::I32 => logit_grads::<_, i32>(log_probs, indices, grad),
        _ => logit_grads::<_, i64>(log_probs, indices, grad),
    };
    linear::backward(h, weight, tensor(logits), wanted, precision)
}
