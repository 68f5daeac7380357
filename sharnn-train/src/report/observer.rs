//! What a run tells whoever watches it.

use std::path::Path;

use crate::run::{Best, EvalRecord, Moved, TrainRecord};

/// Something that happened in a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Training begins, or goes on.
    Started {
        /// Steps done before; 0 for a new run.
        step: u64,
        /// Number of parameters.
        parameters: usize,
        /// Name of the backend.
        backend: &'a str,
    },
    /// A run goes on with another backend, or with other instructions, than what computed its checkpoint. It is then not
    /// bit for bit the run that never stopped.
    Moved(&'a Moved),
    /// The file system of the run directory has no locks: nothing keeps a second process from training there.
    NotLocked {
        /// The run directory.
        run_dir: &'a Path,
    },
    /// Some steps were measured.
    Train {
        /// What was measured; it is in the metrics file too.
        record: &'a TrainRecord,
        /// Smoothed training loss in bits per byte.
        smoothed_bpc: f64,
        /// How much of the current epoch is done, from 0 to 1.
        epoch_done: f64,
        /// Seconds until the run reaches its end or its first limit; `None` before it can be told.
        remaining_seconds: Option<f64>,
    },
    /// What the backend has to say of its device, such as that a kernel could not be used and another one takes its place.
    Notice(&'a str),
    /// A step was skipped, because its loss or its gradient was not finite.
    Skipped {
        /// The step, from 1.
        step: u64,
        /// Steps skipped in a row, this one included.
        in_a_row: u64,
    },
    /// A split is being scored.
    Evaluating {
        /// "valid" or "test".
        split: &'static str,
        /// Bytes scored so far.
        done: u64,
        /// Bytes to score.
        total: u64,
    },
    /// The validation split was scored.
    Valid(&'a EvalRecord),
    /// The test split was scored with the best weights.
    Test(&'a EvalRecord),
    /// A checkpoint is on the disk.
    Checkpoint {
        /// Steps done before.
        step: u64,
        /// Its directory.
        path: &'a Path,
    },
    /// The run stops while its steps are being skipped, so it is not saved: the checkpoint before stays the newest.
    NotSaved {
        /// Steps done.
        step: u64,
    },
    /// A phase after the first begins, from the best weights and with a fresh optimizer.
    Phase {
        /// The phase, from 0.
        phase: usize,
        /// Where its weights come from.
        best: &'a Best,
    },
}

/// Watches a run. Every `FnMut(Event<'_>)` is one.
pub trait Observer {
    /// Called as things happen, on the training thread.
    fn on(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn on(&mut self, event: Event<'_>) {
        self(event);
    }
}
