//! MODEL on the command line: where a trained model comes from.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Error, Result, anyhow, bail, ensure};

use super::machine::MachineArgs;
use super::outputs;
use super::runs::{self, Needs};
use crate::core::{StreamShape, StreamState};
use crate::pretrained::{self, Pretrained};
use crate::train::{
    CheckpointError, ImportOptions, InitialWeights, RunWeights, import_weights, latest_manifest, load_run,
    load_state_of, read_config, run_weights,
};
use crate::{Backend, Recipe, ShaRnn, ShaRnnConfig, Streams};
#[cfg(feature = "flex")]
use crate::{BackendKind, DecodeEngine, WeightFormat};

/// The models that come with the program; the first one is used where none is named.
pub static BUNDLED: [(&str, &Pretrained); 2] = [("bundled", &pretrained::LARGE), ("bundled-small", &pretrained::SMALL)];

/// Options that name a model.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// The model: a run's directory (its best weights; before the first validation those of its newest checkpoint), a weights
    /// file (.safetensors), `latest`, the run of the highest number under runs/ that has weights, or `bundled` or the faster
    /// `bundled-small`, models of enwik8 that come with the program [default: bundled]
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    model: Option<PathBuf>,
    /// What that is, once it was looked for.
    #[arg(skip)]
    found: OnceLock<PathBuf>,
    /// Bytes of memory that attention sees, in place of the model's own; 0 for the current segment alone
    #[arg(long, value_name = "N", help_heading = "Model")]
    mem_len: Option<usize>,
}

/// Options for reading byte by byte.
#[derive(clap::Args, Debug)]
pub struct FormatArgs {
    /// Read byte by byte with weights packed for decoding, in f32, bf16, int8 or exact, which gives the same bits on every
    /// CPU (backend flex)
    #[arg(long, value_name = "FORMAT", help_heading = "Machine")]
    pub weights: Option<String>,
}

impl FormatArgs {
    /// `n` streams of a model.
    pub fn streams<B: Backend>(&self, machine: &MachineArgs, model: &ShaRnn<B>, n: usize) -> Result<Box<dyn Streams>> {
        if self.weights.is_none() {
            return Ok(machine.backend.streams(model, n));
        }
        #[cfg(feature = "flex")]
        return Ok(Box::new(self.engine(machine, model)?.streams(n)));
        #[cfg(not(feature = "flex"))]
        bail!("--weights needs backend flex, which is not compiled in: build with --features flex")
    }

    /// The model with its weights packed as was asked for.
    #[cfg(feature = "flex")]
    pub fn engine<B: Backend>(&self, machine: &MachineArgs, model: &ShaRnn<B>) -> Result<DecodeEngine> {
        let backend = machine.backend;
        ensure!(
            backend == BackendKind::Flex,
            "--weights needs --backend flex, not {backend}: name it, or leave out --weights"
        );
        let name = self.weights.as_deref().unwrap_or("f32");
        let known = WeightFormat::ALL.into_iter().find(|(_, known)| *known == name);
        let Some((format, _)) = known else { bail!("--weights {name:?} cannot be used: use f32, bf16, int8 or exact") };
        Ok(model.engine(format))
    }
}

/// A model, and what is known of it.
pub struct Loaded<B: Backend> {
    /// With the memory that was asked for.
    pub model: ShaRnn<B>,
    /// For a reader.
    pub name: String,
    /// How it was trained, where that is known.
    pub recipe: Option<Recipe>,
}

/// Trained weights, for a run that goes on from them.
pub struct Trained {
    /// For a reader.
    pub name: String,
    pub config: ShaRnnConfig,
    pub weights: InitialWeights,
}

impl ModelArgs {
    /// A model that another option names.
    pub fn of(model: PathBuf) -> Self {
        Self { model: Some(model), found: OnceLock::new(), mem_len: None }
    }

    /// The same, but for another model where none was named.
    #[cfg(feature = "codec")]
    pub fn or(&self, model: &str) -> Self {
        let model = self.model.clone().unwrap_or_else(|| model.into());
        Self { mem_len: self.mem_len, ..Self::of(model) }
    }

    /// What names it.
    pub fn path(&self) -> &Path {
        let [(first, _), ..] = BUNDLED;
        self.model.as_deref().unwrap_or(Path::new(first))
    }

