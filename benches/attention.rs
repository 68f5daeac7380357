//! Attention of a segment over the memory and itself: forward, and forward with backward as in training, where the memory
//! wants no gradient.

mod support;

use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::ops::AttentionInputs;
use sharnn::{AutodiffBackend, Backend, BackendJob, Precision};
use support::{BATCH, MEMORY, Random, SEQ_LEN};

struct Attention<'c>(&'c mut Criterion);

impl BackendJob for Attention<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let d = support::config().d_model;
        let mut random = Random::new();
        let mut floats = |rows: usize| random.floats::<B::InnerBackend, 3>([BATCH, rows, d], &device);
        // Scores of a few units, so that the softmax is neither flat nor a single one.
        let query = floats(SEQ_LEN) * (4.0 / (d as f64).sqrt());
        let (memory, current, cotangent) = (floats(MEMORY), floats(SEQ_LEN), floats(SEQ_LEN));
        let inputs = AttentionInputs {
            query: query.clone(),
            memory: Some(memory.clone()),
            current: current.clone(),
            n_heads: 1,
            value_dropout: None,
            weight_dropout: None,
        };
        let forward = |precision| B::InnerBackend::memory_attention(inputs.clone(), precision);

        let rows = first_lane(Tensor::cat(vec![memory.clone(), current.clone()], 1));
        let q = first_lane(query.clone());
        support::assert_near("attention", &first_lane(forward(Precision::F32)), &reference(&q, &rows, d));

        let tracked = AttentionInputs {
            query: Tensor::<B, 3>::from_inner(query).require_grad(),
            memory: Some(Tensor::from_inner(memory)),
            current: Tensor::from_inner(current).require_grad(),
            n_heads: 1,
            value_dropout: None,
            weight_dropout: None,
        };
        let backward = |precision| {
            let output = B::memory_attention(tracked.clone(), precision);
            (output * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward(Precision::F32);
        let weights = first_lane(cotangent.clone());
        let dq = first_lane(tracked.query.grad(&grads).expect("the query is tracked"));
        support::assert_gradient("query", |q| support::dot(&reference(q, &rows, d), &weights), &q, &dq);
        let (old, current) = rows.split_at(MEMORY * d);
        let loss = |current: &[f64]| support::dot(&reference(&q, &[old, current].concat(), d), &weights);
        let dcurrent = first_lane(tracked.current.grad(&grads).expect("the current rows are tracked"));
        support::assert_gradient("current rows", loss, current, &dcurrent);

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "attention", precision, BATCH * SEQ_LEN);
            support::time::<B, _>(&mut group, "forward", &device, || forward(precision));
            support::time::<B, _>(&mut group, "forward+backward", &device, || backward(precision));
            group.finish();
        }
    }
}

/// The values of lane 0 of a batch-first tensor.
fn first_lane<B: Backend>(x: Tensor<B, 3>) -> Vec<f64> {
    support::values(x.narrow(0, 0, 1))
}

/// The equation of one lane in f64, one query after the other. `rows` are memory and current rows.
fn reference(query: &[f64], rows: &[f64], d: usize) -> Vec<f64> {
    let (seq_len, n_rows) = (query.len() / d, rows.len() / d);
    let mut output = Vec::with_capacity(query.len());
    for (i, q) in query.chunks_exact(d).enumerate() {
        let seen = || rows.chunks_exact(d).take(n_rows - seq_len + i + 1);
        let scores: Vec<f64> = seen().map(|row| support::dot(q, row)).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut mean = vec![0.0; d];
        for (row, weight) in seen().zip(&weights) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += weight / sum * x);
        }
        output.extend(mean);
    }
    output
}

fn attention(criterion: &mut Criterion) {
    support::run(Attention(criterion));
}

criterion_group!(benches, attention);
criterion_main!(benches);
