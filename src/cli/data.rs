//! Which bytes are trained on and scored, and remembering it for `--resume` and `eval`.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::Splits;
use crate::data::{enwik8, format, whole_file};
use crate::train::{CorpusIdentity, latest_manifest};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{outputs, runs};

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

/// The first byte of a lane is read, and not scored.
const FEWEST: usize = 2;

impl DataArgs {
    /// Refuses splits of too few bytes by the options that ask for them.
    pub fn check(&self, train_bytes: Option<usize>) -> Result<()> {
        for (option, bytes) in [("--train-bytes", train_bytes), ("--valid-bytes", self.valid_bytes)] {
            if let Some(bytes) = bytes.filter(|&bytes| bytes < FEWEST) {
                bail!("{option} {bytes} cannot be used: use at least {FEWEST}");
            }
        }
        Ok(())
    }
}

/// Written into the run directory.
pub const FILE: &str = "data.json";

/// The bytes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataChoice {
    /// The file, by its absolute path; `None` for the bundled slice. Earlier versions kept it as it was given.
    #[serde(with = "super::paths::exact")]
    path: Option<PathBuf>,
    /// The same as seen from the run's directory, for one that was moved together with its data.
    #[serde(default, with = "super::paths::exact", skip_serializing_if = "Option::is_none")]
    from_run: Option<PathBuf>,
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
            path: Path::new(DEFAULT_PATH).exists().then(|| absolute(Path::new(DEFAULT_PATH))),
            from_run: None,
            train_bytes: None,
            scored_bytes: Some(DEFAULT_SCORED),
        });
        let given = args.data.as_deref().or_else(|| args.download.then_some(Path::new(DEFAULT_PATH)));
        let choice = Self {
            path: given.map(absolute).or(stored.path),
            from_run: None,
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

    /// The options that ask for it, each by its name and by those of the options that take its place, with its value.
    pub fn options(&self) -> Vec<(&'static [&'static str], Option<OsString>)> {
        let number = |bytes: usize| Some(bytes.to_string().into());
        let mut options: Vec<(&'static [&'static str], _)> = Vec::new();
        if let Some(path) = &self.path {
            options.push((&["--data", "--download"], Some(path.into())));
        }
        if let Some(bytes) = self.train_bytes {
            options.push((&["--train-bytes"], number(bytes)));
        }
        match self.scored_bytes {
            None => options.push((&["--full-eval", "--valid-bytes"], None)),
            Some(DEFAULT_SCORED) => {}
            Some(bytes) => options.push((&["--valid-bytes", "--full-eval"], number(bytes))),
        }
        options
    }

    #[cfg(test)]
    pub fn of(path: &str, train_bytes: Option<usize>, scored_bytes: Option<usize>) -> Self {
        Self { path: Some(path.into()), from_run: None, train_bytes, scored_bytes }
    }

    /// Whether both splits that are scored are whole.
    pub fn is_whole(&self) -> bool {
        self.scored_bytes.is_none()
    }

    /// What the run in `run_dir` was started with, where it says so, with the file where it is now.
    pub fn stored(run_dir: &Path) -> Result<Option<Self>> {
        let kept: Option<Self> = runs::kept(run_dir, FILE, "delete it, and name the data again")?;
        let Some(mut choice) = kept else { return Ok(None) };
        if let Some(path) = &choice.path {
            // A path of an earlier version is as seen from where the run was started: most likely what holds runs/, or the run.
            let candidates = [
                Some(path.clone()),
                choice.from_run.as_ref().map(|from_run| run_dir.join(from_run)),
                path.is_relative().then(|| run_dir.join("../..").join(path)),
                path.is_relative().then(|| run_dir.join("..").join(path)),
            ];
            let there: Vec<_> = candidates.into_iter().flatten().filter(|path| path.is_file()).collect();
            let trained_on = latest_manifest(run_dir).ok().flatten().map(|(_, manifest)| manifest.corpus);
            // Of several that which it was trained on; else the first, which whoever reads it names.
            let is_it = |path: &&PathBuf| {
                let same =
                    |corpus: &CorpusIdentity| choice.splits_of(path).is_ok_and(|it| corpus.difference(&it).is_none());
                trained_on.as_ref().is_some_and(same)
            };
            let found = if there.len() > 1 { there.iter().find(is_it).or(there.first()) } else { there.first() };
            choice.path = Some(absolute(found.unwrap_or(path)));
        }
        Ok(Some(choice))
    }

    /// Remembers the choice in the run directory.
    pub fn store(&self, run_dir: &Path) -> Result<()> {
        let from_run = self.path.as_deref().and_then(|path| relative(path, run_dir));
        runs::keep(run_dir, FILE, &Self { from_run, ..self.clone() })
    }

    /// That the data of the run in `run_dir`, whose choice this is, is what it was trained on.
    ///
    /// # Errors
    /// If it is not: by its name, and how it differs.
    pub fn check(&self, run_dir: &Path) -> Result<()> {
        let Some((_, manifest)) = latest_manifest(run_dir)? else { return Ok(()) };
        let splits = match &self.path {
            None => self.cut(enwik8::sample()),
            Some(path) => self.splits_of(path)?,
        };
        let Some((split, difference)) = manifest.corpus.difference(&splits) else { return Ok(()) };
        let file = self.path.as_ref().map_or_else(|| splits.name.clone(), |path| path.display().to_string());
        bail!("{}. Name what to score with --data", other_data(run_dir, &file, split, &difference));
    }

    /// Opens the data, downloads it first where that was asked for, and cuts it to the bytes that are used. A process that
    /// `speaks` shows how far the download is, and says where the file is evidently not text.
    pub fn open(&self, args: &DataArgs, speaks: bool) -> Result<Splits> {
        let Some(path) = &self.path else { return Ok(self.cut(enwik8::sample())) };
        if args.download {
            outputs::refuse_place("--data", path, None)?;
            download(path, speaks)?;
        }
        if speaks {
            // By the name that was given.
            tell_of_format(args.data.as_deref().unwrap_or(path));
        }
        self.splits_of(path)
    }

    fn splits_of(&self, path: &Path) -> Result<Splits> {
        Ok(self.cut(enwik8::open_any(path)?))
    }

    fn cut(&self, mut splits: Splits) -> Splits {
        if let Some(bytes) = self.train_bytes {
            splits.train = splits.train.head(bytes);
        }
        if let Some(bytes) = self.scored_bytes {
            (splits.valid, splits.test) = (splits.valid.head(bytes), splits.test.head(bytes));
        }
        splits
    }
}

