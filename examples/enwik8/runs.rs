//! Where runs are kept: `runs/001`, `runs/002`, ... unless the user names a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use sharnn::train::Group;

use super::args::Args;

const RUNS: &str = "runs";

/// The directory of this call's run: the one that was named; else the newest, where a run is continued; else a new one.
/// The first process of a group decides.
pub fn choose(args: &Args, group: &dyn Group) -> Result<PathBuf> {
    if let Some(dir) = &args.out {
        return Ok(dir.clone());
    }
    let mut first = newest(Path::new(RUNS)).map(|number| number.to_string()).unwrap_or_default().into_bytes();
    group.broadcast(&mut first);
    let newest: Option<u32> = String::from_utf8_lossy(&first).parse().ok();
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
