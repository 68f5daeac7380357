//! One byte at a time in one lane, each from the state that the byte before it left, over a full memory.

mod support;

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::{AutodiffBackend, BackendJob, Precision};
use support::{MEMORY, Random};

/// Bytes that the check decodes.
const CHECKED: usize = 8;

struct Decode<'c>(&'c mut Criterion);

impl BackendJob for Decode<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        // Full from the start, so that every byte costs the same.
        let model = support::config().with_mem_len(MEMORY).init_seeded::<B>(1, &device).valid().collapse();
        let mut random = Random::new();
        let text = random.bytes::<B::InnerBackend>([1, MEMORY], &device);
        let (_, mut state) = model.forward(text, model.empty_state());

        // Byte by byte is the whole segment. The check's memory is not cut, since a segment would cut it all at once.
        let tokens = random.bytes::<B::InnerBackend>([1, CHECKED], &device);
        let uncut = model.clone().with_mem_len(MEMORY + CHECKED);
        let (expected, _) = uncut.forward(tokens.clone(), state.clone());
        let mut step_state = state.clone();
        let logits = (0..CHECKED).map(|i| {
            let (logits, new) = uncut.forward(tokens.clone().narrow(1, i, 1), step_state.clone());
            step_state = new;
            logits
        });
        let logits = Tensor::cat(logits.collect(), 1);
        support::assert_near("logits", &support::values(logits), &support::values(expected));

        let token = tokens.narrow(1, 0, 1);
        let mut group = support::group::<B>(self.0, "decode", Precision::F32, 1);
        support::time::<B, _>(&mut group, "byte", &device, || {
            let old = std::mem::replace(&mut state, model.empty_state());
            let (logits, new) = model.forward(token.clone(), old);
            state = new;
            logits
        });
        group.finish();
        assert_eq!(state.memory_rows(), MEMORY, "the memory did not stay full");
    }
}

fn decode(criterion: &mut Criterion) {
    support::run(Decode(criterion));
}

criterion_group!(benches, decode);
criterion_main!(benches);
