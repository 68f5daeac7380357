//! The LSTM of one block over a segment: forward, and forward with backward.

mod support;

use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::ops::LstmInputs;
use sharnn::{AutodiffBackend, Backend, BackendJob, Precision};
use support::{BATCH, Random, SEQ_LEN};

struct Lstm<'c>(&'c mut Criterion);

impl BackendJob for Lstm<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let d = support::config().d_model;
        let mut random = Random::new();
        let mut floats = |dims: [usize; 2], scale: f64| random.floats::<B::InnerBackend, 2>(dims, &device) * scale;
        let scale = 1.0 / (d as f64).sqrt();
        let inputs = LstmInputs {
            x: floats([SEQ_LEN * BATCH, d], 1.0).reshape([SEQ_LEN, BATCH, d]),
            weight_ih: floats([4 * d, d], scale),
            weight_hh: floats([4 * d, d], scale),
            bias_ih: floats([1, 4 * d], scale).squeeze_dim(0),
            bias_hh: floats([1, 4 * d], scale).squeeze_dim(0),
            h0: floats([BATCH, d], 0.5),
            c0: floats([BATCH, d], 1.0),
            recompute: false,
        };
        let cotangent = floats([(SEQ_LEN + 1) * BATCH, d], 1.0).reshape([SEQ_LEN + 1, BATCH, d]);

        let reference = FirstLane::new(&inputs);
        let x = first_lane(inputs.x.clone());
        let forward = |precision| B::InnerBackend::lstm(inputs.clone(), precision);
        support::assert_near("lstm", &first_lane(forward(Precision::F32)), &reference.forward(&x));

        let tracked = track::<B>(&inputs);
        let backward = |precision| {
            let output = B::lstm(tracked.clone(), precision);
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward(Precision::F32);
        let dx = first_lane(tracked.x.grad(&grads).expect("x is tracked"));
        let weights = first_lane(cotangent.clone());
        support::assert_gradient("lstm", |x| support::dot(&reference.forward(x), &weights), &x, &dx);
        support::assert_usable("weight_ih", tracked.weight_ih.grad(&grads), [4 * d, d]);
        support::assert_usable("weight_hh", tracked.weight_hh.grad(&grads), [4 * d, d]);
        support::assert_usable("bias_ih", tracked.bias_ih.grad(&grads), [4 * d]);
        support::assert_usable("bias_hh", tracked.bias_hh.grad(&grads), [4 * d]);

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "lstm", precision, BATCH * SEQ_LEN);
            support::time::<B, _>(&mut group, "forward", &device, || forward(precision));
            support::time::<B, _>(&mut group, "forward+backward", &device, || backward(precision));
            group.finish();
        }
    }
}

/// The inputs as a training step has them: everything but the first state wants a gradient.
fn track<B: AutodiffBackend>(inputs: &LstmInputs<B::InnerBackend>) -> LstmInputs<B> {
    let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, recompute } = inputs.clone();
    LstmInputs {
        x: Tensor::from_inner(x).require_grad(),
        weight_ih: Tensor::from_inner(weight_ih).require_grad(),
        weight_hh: Tensor::from_inner(weight_hh).require_grad(),
        bias_ih: Tensor::from_inner(bias_ih).require_grad(),
        bias_hh: Tensor::from_inner(bias_hh).require_grad(),
        h0: Tensor::from_inner(h0),
        c0: Tensor::from_inner(c0),
        recompute,
    }
}

/// The values of lane 0 of a time-major tensor.
fn first_lane<B: Backend>(x: Tensor<B, 3>) -> Vec<f64> {
    support::values(x.narrow(1, 0, 1))
}

/// The equations of lane 0 in f64, one step after the other.
struct FirstLane {
    weight_ih: Vec<f64>,
    weight_hh: Vec<f64>,
    bias: Vec<f64>,
    h0: Vec<f64>,
    c0: Vec<f64>,
}

impl FirstLane {
    fn new<B: Backend>(inputs: &LstmInputs<B>) -> Self {
        let LstmInputs { weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, .. } = inputs.clone();
        Self {
            weight_ih: support::values(weight_ih),
            weight_hh: support::values(weight_hh),
            bias: support::values(bias_ih + bias_hh),
            h0: support::values(h0.narrow(0, 0, 1)),
            c0: support::values(c0.narrow(0, 0, 1)),
        }
    }

    /// `h_1 .. h_T, c_T`.
    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let d = self.h0.len();
        let (mut h, mut c) = (self.h0.clone(), self.c0.clone());
        let mut packed = Vec::with_capacity(x.len() + d);
        for x in x.chunks_exact(d) {
            let recurrent = support::affine(&self.weight_hh, &h, &self.bias);
            let z = support::affine(&self.weight_ih, x, &recurrent);
            for k in 0..d {
                let [i, f, g, o] = [0, 1, 2, 3].map(|gate| z[gate * d + k]);
                c[k] = support::sigmoid(f) * c[k] + support::sigmoid(i) * g.tanh();
                h[k] = support::sigmoid(o) * c[k].tanh();
            }
            packed.extend_from_slice(&h);
        }
        packed.extend_from_slice(&c);
        packed
    }
}

fn lstm(criterion: &mut Criterion) {
    support::run(Lstm(criterion));
}

criterion_group!(benches, lstm);
criterion_main!(benches);
