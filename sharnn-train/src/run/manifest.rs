//! `checkpoint.json`: everything of a run that is no tensor.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sharnn_core::{Backend, ShaRnnConfig};
use sharnn_data::{SegmentsState, Split, Splits, corpus, whole_file};

use super::{CheckpointError, Smoothed, Window};
use crate::files::{json_error, shown};
use crate::group::json_difference;
use crate::recipe::Recipe;

/// Version of the checkpoint's layout.
pub const FORMAT: u64 = 1;

/// Everything of a run that is no tensor, and the checksums of the files that hold the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u64,
    /// The model.
    pub config: ShaRnnConfig,
    /// The recipe.
    pub recipe: Recipe,
    /// The data.
    pub corpus: CorpusIdentity,
    /// Name of the backend that computed it. Another one may resume it, and then differs in the last bits.
    pub backend: String,
    /// Name of the instructions that computed it, where the backend says so. Others may resume it in the same way.
    #[serde(default)]
    pub instructions: Option<String>,
    /// Where the run stands.
    pub position: Position,
    /// Where the stream of segments stands.
    pub segments: SegmentsState,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Whether that was scored otherwise, or on other bytes, than the next validations will be: it is to be scored anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rescore_best: bool,
    /// What was measured since the last metrics record.
    pub window: Window,
    /// The smoothed training loss.
    pub smoothed: Smoothed,
    /// Wall-clock seconds since the start of the run, interruptions left out.
    pub seconds: f64,
    /// Length and checksum of every other file, by name.
    pub files: BTreeMap<String, FileDigest>,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Steps done in the whole run, those that were skipped included.
    pub step: u64,
    /// Epochs completed in the whole run.
    pub epoch: u64,
    /// Phase of the recipe, from 0; the number of phases at the end of the run.
    pub phase: usize,
    /// Steps done in this phase.
    pub phase_step: u64,
    /// Epochs completed in this phase.
    pub phase_epoch: u64,
    /// The step after which the validation split was scored last; 0 if never.
    pub validated: u64,
    /// Bytes trained on in the whole run.
    pub bytes: u64,
    /// Steps skipped in the whole run.
    pub skipped: u64,
    /// Steps skipped in a row just before.
    pub skipped_in_a_row: u64,
}

/// The best validation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Bits per byte of the validation split.
    pub bpc: f64,
    /// Steps trained before.
    pub step: u64,
    /// Epochs completed before.
    pub epoch: u64,
    /// Phase of the recipe, from 0.
    pub phase: usize,
}

/// A run goes on with something else than what computed its checkpoint, and so differs in the last bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// "backend" or "instructions".
    pub what: &'static str,
    /// Name of what computed the checkpoint.
    pub from: String,
    /// Name of what goes on.
    pub to: String,
}

/// Which data a run is trained, validated and tested on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusIdentity {
    /// What reports call it. It may change.
    pub name: String,
    /// The absolute path of the file that it was read from, for people; what is no UTF-8 is replaced. It may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The training split.
    pub train: FileDigest,
    /// The validation split.
    pub valid: FileDigest,
    /// The test split.
    pub test: FileDigest,
}

/// Length and SHA-256 of a file or of a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Where it is of so many pieces in place of all bytes: [`Split::sampled_sha256`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<u64>,
}

/// Bytes of a split that are all hashed when a run begins, a fraction of a second's work; of a longer one only pieces are.
const HASHED_WHOLE: usize = 128 << 20;

impl FileDigest {
    /// Reads a whole file.
    pub(crate) fn of_file(path: &Path) -> Result<Self, CheckpointError> {
        let mut hasher = Sha256::new();
        let copied = whole_file::open(path).and_then(|mut file| io::copy(&mut file, &mut hasher));
        let bytes = copied.map_err(CheckpointError::io("read", path))?;
        Ok(Self { bytes, sha256: format!("{:x}", hasher.finalize()), pieces: None })
    }

    fn of_split(split: &Split, whole: bool) -> Self {
        let (sha256, pieces) =
            if whole { (split.sha256(), None) } else { (split.sampled_sha256(), Some(corpus::PIECES as u64)) };
        Self { bytes: split.len() as u64, sha256, pieces }
    }

    /// That of a split, in the way in which this one was made. One of another length isn't read.
    fn same_of(&self, split: &Split) -> Self {
        match self.bytes == split.len() as u64 {
            true => Self::of_split(split, self.pieces.is_none()),
            false => Self { bytes: split.len() as u64, sha256: String::new(), pieces: None },
        }
    }
}

