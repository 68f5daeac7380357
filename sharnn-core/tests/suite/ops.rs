//! Every fused operation against its plain statement, recorded step by step by autodiff: outputs and all gradients under
//! a random cotangent, over odd shapes. And every backward against finite differences in double precision.

use burn::backend::Autodiff;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, Distribution, Element, Int, Tensor, TensorData};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_core::ops::{
    AdagradStep, AttentionInputs, BoomInputs, DecoderLossInputs, LAYER_NORM_EPS, LambOptions, LambParam, LambStep,
    LaneAxis, LstmInputs, ResidualInputs, generic,
};
use sharnn_core::{AutodiffBackend, Backend, Dropout, DropoutSite, DropoutStream, Precision};

use crate::support::burn_roundoff;

#[cfg(feature = "cuda")]
mod cuda_persistent;
#[cfg(feature = "flex")]
mod smoke;

type Flat<B> = Tensor<B, 1>;

/// An operation as a function of flat inputs to a flat output, so that one checker serves all ranks.
type Op<'a, B> = &'a dyn Fn(&[Flat<B>]) -> Flat<B>;

fn random(len: usize, rng: &mut impl Rng) -> Vec<f64> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// In the backend's own type: the default type of a device is shared by all backends on it.
fn upload<B: Backend>(values: &[f64]) -> Flat<B> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Flat::from_data(data, (&B::Device::default(), B::FloatElem::dtype()))
}

fn leaf<B: AutodiffBackend>(values: &[f64]) -> Flat<B> {
    upload(values).require_grad()
}

fn values<B: Backend>(x: Flat<B>) -> Vec<f64> {
    x.into_data().convert::<f64>().to_vec().unwrap()
}

/// Output and the gradients of `Σ output ⊙ cotangent`.
fn differentiate<B: AutodiffBackend>(op: Op<B>, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let leaves: Vec<_> = inputs.iter().map(|x| leaf::<B>(x)).collect();
    let out = op(&leaves);
    let cotangent = random(out.dims()[0], &mut ChaCha8Rng::seed_from_u64(99));
    let grads = (out.clone() * upload(&cotangent)).sum().backward();
    let of = |x: &Flat<B>| x.grad(&grads).unwrap().into_data().convert::<f64>().to_vec().unwrap();
    (values(out), leaves.iter().map(of).collect())
}

fn assert_near(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * largest, "{what}[{i}]: got {g}, want {w}, largest {largest}");
    }
}

/// Of the largest value: sums of up to a few hundred f32 terms in another order. Where products round their operands by `unit_roundoff` u, each
/// moves its result by about u, and a handful of them follow each other in an operation and its gradient (see `Fixture::within`): 8 u.
fn f32_tolerance(unit_roundoff: f64) -> f64 {
    (8.0 * unit_roundoff).max(2e-5)
}

/// Both forms on the same inputs.
fn compare<B: AutodiffBackend>(what: &str, fused: Op<B>, plain: Op<B>, inputs: &[Vec<f64>]) {
    let (out, grads) = differentiate(fused, inputs);
    let (plain_out, plain_grads) = differentiate(plain, inputs);
    let tolerance = f32_tolerance(burn_roundoff::<B>());
    assert_near(&format!("{what}: output"), &out, &plain_out, tolerance);
    for (i, (grad, plain_grad)) in grads.iter().zip(&plain_grads).enumerate() {
        assert_near(&format!("{what}: gradient {i}"), grad, plain_grad, tolerance);
    }
}

/// The analytic directional derivative against a central difference, in double precision.
#[cfg(feature = "ndarray")]
fn finite_differences(what: &str, op: Op<Autodiff<burn::backend::NdArray<f64>>>, inputs: &[Vec<f64>]) {
    let (out, grads) = differentiate(op, inputs);
    let cotangent = random(out.len(), &mut ChaCha8Rng::seed_from_u64(99));
    let objective = |inputs: &[Vec<f64>]| -> f64 {
        let leaves: Vec<_> = inputs.iter().map(|x| leaf(x)).collect();
        values(op(&leaves)).iter().zip(&cotangent).map(|(a, b)| a * b).sum()
    };
    for (i, grad) in grads.iter().enumerate() {
        let direction = random(grad.len(), &mut ChaCha8Rng::seed_from_u64(7 + i as u64));
        let step = 1e-5;
        let moved = |sign: f64| {
            let mut inputs = inputs.to_vec();
            inputs[i].iter_mut().zip(&direction).for_each(|(x, u)| *x += sign * step * u);
            objective(&inputs)
        };
        let difference = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        let analytic: f64 = grad.iter().zip(&direction).map(|(g, u)| g * u).sum();
        // The truncation error is O(step²), the rounding error O(1e-16 / step): 1e-7 leaves room for both.
        let tolerance = 1e-7 * (1.0 + analytic.abs());
        assert!((difference - analytic).abs() < tolerance, "{what}, input {i}: {analytic} against {difference}");
    }
}

