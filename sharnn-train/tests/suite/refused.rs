//! What a run directory is not resumed with: other settings, other data, damaged files, a second process.

use std::fs;
use std::path::Path;

use crate::common::*;
use sharnn_core::{Precision, ShaRnnConfig};
use sharnn_data::Splits;
use sharnn_train::{CheckpointError, Recipe, RecipeError, TrainError, TrainOptions, Trainer, load_best, load_tensors};

fn open_as(config: ShaRnnConfig, recipe: Recipe, splits: Splits, dir: &Path) -> TrainError {
    Trainer::<B>::open(config, recipe, splits, options(dir), &Default::default()).err().expect("must be refused")
}

fn open_error(dir: &Path) -> TrainError {
    open_as(config(), recipe(), splits(), dir)
}

#[test]
fn another_model_recipe_or_corpus_is_refused_by_the_field() {
    let dir = twelve_steps();
    let mut other_recipe = recipe();
    other_recipe.phases[1].lr = 0.5;
    let in_bf16 = Recipe { precision: Precision::Bf16, ..recipe() };
    let cases = [
        (open_as(config(), in_bf16, splits(), dir.path()), ("recipe.precision", "\"f32\"", "\"bf16\"")),
        (open_as(config().with_mem_len(30), recipe(), splits(), dir.path()), ("model.mem_len", "24", "30")),
        (open_as(config(), other_recipe, splits(), dir.path()), ("recipe.phases[1].lr", "0.005", "0.5")),
        (open_as(config(), recipe().with_batch_size(5), splits(), dir.path()), ("recipe.batch_size", "4", "5")),
    ];
    for (error, expected) in cases {
        let TrainError::Checkpoint(CheckpointError::Differs { field, saved, given, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!((field.as_str(), saved.as_str(), given.as_str()), expected);
        assert!(error.to_string().contains("step-00000012"), "{error}");
    }
    let error = open_as(config(), recipe(), splits_of(8), dir.path());
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::OtherCorpus { split: "training", .. })), "{error}");
    assert!(error.to_string().contains("step-00000012 was trained on other data than bytes in memory"), "{error}");
    let error = Trainer::<B>::resume(splits_of(8), options(dir.path()), &Default::default()).err().unwrap();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::OtherCorpus { .. })), "{error}");
    // The run is still there for who asks for it properly, and may be renamed.
    let renamed = Splits { name: "renamed".into(), ..splits() };
    let trainer = Trainer::<B>::resume(renamed, options(dir.path()), &Default::default()).unwrap();
    assert_eq!(trainer.position().step, 12);
}

#[test]
fn a_new_run_over_an_old_one_is_refused() {
    let dir = twelve_steps();
    let new = Trainer::<B>::new(config(), recipe(), splits(), options(dir.path()), &Default::default());
    let error = new.err().unwrap();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Exists { .. })), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Trainer::<B>::resume(splits(), options(empty.path()), &Default::default()).err().unwrap();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::None { .. })), "{error}");
}

/// What only a run writes is somebody's, though no checkpoint is beside it.
#[test]
fn a_new_run_replaces_no_weights_and_no_metrics() {
    let dir = twelve_steps();
    for step in [10, 12] {
        fs::remove_dir_all(dir.path().join(format!("step-{step:08}"))).unwrap();
    }
    let weights = || fs::read(dir.path().join("best/weights.safetensors")).unwrap();
    let metrics = || fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let before = (weights(), metrics());
    let new = || Trainer::<B>::new(config(), recipe(), splits(), options(dir.path()), &Default::default());
    for error in [new().err().unwrap(), open(options(dir.path())).err().unwrap()] {
        assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Occupied { .. })), "{error}");
        assert!(error.to_string().contains("best is there already"), "{error}");
    }
    assert!((weights(), metrics()) == before);
    fs::remove_dir_all(dir.path().join("best")).unwrap();
    let error = new().err().unwrap().to_string();
    assert!(error.contains("metrics.jsonl is there already"), "{error}");
    // What a start leaves that was killed.
    fs::write(dir.path().join("metrics.jsonl"), b"").unwrap();
    new().unwrap();
}

#[test]
fn a_second_trainer_in_the_directory_is_refused() {
    let dir = twelve_steps();
    let _first = open(options(dir.path())).unwrap();
    let error = open_error(dir.path());
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Locked { .. })), "{error}");
}

