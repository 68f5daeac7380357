//! MODEL on the command line: where a trained model comes from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::runs;
use crate::train::{CheckpointError, latest_manifest, load_best};
use crate::{Backend, Recipe, ShaRnn};

/// The argument that names a model.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// A run's directory (its best weights are used), a weights file (.safetensors), or `latest`, the newest run under runs/
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Bytes of memory that attention sees, in place of the model's own; 0 for the current segment alone
    #[arg(long, value_name = "N", help_heading = "Model")]
    mem_len: Option<usize>,
}

/// A model, and what is known of it.
pub struct Loaded<B: Backend> {
    pub model: ShaRnn<B>,
    /// For a reader.
    pub name: String,
    /// How it was trained, where that is known.
    pub recipe: Option<Recipe>,
}

impl ModelArgs {
    /// The run that the model belongs to, where it is one's.
    pub fn run_dir(&self) -> Result<Option<PathBuf>> {
        if self.model == Path::new("latest") {
            return runs::latest().map(Some);
        }
        Ok(self.model.is_dir().then(|| self.model.clone()))
    }

    /// Loads the model onto a device.
    pub fn load<B: Backend>(&self, device: &B::Device) -> Result<Loaded<B>> {
        let loaded = match self.run_dir()? {
            Some(dir) => of_run(&dir, device)?,
            None => bail!("{}: neither a run's directory nor a file", self.model.display()),
        };
        Ok(match self.mem_len {
            Some(mem_len) => Loaded { model: loaded.model.with_mem_len(mem_len), ..loaded },
            None => loaded,
        })
    }
}

/// The best weights of a run.
fn of_run<B: Backend>(dir: &Path, device: &B::Device) -> Result<Loaded<B>> {
    let (model, manifest) = match load_best::<B>(dir, device) {
        Err(error @ CheckpointError::NoBest { .. }) if dir.join("checkpoint.json").is_file() => {
            return Err(error).with_context(|| format!("{} is a checkpoint: name its run", dir.display()));
        }
        loaded => loaded?,
    };
    let name = format!("{}, the weights of step {}", dir.display(), manifest.best.step);
    // Best weights that were copied somewhere else have none.
    let recipe = latest_manifest(dir)?.map(|(_, manifest)| manifest.recipe);
    Ok(Loaded { model, name, recipe })
}