fn inputs(sizes: &[usize]) -> Vec<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    sizes.iter().map(|&n| random(n, &mut rng)).collect()
}

fn dropout(site: DropoutSite) -> Dropout {
    Dropout { prob: 0.3, key: DropoutStream { seed: 5, step: 2, first_lane: 3 }.key(1, site) }
}

/// σ without Burn's own, which rounds to f32.
fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    ((x * 0.5).tanh() + 1.0) * 0.5
}

on_backends!(
    affine,
    layer_norm,
    dropped,
    norm_residual,
    lstm,
    attention,
    boom,
    decoder_loss,
    bf16,
    lamb,
    orthogonalize,
    adagrad_rows
);

/// How an operation is computed: by its plain statement, or fused, with or without activations kept.
#[derive(Clone, Copy)]
enum How {
    Plain,
    Fused { recompute: bool, precision: Precision },
}

const FUSED: How = How::Fused { recompute: false, precision: Precision::F32 };

// --- affine ---------------------------------------------------------------------------------------------------------

fn affine_op<B: Backend>([rows, d_in, d_out]: [usize; 3], how: How) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |x| {
        let (input, weight) = (x[0].clone().reshape([rows, d_in]), x[1].clone().reshape([d_out, d_in]));
        let y = match how {
            How::Fused { precision, .. } => B::affine(input, weight, x[2].clone(), precision),
            How::Plain => input.matmul(weight.transpose()) + x[2].clone().unsqueeze(),
        };
        y.reshape([rows * d_out])
    }
}

fn affine<B: AutodiffBackend>() {
    for (rows, d_in, d_out) in [(1, 1, 1), (1, 5, 3), (7, 17, 33), (48, 16, 64)] {
        let inputs = inputs(&[rows * d_in, d_out * d_in, d_out]);
        let what = format!("affine {rows}x{d_in}x{d_out}");
        compare::<B>(
            &what,
            &affine_op([rows, d_in, d_out], FUSED),
            &affine_op([rows, d_in, d_out], How::Plain),
            &inputs,
        );
    }
}

// --- layer norm -----------------------------------------------------------------------------------------------------

fn layer_norm_op<B: Backend>(rows: usize, d: usize, fused: bool) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |x| {
        let input = x[0].clone().reshape([rows, d]);
        let (weight, bias) = (x[1].clone(), x[2].clone());
        let y = match fused {
            true => B::layer_norm_rows(input, weight, bias),
            false => {
                let centred = input.clone() - input.mean_dim(1);
                let variance = centred.clone().powi_scalar(2).mean_dim(1);
                centred / (variance + LAYER_NORM_EPS).sqrt() * weight.unsqueeze() + bias.unsqueeze()
            }
        };
        y.reshape([rows * d])
    }
}

fn layer_norm<B: AutodiffBackend>() {
    for (rows, d) in [(1, 3), (3, 5), (7, 33), (40, 64)] {
        let what = format!("layer norm {rows}x{d}");
        let inputs = inputs(&[rows * d, d, d]);
        compare::<B>(&what, &layer_norm_op(rows, d, true), &layer_norm_op(rows, d, false), &inputs);
    }
}

// --- dropout --------------------------------------------------------------------------------------------------------

fn dropped<B: AutodiffBackend>() {
    for dims in [[1, 1, 1], [2, 3, 5], [7, 1, 17], [5, 16, 24]] {
        let drop = dropout(DropoutSite::Lstm);
        let fused =
            |x: &[Flat<B>]| B::dropout(x[0].clone().reshape(dims), drop).reshape([dims.iter().product::<usize>()]);
        let plain = |x: &[Flat<B>]| {
            let mask = TensorData::new(drop.host_mask(dims, LaneAxis::Second), [dims.iter().product::<usize>()]);
            x[0].clone() * Flat::from_data(mask, &B::Device::default())
        };
        compare::<B>(&format!("dropout {dims:?}"), &fused, &plain, &inputs(&[dims.iter().product()]));
    }
}

