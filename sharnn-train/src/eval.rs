//! Bits per byte of a model over a run of bytes, exactly counted.
//!
//! The bytes are cut into contiguous lanes of equal length and the remainder is left out. Every lane starts cold, its first
//! byte is never scored, and state and memory are carried through to its end. What a byte can see depends on the segment
//! length, since the memory is cut so that a segment fits in: results state theirs.
//!
//! Here lives every way of scoring bytes in lanes: with the model, by streams, and with weights that follow.
//! It may use params, group and interrupt; recipe and trainer may use it.

mod dynamic;
mod streams;

use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sharnn_core::{Backend, Pass, Precision, ShaRnn, StreamError};
use sharnn_data::{DataError, Lanes};

pub use dynamic::{DynamicEval, evaluate_dynamic};
#[cfg(feature = "flex")]
pub use streams::evaluate_packed;
pub use streams::evaluate_streams;

use crate::group::{Alone, Group};
use crate::interrupt::Interrupt;

/// How to evaluate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Number of lanes that run side by side. The paper validates in 16 and tests in 8.
    pub lanes: usize,
    /// Length of a segment in bytes; the last one of a lane is shorter. The paper uses 1024.
    pub seq_len: usize,
    /// Precision of matrix products.
    #[serde(default)]
    pub precision: Precision,
}

impl Default for EvalConfig {
    /// The paper's test: 8 lanes, segments of 1024 bytes, f32.
    fn default() -> Self {
        Self { lanes: 8, seq_len: 1024, precision: Precision::F32 }
    }
}

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An option cannot be used.
    #[error("{field} = 0 cannot be used: use at least 1")]
    Zero {
        /// Name of the option.
        field: &'static str,
    },
    /// A rate cannot be used.
    #[error("{field} = {value} cannot be used: use {expected}")]
    Rate {
        /// Name of the option.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What would do.
        expected: &'static str,
    },
    /// A segment would not fit into the memory.
    #[error(
        "segments of {seq_len} bytes are longer than the memory of {mem_len}: use shorter segments, a longer memory, or none"
    )]
    SegmentTooLong {
        /// Length of a segment in bytes.
        seq_len: usize,
        /// Rows of memory that the model keeps.
        mem_len: usize,
    },
    /// The device cannot compute in this precision.
    #[error("the device does not compute in {}: use precision f32", precision.name())]
    Precision {
        /// The precision.
        precision: Precision,
    },
    /// The data cannot be cut into so many lanes.
    #[error(transparent)]
    Lanes(#[from] DataError),
    /// A byte is outside the model's vocabulary.
    #[error("byte {byte} at offset {offset} is outside the model's vocabulary of {vocab_size}: use a model of 256")]
    OutsideVocabulary {
        /// The byte.
        byte: u8,
        /// Its offset in the data.
        offset: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The model's tokens are not bytes.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The model's loss is not a number.
    #[error("the loss is {nats} at byte {offset} of every lane, expected a finite one: the model has diverged")]
    NotFinite {
        /// Offset in the lanes of the segment's first byte.
        offset: usize,
        /// The mean loss of the segment.
        nats: f64,
    },
    /// Somebody asked to stop.
    #[error("scoring was interrupted after {done} of {total} bytes")]
    Interrupted {
        /// Bytes scored so far.
        done: u64,
        /// Bytes to score.
        total: u64,
    },
}

/// Result of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Sum of the negative log-likelihoods of all scored bytes, in nats.
    pub nats: f64,
    /// Number of scored bytes.
    pub bytes_scored: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

impl Evaluation {
    /// Bits per scored byte.
    pub fn bpc(&self) -> f64 {
        self.nats / self.bytes_scored as f64 / std::f64::consts::LN_2
    }

    /// Scored bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes_scored as f64 / self.seconds
    }
}

/// Scores `data` with `model`, which lies on `device`. `progress` is called after every segment with the bytes scored so far
/// and in all, and `interrupt` looked at before each.
///
/// Give it a model without gradients (`model.valid()`): nothing here needs a graph.
///
/// # Errors
/// Options or data that cannot be used, a model whose loss is not finite, and an interruption: see [`EvalError`].
pub fn evaluate<B: Backend>(
    model: &ShaRnn<B>,
    data: &[u8],
    config: &EvalConfig,
    device: &B::Device,
    interrupt: &Interrupt,
    progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    evaluate_in(&Alone, model, data, config, device, interrupt, progress)
}

/// [`evaluate`] by all processes of a group, each on its share of the lanes, with the same result for all of them. `progress` is
/// that of the share. An interruption of one is one of all.
pub(crate) fn evaluate_in<B: Backend>(
    group: &dyn Group,
    model: &ShaRnn<B>,
    data: &[u8],
    config: &EvalConfig,
    device: &B::Device,
    interrupt: &Interrupt,
    progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    check(model, config, device)?;
    let lanes = cut(data, config.lanes, model.vocab_size())?;
    let own = evaluate_lanes(&lanes, group.share(config.lanes), model, config, device, interrupt, progress);
    if group.size() == 1 {
        return own;
    }
    let interrupted = match &own {
        Err(EvalError::Interrupted { done, total }) => [done.to_le_bytes(), total.to_le_bytes()].concat(),
        _ => Vec::new(),
    };
    if let Some((done, total)) = agreed(group, &interrupted) {
        let [done, total] = [done, total].map(u64::from_le_bytes);
        return Err(EvalError::Interrupted { done, total });
    }
    // All tell of the same place where the loss is not finite.
    let place = match &own {
        Err(EvalError::NotFinite { offset, nats }) => [(*offset as u64).to_le_bytes(), nats.to_le_bytes()].concat(),
        _ => Vec::new(),
    };
    if let Some((offset, nats)) = agreed(group, &place) {
        let (offset, nats) = (u64::from_le_bytes(offset) as usize, f64::from_le_bytes(nats));
        return Err(EvalError::NotFinite { offset, nats });
    }
    let own = own?;
    let mut sums = [own.nats, own.bytes_scored as f64];
    group.sum_f64(&mut sums);
    // What is the best so far must be the same for all.
    let mut of_first: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    group.broadcast(&mut of_first);
    for (sum, bytes) in sums.iter_mut().zip(of_first.chunks_exact(8)) {
        *sum = f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    }
    Ok(Evaluation { nats: sums[0], bytes_scored: sums[1] as u64, ..own })
}

