//! The operations on rows over a segment, forward and forward with backward: affine map, layer norm, the sum that ends a block,
//! dropout, which is its own backward, and the decoder's loss.

mod support;

use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::ops::{DecoderLossInputs, Dropout, DropoutSite, LAYER_NORM_EPS, LaneAxis, ResidualInputs};
use sharnn::{AutodiffBackend, Backend, BackendJob, DropoutStream, Precision};
use support::{BATCH, Random, SEQ_LEN};

const ROWS: usize = BATCH * SEQ_LEN;
/// Rows that the slopes are checked on.
const CHECKED: usize = 64;

struct Affine<'c>(&'c mut Criterion);

impl BackendJob for Affine<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let d = support::config().d_model;
        let mut random = Random::new();
        let x = random.floats::<B::InnerBackend, 2>([ROWS, d], &device);
        let weight = random.floats::<B::InnerBackend, 2>([d, d], &device);
        let bias = random.floats::<B::InnerBackend, 1>([d], &device);
        let cotangent = random.floats::<B::InnerBackend, 2>([ROWS, d], &device);
        let forward = |precision| B::InnerBackend::affine(x.clone(), weight.clone(), bias.clone(), precision);

        let [host_x, host_weight] = [&x, &weight].map(|x| support::values(x.clone()));
        let host_bias = support::values(bias.clone());
        let reference = |x: &[f64]| rows(x, d, |x| support::affine(&host_weight, x, &host_bias));
        support::assert_near("affine", &support::values(forward(Precision::F32)), &reference(&host_x));

        let tracked_x = Tensor::<B, 2>::from_inner(x.clone()).require_grad();
        let tracked_weight = Tensor::<B, 2>::from_inner(weight.clone()).require_grad();
        let tracked_bias = Tensor::<B, 1>::from_inner(bias.clone()).require_grad();
        let backward = |precision| {
            let output = B::affine(tracked_x.clone(), tracked_weight.clone(), tracked_bias.clone(), precision);
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward(Precision::F32);
        let weights = checked(cotangent.clone());
        let dx = checked(tracked_x.grad(&grads).expect("x is tracked"));
        let loss = |x: &[f64]| support::dot(&reference(x), &weights);
        support::assert_gradient("affine", loss, &host_x[..CHECKED * d], &dx);
        support::assert_usable("weight", tracked_weight.grad(&grads), [d, d]);
        support::assert_usable("bias", tracked_bias.grad(&grads), [d]);

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "affine", precision, ROWS);
            support::time::<B, _>(&mut group, "forward", &device, || forward(precision));
            support::time::<B, _>(&mut group, "forward+backward", &device, || backward(precision));
            group.finish();
        }
    }
}

struct LayerNorm<'c>(&'c mut Criterion);

impl BackendJob for LayerNorm<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let d = support::config().d_model;
        let mut random = Random::new();
        let x = random.floats::<B::InnerBackend, 2>([ROWS, d], &device);
        let weight = random.floats::<B::InnerBackend, 1>([d], &device);
        let bias = random.floats::<B::InnerBackend, 1>([d], &device);
        let cotangent = random.floats::<B::InnerBackend, 2>([ROWS, d], &device);
        let forward = || B::InnerBackend::layer_norm_rows(x.clone(), weight.clone(), bias.clone());

        let host_x = support::values(x.clone());
        let [host_weight, host_bias] = [&weight, &bias].map(|x| support::values(x.clone()));
        let reference = |x: &[f64]| rows(x, d, |x| layer_norm(x, &host_weight, &host_bias));
        support::assert_near("layer norm", &support::values(forward()), &reference(&host_x));

        let tracked_x = Tensor::<B, 2>::from_inner(x.clone()).require_grad();
        let tracked_weight = Tensor::<B, 1>::from_inner(weight.clone()).require_grad();
        let tracked_bias = Tensor::<B, 1>::from_inner(bias.clone()).require_grad();
        let backward = || {
            let output = B::layer_norm_rows(tracked_x.clone(), tracked_weight.clone(), tracked_bias.clone());
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward();
        let weights = checked(cotangent.clone());
        let dx = checked(tracked_x.grad(&grads).expect("x is tracked"));
        let loss = |x: &[f64]| support::dot(&reference(x), &weights);
        support::assert_gradient("layer norm", loss, &host_x[..CHECKED * d], &dx);
        support::assert_usable("weight", tracked_weight.grad(&grads), [d]);
        support::assert_usable("bias", tracked_bias.grad(&grads), [d]);

        let mut group = support::group::<B>(self.0, "layer_norm", Precision::F32, ROWS);
        support::time::<B, _>(&mut group, "forward", &device, forward);
        support::time::<B, _>(&mut group, "forward+backward", &device, backward);
        group.finish();
    }
}