// --- the sum that ends a block ---------------------------------------------------------------------------------------

fn residual_op<B: Backend>(dims: [usize; 3], drop: bool, fused: bool) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |all| {
        let (h, x) = (all[0].clone().reshape(dims), all[3].clone().reshape(dims));
        let (weight, bias) = (all[1].clone(), all[2].clone());
        let dropout = drop.then(|| dropout(DropoutSite::BoomOutput));
        let y = match fused {
            true => B::norm_residual(ResidualInputs { h, weight, bias, x, dropout }),
            false => {
                let [seq_len, lanes, d] = dims;
                let normed = layer_norm_op(seq_len * lanes, d, false)(&all[..3]).reshape(dims);
                let mask = dropout.map(|dropout| dropout.mask(dims, LaneAxis::Second, &x));
                normed + mask.map_or(x.clone(), |mask| x * mask)
            }
        };
        y.reshape([dims.iter().product::<usize>()])
    }
}

fn residual_sizes(dims: [usize; 3]) -> [usize; 4] {
    let n = dims.iter().product();
    [n, dims[2], dims[2], n]
}

fn norm_residual<B: AutodiffBackend>() {
    for dims in [[1, 1, 3], [2, 3, 5], [7, 1, 33], [5, 16, 24]] {
        for drop in [false, true] {
            let what = format!("residual sum {dims:?}, dropout {drop}");
            let inputs = inputs(&residual_sizes(dims));
            compare::<B>(&what, &residual_op(dims, drop, true), &residual_op(dims, drop, false), &inputs);
        }
    }
}

/// Every backend drops the same elements, bit for bit.
#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn every_backend_drops_the_same_elements() {
    fn kept<B: Backend>() -> Vec<f32> {
        let x = Tensor::<B, 3>::ones([9, 5, 37], &B::Device::default());
        B::dropout(x, dropout(DropoutSite::Attention)).into_data().convert::<f32>().to_vec().unwrap()
    }
    let host = dropout(DropoutSite::Attention).host_mask([9, 5, 37], LaneAxis::Second);
    assert_eq!(kept::<burn::backend::Flex>(), host);
    assert_eq!(kept::<burn::backend::NdArray<f32>>(), host);
    assert_eq!(kept::<Autodiff<burn::backend::Flex>>(), host);
}

// --- LSTM -----------------------------------------------------------------------------------------------------------

fn lstm_sizes(t: usize, b: usize, d_in: usize, d: usize) -> [usize; 7] {
    [t * b * d_in, 4 * d * d_in, 4 * d * d, 4 * d, 4 * d, b * d, b * d]
}

fn lstm_op<B: Backend>([t, b, d_in, d]: [usize; 4], how: How) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |x| {
        let inputs = LstmInputs {
            x: x[0].clone().reshape([t, b, d_in]),
            weight_ih: x[1].clone().reshape([4 * d, d_in]),
            weight_hh: x[2].clone().reshape([4 * d, d]),
            bias_ih: x[3].clone(),
            bias_hh: x[4].clone(),
            h0: x[5].clone().reshape([b, d]),
            c0: x[6].clone().reshape([b, d]),
            recompute: matches!(how, How::Fused { recompute: true, .. }),
        };
        let packed = match how {
            How::Fused { precision, .. } => B::lstm(inputs, precision),
            How::Plain => plain_lstm(inputs),
        };
        packed.reshape([(t + 1) * b * d])
    }
}

/// The equations, one recorded step after another.
fn plain_lstm<B: Backend>(inputs: LstmInputs<B>) -> Tensor<B, 3> {
    let [t, b, d_in] = inputs.x.dims();
    let [_, d] = inputs.h0.dims();
    let (mut h, mut c) = (inputs.h0, inputs.c0);
    let mut rows = vec![];
    for step in 0..t {
        let x = inputs.x.clone().narrow(0, step, 1).reshape([b, d_in]);
        let z = x.matmul(inputs.weight_ih.clone().transpose())
            + inputs.bias_ih.clone().unsqueeze()
            + h.matmul(inputs.weight_hh.clone().transpose())
            + inputs.bias_hh.clone().unsqueeze();
        let part = |k: usize| z.clone().narrow(1, k * d, d);
        c = sigmoid(part(1)) * c + sigmoid(part(0)) * part(2).tanh();
        h = sigmoid(part(3)) * c.clone().tanh();
        rows.push(h.clone());
    }
    rows.push(c);
    Tensor::stack(rows, 0)
}

