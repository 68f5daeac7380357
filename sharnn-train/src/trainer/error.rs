//! What can end a training run.

use std::path::PathBuf;

use sharnn_core::Precision;
use sharnn_data::DataError;

use crate::eval::EvalError;
use crate::files::WeightsError;
use crate::group::GroupError;
use crate::recipe::RecipeError;
use crate::run::{CheckpointError, MetricsError};

/// An error about a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe or the model's configuration cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),

    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),

    /// Initial weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),

    /// The run directory or a checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// The metrics file cannot be used.
    #[error(transparent)]
    Metrics(#[from] MetricsError),

    /// A split cannot be scored.
    #[error("cannot score the {split} split: {source}")]
    Evaluate {
        /// "valid" or "test".
        split: &'static str,
        /// Why.
        source: EvalError,
    },

    /// The data has bytes that the model has no token for.
    #[error("the {split} split holds byte {byte}, the model knows {vocab_size} symbols: use a model of 256")]
    Vocabulary {
        /// "train", "valid" or "test".
        split: &'static str,
        /// The largest byte.
        byte: u8,
        /// The model's.
        vocab_size: usize,
    },

    /// The backend does not compute in the recipe's precision on this device.
    #[error("{backend} does not compute in {} on this device: use precision f32, or another backend", precision.name())]
    Precision {
        /// The recipe's.
        precision: Precision,
        /// Name of the backend.
        backend: String,
    },

    /// The processes of a group can't train together.
    #[error(transparent)]
    Group(#[from] GroupError),

    /// Too many steps in a row were skipped.
    #[error(
        "stopped: the steps up to {step} were skipped, {in_a_row} in a row, because loss or gradient were not finite \
         (the last finite loss was {last_bpc:.3} bits per byte); {last_checkpoint}. Try a lower learning rate, a longer \
         warm-up, a smaller clip of the gradient, or precision f32"
    )]
    Diverged {
        /// The last of these steps.
        step: u64,
        /// How many they are.
        in_a_row: u64,
        /// The smoothed training loss before them; 0 if there was none.
        last_bpc: f64,
        /// Which checkpoint stands from before.
        last_checkpoint: String,
    },

    /// The best weights in the run directory are not those of this run.
    #[error(
        "the best weights in {} are not those of this run (sha256 {found}, not {expected}): somebody else wrote them, or each \
         machine has a directory of its own. Name one that all machines share, and resume, which restores them",
        run_dir.display()
    )]
    OtherBest {
        /// The directory.
        run_dir: PathBuf,
        /// Checksum of the weights that scored best.
        expected: String,
        /// Checksum of those that are there.
        found: String,
    },

    /// No validation gave a finite loss, so there are no best weights to go on from or to test.
    #[error("no validation up to step {step} gave a finite loss: there are no best weights. Try a lower learning rate")]
    NoBest {
        /// The step.
        step: u64,
    },
}

impl TrainError {
    /// Whether somebody asked to stop, so that nothing went wrong.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Evaluate { source: EvalError::Interrupted { .. }, .. })
    }
}
