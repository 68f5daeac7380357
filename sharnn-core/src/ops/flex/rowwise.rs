//! The operations on rows, on flex: affine map, layer norm, dropout, Boom and the decoder's loss.

use burn::tensor::{DType, Int, Tensor};
use burn_flex::Flex;
use sharnn_kernels::{
    Boom, BoomGrads as BoomOutputs, Buffer, DecoderLoss, DecoderLossGrads, LaneMask, LayerNormGrads, Mat,
    Preactivations,
};

use super::memory::{Owned, Values, is_f32, scalar, tensor};
use crate::ops::{
    BoomGrads, BoomInputs, BoomSaved, DecoderLossInputs, DecoderLossSaved, Dropout, LAYER_NORM_EPS, LinearGrads,
    Precision, ResidualGrads, ResidualInputs, ResidualSaved, boom as generic_boom, decoder_loss as generic_loss,
    dropout as generic_dropout, layer_norm as generic_norm, linear as generic_linear, residual as generic_residual,
};

type Flex1 = Tensor<Flex, 1>;
type Flex2 = Tensor<Flex, 2>;
type Flex3 = Tensor<Flex, 3>;

fn mat(values: &[f32], [rows, cols]: [usize; 2]) -> Mat<'_> {
    Mat::row_major(values, rows, cols)
}

fn room(wanted: bool, len: usize) -> Option<Buffer> {
    wanted.then(|| Buffer::room(len))
}

pub(super) fn affine(x: Flex2, weight: Flex2, bias: Flex1, precision: Precision) -> Flex2 {
    if !(is_f32(&x) && is_f32(&weight) && is_f32(&bias)) {
        return generic_linear::forward(x, weight, bias, precision);
    }
    let (x_dims, weight_dims) = (x.dims(), weight.dims());
    let shape = [x_dims[0], weight_dims[0]];
    let mut out = Buffer::room(shape[0] * shape[1]);
    let (x, weight) = (Values::of(&x), Values::of(&weight));
    let (x, weight) = (mat(&x, x_dims), mat(&weight, weight_dims));
    sharnn_kernels::affine(x, weight, &Values::of(&bias), precision.into(), &mut out);
    tensor(out, shape)
}

pub(super) fn affine_backward(
    x: Flex2,
    weight: Flex2,
    grad: Flex2,
    wanted: [bool; 3],
    precision: Precision,
) -> LinearGrads<Flex> {
    if !(is_f32(&x) && is_f32(&weight) && is_f32(&grad)) {
        return generic_linear::backward(x, weight, grad, wanted, precision);
    }
    let (x_dims, weight_dims) = (x.dims(), weight.dims());
    let (x, weight) = (Values::of(&x), Values::of(&weight));
    let mut dx = room(wanted[0], x_dims[0] * x_dims[1]);
    let mut dweight = room(wanted[1], weight_dims[0] * weight_dims[1]);
    let mut dbias = room(wanted[2], weight_dims[0]);
    sharnn_kernels::affine_backward(
        mat(&x, x_dims),
        mat(&weight, weight_dims),
        &Values::of(&grad),
        precision.into(),
        dx.as_deref_mut(),
        dweight.as_deref_mut(),
        dbias.as_deref_mut(),
    );
    linear_grads(dx, dweight, dbias, x_dims, weight_dims)
}

fn linear_grads(
    dx: Option<Buffer>,
    dweight: Option<Buffer>,
    dbias: Option<Buffer>,
    x_dims: [usize; 2],
    weight_dims: [usize; 2],
) -> LinearGrads<Flex> {
    LinearGrads {
        x: dx.map(|dx| tensor(dx, x_dims)),
        weight: dweight.map(|dweight| tensor(dweight, weight_dims)),
        bias: dbias.map(|dbias| tensor(dbias, [weight_dims[0]])),
    }
}

pub(super) fn layer_norm(x: Flex2, weight: Flex1, bias: Flex1) -> Flex2 {
    if !(is_f32(&x) && is_f32(&weight) && is_f32(&bias)) {
        return generic_norm::forward(x, weight, bias);
    }
    let dims = x.dims();
    let mut out = Buffer::room(dims[0] * dims[1]);
    let (x, weight, bias) = (Values::of(&x), Values::of(&weight), Values::of(&bias));
    sharnn_kernels::layer_norm(&x, &weight, &bias, LAYER_NORM_EPS as f32, &mut out);
    tensor(out, dims)
}