fn lstm<B: AutodiffBackend>() {
    for (t, b, d_in, d) in [(1, 1, 1, 1), (1, 3, 5, 4), (2, 1, 4, 7), (7, 3, 16, 17), (13, 2, 8, 32)] {
        let what = format!("lstm T {t} B {b} in {d_in} d {d}");
        let inputs = inputs(&lstm_sizes(t, b, d_in, d));
        for recompute in [false, true] {
            let (fused, sizes) = (How::Fused { recompute, precision: Precision::F32 }, [t, b, d_in, d]);
            compare::<B>(&what, &lstm_op(sizes, fused), &lstm_op(sizes, How::Plain), &inputs);
        }
    }
}

// --- attention ------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct AttentionCase {
    b: usize,
    t: usize,
    m: usize,
    d: usize,
    heads: usize,
    dropped: bool,
}

impl AttentionCase {
    fn sizes(&self) -> Vec<usize> {
        let Self { b, t, m, d, .. } = *self;
        // Where there is no memory, there is no such input.
        if m == 0 { vec![b * t * d, b * t * d] } else { vec![b * t * d, b * t * d, b * m * d] }
    }

    fn op<B: Backend>(self, how: How) -> impl Fn(&[Flat<B>]) -> Flat<B> {
        let Self { b, t, m, d, heads, dropped } = self;
        move |x| {
            let inputs = AttentionInputs {
                query: x[0].clone().reshape([b, t, d]),
                current: x[1].clone().reshape([b, t, d]),
                memory: (m > 0).then(|| x[2].clone().reshape([b, m, d])),
                n_heads: heads,
                value_dropout: dropped.then(|| dropout(DropoutSite::Value)),
                weight_dropout: dropped.then(|| dropout(DropoutSite::Weights)),
            };
            let out = match how {
                How::Fused { precision, .. } => B::memory_attention(inputs, precision),
                How::Plain => plain_attention(inputs),
            };
            out.reshape([b * t * d])
        }
    }
}

/// Head by head, with masks drawn on the host.
fn plain_attention<B: Backend>(inputs: AttentionInputs<B>) -> Tensor<B, 3> {
    let [b, t, d] = inputs.query.dims();
    let device = inputs.query.device();
    let rows = match inputs.memory {
        Some(memory) => Tensor::cat(vec![memory, inputs.current], 1),
        None => inputs.current,
    };
    let s = rows.dims()[1];
    let mask = |dropout: Option<Dropout>, dims: [usize; 3]| match dropout {
        Some(dropout) => {
            Tensor::<B, 3>::from_data(TensorData::new(dropout.host_mask(dims, LaneAxis::First), dims), &device)
        }
        None => Tensor::ones(dims, &device),
    };
    let values = rows.clone() * mask(inputs.value_dropout, [b, s, d]);
    let weight_mask = mask(inputs.weight_dropout, [b, inputs.n_heads * t, s]);
    let hidden: Vec<bool> = (0..t * s).map(|i| i % s > s - t + i / s).collect();
    let hidden = Tensor::<B, 2, Bool>::from_data(TensorData::new(hidden, [t, s]), &device);
    let d_head = d / inputs.n_heads;
    let head = |k: usize| {
        let slice = |x: &Tensor<B, 3>| x.clone().narrow(2, k * d_head, d_head);
        let scores = slice(&inputs.query).matmul(slice(&rows).transpose());
        let scores = scores.mask_fill(hidden.clone().unsqueeze::<3>().expand([b, t, s]), f32::NEG_INFINITY);
        let weights = softmax(scores, 2) * weight_mask.clone().narrow(1, k * t, t);
        weights.matmul(slice(&values))
    };
    Tensor::cat((0..inputs.n_heads).map(head).collect(), 2)
}

const ATTENTION_CASES: [AttentionCase; 7] = [
    AttentionCase { b: 1, t: 1, m: 0, d: 1, heads: 1, dropped: false },
    AttentionCase { b: 2, t: 3, m: 0, d: 5, heads: 1, dropped: true },
    AttentionCase { b: 1, t: 1, m: 4, d: 8, heads: 1, dropped: true },
    AttentionCase { b: 3, t: 7, m: 5, d: 17, heads: 1, dropped: false },
    AttentionCase { b: 3, t: 7, m: 5, d: 17, heads: 1, dropped: true },
    AttentionCase { b: 2, t: 4, m: 9, d: 12, heads: 3, dropped: true },
    AttentionCase { b: 2, t: 9, m: 2, d: 32, heads: 4, dropped: false },
];

