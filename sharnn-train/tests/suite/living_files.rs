//! Files that other processes write to while a run reads them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::*;
use sharnn_data::{Corpus, DataError, Splits};
use sharnn_train::{CheckpointError, Event, Interrupt, Limits, TrainError, Trainer};

/// The text of the other tests in a file.
fn file(dir: &Path) -> PathBuf {
    let path = dir.join("log");
    let splits = splits();
    fs::write(&path, &**splits.train.corpus()).unwrap();
    path
}

fn open(path: &Path, run_dir: &Path) -> Result<Trainer<B>, TrainError> {
    let splits = Splits::by_fractions(Corpus::open(path).unwrap(), 0.2, 0.2).unwrap();
    Trainer::open(config(), recipe(), splits, options(run_dir), &Default::default())
}

/// What was trained before the file was cut short is saved, and goes on when the file is back.
#[cfg(unix)]
#[test]
fn a_corpus_that_is_cut_short_ends_the_run_and_loses_nothing() {
    let reference = uninterrupted(options);
    // In the middle of the training split; all of it; and, of the validation split, one byte.
    for kept in [100, 0, 900] {
        let dir = tempfile::tempdir().unwrap();
        let (path, run_dir) = (file(dir.path()), dir.path().join("run"));
        let bytes = fs::read(&path).unwrap();
        let mut trainer = open(&path, &run_dir).unwrap();
        let mut cut = |event: Event<'_>| {
            if matches!(event, Event::Train { record, .. } if record.step == 13) {
                fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept).unwrap();
            }
        };
        let error = trainer.run(&Limits::default(), &mut cut, &Interrupt::default()).unwrap_err();
        assert!(matches!(error, TrainError::Data(DataError::Shrunk { .. })), "{error}");
        assert!(error.to_string().contains("log was cut short while it was read"), "{error}");
        drop(trainer);
        fs::write(&path, &bytes).unwrap();
        let mut trainer = open(&path, &run_dir).unwrap();
        assert_eq!(trainer.position().step, 13);
        complete(&mut trainer);
        assert!(trace(&trainer, &run_dir) == reference, "{kept} bytes kept");
    }
}

/// What comes after its end is not read; another beginning is refused when the run is resumed.
#[test]
fn a_corpus_that_grows_is_trained_as_it_was_at_the_start() {
    use std::io::Write;
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let (path, run_dir) = (file(dir.path()), dir.path().join("run"));
    let mut trainer = open(&path, &run_dir).unwrap();
    let mut append = |event: Event<'_>| {
        if matches!(event, Event::Train { .. }) {
            fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        }
    };
    trainer.run(&Limits::default(), &mut append, &Interrupt::default()).unwrap();
    assert!(trace(&trainer, &run_dir) == reference);
    drop(trainer);
    let error = open(&path, &run_dir).err().unwrap();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::OtherCorpus { .. })), "{error}");
    let said = error.to_string();
    assert!(said.contains("was trained on other data than ") && said.contains("its training split had "), "{said}");
}

#[test]
fn a_corpus_that_is_written_over_is_told_before_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (path, run_dir) = (file(dir.path()), dir.path().join("run"));
    let mut trainer = open(&path, &run_dir).unwrap();
    let mut overwrite = |event: Event<'_>| {
        if matches!(event, Event::Train { record, .. } if record.step == 13) {
            use std::io::Write;
            fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"THE CAT").unwrap();
        }
    };
    let error = trainer.run(&Limits::default(), &mut overwrite, &Interrupt::default()).unwrap_err();
    assert!(matches!(error, TrainError::Data(DataError::Changed { .. })), "{error}");
    assert!(run_dir.join("step-00000010").is_dir(), "the checkpoint from before is intact");
}