impl CorpusIdentity {
    /// Reads and hashes splits of up to 128 MiB; of longer ones 256 pieces of 16 KiB, so that data of any size is known at once.
    /// A change between these pieces goes unseen.
    pub fn of(splits: &Splits) -> Self {
        let digest = |split: &Split| FileDigest::of_split(split, split.len() <= HASHED_WHOLE);
        let [train, valid, test] = [&splits.train, &splits.valid, &splits.test].map(digest);
        Self { name: String::new(), path: None, train, valid, test }.named_as(splits)
    }

    /// The same under the name and the path of other splits.
    pub(crate) fn named_as(self, splits: &Splits) -> Self {
        let path = splits.train.corpus().path().map(|path| path.display().to_string());
        Self { name: splits.name.clone(), path, ..self }
    }

    /// What differs in other data, of whatever name: the split, and how; `None` where they are the same.
    pub fn difference(&self, splits: &Splits) -> Option<(&'static str, String)> {
        let pairs = [
            ("training", &self.train, &splits.train),
            ("validation", &self.valid, &splits.valid),
            ("test", &self.test, &splits.test),
        ];
        pairs.into_iter().find_map(|(name, expected, split)| {
            let found = expected.same_of(split);
            if found.bytes != expected.bytes {
                return Some((name, format!("had {} bytes, and has {}", expected.bytes, found.bytes)));
            }
            (found != *expected).then(|| (name, format!("has as many bytes ({}), but others", found.bytes)))
        })
    }
}

impl Manifest {
    /// Goes on with what a recipe says otherwise, as far as no step that was made depends on it.
    pub(crate) fn take_changes(&mut self, recipe: &Recipe) {
        let Position { phase, phase_step, phase_epoch, .. } = self.position;
        let targets = self.segments.lane_len.saturating_sub(1).max(1);
        let epochs = phase_epoch as f64 + self.segments.position as f64 / targets as f64;
        self.recipe = self.recipe.with_evaluations_of(recipe).with_falls_of(recipe, phase, phase_step, epochs);
    }

    /// Refuses to go on with anything but what the run was started with. The corpus may have another name.
    pub(crate) fn check(
        &self,
        dir: &Path,
        expected: Option<(&ShaRnnConfig, &Recipe)>,
        splits: &Splits,
    ) -> Result<(), CheckpointError> {
        if let Some((split, difference)) = self.corpus.difference(splits) {
            let CorpusIdentity { name, path, .. } = self.corpus.clone().named_as(splits);
            return Err(CheckpointError::OtherCorpus {
                checkpoint: dir.into(),
                saved: self.corpus.path.as_deref().map(shown),
                given: path.unwrap_or(name),
                split,
                difference,
            });
        }
        let mut pairs = Vec::new();
        if let Some((config, recipe)) = expected {
            pairs.push(("model", to_value(&self.config), to_value(config)));
            pairs.push(("recipe", to_value(&self.recipe), to_value(recipe)));
        }
        for (name, saved, given) in &pairs {
            if let Some((field, saved, given)) = json_difference(name, saved, given) {
                return Err(CheckpointError::Differs { checkpoint: dir.into(), field, saved, given });
            }
        }
        Ok(())
    }

    /// What `B` computes with in place of what computed this checkpoint; `None` where that is the same. A checkpoint that
    /// does not say its instructions passes for one of these.
    pub(crate) fn moved_to<B: Backend>(&self, device: &B::Device) -> Option<Moved> {
        let moved = |what, from: &str, to: &str| (from != to).then(|| Moved { what, from: from.into(), to: to.into() });
        moved("backend", &self.backend, &B::name(device)).or_else(|| {
            let (from, to) = self.instructions.as_deref().zip(B::instructions())?;
            moved("instructions", from, to)
        })
    }