/// What the first process says that has something to say, for all: two numbers of eight bytes.
fn agreed(group: &dyn Group, own: &[u8]) -> Option<([u8; 8], [u8; 8])> {
    let mut said = group.gather(own).into_iter().find(|said| !said.is_empty()).unwrap_or_default();
    group.broadcast(&mut said);
    let (first, second) = said.split_first_chunk::<8>()?;
    Some((*first, second.try_into().expect("eight bytes")))
}

/// Scores some of the lanes.
fn evaluate_lanes<B: Backend>(
    lanes: &Lanes<&[u8]>,
    share: Range<usize>,
    model: &ShaRnn<B>,
    config: &EvalConfig,
    device: &B::Device,
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    let targets = lanes.lane_len() - 1;
    let total = (share.len() * targets) as u64;
    let pass = Pass { precision: config.precision, ..Pass::default() };

    let mut sum = LossSum::new();
    let mut state = model.empty_state();
    let mut pending: Option<Segment<B>> = None;
    let targets = if share.is_empty() { 0 } else { targets };
    for start in (0..targets).step_by(config.seq_len) {
        if interrupt.is_raised() {
            return Err(EvalError::Interrupted { done: sum.bytes, total });
        }
        let end = targets.min(start + config.seq_len);
        let input = segment(lanes, &share, start, end, device);
        let target = segment(lanes, &share, start + 1, end + 1, device);
        let (loss, new_state) = model.loss(input, target, state, &pass);
        state = new_state.detach();
        // The loss before is read only now, so that the device has work while the host waits for it.
        let done = pending.replace(Segment { loss, offset: start, bytes: (share.len() * (end - start)) as u64 });
        if let Some(done) = done {
            done.read(&mut sum)?;
            progress(sum.bytes, total);
        }
    }
    if let Some(done) = pending {
        done.read(&mut sum)?;
        progress(sum.bytes, total);
    }
    Ok(sum.evaluation())
}

/// A segment whose loss has not been read yet.
struct Segment<B: Backend> {
    loss: Tensor<B, 1>,
    offset: usize,
    bytes: u64,
}

impl<B: Backend> Segment<B> {
    fn read(self, sum: &mut LossSum) -> Result<(), EvalError> {
        sum.add(self.offset, f64::from(crate::params::host_values(self.loss)[0]), self.bytes)
    }
}

/// What was scored so far.
struct LossSum {
    nats: f64,
    bytes: u64,
    started: Instant,
}

impl LossSum {
    fn new() -> Self {
        Self { nats: 0.0, bytes: 0, started: Instant::now() }
    }

    /// Adds `bytes` bytes with a mean loss of `nats`, which begin at `offset` of every lane.
    fn add(&mut self, offset: usize, nats: f64, bytes: u64) -> Result<(), EvalError> {
        if !nats.is_finite() {
            return Err(EvalError::NotFinite { offset, nats });
        }
        self.nats += nats * bytes as f64;
        self.bytes += bytes;
        Ok(())
    }

    fn evaluation(self) -> Evaluation {
        Evaluation { nats: self.nats, bytes_scored: self.bytes, seconds: self.started.elapsed().as_secs_f64() }
    }
}

fn check<B: Backend>(model: &ShaRnn<B>, config: &EvalConfig, device: &B::Device) -> Result<(), EvalError> {
    let &EvalConfig { seq_len, precision, .. } = config;
    if seq_len == 0 {
        return Err(EvalError::Zero { field: "seq_len" });
    }
    if model.attends() && model.mem_len > 0 && seq_len > model.mem_len {
        return Err(EvalError::SegmentTooLong { seq_len, mem_len: model.mem_len });
    }
    if !precision.is_supported::<B>(device) {
        return Err(EvalError::Precision { precision });
    }
    Ok(())
}

/// Cuts the bytes into lanes, all of whose bytes are in the vocabulary.
fn cut(data: &[u8], n_lanes: usize, vocab_size: usize) -> Result<Lanes<&[u8]>, EvalError> {
    let lanes = Lanes::new(data, n_lanes)?;
    let used = &data[..n_lanes * lanes.lane_len()];
    match used.iter().position(|&byte| usize::from(byte) >= vocab_size) {
        None => Ok(lanes),
        Some(offset) => Err(EvalError::OutsideVocabulary { byte: used[offset], offset, vocab_size }),
    }
}

/// Bytes `start..end` of the lanes of `share` as tokens, `[share, end - start]`.
fn segment<B: Backend>(
    lanes: &Lanes<&[u8]>,
    share: &Range<usize>,
    start: usize,
    end: usize,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let lane = |i: usize| lanes.lane(i)[start..end].iter().map(|&byte| i32::from(byte));
    let tokens: Vec<i32> = share.clone().flat_map(lane).collect();
    Tensor::from_data(TensorData::new(tokens, [share.len(), end - start]), device)
}