/// The sum that ends a block, with dropout.
struct Residual<'c>(&'c mut Criterion);

impl BackendJob for Residual<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let dims @ [.., d] = [SEQ_LEN, BATCH, support::config().d_model];
        let mut random = Random::new();
        let [h, x, cotangent] = [(); 3].map(|()| random.floats::<B::InnerBackend, 3>(dims, &device));
        let [weight, bias] = [(); 2].map(|()| random.floats::<B::InnerBackend, 1>([d], &device));
        let stream = DropoutStream { seed: 1, step: 1, first_lane: 0 };
        let dropout = Dropout { prob: 0.1, key: stream.key(0, DropoutSite::BoomOutput) };
        let forward = || {
            let (h, weight, bias, x) = (h.clone(), weight.clone(), bias.clone(), x.clone());
            B::InnerBackend::norm_residual(ResidualInputs { h, weight, bias, x, dropout: Some(dropout) })
        };

        let [host_weight, host_bias] = [&weight, &bias].map(|x| support::values(x.clone()));
        let (host_h, host_x) = (support::values(h.clone()), support::values(x.clone()));
        let mask = dropout.host_mask(dims, LaneAxis::Second);
        // Of as many rows as it is given, the first ones.
        let reference = |h: &[f64]| {
            let normed = rows(h, d, |h| layer_norm(h, &host_weight, &host_bias));
            let added = host_x.iter().zip(&mask).map(|(x, mask)| x * f64::from(*mask));
            normed.iter().zip(added).map(|(a, b)| a + b).collect::<Vec<_>>()
        };
        support::assert_near("residual sum", &support::values(forward()), &reference(&host_h));

        let [tracked_h, tracked_x] = [&h, &x].map(|x| Tensor::<B, 3>::from_inner(x.clone()).require_grad());
        let [weight, bias] = [&weight, &bias].map(|x| Tensor::<B, 1>::from_inner(x.clone()).require_grad());
        let backward = || {
            let (h, x) = (tracked_h.clone(), tracked_x.clone());
            let (weight, bias) = (weight.clone(), bias.clone());
            let output = B::norm_residual(ResidualInputs { h, weight, bias, x, dropout: Some(dropout) });
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward();
        let weights = checked(cotangent.clone().reshape([ROWS, d]));
        let dh = checked(tracked_h.grad(&grads).expect("h is tracked").reshape([ROWS, d]));
        let loss = |h: &[f64]| support::dot(&reference(h), &weights);
        support::assert_gradient("residual sum", loss, &host_h[..CHECKED * d], &dh);
        support::assert_usable("x", tracked_x.grad(&grads), dims);
        support::assert_usable("weight", weight.grad(&grads), [d]);

        let mut group = support::group::<B>(self.0, "norm_residual", Precision::F32, ROWS);
        support::time::<B, _>(&mut group, "forward", &device, forward);
        support::time::<B, _>(&mut group, "forward+backward", &device, backward);
        group.finish();
    }
}

struct Drop<'c>(&'c mut Criterion);

impl BackendJob for Drop<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let dims = [SEQ_LEN, BATCH, support::config().d_model];
        let x = Random::new().floats::<B::InnerBackend, 3>(dims, &device);
        let stream = DropoutStream { seed: 1, step: 1, first_lane: 0 };
        let dropout = Dropout { prob: 0.1, key: stream.key(0, DropoutSite::Input) };
        let forward = || B::InnerBackend::dropout(x.clone(), dropout);

        let mask = dropout.host_mask(dims, LaneAxis::Second);
        let expected: Vec<f64> =
            support::values(x.clone()).iter().zip(mask).map(|(x, mask)| x * f64::from(mask)).collect();
        support::assert_near("dropout", &support::values(forward()), &expected);

        let mut group = support::group::<B>(self.0, "dropout", Precision::F32, ROWS);
        support::time::<B, _>(&mut group, "forward", &device, forward);
        group.finish();
    }
}