fn attention<B: AutodiffBackend>() {
    for case in ATTENTION_CASES {
        compare::<B>(&format!("{case:?}"), &case.op(FUSED), &case.op(How::Plain), &inputs(&case.sizes()));
    }
}

/// The model never tracks its memory: then the operation computes no gradient for it, and the others are the same.
#[cfg(feature = "flex")]
#[test]
fn an_untracked_memory_gets_no_gradient() {
    type B = Autodiff<burn::backend::Flex>;
    let device = Default::default();
    let random = |rows: usize| Tensor::<B, 3>::random([2, rows, 8], Distribution::Uniform(-1.0, 1.0), &device);
    let (query, current, memory) = (random(3).require_grad(), random(3).require_grad(), random(5));
    let grads = |memory: Tensor<B, 3>| {
        let inputs = AttentionInputs {
            query: query.clone(),
            current: current.clone(),
            memory: Some(memory.clone()),
            n_heads: 1,
            value_dropout: Some(dropout(DropoutSite::Value)),
            weight_dropout: None,
        };
        let grads = B::memory_attention(inputs, Precision::F32).sum().backward();
        let data = |x: &Tensor<B, 3>| x.grad(&grads).map(|grad| grad.into_data());
        (data(&query).unwrap(), data(&current).unwrap(), data(&memory))
    };
    let (query_a, current_a, memory_a) = grads(memory.clone());
    let (query_b, current_b, memory_b) = grads(memory.require_grad());
    assert!(memory_a.is_none() && memory_b.is_some());
    query_a.assert_approx_eq::<f32>(&query_b, Default::default());
    current_a.assert_approx_eq::<f32>(&current_b, Default::default());
}

// --- Boom -----------------------------------------------------------------------------------------------------------

type BoomDims = (usize, usize, usize, usize);

fn boom_op<B: Backend>((t, b, d, f): BoomDims, drop: bool, how: How) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |x| {
        let input = x[0].clone().reshape([t, b, d]);
        let weight = x[1].clone().reshape([f, d]);
        let bias = x[2].clone();
        let drop = drop.then(|| dropout(DropoutSite::BoomInner));
        let y = match how {
            How::Fused { recompute, precision } => {
                B::boom(BoomInputs { x: input, weight, bias, dropout: drop, recompute }, precision)
            }
            How::Plain => {
                let z = input.reshape([t * b, d]).matmul(weight.transpose()) + bias.unsqueeze();
                let mut u = (z.clone() * sigmoid(z * 1.702)).reshape([t, b, f]);
                if let Some(drop) = drop {
                    u = u.clone() * drop.mask([t, b, f], LaneAxis::Second, &u);
                }
                let chunks = f / d;
                u.narrow(2, 0, chunks * d).reshape([t, b, chunks, d]).sum_dim(2).reshape([t, b, d])
            }
        };
        y.reshape([t * b * d])
    }
}

fn boom<B: AutodiffBackend>() {
    for dims in [(1, 1, 1, 1), (2, 3, 5, 20), (3, 2, 5, 23), (7, 1, 16, 16), (4, 3, 17, 70)] {
        let (t, b, d, f) = dims;
        for drop in [false, true] {
            let what = format!("boom {dims:?} dropout {drop}");
            let inputs = inputs(&[t * b * d, f * d, f]);
            for recompute in [false, true] {
                let fused = How::Fused { recompute, precision: Precision::F32 };
                compare::<B>(&what, &boom_op(dims, drop, fused), &boom_op(dims, drop, How::Plain), &inputs);
            }
        }
    }
}

// --- decoder loss ---------------------------------------------------------------------------------------------------

fn decoder_op<B: Backend>([rows, d, vocab]: [usize; 3], how: How) -> impl Fn(&[Flat<B>]) -> Flat<B> {
    move |x| {
        let (h, weight, bias) = (x[0].clone().reshape([rows, d]), x[1].clone().reshape([vocab, d]), x[2].clone());
        let targets: Vec<i64> = (0..rows).map(|i| (i * 7 % vocab) as i64).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(targets, [rows]), &B::Device::default());
        match how {
            How::Fused { precision, .. } => B::decoder_loss(DecoderLossInputs { h, weight, bias, targets }, precision),
            How::Plain => {
                let logits = h.matmul(weight.transpose()) + bias.unsqueeze();
                log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1)).mean().neg()
            }
        }
    }
}

