//! Where runs are kept: `runs/001`, `runs/002`, ... unless the user names a directory; and what is kept in them for `--resume`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};

use super::outputs;
use crate::data::whole_file::{self, Lock};
use crate::train::{BEST_DIR, EvalRecord, Group, METRICS_FILE, Metrics, MetricsError, Record, TrainRecord};

const RUNS: &str = "runs";
/// In the place of a run's directory: the newest run.
const LATEST: &str = "latest";
/// What is kept is far shorter; of a longer file the rest is not read.
const MOST_JSON: u64 = 1 << 20;

/// What a command needs of a run that it is to find by itself.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// Weights that were trained: the best ones, or those of a checkpoint after some step.
    Model,
    /// A checkpoint, to go on from or to look at.
    Checkpoint,
    /// Something that was measured.
    Curve,
}

impl Needs {
    /// What a run without it lacks.
    fn name(self) -> &'static str {
        match self {
            Self::Model => "weights",
            Self::Checkpoint => "a checkpoint",
            Self::Curve => "a measurement",
        }
    }

    fn are_met_by(self, run: &Path) -> bool {
        match self {
            Self::Model => run.join(BEST_DIR).join("best.json").is_file() || newest_step(run) > Some(0),
            Self::Checkpoint => newest_step(run).is_some(),
            Self::Curve => match Metrics::read(run) {
                Ok(records) => records.iter().any(is_measured),
                // Whoever reads them says so.
                Err(error) => matches!(error, MetricsError::Line { .. }),
            },
        }
    }
}

/// The step of the newest checkpoint that a crash has not left half-written. Whether it is damaged, whoever reads it says.
fn newest_step(run: &Path) -> Option<u64> {
    let step = |entry: fs::DirEntry| {
        let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
        entry.path().join("checkpoint.json").is_file().then_some(step)
    };
    fs::read_dir(run).ok()?.flatten().filter_map(step).max()
}

/// Whether there is a run to go on with, or to look at.
pub fn has_checkpoint(run: &Path) -> bool {
    newest_step(run).is_some()
}

/// Whether a record is a point of a curve.
fn is_measured(record: &Record) -> bool {
    match record {
        Record::Train(TrainRecord { train_bpc: bpc, .. }) | Record::Valid(EvalRecord { bpc, .. }) => bpc.is_some(),
        Record::Test(_) => false,
    }
}

/// What was named; for `latest`, where nothing has that name, the newest run that has what a command needs.
pub fn find(named: &Path, needs: Needs) -> Result<PathBuf> {
    if named == Path::new(LATEST) && !named.exists() { latest(needs) } else { Ok(named.into()) }
}

/// The newest run under `runs/` that has what a command needs. It is named, and so are newer ones that lack it.
fn latest(needs: Needs) -> Result<PathBuf> {
    let (found, passed_over) = newest_with(Path::new(RUNS), needs)?;
    match &passed_over[..] {
        [] => tell!("the latest run is {}", found.display()),
        [newest, ..] => {
            tell!("the latest run with {} is {}: {} has none yet", needs.name(), found.display(), newest.display());
        }
    }
    Ok(found)
}

/// The run of the highest number that has what is needed, and those of higher ones that have not.
fn newest_with(runs: &Path, needs: Needs) -> Result<(PathBuf, Vec<PathBuf>)> {
    let mut numbered = numbered(runs);
    let mut passed_over = Vec::new();
    while let Some((_, run)) = numbered.pop() {
        if needs.are_met_by(&run) {
            return Ok((run, passed_over));
        }
        passed_over.push(run);
    }
    match &passed_over[..] {
        [] => bail!("there is no run under {RUNS}/: train one with `sharnn train`, or name its directory"),
        [newest, ..] => bail!(
            "no run under {RUNS}/ has {}, as {} has not: train one with `sharnn train`, or name a directory",
            needs.name(),
            newest.display()
        ),
    }
}

/// The directories whose names are numbers, by number and then by name, under the names that they have: 7, 07 and 007 are three.
fn numbered(runs: &Path) -> Vec<(u64, PathBuf)> {
    let number = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let is_number = entry.path().is_dir() && name.bytes().all(|byte| byte.is_ascii_digit());
        Some((if is_number { name.parse().ok()? } else { return None }, runs.join(name)))
    };
    let mut found: Vec<_> = fs::read_dir(runs).into_iter().flatten().flatten().filter_map(number).collect();
    found.sort();
    found
}

/// The directory of a run to train. Dropped before the run is [kept](Self::keep), it leaves nothing of a start that came to
/// nothing.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    traces: Option<Traces>,
}

