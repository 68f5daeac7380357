//! What a run goes on from that `--from` named, kept in its directory: `--resume` scores that too before the first step, and the page
//! names it.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::super::runs;

pub const FILE: &str = "from.json";

/// Trained weights, as a reader knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub model: String,
}

impl Origin {
    /// That of the run in a directory, where it has one.
    pub fn kept(run_dir: &Path) -> Result<Option<Self>> {
        runs::kept(run_dir, FILE, "delete it: the run does not need it")
    }

    pub fn keep(&self, run_dir: &Path) -> Result<()> {
        runs::keep(run_dir, FILE, self)
    }

    /// Removes that of another run, where there is one.
    pub fn forget(run_dir: &Path) -> Result<()> {
        let path = run_dir.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}
