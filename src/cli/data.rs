//! Which bytes are trained on and scored, and remembering it for `--resume`.

use std::path::{Path, PathBuf};

use crate::Splits;
use crate::data::enwik8;
use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::runs;

/// Where enwik8 is looked for, and downloaded to.
const DEFAULT_PATH: &str = "data/enwik8";
/// Bytes of each split that are scored unless all are asked for.
const DEFAULT_SCORED: usize = 500_000;

/// Options that name the data.
#[derive(clap::Args, Debug)]
pub struct DataArgs {
    /// File to read: 90 % of it trains, 5 % each validate and test (enwik8: 90, 5 and 5 million bytes)
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Download enwik8 (36 MB) to data/enwik8 or to --data, unless it is there
    #[arg(long, help_heading = "Data")]
    pub download: bool,
    /// Score the first so many bytes of the validation and of the test split [default: 500000]
    #[arg(long, value_name = "N", help_heading = "Data", conflicts_with = "full_eval")]
    pub valid_bytes: Option<usize>,
    /// Score the whole of both splits
    #[arg(long, help_heading = "Data")]
    pub full_eval: bool,
}

/// Written into the run directory.
const FILE: &str = "data.json";

/// The bytes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataChoice {
    /// The file; `None` for the bundled slice.
    #[serde(with = "super::paths::exact")]
    path: Option<PathBuf>,
    /// Bytes of the training split; `None` for all.
    train_bytes: Option<usize>,
    /// Bytes of each of the other splits; `None` for all.
    scored_bytes: Option<usize>,
}

impl DataChoice {
    /// What the options ask for; where they are silent, what the run had; else what is there.
    /// Where that is the bundled slice, and this process `speaks`, it says so.
    pub fn from_args(args: &DataArgs, train_bytes: Option<usize>, stored: Option<DataChoice>, speaks: bool) -> Self {
        let fresh = stored.is_none();
        let stored = stored.unwrap_or(DataChoice {
            path: Path::new(DEFAULT_PATH).exists().then(|| DEFAULT_PATH.into()),
            train_bytes: None,
            scored_bytes: Some(DEFAULT_SCORED),
        });
        let choice = Self {
            path: args.data.clone().or_else(|| args.download.then(|| DEFAULT_PATH.into())).or(stored.path),
            train_bytes: train_bytes.or(stored.train_bytes),
            scored_bytes: if args.full_eval { None } else { args.valid_bytes.or(stored.scored_bytes) },
        };
        if choice.path.is_none() && fresh && speaks {
            tell!(
                "reading the bundled first megabyte of enwik8; for the whole of it, give --download (36 MB) or --data PATH"
            );
        }
        choice
    }

    /// Whether it is the slice that comes with the program.
    pub fn is_sample(&self) -> bool {
        self.path.is_none()
    }

    /// The file; `None` for the slice.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether both splits that are scored are whole.
    pub fn is_whole(&self) -> bool {
        self.scored_bytes.is_none()
    }

    /// What the run in `run_dir` was started with, where it says so.
    pub fn stored(run_dir: &Path) -> Result<Option<Self>> {
        runs::kept(run_dir, FILE, "delete it, and name the data again")
    }

    /// Remembers the choice in the run directory.
    pub fn store(&self, run_dir: &Path) -> Result<()> {
        runs::keep(run_dir, FILE, self)
    }

    /// Opens the data, downloads it first where that was asked for, and cuts it to the bytes that are used. Where this process
    /// `speaks` it shows how far the download is.
    pub fn open(&self, args: &DataArgs, speaks: bool) -> Result<Splits> {
        let mut splits = match &self.path {
            None => enwik8::sample(),
            Some(path) => {
                if args.download {
                    download(path, speaks)?;
                }
                enwik8::open_any(path)?
            }
        };
        if let Some(bytes) = self.train_bytes {
            splits.train = splits.train.head(bytes);
        }
        if let Some(bytes) = self.scored_bytes {
            (splits.valid, splits.test) = (splits.valid.head(bytes), splits.test.head(bytes));
        }
        Ok(splits)
    }
}

#[cfg(feature = "fetch")]
fn download(path: &Path, speaks: bool) -> Result<()> {
    use crate::data::fetch;
    if speaks {
        fetch::enwik8(path, &mut fetch::progress_bar())?
    } else {
        fetch::enwik8(path, &mut |_| {})?
    };
    Ok(())
}

#[cfg(not(feature = "fetch"))]
fn download(_: &Path, _: bool) -> Result<()> {
    anyhow::bail!("this program was built without downloads: build it with --features fetch, or give --data PATH")
}
