//! What can go wrong with checkpoints and run directories.

use std::io;
use std::path::{Path, PathBuf};

use sharnn_data::whole_file::is_full;

use crate::files::WeightsError;

/// An error about a run directory or a checkpoint in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Another process trains in this directory.
    #[error("{} is locked: another process trains in this directory; wait for it, or use another directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },

    /// There is nothing to resume.
    #[error("{} has no checkpoint (a directory step-...) to resume from: start a new run there", run_dir.display())]
    None {
        /// The run directory.
        run_dir: PathBuf,
    },

    /// There is no model to load.
    #[error("{} has no best weights yet: they are there after the first validation of a run", run_dir.display())]
    NoBest {
        /// The run directory.
        run_dir: PathBuf,
    },

    /// A new run was asked for where there is one.
    #[error(
        "{} already has a run ({checkpoint}): resume it, or start the new one in another directory",
        run_dir.display()
    )]
    Exists {
        /// The run directory.
        run_dir: PathBuf,
        /// Name of its newest checkpoint.
        checkpoint: String,
    },

    /// A new run was asked for where there is what only a run writes, and no checkpoint beside it.
    #[error("{} is there already, and a new run would replace it: start the run in another directory", path.display())]
    Occupied {
        /// The best weights, or the metrics.
        path: PathBuf,
    },

    /// The best weights of a run are gone, of which its checkpoint knows.
    #[error("the best weights of {} are missing: resume the run, which restores them from its checkpoint", run_dir.display())]
    BestMissing {
        /// The run directory.
        run_dir: PathBuf,
    },

    /// A file is missing, cut short or changed.
    #[error("{} is damaged: expected {expected}, found {found}; {advice}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do: which older checkpoint can be used, and how.
        advice: String,
    },

    /// A checkpoint of another version of this program.
    #[error(
        "{} has format {found}, this program reads format {expected}: resume it with the version that wrote it",
        file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// The file's format.
        found: u64,
        /// This program's.
        expected: u64,
    },

    /// The run was started with something else than what it is to be resumed with.
    #[error(
        "{} was trained with {field} = {saved}, not {given}: resume it with what it was started with, or start a new run in \
         another directory",
        checkpoint.display()
    )]
    Differs {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Path of the first field that differs, as `recipe.phases[0].lr`.
        field: String,
        /// What the checkpoint holds.
        saved: String,
        /// What was given.
        given: String,
    },

    /// The data is not what the run was trained on.
    #[error(
        "{} was trained on other data than {given}: its {split} split {difference}. Resume it with the data that it was started \
         with{}, or start a new run in another directory",
        checkpoint.display(),
        saved.as_ref().map_or(String::new(), |saved| format!(" ({saved})"))
    )]
    OtherCorpus {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Where the run's data was read from, or what it was called.
        saved: Option<String>,
        /// That of the data that was given.
        given: String,
        /// The first split that differs: "training", "validation" or "test".
        split: &'static str,
        /// How: "had 90 bytes, now 100", or "has as many bytes, but others".
        difference: String,
    },

    /// The run has numbers that are not finite, and is not saved.
    #[error("step {step} is not saved: its {what} are not all finite; earlier checkpoints are intact")]
    NotFinite {
        /// The step.
        step: u64,
        /// What is not finite: "weights", "moments".
        what: &'static str,
    },

    /// A file of tensors cannot be written or read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl CheckpointError {
    /// Turns what the system said about `path` into an error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

impl CheckpointError {
    /// The same about the place where a file was to be: nobody asked for what is written `aside`.
    pub(crate) fn about(self, aside: &Path, target: &Path) -> Self {
        let renamed = |path: &Path| match path.strip_prefix(aside) {
            Ok(rest) if rest.as_os_str().is_empty() => target.to_path_buf(),
            Ok(rest) => target.join(rest),
            Err(_) => path.to_path_buf(),
        };
        match self {
            Self::Io { action, path, source } => Self::Io { action, path: renamed(&path), source },
            Self::Weights(WeightsError::Io { file, action, source }) => {
                let file = renamed(Path::new(&file)).display().to_string();
                WeightsError::Io { file, action, source }.into()
            }
            Self::Weights(WeightsError::DiskFull { file, bytes, source }) => {
                let file = renamed(Path::new(&file)).display().to_string();
                WeightsError::DiskFull { file, bytes, source }.into()
            }
            other => other,
        }
    }
}

/// What to do about a failure of the system, where that is known.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => "; free some space and resume: earlier checkpoints are intact",
        io::ErrorKind::PermissionDenied => "; check the rights of the directory",
        _ => "",
    }
}