pub(super) fn layer_norm_backward(x: Flex2, weight: Flex1, grad: Flex2) -> (Flex2, Flex1, Flex1) {
    if !(is_f32(&x) && is_f32(&weight) && is_f32(&grad)) {
        return generic_norm::backward(x, weight, grad);
    }
    let dims = x.dims();
    let (mut dx, mut dweight, mut dbias) =
        (Buffer::room(dims[0] * dims[1]), Buffer::room(dims[1]), Buffer::room(dims[1]));
    let (x, weight, grad) = (Values::of(&x), Values::of(&weight), Values::of(&grad));
    let grads = LayerNormGrads { x: &mut dx, weight: &mut dweight, bias: &mut dbias };
    sharnn_kernels::layer_norm_backward(&x, &weight, LAYER_NORM_EPS as f32, &grad, grads);
    (tensor(dx, dims), tensor(dweight, [dims[1]]), tensor(dbias, [dims[1]]))
}

pub(super) fn dropout(x: Flex3, dropout: Dropout) -> Flex3 {
    if !is_f32(&x) {
        return generic_dropout::apply(x, dropout);
    }
    let [seq_len, lanes, d] = x.dims();
    let mut out = Buffer::room(seq_len * lanes * d);
    sharnn_kernels::dropout(&Values::of(&x), lanes, d, &dropout.kernel_mask(), &mut out);
    tensor(out, [seq_len, lanes, d])
}

pub(super) fn norm_residual(inputs: ResidualInputs<Flex>) -> Flex3 {
    let ResidualInputs { h, weight, bias, x, dropout } = &inputs;
    if !(is_f32(h) && is_f32(weight) && is_f32(bias) && is_f32(x)) {
        return generic_residual::forward(inputs);
    }
    let lanes = h.dims()[1];
    let mask = dropout.map(|dropout| dropout.kernel_mask());
    let mask = mask.as_ref().map(|mask| LaneMask { mask, lanes });
    let (h, weight, bias) = (Values::of(h), Values::of(weight), Values::of(bias));
    // The sum takes the place of what is added.
    let mut sum = Owned::of(inputs.x);
    sharnn_kernels::norm_residual(&h, &weight, &bias, LAYER_NORM_EPS as f32, mask, sum.values());
    sum.tensor()
}

pub(super) fn norm_residual_backward(saved: ResidualSaved<Flex>, grad: Flex3) -> ResidualGrads<Flex> {
    let ResidualSaved { h, weight, dropout: Some(dropout) } = &saved else {
        return generic_residual::backward(saved, grad);
    };
    if !(is_f32(h) && is_f32(weight) && is_f32(&grad)) {
        return generic_residual::backward(saved, grad);
    }
    let dims @ [seq_len, lanes, d] = h.dims();
    let n = seq_len * lanes * d;
    let [mut dh, mut dweight, mut dbias, mut dx] = [n, d, d, n].map(Buffer::room);
    let grads = LayerNormGrads { x: &mut dh, weight: &mut dweight, bias: &mut dbias };
    let (h, weight, grad) = (Values::of(h), Values::of(weight), Values::of(&grad));
    let mask = LaneMask { mask: &dropout.kernel_mask(), lanes };
    sharnn_kernels::norm_residual_backward(&h, &weight, LAYER_NORM_EPS as f32, &grad, grads, mask, &mut dx);
    ResidualGrads { h: tensor(dh, dims), weight: tensor(dweight, [d]), bias: tensor(dbias, [d]), x: tensor(dx, dims) }
}

/// The Boom, and where it is recorded what its backward needs.
pub(super) fn boom(inputs: BoomInputs<Flex>, precision: Precision, record: bool) -> (Flex3, Option<BoomSaved<Flex>>) {
    if !(is_f32(&inputs.x) && is_f32(&inputs.weight) && is_f32(&inputs.bias)) {
        let (y, saved) = generic_boom::forward(inputs, precision);
        return (y, Some(saved));
    }
    let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
    let ([seq_len, lanes, d], weight_dims) = (x.dims(), weight.dims());
    let rows = seq_len * lanes;
    let mut z = room(record && !recompute, rows * weight_dims[0]);
    let mut y = Buffer::room(rows * d);
    Boom {
        x: &Values::of(&x),
        lanes,
        weight: mat(&Values::of(&weight), weight_dims),
        bias: &Values::of(&bias),
        mask: dropout.map(|dropout| dropout.kernel_mask()).as_ref(),
        operands: precision.into(),
    }
    .forward(z.as_deref_mut(), &mut y);
    let saved = record.then(|| {
        let z = z.map(|z| tensor(z, [rows, weight_dims[0]]));
        BoomSaved { x, weight, bias, z, dropout, precision }
    });
    (tensor(y, [seq_len, lanes, d]), saved)
}

