//! The same score with the weights packed for decoding: what a format of the weights costs in bits per byte.

use std::ops::Range;

use sharnn_core::{BatchScorer, DecodeEngine, StreamError};

use super::{EvalError, Evaluation, LossSum, cut};
use crate::interrupt::Interrupt;

/// Bytes of every lane between two calls of `progress`.
const PROGRESS_EVERY: usize = 1024;
/// Bytes of every lane between two looks at the interrupt; they divide the above.
const STRETCH: usize = 16;

/// Scores `data` with a decoder, in lanes that are cut and scored as those of [`evaluate`](crate::evaluate), byte by byte.
/// `progress` is called from time to time, and at the end, with the bytes scored so far and in all.
///
/// A byte sees the newest `mem_len` bytes of its lane, itself among them, as in `evaluate` with segments of one byte: with
/// f32 weights both give the same up to rounding. Longer segments see less; what another format costs is the difference
/// from f32 here.
///
/// # Errors
/// Data that cannot be used, a model whose tokens are not bytes or whose loss is not finite, and an interruption: see
/// [`EvalError`].
pub fn evaluate_packed(
    engine: &DecodeEngine,
    data: &[u8],
    lanes: usize,
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    let lanes = cut(data, lanes, engine.vocab_size())?;
    let (n, lane_len, total) = (lanes.n_lanes(), lanes.lane_len(), lanes.n_targets() as u64);
    let texts = |bytes: Range<usize>| -> Vec<&[u8]> { (0..n).map(|lane| &lanes.lane(lane)[bytes.clone()]).collect() };

    let mut sum = LossSum::new();
    let mut scorer = BatchScorer::new(engine.streams(n))?;
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