impl Place {
    /// The directory that was named; else, to go on, that of the newest run with a checkpoint; else a new one under `runs/`. The
    /// first process of a group decides, and is the one that makes and removes.
    pub fn choose(out: Option<&Path>, resume: bool, group: &dyn Group) -> Result<Self> {
        let chosen = match group.is_first() {
            true => Self::of_first(out, resume),
            false => Ok(Self { path: PathBuf::new(), traces: None }),
        };
        let mut path = chosen.as_ref().map_or(String::new(), |chosen| chosen.path.display().to_string()).into_bytes();
        // Whether or not this process needs it: another one may.
        group.broadcast(&mut path);
        let chosen = chosen?;
        if group.is_first() {
            return Ok(chosen);
        }
        // Every process has its own name for what was named.
        let path = out.map_or_else(|| String::from_utf8_lossy(&path).into_owned().into(), Path::to_path_buf);
        ensure!(!path.as_os_str().is_empty(), "the first process found no directory for the run");
        Ok(Self { path, traces: None })
    }

    fn of_first(out: Option<&Path>, resume: bool) -> Result<Self> {
        match out {
            // What goes on is there already.
            Some(out) => Ok(Self { path: out.into(), traces: (!resume).then(|| Traces::before(out)) }),
            None if resume => Ok(Self { path: latest(Needs::Checkpoint)?, traces: None }),
            None => Self::take_number(Path::new(RUNS)),
        }
    }