fn decoder_loss<B: AutodiffBackend>() {
    for (rows, d, vocab) in [(1, 1, 2), (3, 5, 7), (20, 16, 256), (5, 17, 33)] {
        let what = format!("decoder loss {rows}x{d}x{vocab}");
        let inputs = inputs(&[rows * d, vocab * d, vocab]);
        compare::<B>(&what, &decoder_op([rows, d, vocab], FUSED), &decoder_op([rows, d, vocab], How::Plain), &inputs);
    }
}

// --- finite differences ---------------------------------------------------------------------------------------------

#[cfg(feature = "ndarray")]
#[test]
fn every_backward_agrees_with_finite_differences() {
    finite_differences("affine", &affine_op([3, 4, 5], FUSED), &inputs(&[12, 20, 5]));
    finite_differences("layer norm", &layer_norm_op(3, 5, true), &inputs(&[15, 5, 5]));
    let dims = [3, 2, 5];
    finite_differences("residual sum", &residual_op(dims, true, true), &inputs(&residual_sizes(dims)));
    for recompute in [false, true] {
        let fused = How::Fused { recompute, precision: Precision::F32 };
        finite_differences("lstm", &lstm_op([4, 2, 3, 5], fused), &inputs(&lstm_sizes(4, 2, 3, 5)));
    }
    for case in ATTENTION_CASES {
        finite_differences(&format!("{case:?}"), &case.op(FUSED), &inputs(&case.sizes()));
    }
    for drop in [false, true] {
        finite_differences(
            "boom",
            &boom_op((3, 2, 4, 13), drop, How::Fused { recompute: drop, precision: Precision::F32 }),
            &inputs(&[24, 52, 13]),
        );
    }
    finite_differences("decoder loss", &decoder_op([4, 3, 6], FUSED), &inputs(&[12, 18, 6]));
}

// --- bf16 -----------------------------------------------------------------------------------------------------------

/// Where the device has bf16, every operation with products gives what f32 gives, up to rounding of operands by u = 2⁻⁸, and the
/// attention's weights may be kept so: 5 u for an output, 8 u for a gradient, which goes through the products of both passes.
fn bf16<B: AutodiffBackend>() {
    let device = Default::default();
    if !Precision::Bf16.is_supported::<B::InnerBackend>(&device) {
        eprintln!("{} has no bf16 on this device", B::name(&device));
        return;
    }
    for recompute in [false, true] {
        let fused = How::Fused { recompute, precision: Precision::Bf16 };
        let compare = |what: &str, fused: Op<B>, plain: Op<B>, sizes: &[usize]| {
            let inputs = inputs(sizes);
            let ((out, grads), (plain_out, plain_grads)) =
                (differentiate(fused, &inputs), differentiate(plain, &inputs));
            assert_near(&format!("{what} in bf16: output"), &out, &plain_out, 2e-2);
            for (i, (grad, plain_grad)) in grads.iter().zip(&plain_grads).enumerate() {
                assert_near(&format!("{what} in bf16: gradient {i}"), grad, plain_grad, 3e-2);
            }
        };
        let dims = [48, 16, 64];
        compare("affine", &affine_op(dims, fused), &affine_op(dims, How::Plain), &[48 * 16, 64 * 16, 64]);
        for dims @ [t, b, d_in, d] in [[7, 3, 16, 17], [13, 2, 8, 32], [6, 17, 48, 64]] {
            compare("lstm", &lstm_op(dims, fused), &lstm_op(dims, How::Plain), &lstm_sizes(t, b, d_in, d));
        }
        for case in ATTENTION_CASES {
            compare(&format!("{case:?}"), &case.op(fused), &case.op(How::Plain), &case.sizes());
        }
        let (dims, sizes) = ((4, 3, 17, 70), [4 * 3 * 17, 70 * 17, 70]);
        compare("boom", &boom_op(dims, true, fused), &boom_op(dims, true, How::Plain), &sizes);
        let dims = [20, 16, 256];
        compare("decoder loss", &decoder_op(dims, fused), &decoder_op(dims, How::Plain), &[20 * 16, 256 * 16, 256]);
    }
}

