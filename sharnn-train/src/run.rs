//! What a run keeps: its directory with the lock, checkpoints, the manifest in each, and what was measured.
//!
//! Here lives what a run goes on from, and nothing that computes: the trainer fills it and reads it.
//! It may use recipe, optim, files, group and params; report and trainer may use it.

pub(crate) mod checkpoint;
mod directory;
mod error;
mod manifest;
mod metrics;
mod step_log;

pub use checkpoint::{BEST_DIR, BestManifest, RunWeights, latest_manifest, load_best, load_run, run_weights};
pub use error::CheckpointError;
pub use manifest::{Best, CorpusIdentity, FORMAT, FileDigest, Manifest, Moved, Position};
pub use metrics::{EvalRecord, METRICS_FILE, Metrics, MetricsError, Record, TrainRecord};
pub use step_log::{Smoothed, Window};

pub(crate) use checkpoint::Checkpoint;
pub(crate) use directory::{RunDir, checkpoints, step_name};
pub(crate) use step_log::{PendingStep, StepLog};
