//! The Boom feed-forward of one block over a segment: forward, and forward with backward.

mod support;

use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::ops::BoomInputs;
use sharnn::{AutodiffBackend, Backend, BackendJob, Precision};
use support::{BATCH, Random, SEQ_LEN};

struct Boom<'c>(&'c mut Criterion);

impl BackendJob for Boom<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let config = support::config();
        let (d, d_ff) = (config.d_model, config.d_ff);
        let mut random = Random::new();
        let scale = 2.0 / (d as f64).sqrt();
        let x = random.floats::<B::InnerBackend, 3>([SEQ_LEN, BATCH, d], &device);
        let weight = random.floats::<B::InnerBackend, 2>([d_ff, d], &device) * scale;
        let bias = random.floats::<B::InnerBackend, 1>([d_ff], &device) * scale;
        let cotangent = random.floats::<B::InnerBackend, 3>([SEQ_LEN, BATCH, d], &device);
        let inputs =
            BoomInputs { x: x.clone(), weight: weight.clone(), bias: bias.clone(), dropout: None, recompute: false };
        let forward = |precision| B::InnerBackend::boom(inputs.clone(), precision);

        let (host_weight, host_bias) = (support::values(weight.clone()), support::values(bias.clone()));
        let reference = |x: &[f64]| reference(x, &host_weight, &host_bias, d);
        let host_x = first_lane(x.clone());
        support::assert_near("boom", &first_lane(forward(Precision::F32)), &reference(&host_x));

        let tracked_x = Tensor::<B, 3>::from_inner(x.clone()).require_grad();
        let tracked_weight = Tensor::<B, 2>::from_inner(weight.clone()).require_grad();
        let tracked_bias = Tensor::<B, 1>::from_inner(bias.clone()).require_grad();
        let tracked = BoomInputs {
            x: tracked_x.clone(),
            weight: tracked_weight.clone(),
            bias: tracked_bias.clone(),
            dropout: None,
            recompute: false,
        };
        let backward = |precision| {
            let output = B::boom(tracked.clone(), precision);
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward(Precision::F32);
        let weights = first_lane(cotangent.clone());
        let dx = first_lane(tracked_x.grad(&grads).expect("x is tracked"));
        support::assert_gradient("boom", |x| support::dot(&reference(x), &weights), &host_x, &dx);
        support::assert_usable("weight", tracked_weight.grad(&grads), [d_ff, d]);
        support::assert_usable("bias", tracked_bias.grad(&grads), [d_ff]);

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "boom", precision, BATCH * SEQ_LEN);
            support::time::<B, _>(&mut group, "forward", &device, || forward(precision));
            support::time::<B, _>(&mut group, "forward+backward", &device, || backward(precision));
            group.finish();
        }
    }
}

/// The values of lane 0 of a time-major tensor.
fn first_lane<B: Backend>(x: Tensor<B, 3>) -> Vec<f64> {
    support::values(x.narrow(1, 0, 1))
}

/// The equation in f64, one row after the other.
fn reference(x: &[f64], weight: &[f64], bias: &[f64], d: usize) -> Vec<f64> {
    let mut output = Vec::with_capacity(x.len());
    for x in x.chunks_exact(d) {
        let z = support::affine(weight, x, bias);
        let u: Vec<f64> = z.iter().map(|z| z * support::sigmoid(1.702 * z)).collect();
        output.extend((0..d).map(|k| u.iter().skip(k).step_by(d).sum::<f64>()));
    }
    output
}

fn boom(criterion: &mut Criterion) {
    support::run(Boom(criterion));
}

criterion_group!(benches, boom);
criterion_main!(benches);
