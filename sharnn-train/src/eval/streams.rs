//! The same score byte by byte, by streams: with weights packed for decoding, or mixed with what was read.

use std::ops::Range;

#[cfg(feature = "flex")]
use sharnn_core::DecodeEngine;
use sharnn_core::{BatchScorer, StreamError, Streams};

use super::{EvalError, Evaluation, LossSum, cut};
use crate::interrupt::Interrupt;

/// Bytes of every lane between two calls of `progress`.
const PROGRESS_EVERY: usize = 1024;
/// Bytes of every lane between two looks at the interrupt; they divide the above.
const STRETCH: usize = 16;

/// Scores `data` with a decoder: [`evaluate_streams`] of its streams, one a lane.
///
/// A byte sees the newest `mem_len` bytes of its lane, itself among them, as in `evaluate` with segments of one byte: with
/// f32 weights both give the same up to rounding. Longer segments see less; what another format costs is the difference
/// from f32 here.
///
/// # Errors
/// As [`evaluate_streams`].
#[cfg(feature = "flex")]
pub fn evaluate_packed(
    engine: &DecodeEngine,
    data: &[u8],
    lanes: usize,
    interrupt: &Interrupt,
    progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    // Before there are streams for each of them.
    cut(data, lanes, engine.vocab_size())?;
    evaluate_streams(BatchScorer::new(engine.streams(lanes))?, data, interrupt, progress)
}

/// Scores `data` with a scorer that has read nothing, in as many lanes as it has streams, cut as those of
/// [`evaluate`](crate::evaluate), byte by byte. `progress` is called from time to time, and at the end, with the bytes scored so far and in all.
///
/// With [`BatchScorer::adaptive`] it is the score of the model mixed with what was read, from the data's first byte on: another measure than
/// the model's own, to be named so.
///
/// # Errors
/// Data that cannot be used, a model whose tokens are not bytes or whose loss is not finite, and an interruption: see
/// [`EvalError`].
pub fn evaluate_streams<S: Streams>(
    mut scorer: BatchScorer<S>,
    data: &[u8],
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    let lanes = cut(data, scorer.streams().n_streams(), scorer.streams().shape().vocab_size)?;
    let (n, lane_len, total) = (lanes.n_lanes(), lanes.lane_len(), lanes.n_targets() as u64);
    let texts = |bytes: Range<usize>| -> Vec<&[u8]> { (0..n).map(|lane| &lanes.lane(lane)[bytes.clone()]).collect() };

    let mut sum = LossSum::new();
    scorer.feed(&texts(0..1))?;
    for start in (1..lane_len).step_by(STRETCH) {
        if interrupt.is_raised() {
            return Err(EvalError::Interrupted { done: sum.bytes, total });
        }
        let end = lane_len.min(start + STRETCH);
        let nats = scorer.score(&texts(start..end)).map_err(|error| match error {
            StreamError::NotFinite { .. } => EvalError::NotFinite { offset: start - 1, nats: f64::NAN },
            error => error.into(),
        })?;
        let bytes = n * (end - start);
        sum.add(start - 1, nats.iter().flatten().sum::<f64>() / bytes as f64, bytes as u64)?;
        if (end - 1).is_multiple_of(PROGRESS_EVERY) || end == lane_len {
            progress(sum.bytes, total);
        }
    }
    Ok(sum.evaluation())
}
