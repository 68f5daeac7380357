//! A training step of the whole model: loss, backward, clip and min-trust LAMB, with the paper's dropout of 0.1.

mod support;

use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::train::{LambConfig, Optimizer};
use sharnn::{AutodiffBackend, BackendJob, DropoutStream, Pass, Precision, ShaRnn};
use support::{BATCH, MEMORY, Random, SEQ_LEN};

struct Step<'c>(&'c mut Criterion);

impl BackendJob for Step<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let mut random = Random::new();
        let model = support::config().with_dropout(0.1).init_seeded::<B>(1, &device);
        let mut state = model.empty_state();
        for _ in 0..MEMORY / SEQ_LEN {
            let tokens = random.bytes([BATCH, SEQ_LEN], &device);
            state = model.hidden(tokens, state, &Pass::default()).1.detach();
        }
        let [tokens, targets] = [(); 2].map(|()| random.bytes::<B>([BATCH, SEQ_LEN], &device));

        let mut model = Some(model);
        let mut optimizer = Optimizer::new(LambConfig::default(), None);
        let mut number = 0;
        let mut step = |precision| {
            number += 1;
            let stream = DropoutStream { seed: 1, step: number, first_lane: 0 };
            let pass = Pass { precision, dropout: Some(stream), ..Pass::default() };
            let old: ShaRnn<B> = model.take().expect("a model between two steps");
            let (loss, state) = old.loss(tokens.clone(), targets.clone(), state.clone(), &pass);
            let grads = loss.backward();
            let loss = loss.inner();
            let (new, report) = optimizer.step(old, loss.clone(), grads, 1e-4);
            model = Some(new);
            (loss, report.finite, state.detach())
        };

        // Steps on one segment bring its loss down from that of a uniform guess.
        let first = host(step(Precision::F32).0);
        assert!((first - 256f64.ln()).abs() < 0.1, "the loss is {first} nats, expected about {}", 256f64.ln());
        let third = [(); 2].map(|()| step(Precision::F32)).map(|(loss, finite, _)| {
            assert!(finite.into_data().iter::<bool>().all(|finite| finite), "a step is not finite");
            host(loss)
        })[1];
        assert!(third < first, "the loss went from {first} to {third} nats");

        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(self.0, "step", precision, BATCH * SEQ_LEN);
            support::time::<B, _>(&mut group, "train", &device, || step(precision));
            group.finish();
        }
    }
}

fn host<B: burn::tensor::backend::Backend>(loss: Tensor<B, 1>) -> f64 {
    loss.into_data().convert::<f64>().iter::<f64>().sum()
}

fn step(criterion: &mut Criterion) {
    support::run(Step(criterion));
}

criterion_group!(benches, step);
criterion_main!(benches);
