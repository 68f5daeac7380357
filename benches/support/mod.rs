//! What the benches share: their sizes, how time is taken, and the checks before it.
//!
//! They run on the first backend that is compiled in, `flex` unless told otherwise:
//! `cargo bench --no-default-features --features cuda`.

#![allow(dead_code)] // each bench uses its own part

use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn::{Backend, BackendJob, BackendKind, Precision, ShaRnnConfig};

/// Lanes.
pub const BATCH: usize = 16;
/// Bytes of a segment.
pub const SEQ_LEN: usize = 256;
/// Rows of memory before the segment.
pub const MEMORY: usize = 1024;

pub type Group<'c> = BenchmarkGroup<'c, WallTime>;

/// Size S, 256 wide; its memory stays `MEMORY` rows long in front of each segment of `SEQ_LEN`.
pub fn config() -> ShaRnnConfig {
    ShaRnnConfig::s().with_mem_len(MEMORY + SEQ_LEN)
}

/// A bench that is generic over the backend becomes a criterion target.
pub fn run(bench: impl BackendJob<Output = ()>) {
    if let Err(error) = BackendKind::default().dispatch(bench) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// The precisions of matrix products that the backend computes in.
pub fn precisions<B: Backend>(device: &B::Device) -> impl Iterator<Item = Precision> {
    Precision::ALL.into_iter().map(|(precision, _)| precision).filter(|precision| precision.is_supported::<B>(device))
}

/// The group `op/backend-instructions/precision`, for work on `elements` bytes or parameters.
pub fn group<'c, B: Backend>(
    criterion: &'c mut Criterion,
    op: &str,
    precision: Precision,
    elements: usize,
) -> Group<'c> {
    let backend = BackendKind::default();
    let place = B::instructions().map_or(backend.to_string(), |instructions| format!("{backend}-{instructions}"));
    let mut group = criterion.benchmark_group(format!("{op}/{place}/{}", precision.name()));
    group.throughput(Throughput::Elements(elements as u64)).sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    group
}

/// Times `op`. The device has finished each call before the next one, and the last one before the clock is read.
pub fn time<B: Backend, O>(group: &mut Group, name: &str, device: &B::Device, mut op: impl FnMut() -> O) {
    let sync = || B::sync(device).expect("the device has not failed");
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|runs| {
            sync();
            let start = Instant::now();
            for _ in 0..runs {
                black_box(op());
                sync();
            }
            start.elapsed()
        });
    });
}

/// Seeded random values and bytes.
pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new() -> Self {
        Self(ChaCha8Rng::seed_from_u64(1))
    }

    /// Uniform in `[-1, 1)`.
    pub fn floats<B: Backend, const D: usize>(&mut self, dims: [usize; D], device: &B::Device) -> Tensor<B, D> {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| self.0.random::<f32>() * 2.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }

    pub fn bytes<B: Backend>(&mut self, dims: [usize; 2], device: &B::Device) -> Tensor<B, 2, Int> {
        let values: Vec<i32> = (0..dims.iter().product()).map(|_| self.0.random::<u8>().into()).collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }
}

/// The values of a tensor, row-major.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().iter::<f64>().collect()
}

/// `a · b`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The logistic function.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `y = W x + b` for a row-major `weight`.
pub fn affine(weight: &[f64], x: &[f64], bias: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
}

/// Refuses to time what does not compute the same as its reference: sums of f32 products stay far below one part in ten
/// thousand of the largest value.
pub fn assert_near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0f64, |worst, error| if error.is_nan() { f64::INFINITY } else { worst.max(error) });
    assert!(worst <= 1e-4 * largest, "{what}: off by {worst:e} where the largest value is {largest:e}");
}

/// Compares a gradient with the slope of `loss` along a random direction, by central differences in f64.
pub fn assert_gradient(what: &str, loss: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let direction: Vec<f64> = x.iter().map(|_| rng.random::<f64>() * 2.0 - 1.0).collect();
    let step = 1e-6;
    let moved = |sign: f64| x.iter().zip(&direction).map(|(x, d)| x + sign * step * d).collect::<Vec<_>>();
    let slope = (loss(&moved(1.0)) - loss(&moved(-1.0))) / (2.0 * step);
    let found = dot(gradient, &direction);
    let scale = (dot(gradient, gradient) * dot(&direction, &direction) / x.len() as f64).sqrt();
    assert!((found - slope).abs() <= 1e-3 * scale, "{what}: the slope is {found:e}, expected {slope:e}");
}

/// Refuses gradients of another shape, gradients that are not finite and gradients that are all zero.
pub fn assert_usable<B: Backend, const D: usize>(what: &str, gradient: Option<Tensor<B, D>>, dims: [usize; D]) {
    let gradient = gradient.unwrap_or_else(|| panic!("{what} has no gradient"));
    assert_eq!(gradient.dims(), dims, "{what}: shape of the gradient");
    let norm = values(gradient).iter().map(|x| x * x).sum::<f64>();
    assert!(norm.is_finite() && norm > 0.0, "{what}: the squared norm of the gradient is {norm}");
}