struct DecoderLoss<'c>(&'c mut Criterion);

impl BackendJob for DecoderLoss<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let config = support::config();
        let (d, vocab_size) = (config.d_model, config.vocab_size);
        let mut random = Random::new();
        let h = random.floats::<B::InnerBackend, 2>([ROWS, d], &device);
        // Logits of a few units, so that the softmax is neither flat nor a single one.
        let weight = random.floats::<B::InnerBackend, 2>([vocab_size, d], &device) * (4.0 / (d as f64).sqrt());
        let bias = random.floats::<B::InnerBackend, 1>([vocab_size], &device);
        let targets = random.bytes::<B::InnerBackend>([1, ROWS], &device).reshape([ROWS]);
        let inputs = DecoderLossInputs { h: h.clone(), weight, bias, targets };
        let forward = |precision| B::InnerBackend::decoder_loss(inputs.clone(), precision);

        let reference = Surprise::new(&inputs);
        let host_h = support::values(h);
        let found = support::values(forward(Precision::F32));
        support::assert_near("decoder loss", &found, &[reference.total(&host_h) / ROWS as f64]);

        let tracked = track::<B>(&inputs);
        let backward = |precision| B::decoder_loss(tracked.clone(), precision).backward();
        let grads = backward(Precision::F32);
        let dh = checked(tracked.h.grad(&grads).expect("h is tracked"));
        let loss = |h: &[f64]| reference.total(h) / ROWS as f64;
        support::assert_gradient("decoder loss", loss, &host_h[..CHECKED * d], &dh);
        support::assert_usable("weight", tracked.weight.grad(&grads), [vocab_size, d]);
        support::assert_usable("bias", tracked.bias.grad(&grads), [vocab_size]);

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "decoder_loss", precision, ROWS);
            support::time::<B, _>(&mut group, "forward", &device, || forward(precision));
            support::time::<B, _>(&mut group, "forward+backward", &device, || backward(precision));
            group.finish();
        }
    }
}

/// The inputs as a training step has them.
fn track<B: AutodiffBackend>(inputs: &DecoderLossInputs<B::InnerBackend>) -> DecoderLossInputs<B> {
    let DecoderLossInputs { h, weight, bias, targets } = inputs.clone();
    DecoderLossInputs {
        h: Tensor::from_inner(h).require_grad(),
        weight: Tensor::from_inner(weight).require_grad(),
        bias: Tensor::from_inner(bias).require_grad(),
        targets: Tensor::from_inner(targets),
    }
}

/// The values of the rows that the slopes are checked on.
fn checked<B: Backend>(x: Tensor<B, 2>) -> Vec<f64> {
    support::values(x.narrow(0, 0, CHECKED))
}

/// `row` of each row of `x`, one after the other.
fn rows(x: &[f64], d: usize, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(d).flat_map(row).collect()
}

/// The equation of one row in f64.
fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let std = (variance + LAYER_NORM_EPS).sqrt();
    x.iter().zip(weight).zip(bias).map(|((x, weight), bias)| (x - mean) / std * weight + bias).collect()
}

/// The decoder's loss in f64, one row after the other.
struct Surprise {
    weight: Vec<f64>,
    bias: Vec<f64>,
    targets: Vec<usize>,
}

impl Surprise {
    fn new<B: Backend>(inputs: &DecoderLossInputs<B>) -> Self {
        let DecoderLossInputs { weight, bias, targets, .. } = inputs.clone();
        Self {
            weight: support::values(weight),
            bias: support::values(bias),
            targets: targets.into_data().iter::<i64>().map(|target| target as usize).collect(),
        }
    }

    /// `-Σ log softmax(h Wᵀ + b)[target]` of the first rows.
    fn total(&self, h: &[f64]) -> f64 {
        let of_row = |(h, &target): (&[f64], &usize)| {
            let logits = support::affine(&self.weight, h, &self.bias);
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            largest + sum.ln() - logits[target]
        };
        h.chunks_exact(self.weight.len() / self.bias.len()).zip(&self.targets).map(of_row).sum()
    }
}

fn rowwise(criterion: &mut Criterion) {
    support::run(Affine(criterion));
    support::run(LayerNorm(criterion));
    support::run(Residual(criterion));
    support::run(Drop(criterion));
    support::run(DecoderLoss(criterion));
}

criterion_group!(benches, rowwise);
criterion_main!(benches);