    /// Writes `checkpoint.json`, and its checksum beside it in the format of `sha256sum`.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        write_json(dir, MANIFEST, self)
    }

    /// Reads `checkpoint.json` and checks it against its checksum, not yet the other files. `advice` is for errors.
    pub(crate) fn read(dir: &Path, advice: &str) -> Result<Self, CheckpointError> {
        let manifest: Self = read_json(dir, MANIFEST, advice)?;
        let largest = manifest.largest_count();
        if largest > MOST_COUNTED {
            return Err(CheckpointError::Damaged {
                file: dir.join(MANIFEST),
                expected: format!("counts of steps, epochs and bytes up to {MOST_COUNTED}"),
                found: largest.to_string(),
                advice: advice.into(),
            });
        }
        Ok(manifest)
    }

    /// The largest number of all that goes on being counted.
    fn largest_count(&self) -> u64 {
        let Position { step, epoch, phase_step, phase_epoch, validated, bytes, skipped, skipped_in_a_row, .. } =
            self.position;
        let of_position = [step, epoch, phase_step, phase_epoch, validated, bytes, skipped, skipped_in_a_row];
        let Window { steps, skipped, bytes, scored, .. } = self.window;
        let of_others = [steps, skipped, bytes, scored, self.smoothed.steps, self.segments.epoch];
        of_position.into_iter().chain(of_others).fold(0, u64::max)
    }
}

/// No run counts so far: what it adds from there on does not overflow.
const MOST_COUNTED: u64 = 1 << 60;

pub(crate) const MANIFEST: &str = "checkpoint.json";

/// A manifest is not longer.
const MOST_JSON: u64 = 16 << 20;

/// Writes a JSON file and its checksum.
pub(crate) fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), CheckpointError> {
    let json = serde_json::to_vec_pretty(value).expect("a manifest has only string keys and serialisable values");
    let sum = format!("{:x}  {name}\n", Sha256::digest(&json));
    for (name, contents) in [(name.to_string(), json), (format!("{name}.sha256"), sum.into_bytes())] {
        let path = dir.join(name);
        fs::write(&path, contents).map_err(CheckpointError::io("write", &path))?;
    }
    Ok(())
}

/// Reads a JSON file that [`write_json`] wrote, its checksum and its format first.
pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(
    dir: &Path,
    name: &str,
    advice: &str,
) -> Result<T, CheckpointError> {
    let file = dir.join(name);
    let damaged = |file: &Path, expected: String, found: String| CheckpointError::Damaged {
        file: file.into(),
        expected,
        found,
        advice: advice.into(),
    };
    let json = read_present(&file, advice)?;
    let sum_file = dir.join(format!("{name}.sha256"));
    let sum = read_present(&sum_file, advice)?;
    let expected = String::from_utf8_lossy(&sum).split_whitespace().next().unwrap_or_default().to_string();
    let found = format!("{:x}", Sha256::digest(&json));
    if expected != found {
        return Err(damaged(
            &file,
            format!("the sha256 \"{}\" of {name}.sha256", shown(&expected)),
            format!("{found:?}"),
        ));
    }
    #[derive(Deserialize)]
    struct Format {
        format: u64,
    }
    let unreadable = |error: serde_json::Error| damaged(&file, format!("format {FORMAT}"), json_error(&error));
    let Format { format } = serde_json::from_slice(&json).map_err(unreadable)?;
    if format != FORMAT {
        return Err(CheckpointError::Format { file: file.clone(), found: format, expected: FORMAT });
    }
    serde_json::from_slice(&json).map_err(unreadable)
}

fn read_present(file: &Path, advice: &str) -> Result<Vec<u8>, CheckpointError> {
    // Of a longer one the checksum is wrong.
    match whole_file::read(file, MOST_JSON) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(file, advice)),
        bytes => bytes.map_err(CheckpointError::io("read", file)),
    }
}

fn missing(file: &Path, advice: &str) -> CheckpointError {
    let (expected, found) = ("a file".into(), "none".into());
    CheckpointError::Damaged { file: file.into(), expected, found, advice: advice.into() }
}

/// Checks one file against its length and checksum.
pub(crate) fn verify(file: &Path, expected: &FileDigest, advice: &str) -> Result<(), CheckpointError> {
    let damaged = |expected: String, found: String| {
        Err(CheckpointError::Damaged { file: file.into(), expected, found, advice: advice.into() })
    };
    let len = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(file, advice)),
        metadata => metadata.map_err(CheckpointError::io("read", file))?.len(),
    };
    if len != expected.bytes {
        return damaged(format!("{} bytes", expected.bytes), len.to_string());
    }
    let found = FileDigest::of_file(file)?;
    if found.sha256 != expected.sha256 {
        return damaged(format!("the sha256 {}", shown(&expected.sha256)), found.sha256);
    }
    Ok(())
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("a configuration has only string keys")
}
