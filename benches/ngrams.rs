//! The memory of n-grams: a training step of size XS with the optimizer of recipe `budget`, 64 lanes of 32 bytes of English, with it and without;
//! and Adagrad on the rows of such a step, as the backend does it and in plain Burn operations.

mod support;

use burn::tensor::{Int, Tensor, TensorData};
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::SegmentLoss;
use sharnn::core::ops::{AdagradStep, generic};
use sharnn::train::{Alone, Recipe, RowGrads};
use sharnn::{AutodiffBackend, Backend, BackendJob, NGramConfig, Pass, Precision, ShaRnn, ShaRnnConfig};
use support::{Random, assert_near, values};

const LANES: usize = 64;
const SEQ_LEN: usize = 32;
const MEMORY: usize = 512;

struct NGrams<'c>(&'c mut Criterion);

/// `LANES` lanes of the bundled text, from `start` of each on.
fn text<B: Backend>(start: usize, len: usize, device: &B::Device) -> Tensor<B, 2, Int> {
    let sample = sharnn::data::enwik8::sample();
    let lane_len = sample.train.len() / LANES;
    let lane = |lane: usize| sample.train[lane * lane_len + start..][..len].iter().map(|&byte| i32::from(byte));
    Tensor::from_data(TensorData::new((0..LANES).flat_map(lane).collect(), [LANES, len]), device)
}

impl BackendJob for NGrams<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let Self(criterion) = self;
        rows::<B::InnerBackend>(criterion, &device);
        for precision in support::precisions::<B>(&device) {
            let mut group = support::group::<B>(criterion, "ngrams", precision, LANES * SEQ_LEN);
            for (name, ngrams) in [("step without", None), ("step with", Some(NGramConfig::default()))] {
                let config = ShaRnnConfig { ngrams, ..ShaRnnConfig::xs().with_mem_len(MEMORY) };
                let mut model = Some(config.init_seeded::<B>(1, &device));
                let mut optimizer = Recipe::budget(None).optimizer::<B>();
                let mut state = model.as_ref().map(ShaRnn::empty_state);
                let mut start = 0;
                support::time::<B, _>(&mut group, name, &device, || {
                    let [tokens, targets] = [start, start + 1].map(|start| text::<B>(start, SEQ_LEN, &device));
                    start = (start + SEQ_LEN) % 8192;
                    let pass = Pass { precision, ..Pass::default() };
                    let (old, before) = (model.take().expect("a model"), state.take().expect("a state"));
                    let SegmentLoss { loss, state: after, rows } = old.segment_loss(tokens, targets, before, &pass);
                    state = Some(after.detach());
                    let mut grads = loss.backward();
                    let rows = rows.and_then(|rows| RowGrads::take(rows, &mut grads));
                    let (new, report) = optimizer.step_in(&Alone, &mut [], old, loss.inner(), (grads, rows), 2e-3);
                    model = Some(new);
                    report.loss
                });
            }
            group.finish();
        }
    }
}

/// Adagrad on as many rows as a step uses, of tables of the usual size.
fn rows<B: Backend>(criterion: &mut Criterion, device: &B::Device) {
    let NGramConfig { orders, rows, width, .. } = NGramConfig::default();
    let (n_rows, n) = (orders.len() * rows, LANES * SEQ_LEN * orders.len());
    let mut random = Random::new();
    let used: Vec<i32> = (0..n).map(|i| (i * i % 4001 * 79 % n_rows) as i32).collect();
    let used = Tensor::<B, 1, Int>::from_data(TensorData::new(used, [n]), device);
    let grad = random.floats::<B, 2>([n, width], device);
    let step = || AdagradStep {
        lr: 0.05,
        eps: 1e-8,
        rows: used.clone(),
        grad: grad.clone(),
        skip: Tensor::from_data([false], device),
    };
    let start = || (Tensor::zeros([n_rows, width], device), Tensor::zeros([n_rows], device));
    type Op<B> = fn(Tensor<B, 2>, Tensor<B, 1>, AdagradStep<B>) -> (Tensor<B, 2>, Tensor<B, 1>);
    let ops: [(&str, Op<B>); 2] = [("backend", B::adagrad_rows), ("generic", generic::adagrad_rows)];
    let results = ops.map(|(_, op)| values(op(start().0, start().1, step()).0));
    assert_near("the table", &results[0], &results[1]);
    let mut group = support::group::<B>(criterion, "adagrad_rows", Precision::F32, n);
    for (name, op) in ops {
        let mut state = Some(start());
        support::time::<B, _>(&mut group, name, device, || {
            let (table, squares) = state.take().expect("a table");
            state = Some(op(table, squares, step()));
        });
    }
    group.finish();
}

fn ngrams(criterion: &mut Criterion) {
    support::run(NGrams(criterion));
}

criterion_group!(benches, ngrams);
criterion_main!(benches);
