//! Where runs are kept: `runs/001`, `runs/002`, ... unless the user names a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::train::Group;

const RUNS: &str = "runs";

/// The directory of a run to train: the one that was named; else the newest, where it goes on; else a new one. The first
/// process of a group decides.
pub fn choose(out: Option<&Path>, resume: bool, group: &dyn Group) -> Result<PathBuf> {
    if let Some(dir) = out {
        return Ok(dir.into());
    }
    let mut first = newest(Path::new(RUNS)).map(|number| number.to_string()).unwrap_or_default().into_bytes();
    group.broadcast(&mut first);
    let newest: Option<u32> = String::from_utf8_lossy(&first).parse().ok();
    match newest {
        Some(number) if resume => Ok(dir(number)),
        None if resume => {
            bail!("there is no run under {RUNS}/: leave out --resume to start one, or name its directory with --out")
        }
        newest => match newest.unwrap_or(0).checked_add(1) {
            Some(next) => Ok(dir(next)),
            None => bail!("no number is left under {RUNS}/: name a directory with --out"),
        },
    }
}

/// The newest run.
pub fn latest() -> Result<PathBuf> {
    match newest(Path::new(RUNS)) {
        Some(number) => Ok(dir(number)),
        None => bail!("there is no run under {RUNS}/: train one with `sharnn train`, or name its directory"),
    }
}

fn dir(number: u32) -> PathBuf {
    Path::new(RUNS).join(format!("{number:03}"))
}

/// The largest number among the directories.
fn newest(runs: &Path) -> Option<u32> {
    let number = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let is_number = entry.path().is_dir() && name.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { name.parse().ok() } else { None }
    };
    fs::read_dir(runs).ok()?.filter_map(|entry| number(entry.ok()?)).max()
}
