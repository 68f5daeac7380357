//! What decides where a run is kept and when it stops, and nothing of what it computes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sharnn_core::{Backend, ShaRnn};

use crate::files::{WeightsError, load_weights, load_weights_from_bytes};

/// Where a run is kept, and how often. No choice here changes what is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// The run directory. Created where it is missing.
    pub run_dir: PathBuf,
    /// Steps between metrics records; at least 1. Reading the device makes the loop wait for it, so not every step.
    pub log_every: u64,
    /// Steps between checkpoints, beside those at the end of phases, of the run, and of epochs that took longer than ten seconds
    /// and than twenty times what a checkpoint takes; 0 for none.
    pub checkpoint_every: u64,
    /// Time between checkpoints, whichever comes first; `None` for none.
    pub checkpoint_interval: Option<Duration>,
    /// How many of the newest checkpoints are kept; at least 1. With 2, one is left should the newest be damaged.
    pub keep_checkpoints: usize,
    /// Weights that a new run starts from; by default they are drawn from the recipe's seed. A resumed run starts from its
    /// checkpoint.
    pub initial_weights: Option<InitialWeights>,
    /// Whether the validation split is scored before the first step too: for a run that goes on from trained weights. They count as
    /// its best until a step is better.
    pub score_start: bool,
    /// Whether a resumed run may be validated and tested on other bytes than before. Those that it trains on are always its own.
    pub other_evaluation_data: bool,
    /// Whether each step computes activations again in its backward in place of keeping them: less memory, more time, the
    /// same run.
    pub recompute: bool,
}

/// Trained weights: a safetensors file under the published PyTorch model's names, on the disk or in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialWeights {
    /// The path of a file.
    File(PathBuf),
    /// A file that is part of the program.
    Memory {
        /// What errors call it.
        name: &'static str,
        /// Its bytes.
        bytes: &'static [u8],
    },
}

impl From<PathBuf> for InitialWeights {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl InitialWeights {
    /// Loads them into a model.
    pub(super) fn load<B: Backend>(&self, model: ShaRnn<B>) -> Result<ShaRnn<B>, WeightsError> {
        match self {
            Self::File(path) => load_weights(model, path),
            Self::Memory { name, bytes } => load_weights_from_bytes(model, name, bytes),
        }
    }
}

impl TrainOptions {
    /// A record every 10 steps, a checkpoint every 10 minutes, two of them kept.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            log_every: 10,
            checkpoint_every: 0,
            checkpoint_interval: Some(Duration::from_secs(600)),
            keep_checkpoints: 2,
            initial_weights: None,
            score_start: false,
            other_evaluation_data: false,
            recompute: false,
        }
    }
}

/// When to stop before the recipe's end; the first one counts. None by default.
///
/// A limit stops a run between two steps and leaves a checkpoint from which it goes on as if it had never stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Steps of the whole run.
    pub max_steps: Option<u64>,
    /// Epochs of the whole run.
    pub max_epochs: Option<u64>,
    /// Wall-clock time of this call.
    pub max_time: Option<Duration>,
}

impl Limits {
    /// Those that are reached at some position of the run, by name; of time only one process of many knows.
    pub(super) fn of_position(&self) -> BTreeMap<&'static str, Option<u64>> {
        BTreeMap::from([("max_steps", self.max_steps), ("max_epochs", self.max_epochs)])
    }
}

/// Why [`run`](crate::Trainer::run) came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// All phases of the recipe are done.
    Finished,
    /// [`Limits::max_steps`]
    Steps,
    /// [`Limits::max_epochs`]
    Epochs,
    /// [`Limits::max_time`]
    Time,
    /// Somebody interrupted it.
    Interrupted,
}
