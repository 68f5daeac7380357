//! `metrics.jsonl`: one JSON object a line for everything that was measured, appended as the run goes.
//!
//! A step stands in it once. Whatever lies beyond the checkpoint from which a run is resumed is cut off before the first record that
//! follows, and not before there is one. A half-written last line goes at once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sharnn_data::whole_file;

use crate::files::json_error;

/// Name of the file in the run directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// Training steps, those since the record before.
    Train(TrainRecord),
    /// A scoring of the validation split.
    Valid(EvalRecord),
    /// A scoring of the test split with the best weights.
    Test(EvalRecord),
}

/// What was measured over the steps since the record before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// The last of these steps, counted from 1 over the whole run.
    pub step: u64,
    /// Phase of the recipe, from 0.
    pub phase: usize,
    /// Epoch of the whole run, from 0.
    pub epoch: u64,
    /// Bytes trained on since the start of the run.
    pub bytes: u64,
    /// Wall-clock seconds since the start of the run, interruptions left out.
    pub seconds: f64,
    /// Training loss in bits per byte, averaged over the bytes of these steps that were not skipped; `null` where all were.
    pub train_bpc: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Global gradient norm of the last step that was not skipped, before the clip.
    pub grad_norm: Option<f64>,
    /// Bytes trained on a second, over these steps.
    pub bytes_per_s: f64,
    /// How many of these steps were skipped, because the loss or the gradient was not finite.
    pub skipped: u64,
}

/// The score of a split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps trained before.
    pub step: u64,
    /// Phase of the recipe, from 0.
    pub phase: usize,
    /// Epochs completed before.
    pub epoch: u64,
    /// Wall-clock seconds since the start of the run, interruptions left out.
    pub seconds: f64,
    /// Bits per byte; `null` where the model gave no finite loss.
    pub bpc: Option<f64>,
    /// Bytes scored.
    pub bytes: u64,
    /// Whether it is the best of the run so far.
    pub best: bool,
}

/// A metrics file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line that is not one of ours, before the last.
    #[error("{}, line {line}: {problem}; move the file away, the run does not need it", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// The open file.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Bytes that stay, where others are still to be cut off.
    keep: Option<u64>,
}

impl Record {
    /// Whether the record belongs to a run that stands at `step` and has validated up to step `validated`. A test is
    /// never kept: the run goes on, and its end is tested again.
    fn is_before(&self, step: u64, validated: u64) -> bool {
        match self {
            Self::Train(record) => record.step <= step,
            // Of a run without a step the start is scored again.
            Self::Valid(record) => record.step <= validated && step > 0,
            Self::Test(_) => false,
        }
    }
}

impl Metrics {
    /// Opens the file of a run directory. What lies beyond `step` (for validations, beyond `validated`) is [cut](Self::cut) off later, or
    /// replaced by the next record; 0 and 0 leave nothing.
    ///
    /// # Errors
    /// If the system refuses, or if a line that is not the last is none of ours.
    pub fn open(run_dir: &Path, step: u64, validated: u64) -> Result<Self, MetricsError> {
        let path = run_dir.join(METRICS_FILE);
        let bytes = match read_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(io("read", &path))?,
        };
        let kept = kept_prefix(&bytes, step, validated);
        let (keep, whole) = kept.map_err(|(line, problem)| MetricsError::Line { path: path.clone(), line, problem })?;
        let mut file = open_to_write(&path)?;
        file.set_len(whole as u64).map_err(io("shorten", &path))?;
        file.seek(SeekFrom::End(0)).map_err(io("open", &path))?;
        Ok(Self { path, file, keep: (keep < whole).then_some(keep as u64) })
    }

    /// Cuts off what lies beyond the checkpoint.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn cut(&mut self) -> Result<(), MetricsError> {
        let Some(keep) = self.keep else { return Ok(()) };
        self.file.set_len(keep).map_err(io("shorten", &self.path))?;
        self.file.seek(SeekFrom::End(0)).map_err(io("open", &self.path))?;
        self.keep = None;
        Ok(())
    }

    /// Appends a record as one whole line. Where something is still to be cut off, it takes the place of that, or all stays as it is.
    ///
    /// # Errors
    /// If the system refuses, as on a full disk.
    pub fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(record).expect("a record has only string keys");
        line.push(b'\n');
        let Some(keep) = self.keep else {
            return self.file.write_all(&line).map_err(whole_file::named_limit).map_err(io("write", &self.path));
        };
        let mut bytes = std::fs::read(&self.path).map_err(io("read", &self.path))?;
        bytes.truncate(keep as usize);
        bytes.extend(line);
        let written: io::Result<()> = whole_file::write(&self.path, |out| out.write_all(&bytes));
        written.map_err(io("write", &self.path))?;
        self.file = open_to_write(&self.path)?;
        self.file.seek(SeekFrom::End(0)).map_err(io("open", &self.path))?;
        self.keep = None;
        Ok(())
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(|source| MetricsError::Io { action: "write", path: self.path.clone(), source })
    }

    /// Every record of a run directory's file; a half-written last line is left out.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(run_dir: &Path) -> Result<Vec<Record>, MetricsError> {
        let path = run_dir.join(METRICS_FILE);
        let bytes =
            read_all(&path).map_err(|source| MetricsError::Io { action: "read", path: path.clone(), source })?;
        lines(&bytes)
            .enumerate()
            .map(|(i, line)| {
                parse(line).map_err(|problem| MetricsError::Line { path: path.clone(), line: i + 1, problem })
            })
            .collect()
    }
}

fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    whole_file::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole lines, each with its line feed.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

fn parse(line: &[u8]) -> Result<Record, String> {
    serde_json::from_slice(line).map_err(|error| format!("not a record of a run ({})", json_error(&error)))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    let path = path.to_path_buf();
    move |source| MetricsError::Io { action, path, source }
}

fn open_to_write(path: &Path) -> Result<File, MetricsError> {
    whole_file::open_with(File::options().create(true).write(true).truncate(false), path).map_err(io("open", path))
}

/// Length of the lines before the first that lies beyond the given steps, and of all that are whole; or the number of a line that is none
/// of ours, and what is wrong with it.
fn kept_prefix(bytes: &[u8], step: u64, validated: u64) -> Result<(usize, usize), (usize, String)> {
    let (mut keep, mut whole, mut is_beyond) = (0, 0, false);
    for (i, line) in lines(bytes).enumerate() {
        let is_last = whole + line.len() == bytes.len();
        match parse(line) {
            Ok(record) => {
                whole += line.len();
                is_beyond |= !record.is_before(step, validated);
                keep = if is_beyond { keep } else { whole };
            }
            // The last line may have been torn by a crash of the machine; of those beyond none is needed.
            Err(_) if is_last || is_beyond => break,
            Err(problem) => return Err((i + 1, problem)),
        }
    }
    Ok((keep, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64) -> Record {
        let (train_bpc, grad_norm) = (Some(0.1 + 0.2), Some(f64::MIN_POSITIVE));
        Record::Train(TrainRecord {
            step,
            phase: 0,
            epoch: 1,
            bytes: 7,
            seconds: 1.5,
            train_bpc,
            lr: 2e-3,
            grad_norm,
            bytes_per_s: 1e5,
            skipped: 0,
        })
    }

    fn eval(step: u64) -> EvalRecord {
        EvalRecord { step, phase: 0, epoch: 1, seconds: 2.0, bpc: None, bytes: 9, best: false }
    }

    fn write(dir: &Path, records: &[Record]) {
        let mut metrics = Metrics::open(dir, 0, 0).unwrap();
        records.iter().for_each(|record| metrics.append(record).unwrap());
    }

    #[test]
    fn records_round_trip_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let records = [train(1), Record::Valid(eval(1)), Record::Test(eval(1))];
        write(dir.path(), &records);
        assert_eq!(Metrics::read(dir.path()).unwrap(), records);
        let text = std::fs::read_to_string(dir.path().join(METRICS_FILE)).unwrap();
        assert!(text.contains(r#"{"event":"valid","step":1,"#), "{text}");
    }

    #[test]
    fn opening_cuts_off_what_lies_beyond_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let records = [train(1), train(2), Record::Valid(eval(2)), train(3), Record::Test(eval(3))];
        for (step, validated, kept) in [(3, 2, 4), (2, 2, 3), (2, 0, 2), (1, 0, 1), (0, 0, 0)] {
            write(dir.path(), &records);
            let mut metrics = Metrics::open(dir.path(), step, validated).unwrap();
            metrics.append(&train(9)).unwrap();
            let mut expected = records[..kept].to_vec();
            expected.push(train(9));
            assert_eq!(Metrics::read(dir.path()).unwrap(), expected, "step {step}, validated {validated}");
        }
    }

    #[test]
    fn nothing_that_was_measured_goes_before_something_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let records = [train(1), Record::Valid(eval(1)), Record::Test(eval(1))];
        write(dir.path(), &records);
        let mut metrics = Metrics::open(dir.path(), 1, 0).unwrap();
        assert_eq!(Metrics::read(dir.path()).unwrap(), records);
        metrics.append(&records[1]).unwrap();
        metrics.append(&train(2)).unwrap();
        assert_eq!(Metrics::read(dir.path()).unwrap(), [train(1), Record::Valid(eval(1)), train(2)]);
        Metrics::open(dir.path(), 1, 1).unwrap().cut().unwrap();
        assert_eq!(Metrics::read(dir.path()).unwrap(), records[..2]);
    }

    #[test]
    fn a_half_written_last_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        for torn in [&br#"{"event":"train","st"#[..], b"\0\0\0\n"] {
            write(dir.path(), &[train(1)]);
            let path = dir.path().join(METRICS_FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend_from_slice(torn);
            std::fs::write(&path, bytes).unwrap();
            Metrics::open(dir.path(), 5, 5).unwrap();
            assert_eq!(Metrics::read(dir.path()).unwrap(), [train(1)]);
        }
    }

    #[test]
    fn a_foreign_line_is_refused_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[train(1), train(2)]);
        let path = dir.path().join(METRICS_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("hello\n{text}")).unwrap();
        let error = Metrics::open(dir.path(), 5, 5).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl, line 1: not a record"), "{error}");
    }
}