/// With operands that bf16 holds exactly, both precisions agree; with others they differ by its rounding, not more.
#[cfg(feature = "flex")]
#[test]
fn bf16_rounds_the_operands_of_products_and_nothing_else() {
    type B = Autodiff<burn::backend::Flex>;
    let run = |inputs: &[Vec<f64>], precision: Precision| {
        let op = |x: &[Flat<B>]| {
            let y = B::affine(x[0].clone().reshape([4, 8]), x[1].clone().reshape([3, 8]), x[2].clone(), precision);
            y.reshape([12])
        };
        differentiate::<B>(&op, inputs)
    };
    let exact: Vec<Vec<f64>> =
        inputs(&[32, 24, 3]).iter().map(|x| x.iter().map(|v| (v * 16.0).round() / 16.0).collect()).collect();
    assert_eq!(run(&exact, Precision::F32).0, run(&exact, Precision::Bf16).0);

    let rough = inputs(&[32, 24, 3]);
    let ((full, full_grads), (rounded, rounded_grads)) = (run(&rough, Precision::F32), run(&rough, Precision::Bf16));
    assert_ne!(full, rounded);
    // Each operand moves by at most 2⁻⁹ of itself; eight products of values below 1 move by less than 8 · 2 · 2⁻⁹.
    assert_near("output", &rounded, &full, 0.02);
    assert_ne!(full_grads[1], rounded_grads[1], "the weight's gradient is a product too");
    assert_eq!(full_grads[2], rounded_grads[2], "the bias's gradient is a sum");
}

// --- LAMB -----------------------------------------------------------------------------------------------------------

/// Rows that are used once, often and never, against the generic body; and a step that counts for nothing.
fn adagrad_rows<B: AutodiffBackend>() {
    let (n_rows, width, n) = (40, 5, 60);
    let all = inputs(&[n_rows * width, n_rows, n * width]);
    let make = |skip: bool| {
        let [table, squares, grad]: [Flat<B::InnerBackend>; 3] = [0, 1, 2].map(|i: usize| upload(&all[i]));
        let rows: Vec<i32> = (0..n as i32).map(|i| (i * i + 3) % 29).collect();
        let rows = Tensor::from_data(TensorData::new(rows, [n]), &Default::default());
        let grad = if skip { grad * f64::NAN } else { grad };
        let grad = grad.reshape([n, width]);
        let step = AdagradStep { lr: 0.1, eps: 1e-8, rows, grad, skip: Tensor::from_data([skip], &Default::default()) };
        (table.reshape([n_rows, width]), squares.abs(), step)
    };
    let flat = |x: Tensor<B::InnerBackend, 2>| values(x.reshape([n_rows * width]));
    let (table, squares, step) = make(false);
    let (want, want_squares) = generic::adagrad_rows(table, squares, step);
    let (table, squares, step) = make(false);
    let (got, got_squares) = B::InnerBackend::adagrad_rows(table, squares, step);
    assert_near("table", &flat(got), &flat(want), 2e-5);
    assert_near("squares", &values(got_squares), &values(want_squares), 2e-5);
    let (table, squares, step) = make(true);
    let (got, got_squares) = B::InnerBackend::adagrad_rows(table.clone(), squares.clone(), step);
    assert_eq!([flat(got), values(got_squares)], [flat(table), values(squares)]);
}

