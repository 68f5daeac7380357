//! Adaptive mixing a byte: the model's logits as a distribution, the eight decisions and what is learned of them, the whole distribution.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_mixing::{ByteDistribution, Mixer, MixerConfig};

/// Words in no order, so that contexts are many.
fn text(n: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let words: Vec<String> =
        (0..2000).map(|_| (0..rng.random_range(2..9)).map(|_| rng.random_range('a'..='z')).collect()).collect();
    let mut text = String::new();
    while text.len() < n {
        text += &words[rng.random_range(0..words.len())];
        text.push(if rng.random_range(0..12) == 0 { '\n' } else { ' ' });
    }
    text.into_bytes()
}

fn mixing(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let logits: Vec<f32> = (0..256).map(|_| rng.random_range(-9.0..3.0)).collect();
    let model = ByteDistribution::of_logits(&logits);
    let text = text(1 << 20);
    let (read, next) = text.split_at(text.len() - 4096);
    let mut mixer = Mixer::new(MixerConfig::default(), 1);
    for &byte in read {
        mixer.cost(0, &model, byte);
    }

    let mut group = c.benchmark_group("mixing");
    group.throughput(Throughput::Elements(1));
    group.bench_function("logits", |b| b.iter(|| ByteDistribution::of_logits(&logits)));
    group.bench_function("distribution", |b| b.iter(|| mixer.log_probs(0, &model)));
    group.throughput(Throughput::Bytes(next.len() as u64));
    group.bench_function("decisions and learning", |b| {
        let read_on = |mut mixer: Mixer| {
            next.iter().for_each(|&byte| _ = std::hint::black_box(mixer.cost(0, &model, byte)));
            mixer
        };
        b.iter_batched(|| mixer.clone(), read_on, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, mixing);
criterion_main!(benches);