/// What to say of data that a run was not trained on.
pub fn other_data(run_dir: &Path, given: &str, split: &str, difference: &str) -> String {
    format!("{} was trained on other data than {given}: its {split} split {difference}", run_dir.display())
}

/// A path that means the same from everywhere. Where there is no current directory it stays as it is.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// The way from a directory to a file; `None` where one of them is not there, or they have nothing in common.
fn relative(file: &Path, dir: &Path) -> Option<PathBuf> {
    let file = file.parent()?.canonicalize().ok()?.join(file.file_name()?);
    let dir = dir.canonicalize().ok()?;
    let common = file.components().zip(dir.components()).take_while(|(a, b)| a == b).count();
    if !dir.components().take(common).any(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let up = dir.components().skip(common).map(|_| Component::ParentDir);
    Some(up.chain(file.components().skip(common)).collect())
}

/// Says in one line where a file is evidently not text.
fn tell_of_format(path: &Path) {
    // What cannot be read, or may never answer, whoever reads it says.
    if let Ok(head) = whole_file::read(path, format::HEAD as u64)
        && let Some(format) = format::recognize(&head)
    {
        tell!("{}", format.describe(path));
    }
}

#[cfg(feature = "fetch")]
fn download(path: &Path, speaks: bool) -> Result<()> {
    use crate::{data::fetch, train::draws_live_lines};
    if speaks {
        fetch::enwik8(path, &mut fetch::progress(draws_live_lines()))?
    } else {
        fetch::enwik8(path, &mut |_| {})?
    };
    Ok(())
}

#[cfg(not(feature = "fetch"))]
fn download(_: &Path, _: bool) -> Result<()> {
    anyhow::bail!("this program was built without downloads: build it with --features fetch, or give --data PATH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_from_a_run_to_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("runs/001")).unwrap();
        std::fs::create_dir_all(at("data")).unwrap();
        assert_eq!(relative(&at("data/log"), &at("runs/001")), Some("../../data/log".into()));
        assert_eq!(relative(&at("runs/001/log"), &at("runs/001")), Some("log".into()));
        assert_eq!(relative(&at("nowhere/log"), &at("runs/001")), None);
    }

    #[test]
    fn a_choice_is_kept_and_found_where_its_file_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/run")).unwrap();
        std::fs::write(at("a/log"), b"text").unwrap();
        let choice = DataChoice { path: Some(at("a/log")), from_run: None, train_bytes: Some(5), scored_bytes: None };
        choice.store(&at("a/run")).unwrap();
        let from_run = Some("../log".into());
        assert_eq!(
            DataChoice::stored(&at("a/run")).unwrap().unwrap(),
            DataChoice { from_run: from_run.clone(), ..choice.clone() }
        );
        std::fs::rename(at("a"), at("b")).unwrap();
        let moved = DataChoice::stored(&at("b/run")).unwrap().unwrap();
        assert_eq!(moved.path.unwrap().canonicalize().unwrap(), at("b/log").canonicalize().unwrap());
        // As an earlier version kept it.
        std::fs::write(at("b/run/data.json"), br#"{"path": "log", "train_bytes": null, "scored_bytes": 7}"#).unwrap();
        let old = DataChoice::stored(&at("b/run")).unwrap().unwrap();
        assert_eq!(old.path.unwrap().canonicalize().unwrap(), at("b/log").canonicalize().unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_no_text_is_kept() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        std::fs::write(&path, b"text").unwrap();
        let choice = DataChoice { path: Some(path), from_run: None, train_bytes: None, scored_bytes: None };
        choice.store(dir.path()).unwrap();
        assert_eq!(DataChoice::stored(dir.path()).unwrap().unwrap().path, choice.path);
    }
}