/// A step against the generic body; one that does not count leaves every bit as it is, whatever the gradient holds. There are
/// more parameters than a kernel is given at once.
fn lamb<B: AutodiffBackend>() {
    let sizes = || [1, 100, 5000, 300_001].into_iter().chain(3..69);
    for (has_moments, [min_trust, max_trust], weight_decay, counts) in [
        (true, [None; 2], 0.0, true),
        (false, [Some(0.25), None], 0.1, true),
        (true, [Some(0.25), Some(0.5)], 0.1, true),
        (true, [Some(1.0); 2], 0.1, true),
        (true, [None; 2], 0.1, false),
    ] {
        let what = format!("moments {has_moments}, trust {min_trust:?} to {max_trust:?}, counts {counts}");
        let options = LambOptions { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay, min_trust, max_trust };
        let finite = Tensor::from_data([counts], &Default::default());
        let step = LambStep::<B::InnerBackend>::new(options, upload(&[0.5]), finite);
        let param = |n| {
            let all: Vec<Flat<B::InnerBackend>> = inputs(&[n, n, n, n]).iter().map(|x| upload(x)).collect();
            let [param, grad, first, second] = all.try_into().unwrap();
            let grad = if counts { grad } else { grad * f64::NAN };
            LambParam { param, grad, moments: has_moments.then(|| (first, second.abs())) }
        };
        // Made anew each time: what nobody else holds may be updated in place.
        let params = || sizes().map(param).collect::<Vec<_>>();
        let (got, got_ratios) = B::InnerBackend::lamb(&step, params());
        let (want, want_ratios) = generic::lamb(&step, params());
        let params = params();
        for (which, got, want) in [
            ("weight norm", got_ratios.weight_norm, want_ratios.weight_norm),
            ("norm of the update", got_ratios.adam_norm, want_ratios.adam_norm),
            ("trust ratio", got_ratios.trust_ratio, want_ratios.trust_ratio),
        ] {
            assert_near(&format!("{what}: {which}"), &values(got), &values(want), 2e-5);
        }
        for (((n, got), want), before) in sizes().zip(got).zip(want).zip(&params) {
            let what = format!("{n} values, {what}");
            for (which, got, want) in [
                ("parameter", got.param.clone(), want.param),
                ("first moment", got.first.clone(), want.first),
                ("second moment", got.second.clone(), want.second),
            ] {
                assert_near(&format!("{what}: {which}"), &values(got), &values(want), 2e-5);
            }
            if !counts {
                assert_eq!(values(got.param), values(before.param.clone()), "{what}");
                if let Some((first, second)) = before.moments.clone() {
                    assert_eq!([values(got.first), values(got.second)], [values(first), values(second)], "{what}");
                }
            }
        }
        let all: Vec<_> = params.into_iter().map(|param| param.param).collect();
        let want = all.iter().flat_map(|x| values(x.clone())).map(|x| x * x).sum();
        assert_near(&format!("{what}: squared norm"), &values(B::InnerBackend::squared_norm(all)), &[want], 2e-5);
    }
}

// --- Muon -----------------------------------------------------------------------------------------------------------

/// Against the generic body, and close to orthonormal rows or columns; zeros stay zeros.
fn orthogonalize<B: AutodiffBackend>() {
    for (precision, _) in Precision::ALL {
        if precision.is_supported::<B::InnerBackend>(&B::Device::default()) {
            orthogonalize_in::<B>(precision);
        }
    }
}

fn orthogonalize_in<B: AutodiffBackend>(precision: Precision) {
    // Five rounds of three products each; of rounded operands one may lie on the other side of a tie, which each round after it
    // takes further.
    let tolerance = match precision {
        Precision::F32 => (60.0 * burn_roundoff::<B>()).max(1e-4),
        Precision::Bf16 => 0.1,
    };
    for [n, rows, cols] in [[1, 1, 1], [2, 5, 5], [3, 4, 21], [3, 21, 4], [2, 64, 100], [1, 100, 130]] {
        let what = format!("{n} of {rows} x {cols}, {}", precision.name());
        let x = || upload::<B::InnerBackend>(&inputs(&[n * rows * cols])[0]).reshape([n, rows, cols]);
        let of = |x| B::InnerBackend::orthogonalize(x, precision);
        let got = of(x());
        assert_near(
            &what,
            &values(got.clone().flatten(0, 2)),
            &values(generic::orthogonalize(x(), precision).flatten(0, 2)),
            tolerance,
        );
        let (got, small) = (if rows > cols { got.swap_dims(1, 2) } else { got }, rows.min(cols));
        let gram = values(got.clone().matmul(got.swap_dims(1, 2)).flatten(0, 2));
        for (i, x) in gram.into_iter().enumerate() {
            let (row, col) = (i / small % small, i % small);
            // A singular value may have been too small to be brought up.
            let range = if row == col { 0.0..1.35 } else { -0.6..0.6 };
            assert!(range.contains(&x), "{what}: {x} at {row}, {col}");
        }
        let tiny = of(x() * 1e-25);
        assert_near(&format!("{what}, tiny"), &values(tiny.flatten(0, 2)), &values(of(x()).flatten(0, 2)), tolerance);
        let zeros = of(x().zeros_like());
        assert!(values(zeros.flatten(0, 2)).iter().all(|&x| x == 0.0), "{what}");
    }
}