/// Every file of the newest checkpoint, truncated, with one bit flipped, and missing.
#[test]
fn a_damaged_checkpoint_is_refused_by_the_file_and_names_the_older_one() {
    let dir = twelve_steps();
    let newest = dir.path().join("step-00000012");
    let files: Vec<_> = fs::read_dir(&newest).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 6, "{files:?}");
    for file in &files {
        let good = fs::read(file).unwrap();
        let truncated = good[..good.len() / 2].to_vec();
        let mut flipped = good.clone();
        flipped[good.len() / 3] ^= 4;
        for (damage, bad) in [("truncated", Some(truncated)), ("flipped", Some(flipped)), ("missing", None)] {
            // Replaced, not changed in place: best.safetensors is one file with best/weights.safetensors.
            fs::remove_file(file).unwrap();
            if let Some(bad) = bad {
                fs::write(file, bad).unwrap();
            }
            let error = open_error(dir.path()).to_string();
            let name = file.file_name().unwrap().to_str().unwrap().trim_end_matches(".sha256");
            assert!(error.contains(name) && error.contains("is damaged: expected"), "{damage} {name}: {error}");
            let advice =
                "move step-00000012 out of the run directory and resume: the run then goes on from step-00000010";
            assert!(error.contains(advice), "{damage} {name}: {error}");
            let _ = fs::remove_file(file);
            fs::write(file, &good).unwrap();
        }
    }
    assert_eq!(open(options(dir.path())).unwrap().position().step, 12);
}

#[test]
fn the_advice_of_a_damaged_checkpoint_works() {
    let reference = uninterrupted(options);
    let dir = twelve_steps();
    fs::remove_file(dir.path().join("step-00000012/moments.safetensors")).unwrap();
    assert!(open_error(dir.path()).to_string().contains("step-00000010"));
    fs::rename(dir.path().join("step-00000012"), dir.path().join("damaged")).unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    assert_eq!(trainer.position().step, 10);
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[test]
fn a_checkpoint_of_another_format_is_refused() {
    let dir = twelve_steps();
    let manifest = dir.path().join("step-00000012/checkpoint.json");
    let json = fs::read_to_string(&manifest).unwrap();
    write_with_checksum(&manifest, &json.replacen("\"format\": 1", "\"format\": 99", 1));
    let error = open_error(dir.path());
    let TrainError::Checkpoint(CheckpointError::Format { found: 99, expected: 1, .. }) = error else {
        panic!("{error}");
    };
}

/// Checksums are no protection against whoever writes them; nothing in a manifest may panic.
#[test]
fn hostile_manifests_are_errors() {
    let dir = twelve_steps();
    let manifest = dir.path().join("step-00000012/checkpoint.json");
    let json = fs::read_to_string(&manifest).unwrap();
    let edits: [(&str, &str, &str); 8] = [
        ("\"step\": 12", "\"step\": -1", "step"),
        ("\"step\": 12", "\"step\": 1e99", "damaged"),
        ("\"skipped\"", "\"surprise\": 1, \"skipped\"", "surprise"),
        ("\"n_layers\": 3", "\"n_layers\": 0", "n_layers"),
        ("\"batch_size\": 4", "\"batch_size\": 0", "batch_size"),
        ("\"mem_len\": 24", "\"mem_len\": 3", "segments.max"),
        ("\"d_model\": 16", "\"d_model\": 24", "tensor"),
        ("\"weights.safetensors\"", "\"other.safetensors\"", "weights.safetensors"),
    ];
    for (from, to, named) in edits {
        assert!(json.contains(from), "{from}");
        write_with_checksum(&manifest, &json.replacen(from, to, 1));
        let resumed = Trainer::<B>::resume(splits(), options(dir.path()), &Default::default());
        let error = resumed.err().unwrap_or_else(|| panic!("{to} was accepted")).to_string();
        assert!(error.contains(named), "{to}: {error}");
    }
    for text in ["", "null", "[]", "{}", "{\"format\": 1}", "\u{0}\u{1}"] {
        write_with_checksum(&manifest, text);
        let error = Trainer::<B>::resume(splits(), options(dir.path()), &Default::default()).err().unwrap();
        assert!(error.to_string().contains("checkpoint.json is damaged"), "{text:?}: {error}");
    }
    let deep = "[".repeat(100_000);
    write_with_checksum(&manifest, &deep);
    assert!(Trainer::<B>::resume(splits(), options(dir.path()), &Default::default()).is_err());
}

/// Signed as if a run had written it, so that it is not refused for its checksum.
#[test]
fn a_state_that_is_not_the_models_is_refused() {
    let dir = twelve_steps();
    let step = dir.path().join("step-00000012");
    let good = load_tensors(&step.join("state.safetensors")).unwrap();
    let changes: [(Change, &str); 5] = [
        (|tensors| tensors.get_mut("blocks.0.h").unwrap().shape = vec![2, 32], "expects [4, 16]"),
        (|tensors| tensors.get_mut("blocks.1.memory").unwrap().shape.swap(0, 1), "expects [4, 4, 16]"),
        (|tensors| drop(tensors.remove("blocks.2.c")), "blocks.2.c of shape [4, 16] is missing"),
        (
            |tensors| drop(tensors.insert("blocks.0.memory".into(), tensors["blocks.1.memory"].clone())),
            "blocks.0.memory",
        ),
        (|tensors| drop(tensors.insert("blocks.3.h".into(), tensors["blocks.0.h"].clone())), "blocks.3.h"),
    ];
    for (change, told) in changes {
        change_tensors(&step, "state.safetensors", &good, change);
        let error = open_error(dir.path()).to_string();
        assert!(error.contains(told) && error.contains("state.safetensors"), "{told}: {error}");
    }
}

#[test]
fn damaged_best_weights_are_not_loaded_and_resuming_mends_them() {
    let dir = twelve_steps();
    let weights = dir.path().join("best/weights.safetensors");
    let good = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &good[..100]).unwrap();
    let error = load_best::<B>(dir.path(), &Default::default()).unwrap_err().to_string();
    assert!(error.contains("best/weights.safetensors is damaged"), "{error}");
    let mut trainer = open(options(dir.path())).unwrap();
    assert_eq!(fs::read(&weights).unwrap(), good[..100], "nothing is taken away before there is something to come");
    trainer.run(&steps(13), &mut silent, &Default::default()).unwrap();
    let (_, manifest) = load_best::<B>(dir.path(), &Default::default()).unwrap();
    assert_eq!(manifest.best.step, 9);
    assert_eq!(fs::read(&weights).unwrap(), good);
    let nothing = tempfile::tempdir().unwrap();
    let error = load_best::<B>(nothing.path(), &Default::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::NoBest { .. }), "{error}");
}

