//! Where runs are kept: `runs/001`, `runs/002`, ... unless the user names a directory; and what is kept in them for `--resume`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

use crate::data::whole_file;
use crate::train::Group;

const RUNS: &str = "runs";
/// What is kept is far shorter; of a longer file the rest is not read.
const MOST_JSON: u64 = 1 << 20;

/// The directory of a run to train: the one that was named; else that of the highest number, where it goes on; else a new one. The
/// first process of a group decides.
pub fn choose(out: Option<&Path>, resume: bool, group: &dyn Group) -> Result<PathBuf> {
    let mut first = newest(Path::new(RUNS)).map(|number| number.to_string()).unwrap_or_default().into_bytes();
    // Whether or not this process needs it: another one may.
    group.broadcast(&mut first);
    if let Some(dir) = out {
        return Ok(dir.into());
    }
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

/// The run of the highest number.
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

/// What an earlier call kept in the file `name` of a run's directory. `advice` is for one that cannot be read.
pub fn kept<T: DeserializeOwned>(run_dir: &Path, name: &str, advice: &str) -> Result<Option<T>> {
    let path = run_dir.join(name);
    let json = match whole_file::read(&path, MOST_JSON) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        json => json.with_context(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_slice(&json).map(Some).with_context(|| format!("{} is damaged: {advice}", path.display()))
}

/// Keeps something in the file `name` of a run's directory.
pub fn keep(run_dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = run_dir.join(name);
    let json = serde_json::to_vec_pretty(value)?;
    let written: io::Result<()> = whole_file::write(&path, |out| out.write_all(&json));
    written.with_context(|| format!("cannot write {}", path.display()))
}