    /// Makes a directory of the next number. Whoever makes it has it: of several starts at once each gets one.
    fn take_number(runs: &Path) -> Result<Self> {
        let mut next = numbered(runs).last().map_or(0, |(number, _)| *number);
        let mut again = 100;
        loop {
            next = next.checked_add(1).context("no number is left under runs/: name a directory with --out")?;
            let path = runs.join(format!("{next:03}"));
            let traces = Traces::before(&path);
            let made = fs::create_dir_all(runs).and_then(|()| fs::create_dir(&path));
            match made {
                Ok(()) => return Ok(Self { path, traces: Some(traces) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && runs.is_dir() => {}
                // Another start that came to nothing has taken runs/ with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && again > 0 => {
                    (next, again) = (next - 1, again - 1)
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot create {}: name a directory with --out", path.display()));
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run has begun: it stays, whatever comes.
    pub fn keep(&mut self) {
        self.traces = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces {
            traces.remove();
        }
    }
}

/// What the start of a run puts into its directory.
pub const OF_START: [&str; 6] = ["lock", "group", "metrics.jsonl", "data.json", "ends.json", "from.json"];
pub const PAGE: &str = "README.md";
pub const PICTURE: &str = "loss.svg";
pub const SAMPLE: &str = "sample.txt";
/// What describes a run that has stopped.
pub const DESCRIBING: [&str; 3] = [PAGE, PICTURE, SAMPLE];
/// What its directories of weights hold.
const OF_WEIGHTS: [&str; 8] = [
    "best.json",
    "best.json.sha256",
    "checkpoint.json",
    "checkpoint.json.sha256",
    "weights.safetensors",
    "moments.safetensors",
    "state.safetensors",
    "best.safetensors",
];

/// Whether a run keeps something of its own under this name in its directory.
pub fn is_own(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let is_step = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    OF_START.iter().chain(&DESCRIBING).any(|own| *own == name)
        || name == BEST_DIR
        || name.strip_prefix("step-").is_some_and(is_step)
        || name.starts_with(".tmp-")
}

/// The directory of the run, or of the weights, that a file is or would be a part of.
pub fn owner(file: &Path) -> Option<PathBuf> {
    let file = resolved(file);
    let (dir, name) = (file.parent()?, file.file_name()?);
    if is_run(dir) && is_own(name) {
        return Some(dir.into());
    }
    // Its directories are replaced and removed with all that is in them.
    if let (Some(run), Some(part)) = (dir.parent(), dir.file_name())
        && is_run(run)
        && is_own(part)
    {
        return Some(run.into());
    }
    let has_weights = ["best.json", "checkpoint.json"].iter().any(|name| dir.join(name).is_file());
    (has_weights && OF_WEIGHTS.iter().any(|own| *own == name)).then(|| dir.into())
}

fn is_run(dir: &Path) -> bool {
    dir.join(METRICS_FILE).is_file() || dir.join(BEST_DIR).join("best.json").is_file() || has_checkpoint(dir)
}

/// A path without links, as far as it is there.
pub fn resolved(path: &Path) -> PathBuf {
    let parent = || {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(parent).or_else(|| std::path::absolute(path).ok()).unwrap_or_else(|| path.into())
}

/// What was not there before a start.
#[derive(Debug)]
struct Traces {
    run: PathBuf,
    /// Directories, the innermost first.
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Traces {
    fn before(run: &Path) -> Self {
        let missing = |path: &&Path| !path.as_os_str().is_empty() && fs::symlink_metadata(path).is_err();
        let dirs = run.ancestors().take_while(missing).map(Into::into).collect();
        let files = OF_START.iter().map(|name| run.join(name)).filter(|path| missing(&path.as_path())).collect();
        Self { run: run.into(), dirs, files }
    }

    /// Removes what has come since, unless another process trains there. A directory goes only if it is empty, so that nothing of
    /// anybody else's does.
    fn remove(&self) {
        // Held until the files are gone, so that nobody begins meanwhile.
        let lock = whole_file::open_with(File::options().write(true), self.run.join("lock"));
        if lock.as_ref().is_ok_and(|lock| !matches!(whole_file::lock(lock), Ok(Lock::Ours | Lock::Missing))) {
            return;
        }
        if newest_step(&self.run).is_some() {
            return;
        }
        // What cannot be removed does no harm.
        self.files.iter().for_each(|file| drop(fs::remove_file(file)));
        drop(lock);
        self.dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
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
    outputs::write(&run_dir.join(name), serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(runs: &Path, names: &[&str]) {
        names.iter().for_each(|name| fs::create_dir_all(runs.join(name)).unwrap());
    }

    #[test]
    fn runs_are_found_by_the_names_that_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        make(runs, &["7/step-00000003", "004/step-00000001", "009", "notes", "99999999999999999999"]);
        fs::write(runs.join("7/step-00000003/checkpoint.json"), b"{}").unwrap();
        fs::write(runs.join("004/step-00000001/checkpoint.json"), b"{}").unwrap();
        fs::write(runs.join("12"), b"a file").unwrap();
        let (found, passed_over) = newest_with(runs, Needs::Checkpoint).unwrap();
        assert_eq!((found, passed_over), (runs.join("7"), vec![runs.join("009")]));
        let error = newest_with(runs, Needs::Curve).unwrap_err().to_string();
        assert!(error.starts_with("no run under runs/ has a measurement, as ") && error.contains("009"), "{error}");
    }

    /// A run that has only begun hides no trained one, and what was measured is what a picture can show.
    #[test]
    fn a_run_has_what_it_was_trained_to_have() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        let checkpoint = |name: &str| {
            make(runs, &[name]);
            fs::write(runs.join(name).join("checkpoint.json"), b"{}").unwrap();
        };
        let measured = |run: &str, records: &[&str]| {
            fs::write(runs.join(run).join("metrics.jsonl"), records.concat()).unwrap();
        };
        let newest = |needs| newest_with(runs, needs).unwrap().0;
        checkpoint("001/step-00000003");
        checkpoint("002/step-00000000");
        assert_eq!((newest(Needs::Model), newest(Needs::Checkpoint)), (runs.join("001"), runs.join("002")));
        let eval = |event: &str, bpc: &str| {
            format!(
                "{{\"event\":\"{event}\",\"step\":0,\"phase\":0,\"epoch\":0,\"seconds\":1.0,\"bpc\":{bpc},\"bytes\":9,\"best\":true}}\n"
            )
        };
        measured("001", &[&eval("valid", "7.5")]);
        measured("002", &[&eval("test", "7.5"), &eval("valid", "null")]);
        assert_eq!(newest(Needs::Curve), runs.join("001"));
        measured("002", &[&eval("test", "7.5"), &eval("valid", "null"), &eval("valid", "7.5")]);
        assert_eq!(newest(Needs::Curve), runs.join("002"));
        measured("002", &["{}\n"]);
        assert_eq!(newest(Needs::Curve), runs.join("002"), "a damaged one is not passed over without a word");
        make(runs, &["002/best"]);
        fs::write(runs.join("002/best/best.json"), b"{}").unwrap();
        assert_eq!(newest(Needs::Model), runs.join("002"));
    }

    #[test]
    fn a_number_is_taken_by_making_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let take = || {
            let mut place = Place::take_number(&runs).unwrap();
            place.keep();
            place.path().to_path_buf()
        };
        assert_eq!(take(), runs.join("001"));
        fs::create_dir(runs.join("7")).unwrap();
        fs::write(runs.join("008"), b"a file").unwrap();
        assert_eq!(take(), runs.join("009"));
        let taken: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 8);
    }

    #[test]
    fn a_start_that_comes_to_nothing_leaves_nothing_of_its_own_and_all_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("a/runs");
        drop(Place::take_number(&runs).unwrap());
        assert!(!dir.path().join("a").exists());
        // A directory that was there stays, with what was in it.
        let out = dir.path().join("out");
        make(&out, &["best"]);
        fs::write(out.join("metrics.jsonl"), b"mine").unwrap();
        let begin = || {
            let place = Place::of_first(Some(&out), false).unwrap();
            ["lock", "data.json"].iter().for_each(|name| fs::write(out.join(name), b"").unwrap());
            place
        };
        drop(begin());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
        // Not while another process trains there, nor where there is something to go on from.
        let place = begin();
        let other = File::open(out.join("lock")).unwrap();
        assert_eq!(whole_file::lock(&other).unwrap(), Lock::Ours);
        drop(place);
        assert!(out.join("lock").exists() && out.join("data.json").exists());
        drop(other);
        fs::remove_file(out.join("lock")).unwrap();
        let place = begin();
        make(&out, &["step-00000001"]);
        fs::write(out.join("step-00000001/checkpoint.json"), b"{}").unwrap();
        drop(place);
        assert!(out.join("lock").exists());
    }
}
