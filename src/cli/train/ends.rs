//! When a run is to end, kept in its directory: `--resume` goes on to there.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::runs;
use crate::train::Limits;

pub const FILE: &str = "ends.json";

/// The first of them counts; without any it is the recipe's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ends {
    /// Steps of the whole run.
    pub steps: Option<u64>,
    /// Passes over the training data.
    pub epochs: Option<u64>,
    /// Seconds of the whole run.
    pub seconds: Option<f64>,
}

impl Ends {
    /// Those of the run in a directory, where it was started on the command line.
    pub fn kept(run_dir: &Path) -> Result<Option<Self>> {
        runs::kept(run_dir, FILE, "delete it, and say with --steps, --epochs or --minutes when to stop")
    }

    pub fn keep(&self, run_dir: &Path) -> Result<()> {
        runs::keep(run_dir, FILE, self)
    }

    /// Limits of a call that begins when the run has taken so many seconds.
    pub fn limits(&self, seconds: f64) -> Limits {
        let left = |end: f64| Duration::try_from_secs_f64((end - seconds).max(0.0)).unwrap_or(Duration::MAX);
        Limits { max_steps: self.steps, max_epochs: self.epochs, max_time: self.seconds.map(left) }
    }
}