    /// Its weights and configuration, before a device is there.
    pub fn trained(&self) -> Result<Trained> {
        Ok(match (self.run_dir()?, self.bundled()) {
            (Some(dir), _) => {
                let RunWeights { file, config, step, .. } =
                    run_weights(&dir).map_err(|error| of_run_error(&dir, error))?;
                let name = format!("{}, the weights of step {step}", dir.display());
                Trained { name, config, weights: file.into() }
            }
            (None, Some(bundled)) => {
                let weights = InitialWeights::Memory { name: bundled.name, bytes: bundled.weights() };
                Trained { name: bundled.name.into(), config: bundled.config(), weights }
            }
            (None, None) => {
                let file = self.path();
                let config = read_config(file, &ImportOptions::default())?;
                Trained { name: file.display().to_string(), config, weights: file.to_path_buf().into() }
            }
        })
    }

    /// The one that comes with the program, where it is one.
    pub fn bundled(&self) -> Option<&'static Pretrained> {
        let path = self.path();
        let (_, bundled) = BUNDLED.into_iter().find(|(name, _)| path == Path::new(name))?;
        (!path.is_dir()).then_some(bundled)
    }

    /// Refuses an output that would replace the model, or another input of the command.
    pub fn refuse_as_output<'a>(
        &self,
        option: &str,
        output: &Path,
        others: impl IntoIterator<Item = (&'a str, &'a Path)>,
    ) -> Result<()> {
        let run_dir = self.run_dir()?;
        let mut inputs: Vec<(&str, &Path)> = others.into_iter().collect();
        inputs.push(("--model", run_dir.as_deref().unwrap_or(self.path())));
        outputs::refuse_inputs(option, output, inputs)?;
        outputs::refuse_place(option, output, None)
    }

    /// Whether attention is to see another number of bytes than in training.
    pub fn changes_memory(&self) -> bool {
        self.mem_len.is_some()
    }

    /// The run that the model belongs to, where it is one's.
    pub fn run_dir(&self) -> Result<Option<PathBuf>> {
        let found = match self.found.get() {
            Some(found) => found,
            None => {
                let found = runs::find(self.path(), Needs::Model)?;
                self.found.get_or_init(|| found)
            }
        };
        Ok(found.is_dir().then(|| found.clone()))
    }

    /// Loads the model onto a device.
    pub fn load<B: Backend>(&self, device: &B::Device) -> Result<Loaded<B>> {
        let loaded = match (self.run_dir()?, self.bundled()) {
            (Some(dir), _) => of_run(&dir, device)?,
            (None, Some(bundled)) => {
                Loaded { model: bundled.model::<B>(device), name: bundled.name.into(), recipe: None }
            }
            (None, None) => {
                let model = import_weights::<B>(self.path(), &ImportOptions::default(), device)?;
                Loaded { model, name: self.path().display().to_string(), recipe: None }
            }
        };
        Ok(match self.mem_len {
            Some(mem_len) => {
                let most = ShaRnnConfig::MOST_MEM_LEN;
                ensure!(mem_len <= most, "--mem-len {mem_len} cannot be used: use at most {most}");
                Loaded { model: loaded.model.with_mem_len(mem_len), ..loaded }
            }
            None => loaded,
        })
    }
}

/// The state of a stream in a file, of the weights of this digest.
pub fn stream_state(path: &Path, shape: &StreamShape, weights: &[u8; 32]) -> Result<StreamState> {
    let state = load_state_of(path, shape, weights)?;
    if state.weights().is_none() {
        tell!("{} does not say of which weights it is: it is taken for this model's", path.display());
    }
    Ok(state)
}

/// The best weights of a run, or where there are none yet its newest ones.
fn of_run<B: Backend>(dir: &Path, device: &B::Device) -> Result<Loaded<B>> {
    let shown = dir.display();
    // Best weights that were copied somewhere else have none.
    let recipe = latest_manifest(dir)?.map(|(_, manifest)| manifest.recipe);
    let (model, RunWeights { step, is_best, .. }) =
        load_run::<B>(dir, device).map_err(|error| of_run_error(dir, error))?;
    if !is_best {
        tell!("{shown} has no best weights yet: using those after step {step}");
    }
    Ok(Loaded { model, name: format!("{shown}, the weights of step {step}"), recipe })
}

/// Why the weights of a run cannot be had from a directory, said of what was named.
fn of_run_error(dir: &Path, error: CheckpointError) -> Error {
    let shown = dir.display();
    match error {
        CheckpointError::None { .. } if dir.join("checkpoint.json").is_file() => {
            anyhow!("{shown} is a checkpoint: name the directory of its run")
        }
        CheckpointError::None { .. } => anyhow!("there is no run in {shown}: it has neither best/ nor a checkpoint"),
        error => error.into(),
    }
}
