//! `inspect`: what is in a run's directory, in a checkpoint or in a file of weights.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;

use super::model::ModelArgs;
use super::paths;
use super::printable::json_lines;
use super::report::Reached;
use super::runs::{self, Needs};
use crate::core::StepShape;
use crate::train::{Manifest, Position, latest_manifest};
use crate::{Recipe, ShaRnnConfig};

/// Say what is in a run's directory or in a file of weights
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A run's directory, a weights file (.safetensors), `latest`, the run of the highest number under runs/ that has a checkpoint,
    /// or `bundled` or `bundled-small`, the models that come with the program
    #[arg(value_name = "MODEL", default_value = "bundled")]
    path: PathBuf,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "paths::shown")]
    path: PathBuf,
    model: ShaRnnConfig,
    parameters: usize,
    parameters_by_part: Vec<(&'static str, usize)>,
    /// Bytes of what one stream carries on when its memory is full.
    stream_bytes: usize,
    run: Option<RunReport>,
}

#[derive(Serialize)]
struct RunReport {
    #[serde(serialize_with = "paths::shown")]
    checkpoint: PathBuf,
    /// Since it was written.
    checkpoint_age_seconds: Option<u64>,
    backend: String,
    instructions: Option<String>,
    corpus: String,
    position: Position,
    /// Of training.
    seconds: f64,
    reached: Reached,
    recipe: Recipe,
    /// At the peak of a training step, by part.
    training_memory: Vec<(&'static str, u64)>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let report = Report::of(&ModelArgs::of(runs::find(&args.path, Needs::Checkpoint)?))?;
    if args.json {
        say_text!(json_lines(&report)?);
    } else {
        report.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn of(named: &ModelArgs) -> Result<Self> {
        let (path, model, run) = match named.run_dir()? {
            Some(dir) => {
                let Some((checkpoint, manifest)) = latest_manifest(&dir)? else {
                    bail!("there is no checkpoint in {}: name a run's directory or a weights file", dir.display());
                };
                let (model, run) = (manifest.config.clone(), RunReport::of(&dir, checkpoint, manifest)?);
                (dir, model, Some(run))
            }
            None => (named.path().into(), named.trained()?.config, None),
        };
        Ok(Self {
            parameters: model.num_params(),
            parameters_by_part: model.params_by_part().to_vec(),
            stream_bytes: 4
                * (model.d_model * (2 * model.n_layers + model.mem_len * model.n_attending()) + model.context()),
            path,
            model,
            run,
        })
    }

    fn print(&self) -> Result<()> {
        let Self { path, model, run, .. } = self;
        let ShaRnnConfig { d_model, d_ff, n_layers, n_heads, vocab_size, mem_len, .. } = model;
        say!("{}", path.display());
        let attending: Vec<_> = (0..*n_layers).filter(|&block| model.attends(block)).map(|i| i.to_string()).collect();
        let attending = match &attending[..] {
            [] => "no block attends".into(),
            blocks => format!("attention in block {} ({n_heads} head{})", blocks.join(", "), plural(*n_heads)),
        };
        say!("  {n_layers} blocks, {d_model} wide, Boom {d_ff}; {attending}; {vocab_size} symbols; memory {mem_len}");
        say!("");
        say!("parameters {:>27}", HumanCount(self.parameters as u64).to_string());
        for (part, params) in self.parameters_by_part.iter().filter(|(_, params)| *params > 0) {
            say!("  {part:<20}{:>16}", HumanCount(*params as u64).to_string());
        }
        say!("");
        say!("a stream carries {} bytes when its memory is full", HumanCount(self.stream_bytes as u64));
        run.as_ref().map_or(Ok(()), RunReport::print)
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

impl RunReport {
    fn of(run_dir: &Path, checkpoint: PathBuf, manifest: Manifest) -> Result<Self> {
        let written = std::fs::metadata(checkpoint.join("checkpoint.json")).and_then(|file| file.modified()).ok();
        // A clock that was set back makes it no older than now.
        let age = written.map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs());
        let Manifest { config, recipe, corpus, backend, instructions, position, seconds, .. } = manifest;
        let shape = StepShape {
            batch_size: recipe.batch_size,
            seq_len: recipe.segments.max(),
            recompute: false,
            keeps_attention_weights: false,
            attention_weight_bytes: 4,
        };
        let training_memory = config.training_memory(shape).parts;
        Ok(Self {
            checkpoint,
            checkpoint_age_seconds: age,
            backend,
            instructions,
            corpus: corpus.name,
            position,
            seconds,
            reached: Reached::of(run_dir),
            recipe,
            training_memory,
        })
    }

    fn print(&self) -> Result<()> {
        let Self { checkpoint, position, seconds, recipe, corpus, backend, instructions, .. } = self;
        let age = self
            .checkpoint_age_seconds
            .map_or(String::new(), |seconds| format!(", written {} ago", HumanDuration(Duration::from_secs(seconds))));
        let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
        say!("");
        say!("newest checkpoint {name}{age}");
        let instructions = instructions.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        let time = HumanDuration(Duration::try_from_secs_f64(*seconds).unwrap_or_default());
        say!(
            "  {} steps, {} bytes of {corpus}, epoch {}, {time} of training on {backend}{instructions}",
            HumanCount(position.step),
            HumanCount(position.bytes),
            position.epoch
        );
        if position.skipped > 0 {
            say!("  {} steps were skipped: loss or gradient was not finite", position.skipped);
        }
        let lanes = recipe.batch_size;
        say!("  batches of {lanes} x up to {} bytes, precision {}", recipe.segments.max(), recipe.precision.name());
        for line in self.reached.lines() {
            say!("  {line}");
        }
        let bytes: u64 = self.training_memory.iter().map(|(_, bytes)| bytes).sum();
        say!("  training takes about {} MB on a CPU", bytes.div_ceil(1_000_000));
        Ok(())
    }
}
