//! What steps left on the device, read in one go when something is logged: the loop never waits for the device otherwise.

use burn::tensor::{Bool, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::params::host_values;

/// Steps that may be waiting: enough that reading costs nothing, few enough to hold no memory.
const MAX_PENDING: usize = 256;

/// A step whose results are still on the device.
pub(crate) struct PendingStep<B: Backend> {
    /// Number of the step, from 1.
    pub(crate) step: u64,
    /// Bytes trained on.
    pub(crate) bytes: u64,
    pub(crate) lr: f64,
    /// Mean loss in nats per byte, `[1]`.
    pub(crate) loss: Tensor<B, 1>,
    /// `[1]`
    pub(crate) grad_norm: Tensor<B, 1>,
    /// `[1]`
    pub(crate) finite: Tensor<B, 1, Bool>,
}

/// A step on the host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepResult {
    pub(crate) step: u64,
    pub(crate) bytes: u64,
    pub(crate) lr: f64,
    pub(crate) nats_per_byte: f64,
    pub(crate) grad_norm: f64,
    /// Whether the step counted.
    pub(crate) finite: bool,
}

/// The steps since the device was read last.
pub(crate) struct StepLog<B: Backend>(Vec<PendingStep<B>>);

impl<B: Backend> StepLog<B> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, step: PendingStep<B>) {
        self.0.push(step);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_PENDING
    }

    /// Reads the device, and forgets the steps.
    pub(crate) fn read(&mut self) -> Vec<StepResult> {
        let steps = std::mem::take(&mut self.0);
        if steps.is_empty() {
            return Vec::new();
        }
        let columns = steps.iter().flat_map(|s| [s.loss.clone(), s.grad_norm.clone(), s.finite.clone().float()]);
        let values = host_values(Tensor::cat(columns.collect(), 0));
        let result = |(step, values): (PendingStep<B>, &[f32])| StepResult {
            step: step.step,
            bytes: step.bytes,
            lr: step.lr,
            nats_per_byte: values[0].into(),
            grad_norm: values[1].into(),
            finite: values[2] != 0.0,
        };
        steps.into_iter().zip(values.chunks_exact(3)).map(result).collect()
    }
}

/// What was measured since the last metrics record. It is part of a checkpoint, so that the next record is the same whether
/// the run was interrupted or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Steps, skipped ones included.
    pub steps: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Bytes of all of these steps.
    pub bytes: u64,
    /// Bytes of the steps that were not skipped.
    pub scored: u64,
    /// Sum of the losses over those bytes, in nats.
    pub nats: f64,
    /// Wall-clock seconds of training, without validation and checkpoints.
    pub seconds: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Gradient norm of the last step that was not skipped.
    pub grad_norm: Option<f64>,
}

impl Window {
    pub(crate) fn add(&mut self, step: &StepResult) {
        self.steps += 1;
        self.bytes += step.bytes;
        self.lr = step.lr;
        if step.finite {
            self.scored += step.bytes;
            self.nats += step.nats_per_byte * step.bytes as f64;
            self.grad_norm = Some(step.grad_norm);
        } else {
            self.skipped += 1;
        }
    }

    /// Training loss in bits per byte, where any byte was scored.
    pub fn bpc(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.nats / self.scored as f64 / std::f64::consts::LN_2)
    }

    /// Bytes a second; 0 where no time has been measured.
    pub fn bytes_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds } else { 0.0 }
    }
}

/// A training loss that forgets: the mean of the steps at first, then mostly of the last fifty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smoothed {
    /// Bits per byte; 0 before the first step.
    pub bpc: f64,
    /// Steps seen.
    pub steps: u64,
}

impl Smoothed {
    pub(crate) fn add(&mut self, step: &StepResult) {
        if step.finite {
            self.steps += 1;
            let bpc = step.nats_per_byte / std::f64::consts::LN_2;
            self.bpc += (bpc - self.bpc) * (1.0 / self.steps as f64).max(0.02);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(nats_per_byte: f64, bytes: u64, finite: bool) -> StepResult {
        StepResult { step: 1, bytes, lr: 1e-3, nats_per_byte, grad_norm: 0.5, finite }
    }

    #[test]
    fn a_window_averages_over_bytes_and_leaves_skipped_steps_out() {
        let mut window = Window::default();
        assert_eq!((window.bpc(), window.bytes_per_s()), (None, 0.0));
        window.add(&step(f64::NAN, 10, false));
        assert_eq!((window.bpc(), window.grad_norm, window.skipped), (None, None, 1));
        let ln2 = std::f64::consts::LN_2;
        window.add(&step(2.0 * ln2, 30, true));
        window.add(&step(6.0 * ln2, 10, true));
        assert_eq!(window.bpc(), Some(3.0));
        assert_eq!((window.steps, window.bytes, window.scored), (3, 50, 40));
        window.seconds = 2.0;
        assert_eq!(window.bytes_per_s(), 25.0);
    }

    #[test]
    fn the_smoothed_loss_is_a_mean_at_first_and_then_forgets() {
        let mut smoothed = Smoothed::default();
        let ln2 = std::f64::consts::LN_2;
        smoothed.add(&step(8.0 * ln2, 1, true));
        smoothed.add(&step(4.0 * ln2, 1, true));
        smoothed.add(&step(f64::NAN, 1, false));
        assert!((smoothed.bpc - 6.0).abs() < 1e-12);
        (0..1000).for_each(|_| smoothed.add(&step(ln2, 1, true)));
        assert!((smoothed.bpc - 1.0).abs() < 1e-6);
    }
}
