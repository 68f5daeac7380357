//! Whole blocks over a segment, with and without attention: forward, and forward with backward.

mod support;

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::{Block, BlockState};
use sharnn::train::{VisitFloat, visit_params};
use sharnn::{AutodiffBackend, BackendJob, Pass};
use support::{BATCH, MEMORY, Random, SEQ_LEN};

struct Blocks<'c>(&'c mut Criterion);

impl BackendJob for Blocks<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let model = support::config().init_seeded::<B>(1, &device);
        for (index, block) in model.blocks.iter().enumerate().skip(1).take(2) {
            let name = if block.attending.is_some() { "attending" } else { "plain" };
            Bench { block, index, name, device: &device }.run(self.0);
        }
    }
}

struct Bench<'a, B: AutodiffBackend> {
    block: &'a Block<B>,
    index: usize,
    name: &'static str,
    device: &'a B::Device,
}

impl<B: AutodiffBackend> Bench<'_, B> {
    fn run(&self, criterion: &mut Criterion) {
        let Self { block, index, name, device } = *self;
        let (pass, mem_len) = (Pass::default(), MEMORY + SEQ_LEN);
        let inner = block.valid();
        let [_, d] = block.lstm.weight_hh.dims();
        let mut random = Random::new();
        let h = random.floats::<B::InnerBackend, 3>([BATCH, SEQ_LEN, d], device);
        let memory = random.floats::<B::InnerBackend, 3>([BATCH, MEMORY, d], device);
        let cotangent = random.floats::<B::InnerBackend, 3>([BATCH, SEQ_LEN, d], device);
        let state = BlockState { lstm: None, memory: block.attending.is_some().then(|| memory.clone()) };
        let forward = |pass| inner.forward(h.clone(), state.clone(), mem_len, index, &pass);

        // A segment in two parts is the segment.
        let (first, second) = (SEQ_LEN / 3, SEQ_LEN - SEQ_LEN / 3);
        let (y1, middle) = inner.forward(h.clone().narrow(1, 0, first), state.clone(), mem_len, index, &pass);
        let (y2, _) = inner.forward(h.clone().narrow(1, first, second), middle, mem_len, index, &pass);
        let parts = support::values(Tensor::cat(vec![y1, y2], 1));
        support::assert_near(name, &support::values(forward(pass).0), &parts);

        let tracked_h = Tensor::<B, 3>::from_inner(h.clone()).require_grad();
        let backward = |pass| {
            let memory = state.memory.clone().map(Tensor::from_inner);
            let state = BlockState { lstm: None, memory };
            let (y, _) = block.forward(tracked_h.clone(), state, mem_len, index, &pass);
            (y * Tensor::from_inner(cotangent.clone())).sum().backward()
        };
        let grads = backward(pass);
        support::assert_usable("h", tracked_h.grad(&grads), h.dims());
        visit_params(block, &mut Usable(&grads));

        for precision in support::precisions::<B>(device) {
            let pass = Pass { precision, ..pass };
            let mut group = support::group::<B>(criterion, &format!("block/{name}"), precision, BATCH * SEQ_LEN);
            support::time::<B, _>(&mut group, "forward", device, || forward(pass));
            support::time::<B, _>(&mut group, "forward+backward", device, || backward(pass));
            group.finish();
        }
    }
}

/// Every parameter has a gradient that can be used.
struct Usable<'g, B: AutodiffBackend>(&'g B::Gradients);

impl<B: AutodiffBackend> VisitFloat<B> for Usable<'_, B> {
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
        support::assert_usable(path, tensor.grad(self.0), tensor.dims());
    }
}

fn block(criterion: &mut Criterion) {
    support::run(Blocks(criterion));
}

criterion_group!(benches, block);
criterion_main!(benches);
