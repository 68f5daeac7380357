//! Where runs are kept: `runs/001`, `runs/002`, ... unless the user names a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::args::Args;

const RUNS: &str = "runs";

/// The directory of this call's run: the one that was named; else the newest, where a run is continued; else a new one.
pub fn choose(args: &Args) -> Result<PathBuf> {
    if let Some(dir) = &args.out {
        return Ok(dir.clone());
    }
    let newest = newest(Path::new(RUNS));
    match newest {
        Some(number) if args.continues() => Ok(dir(number)),
        None if args.continues() => {
            bail!("there is no run under {RUNS}/: leave out --resume to start one, or name its directory with --out")
        }
        newest => Ok(dir(newest.unwrap_or(0) + 1)),
    }
}

fn dir(number: u32) -> PathBuf {
    Path::new(RUNS).join(format!("{number:03}"))
}

/// The largest number among the directories.
fn newest(runs: &Path) -> Option<u32> {
    fs::read_dir(runs).ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).max()
}
