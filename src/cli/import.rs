//! `import`: a file of the published PyTorch model's weights, as one of ours.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result, anyhow, ensure};
use burn::module::AutodiffModule;

use super::life;
use super::machine::MachineArgs;
use super::outputs;
use crate::data::shell::quoted_path;
use crate::train::{ImportOptions, Vocabulary, WeightsError, import_weights, save_weights};
use crate::{AutodiffBackend, BackendJob, ConfigError};

/// Make a weights file that every command reads of one in PyTorch's names
///
/// Sizes, the blocks that attend, a tied decoder and collapsed value gates are read off the tensors. Where the symbols are not the
/// 256 bytes, --vocabulary says which bytes they are, and the model is expanded to all of them.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A .safetensors file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// File to write (.safetensors)
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Number of attention heads [default: the file's metadata, else 1]
    #[arg(long, value_name = "N")]
    n_heads: Option<usize>,
    /// Bytes of memory that attention sees [default: the file's metadata, else 5000]
    #[arg(long, value_name = "N")]
    mem_len: Option<usize>,
    /// Which bytes the symbols are: enwik8, the 205 of the published model, or a file with a JSON array of byte values
    #[arg(long, value_name = "NAME|PATH")]
    vocabulary: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(
        args.to.extension().is_some_and(|extension| extension == "safetensors"),
        "--to {} cannot be used: name a file that ends in .safetensors",
        args.to.display()
    );
    let vocabulary = args.vocabulary.iter().map(|path| ("--vocabulary", path.as_path()));
    outputs::refuse_inputs("--to", &args.to, [("FILE", &*args.file)].into_iter().chain(vocabulary))?;
    outputs::refuse_place("--to", &args.to, None)?;
    args.machine.set_threads()?;
    args.machine.backend.dispatch(args)?
}

impl BackendJob for Args {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let vocabulary = match self.vocabulary.as_deref() {
            None => None,
            Some(name) if name == Path::new("enwik8") => Some(Vocabulary::PublishedEnwik8),
            Some(path) => {
                let read = Vocabulary::read(path);
                Some(read.with_context(|| "--vocabulary is neither enwik8 nor a list of bytes")?)
            }
        };
        let options = ImportOptions { n_heads: self.n_heads, mem_len: self.mem_len, vocabulary };
        let imported = import_weights::<B>(&self.file, &options, &device).map_err(|error| self.told(error))?;
        let model = imported.valid();
        life::whole_at(&self.to, || save_weights(&model, &self.to))?;
        say!("{}: sharnn inspect {} says what is in it", self.to.display(), quoted_path(&self.to));
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    /// What is typed here is named by its option, where a file's own is named as the file's.
    fn told(&self, error: WeightsError) -> Error {
        match error {
            WeightsError::Unusable { source: ConfigError { field: "n_heads", value, hint }, .. }
                if self.n_heads.is_some() =>
            {
                anyhow!("--n-heads {value} cannot be used: {hint}")
            }
            WeightsError::Unusable { source: ConfigError { field: "mem_len", value, hint }, .. }
                if self.mem_len.is_some() =>
            {
                anyhow!("--mem-len {value} cannot be used: {hint}")
            }
            WeightsError::Config { file, field: "n_heads", saved, found, .. } if self.n_heads.is_some() => {
                anyhow!("--n-heads {found} cannot be used: {file} says that its model has {saved}; leave it out")
            }
            error => error.into(),
        }
    }
}