pub(super) fn boom_backward(saved: BoomSaved<Flex>, grad: Flex3) -> BoomGrads<Flex> {
    if !(is_f32(&saved.x) && is_f32(&saved.weight) && is_f32(&saved.bias) && is_f32(&grad)) {
        return generic_boom::backward(saved, grad);
    }
    let BoomSaved { x, weight, bias, z, dropout, precision } = saved;
    let ([seq_len, lanes, d], [d_ff, _]) = (x.dims(), weight.dims());
    let rows = seq_len * lanes;
    let [mut dx, mut dweight, mut dbias] = [rows * d, d_ff * d, d_ff].map(Buffer::room);
    // The gradient of z takes its place: the graph is done with it.
    let (from, mut z) = match z {
        Some(z) => (Preactivations::InPlace, Owned::of(z)),
        None => (Preactivations::Recompute, Owned::of(tensor(Buffer::room(rows * d_ff), [rows, d_ff]))),
    };
    let grads = BoomOutputs { z: z.values(), x: &mut dx, weight: &mut dweight, bias: &mut dbias };
    Boom {
        x: &Values::of(&x),
        lanes,
        weight: mat(&Values::of(&weight), [d_ff, d]),
        bias: &Values::of(&bias),
        mask: dropout.map(|dropout| dropout.kernel_mask()).as_ref(),
        operands: precision.into(),
    }
    .backward(from, &Values::of(&grad), grads);
    BoomGrads { x: tensor(dx, [seq_len, lanes, d]), weight: tensor(dweight, [d_ff, d]), bias: tensor(dbias, [d_ff]) }
}

/// Targets as 64-bit integers, whatever their type.
fn host_targets(targets: &Tensor<Flex, 1, Int>) -> Vec<i64> {
    targets.to_data().iter::<i64>().collect()
}

pub(super) fn decoder_loss(inputs: DecoderLossInputs<Flex>, precision: Precision) -> (Flex1, DecoderLossSaved<Flex>) {
    if !(is_f32(&inputs.h) && is_f32(&inputs.weight) && is_f32(&inputs.bias)) {
        return generic_loss::forward(inputs, precision);
    }
    let DecoderLossInputs { h, weight, bias, targets } = inputs;
    let (rows, weight_dims) = (h.dims()[0], weight.dims());
    let mut log_probs = Buffer::room(rows * weight_dims[0]);
    let (h_values, weight_values) = (Values::of(&h), Values::of(&weight));
    let loss = DecoderLoss {
        h: &h_values,
        weight: mat(&weight_values, weight_dims),
        targets: &host_targets(&targets),
        operands: precision.into(),
    }
    .forward(&Values::of(&bias), &mut log_probs);
    let log_probs = tensor(log_probs, [rows, weight_dims[0]]);
    (scalar(loss), DecoderLossSaved { h, weight, log_probs, targets, precision })
}

pub(super) fn decoder_loss_backward(
    saved: DecoderLossSaved<Flex>,
    grad: Flex1,
    wanted: [bool; 3],
) -> LinearGrads<Flex> {
    let DecoderLossSaved { h, weight, log_probs, .. } = &saved;
    if !([h, weight, log_probs].into_iter().all(is_f32) && grad.dtype() == DType::F32) {
        return generic_loss::backward(saved, grad, wanted);
    }
    let DecoderLossSaved { h, weight, log_probs, targets, precision } = saved;
    let (h_dims, weight_dims) = (h.dims(), weight.dims());
    let mut dlogits = Buffer::room(h_dims[0] * weight_dims[0]);
    let mut dh = room(wanted[0], h_dims[0] * h_dims[1]);
    let mut dweight = room(wanted[1], weight_dims[0] * weight_dims[1]);
    let mut dbias = room(wanted[2], weight_dims[0]);
    let (h, weight) = (Values::of(&h), Values::of(&weight));
    DecoderLoss {
        h: &h,
        weight: mat(&weight, weight_dims),
        targets: &host_targets(&targets),
        operands: precision.into(),
    }
    .backward(
        &Values::of(&log_probs),
        Values::of(&grad)[0],
        DecoderLossGrads {
            logits: &mut dlogits,
            h: dh.as_deref_mut(),
            weight: dweight.as_deref_mut(),
            bias: dbias.as_deref_mut(),
        },
    );
    linear_grads(dh, dweight, dbias, h_dims, weight_dims)
}