#[test]
fn settings_and_data_that_cannot_work_are_refused_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let error = open_as(config().with_mem_len(10), recipe(), splits(), dir.path()).to_string();
    assert!(error.starts_with("segments.max = 20 cannot be used"), "{error}");
    let error = open_as(config().with_vocab_size(100), recipe(), splits(), dir.path());
    assert!(matches!(error, TrainError::Vocabulary { split: "train", byte: b't', vocab_size: 100 }), "{error}");
    let error = open_as(config(), recipe().with_batch_size(100_000), splits(), dir.path());
    assert!(matches!(error, TrainError::Data(_)), "{error}");
    let mut crowded = recipe();
    crowded.test.lanes = 10_000;
    assert!(matches!(open_as(config(), crowded, splits(), dir.path()), TrainError::Data(_)));
    for field in ["log_every", "keep_checkpoints"] {
        let mut options = options(dir.path());
        match field {
            "log_every" => options.log_every = 0,
            _ => options.keep_checkpoints = 0,
        }
        let error = open(options).err().unwrap();
        let TrainError::Recipe(RecipeError { field: named, .. }) = &error else { panic!("{error}") };
        assert_eq!(named, &format!("options.{field}"));
    }
    let missing =
        TrainOptions { initial_weights: Some(std::path::PathBuf::from("no/such/file").into()), ..options(dir.path()) };
    assert!(open(missing).err().unwrap().to_string().contains("no/such/file"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the lock");
}

#[cfg(feature = "ndarray")]
#[test]
fn a_precision_that_the_backend_lacks_is_refused_before_training() {
    type B = burn::backend::Autodiff<burn::backend::NdArray<f32>>;
    let dir = tempfile::tempdir().unwrap();
    let error = open_in::<B>(Precision::Bf16, options(dir.path())).err().unwrap();
    assert!(matches!(error, TrainError::Precision { precision: Precision::Bf16, .. }), "{error}");
    assert!(
        error.to_string().contains("ndarray> does not compute in bf16 on this device: use precision f32"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
