//! The same score with the weights packed for decoding: what a format of the weights costs in bits per byte.

use sharnn_core::DecodeEngine;

use super::{EvalError, Evaluation, LossSum, cut};
use crate::Interrupt;

/// Bytes of every lane between two calls of `progress`.
const PROGRESS_EVERY: usize = 1024;

/// Scores `data` with a decoder, in lanes that are cut and scored as those of [`evaluate`](crate::evaluate), byte by byte.
/// `progress` is called from time to time, and at the end, with the bytes scored so far and in all.
///
/// A byte sees the newest `mem_len` bytes of its lane, itself among them, as in `evaluate` with segments of one byte: with
/// f32 weights both give the same up to rounding. Longer segments see less; what another format costs is the difference
/// from f32 here.
///
/// # Errors
/// Data that cannot be used, a model whose loss is not finite, and an interruption: see [`EvalError`].
pub fn evaluate_packed(
    engine: &DecodeEngine,
    data: &[u8],
    lanes: usize,
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    let lanes = cut(data, lanes, engine.vocab_size())?;
    let (n, targets, total) = (lanes.n_lanes(), lanes.lane_len() - 1, lanes.n_targets() as u64);
    let byte = |lane: usize, offset: usize| lanes.lane(lane)[offset];

    let mut sum = LossSum::new();
    let mut streams = engine.streams(n);
    let mut tokens = Vec::with_capacity(n);
    for offset in 0..targets {
        if interrupt.is_raised() {
            return Err(EvalError::Interrupted { done: sum.bytes, total });
        }
        tokens.clear();
        tokens.extend((0..n).map(|lane| byte(lane, offset)));
        let logits = streams.feed(&tokens).chunks_exact(engine.vocab_size());
        let losses = logits.enumerate().map(|(lane, logits)| cross_entropy(logits, byte(lane, offset + 1)));
        let nats: f64 = losses.sum();
        sum.add(offset, nats / n as f64, n as u64)?;
        if (offset + 1).is_multiple_of(PROGRESS_EVERY) || offset + 1 == targets {
            progress(sum.bytes, total);
        }
    }
    Ok(sum.evaluation())
}

/// The negative log-likelihood of `target` in nats.
fn cross_entropy(logits: &[f32], target: u8) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[usize::from(target)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cross_entropy_is_finite_for_large_logits_and_for_those_alone() {
        assert!((cross_entropy(&[1.0, 1.0, 1.0, 1.0], 2) - 4.0_f64.ln()).abs() < 1e-12);
        // ln(1 + e^-2) + 2
        assert!((cross_entropy(&[1000.0, 998.0], 1) - 2.126_928_011_042_972_5).abs() < 1e-12);
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(!cross_entropy(&[0.0, broken], 0).is_finite());
        }
    }
}
