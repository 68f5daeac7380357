//! The passes of a whole model that are timed: a step of training, scoring, and decoding byte by byte.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::{AutodiffModule, Module};
use burn::tensor::{Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Dtype, Mode};
use crate::core::{BlockState, LstmState, SegmentLoss};
#[cfg(feature = "flex")]
use crate::core::{Streams, WeightFormat};
use crate::train::{Alone, LambConfig, Optimizer, RowGrads};
use crate::{
    AutodiffBackend, Backend, BackendJob, BackendKind, DropoutStream, Pass, Precision, ShaRnn, ShaRnnConfig,
    ShaRnnState,
};

/// Bytes decoded in one timing.
const DECODED: usize = 32;
/// Longest segment in which the memory is filled before decoding.
const FILL_SEGMENT: usize = 1024;
const LEARNING_RATE: f64 = 1e-4;

/// The job, generic over the backend.
#[derive(Clone)]
pub struct Plan {
    pub backend: BackendKind,
    pub config: ShaRnnConfig,
    pub dtype: Dtype,
    pub precision: Precision,
    pub mode: Mode,
    pub batch: usize,
    pub seq_len: usize,
    pub memory: usize,
    pub recompute: bool,
    pub warmup: usize,
    pub runs: usize,
    pub seed: u64,
}

pub struct Measured {
    pub params: usize,
    pub times: Times,
}

/// Of one segment, or of one byte when decoding; one a run that counts.
#[derive(Default)]
pub struct Times {
    /// Seconds until the device had finished.
    pub seconds: Vec<f64>,
    /// Seconds until it had been given all of its work.
    pub enqueued: Vec<f64>,
}

impl Times {
    /// Of one of the `n` bytes that each was taken over.
    fn per_byte(mut self, n: usize) -> Self {
        self.seconds.iter_mut().chain(&mut self.enqueued).for_each(|seconds| *seconds /= n as f64);
        self
    }
}

impl BackendJob for Plan {
    type Output = Result<Measured>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<Measured> {
        ensure!(
            self.precision.is_supported::<B::InnerBackend>(&device),
            "--dtype bf16 cannot be used: backend {} does not compute in it here; use --dtype f32",
            self.backend
        );
        let model = self.config.init_seeded::<B>(self.seed, &device);
        let params = model.num_params();
        let times = match self.mode {
            Mode::Train => self.train::<B>(model, &device)?,
            Mode::Forward => self.forward(&model.valid(), &device)?,
            Mode::Decode => self.decode(&model.valid(), &device)?,
            Mode::Ceilings | Mode::Ops | Mode::Lstm => unreachable!("they have no model and came to their end before"),
        };
        Ok(Measured { params, times })
    }
}

impl Plan {
    fn train<B: AutodiffBackend>(&self, model: ShaRnn<B>, device: &B::Device) -> Result<Times> {
        let mut bytes = Bytes::new(self, device);
        let mut step = 0;
        let mut pass = || {
            step += 1;
            let stream = DropoutStream { seed: self.seed, step, first_lane: 0 };
            Pass { precision: self.precision, dropout: Some(stream), recompute: self.recompute }
        };
        // Filled by a model without gradients, so that no graph is recorded.
        let state = tracked::<B>(self.fill(&model.valid(), self.seq_len, &mut bytes, &mut pass));
        let mut model = Some(model);
        let mut optimizer = Optimizer::new(LambConfig::default(), None);
        let mut finite = None;
        let prepare = || {
            let [tokens, targets] = [(); 2].map(|()| Tensor::from_inner(bytes.segment(self.seq_len)));
            (tokens, targets, state.clone(), pass())
        };
        let job = |(tokens, targets, state, pass)| {
            let old: ShaRnn<B> = model.take().expect("a model between two steps");
            let SegmentLoss { loss, state, rows } = old.segment_loss(tokens, targets, state, &pass);
            let mut grads = loss.backward();
            let rows = rows.and_then(|rows| RowGrads::take(rows, &mut grads));
            let (new, report) = optimizer.step_in(&Alone, &mut [], old, loss.inner(), (grads, rows), LEARNING_RATE);
            model = Some(new);
            finite = Some(report.finite);
            black_box(state.detach());
        };
        let times = self.time::<B, _>(device, prepare, job)?;
        let finite = finite.is_some_and(|finite| finite.into_data().iter::<bool>().all(|finite| finite));
        ensure!(finite, "the loss or a gradient of the last step is not finite: the times mean nothing");
        Ok(times)
    }

    fn forward<B: Backend>(&self, model: &ShaRnn<B>, device: &B::Device) -> Result<Times> {
        let mut bytes = Bytes::new(self, device);
        let pass = Pass { precision: self.precision, ..Pass::default() };
        let state = self.fill(model, self.seq_len, &mut bytes, || pass);
        let mut logits = None;
        let prepare = || (bytes.segment(self.seq_len), state.clone());
        let job = |(tokens, state)| {
            let (h, state) = model.hidden(tokens, state, &pass);
            logits = Some(model.decode(h, &pass));
            black_box(state);
        };
        let times = self.time::<B, _>(device, prepare, job)?;
        check(logits, [self.batch, self.seq_len, model.vocab_size()])?;
        Ok(times)
    }

    fn decode<B: Backend>(&self, model: &ShaRnn<B>, device: &B::Device) -> Result<Times> {
        let mut bytes = Bytes::new(self, device);
        let pass = Pass { precision: self.precision, ..Pass::default() };
        let longest = match model.mem_len {
            0 => FILL_SEGMENT,
            mem_len => mem_len.min(FILL_SEGMENT),
        };
        #[cfg(feature = "flex")]
        if self.backend == BackendKind::Flex {
            return self.decode_packed(model, &mut bytes, device);
        }
        let mut state = Some(self.fill(model, longest, &mut bytes, || pass));
        let mut logits = None;
        let job = |token: Tensor<B, 2, Int>| {
            for _ in 0..DECODED {
                let old = state.take().expect("a state between two bytes");
                let (h, new) = model.hidden(token.clone(), old, &pass);
                logits = Some(model.decode(h, &pass));
                state = Some(new);
            }
        };
        let times = self.time::<B, _>(device, || bytes.segment(1), job)?;
        check(logits, [1, 1, model.vocab_size()])?;
        Ok(times.per_byte(DECODED))
    }

    /// Decodes with packed weights, as a CPU does best.
    #[cfg(feature = "flex")]
    fn decode_packed<B: Backend>(&self, model: &ShaRnn<B>, bytes: &mut Bytes<B>, device: &B::Device) -> Result<Times> {
        let format = match self.dtype {
            Dtype::F32 => WeightFormat::F32,
            Dtype::Bf16 => WeightFormat::Bf16,
            Dtype::Int8 => WeightFormat::Int8,
            Dtype::Exact => WeightFormat::Exact,
        };
        let mut streams = model.engine(format).streams(self.batch);
        let text = |bytes: &mut Bytes<B>, len| bytes.segment(len).into_data().iter::<u8>().collect::<Vec<_>>();
        // Older bytes would leave nothing in the memory, and no other cost.
        let before = text(bytes, self.memory.min(model.mem_len));
        let rows = before.len() / self.batch;
        let lanes: Vec<_> = (0..self.batch).map(|lane| &before[lane * rows..][..rows]).collect();
        streams.read(&lanes, &mut |_, _, _| {});
        let times = self.time::<B, _>(
            device,
            || text(bytes, 1),
            |token| {
                for _ in 0..DECODED {
                    black_box(streams.feed(&token));
                }
            },
        )?;
        let finite = streams.logits(0).is_some_and(|logits| logits.iter().all(|x| x.is_finite()));
        ensure!(finite, "the logits are not finite: the times mean nothing");
        Ok(times.per_byte(DECODED))
    }

    /// The state after `memory` bytes in segments of `longest`; the last one is whole too unless decoding.
    fn fill<B: Backend>(
        &self,
        model: &ShaRnn<B>,
        longest: usize,
        bytes: &mut Bytes<B>,
        mut pass: impl FnMut() -> Pass,
    ) -> ShaRnnState<B> {
        let mut state = model.empty_state();
        for start in (0..self.memory).step_by(longest) {
            let len = if self.mode == Mode::Decode { longest.min(self.memory - start) } else { longest };
            state = model.hidden(bytes.segment(len), state, &pass()).1;
        }
        state
    }

    /// What `job` takes in the runs that count; `prepare` makes its input off the clock.
    fn time<B: Backend, I>(
        &self,
        device: &B::Device,
        mut prepare: impl FnMut() -> I,
        mut job: impl FnMut(I),
    ) -> Result<Times> {
        let mut times = Times::default();
        for run in 0..self.warmup.saturating_add(self.runs) {
            let input = prepare();
            B::sync(device).context("the device failed")?;
            let start = Instant::now();
            job(input);
            B::flush(device).context("the device failed")?;
            let enqueued = start.elapsed();
            B::sync(device).context("the device failed")?;
            if run >= self.warmup {
                times.enqueued.push(enqueued.as_secs_f64());
                times.seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(times)
    }
}

/// Random bytes on the device.
struct Bytes<B: Backend> {
    rng: ChaCha8Rng,
    batch: usize,
    vocab_size: usize,
    device: B::Device,
}

impl<B: Backend> Bytes<B> {
    fn new(plan: &Plan, device: &B::Device) -> Self {
        let (batch, vocab_size) = (plan.batch, plan.config.vocab_size);
        Self { rng: ChaCha8Rng::seed_from_u64(plan.seed), batch, vocab_size, device: device.clone() }
    }

    /// A segment, `[batch_size, len]`.
    fn segment(&mut self, len: usize) -> Tensor<B, 2, Int> {
        let mut token = || (usize::from(self.rng.random::<u8>()) % self.vocab_size) as i32;
        let tokens: Vec<i32> = (0..self.batch * len).map(|_| token()).collect();
        Tensor::from_data(TensorData::new(tokens, [self.batch, len]), &self.device)
    }
}

/// A state in the hands of the backend with gradients; there it is a constant.
fn tracked<B: AutodiffBackend>(state: ShaRnnState<B::InnerBackend>) -> ShaRnnState<B> {
    let block = |BlockState { lstm, memory }| BlockState {
        lstm: lstm.map(|LstmState { h, c }| LstmState { h: Tensor::from_inner(h), c: Tensor::from_inner(c) }),
        memory: memory.map(Tensor::from_inner),
    };
    ShaRnnState { blocks: state.blocks.into_iter().map(block).collect(), recent: state.recent.map(Tensor::from_inner) }
}

/// Refuses times of a pass that did not compute what it should have.
fn check<B: Backend>(logits: Option<Tensor<B, 3>>, dims: [usize; 3]) -> Result<()> {
    let logits = logits.context("nothing was computed")?;
    ensure!(logits.dims() == dims, "the logits have shape {:?}, expected {dims:?}", logits.dims());
    let finite = logits.into_data().convert::<f32>().iter::<f32>().all(f32::is_finite);
    ensure!(finite, "the logits are not finite: the times mean nothing");
    Ok(())
}
