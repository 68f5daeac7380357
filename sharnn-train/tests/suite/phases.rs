//! Phases, and steps that are skipped.

use std::collections::BTreeMap;
use std::fs;

use crate::common::*;
use sharnn_train::{
    Event, Interrupt, Limits, Record, Stop, TrainError, TrainOptions, Trainer, collect_params, load_best, load_tensors,
    save_tensors, save_weights,
};

/// The checkpoint at the change of phases holds the best weights, no moments and an empty state.
#[test]
fn the_second_phase_starts_from_the_best_weights_with_a_fresh_optimizer() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    trainer.run(&steps(40), &mut silent, &Interrupt::default()).unwrap();
    let before = collect_params(trainer.model());

    let mut changed = None;
    let mut saved = false;
    let mut watch = |event: Event<'_>| {
        if let Event::Phase { phase, best } = event {
            let (model, manifest) = load_best::<B>(dir.path(), &Default::default()).unwrap();
            assert_eq!(&manifest.best, best);
            changed = Some((phase, collect_params(&model), best.clone()));
        } else if let (Event::Checkpoint { step: 40, path }, Some((_, best_weights, _))) = (&event, &changed) {
            saved = true;
            assert!(load_tensors(&path.join("moments.safetensors")).unwrap().is_empty());
            assert!(load_tensors(&path.join("state.safetensors")).unwrap().is_empty());
            let weights = load_tensors(&path.join("weights.safetensors")).unwrap();
            let embedding = &best_weights[0];
            assert_eq!((embedding.name.as_str(), &weights["encoder.weight"].data), ("encoder.weight", &embedding.data));
        }
    };
    assert_eq!(trainer.run(&steps(41), &mut watch, &Interrupt::default()).unwrap(), Stop::Steps);
    assert!(saved, "a checkpoint at the change of phases");
    let (phase, best_weights, best) = changed.unwrap();
    assert_eq!(phase, 1);
    assert!(best.step <= 40);
    if best.step < 40 {
        assert!(before != best_weights, "the last weights of phase one are not the best");
    }
    // One step with a fresh optimizer: (1 - beta1) of one gradient, and the warm-up starts again.
    let Some(Record::Train(record)) = trace(&trainer, dir.path()).records.pop() else { panic!("a training record") };
    assert_eq!((record.step, record.phase), (41, 1));
    assert!((record.lr - 5e-3 / 5.0).abs() < 1e-15, "{}", record.lr);
    assert_eq!(trainer.position().phase_step, 1);
}

/// A validation may be long: what would be lost with the process is kept before it.
#[test]
fn a_validation_begins_with_the_run_in_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let options = TrainOptions { checkpoint_every: 0, checkpoint_interval: None, log_every: 1, ..options(dir.path()) };
    let mut trainer = open(options).unwrap();
    let (mut trained, mut saved, mut validated) = (0, 0, 0);
    let mut watch = |event: Event<'_>| match event {
        Event::Train { record, .. } => {
            trained = record.step;
            // The checkpoint before is a second old whenever a validation comes.
            std::thread::sleep(std::time::Duration::from_millis(120));
        }
        Event::Checkpoint { step, .. } => saved = step,
        Event::Evaluating { split: "valid", .. } => {
            assert_eq!(saved, trained);
            validated = trained;
        }
        _ => {}
    };
    trainer.run(&steps(20), &mut watch, &Interrupt::default()).unwrap();
    assert_eq!(validated, 18);
}

#[test]
fn the_run_ends_with_the_test_of_the_best_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    let finished = trainer.finish(&mut silent).unwrap();
    let records = sharnn_train::Metrics::read(dir.path()).unwrap();
    let valid = records.iter().filter_map(|record| match record {
        Record::Valid(record) => record.bpc,
        _ => None,
    });
    assert_eq!(finished.best.bpc, valid.fold(f64::INFINITY, f64::min));
    let Some(Record::Test(test)) = records.last() else { panic!("the last record is the test") };
    assert_eq!(test.bpc, Some(finished.test.bpc()));
    let (best, _) = load_best::<B>(dir.path(), &Default::default()).unwrap();
    assert!(collect_params(&best) == collect_params(&finished.model));
    assert!(finished.test.bpc() < 5.0, "{}", finished.test.bpc());
}

#[test]
fn poisoned_initial_weights_stop_the_run_by_name_and_save_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let poisoned = dir.path().join("poisoned.safetensors");
    save_weights(&config().init_seeded::<B>(1, &Default::default()), &poisoned).unwrap();
    let mut tensors = load_tensors(&poisoned).unwrap();
    // Finite, or it would not load; the first matrix product overflows.
    tensors.get_mut("blocks.0.lnstart.weight").unwrap().data.fill(f32::MAX);
    let tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.data)).collect();
    save_tensors(&poisoned, &tensors, &BTreeMap::new()).unwrap();

    let run_dir = dir.path().join("run");
    let mut trainer = open(TrainOptions { initial_weights: Some(poisoned.into()), ..options(&run_dir) }).unwrap();
    let mut skipped = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Skipped { step, in_a_row } = event {
            skipped.push((step, in_a_row));
        }
    };
    let error = trainer.run(&Limits::default(), &mut watch, &Interrupt::default()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { step: 5, in_a_row: 5, .. }), "{error}");
    assert!(error.to_string().contains("no checkpoint had been written"), "{error}");
    assert_eq!(skipped, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    let names: Vec<_> = fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let of_steps = |name: &str| name.starts_with("step-") && name != "step-00000000";
    assert!(names.iter().all(|name| !of_steps(&name.to_string_lossy())), "{names:?}");
}

/// A learning rate that destroys the weights in one step of phase two: the steps after it are skipped and the run stops,
/// and the checkpoints from before are what they were.
#[test]
fn a_diverging_run_leaves_the_last_good_checkpoint_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = recipe();
    (recipe.phases[1].lr, recipe.phases[1].warmup_steps) = (1e30, 0);
    let open = || Trainer::<B>::open(config(), recipe.clone(), splits(), options(dir.path()), &Default::default());
    let mut trainer = open().unwrap();
    trainer.run(&steps(38), &mut silent, &Interrupt::default()).unwrap();
    // One checkpoint a step from here on would overwrite the good ones, if any bad one were written.
    drop(trainer);
    let every_step = TrainOptions { checkpoint_every: 1, ..options(dir.path()) };
    let mut trainer = Trainer::<B>::open(config(), recipe.clone(), splits(), every_step, &Default::default()).unwrap();
    let weights_of = |path: &std::path::Path| fs::read(path.join("weights.safetensors")).unwrap();
    let mut saved = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Checkpoint { step, path } = event {
            saved.push((step, path.to_path_buf(), weights_of(path)));
        }
    };
    let error = trainer.run(&Limits::default(), &mut watch, &Interrupt::default()).unwrap_err();
    drop(trainer);
    let message = error.to_string();
    assert!(matches!(error, TrainError::Diverged { in_a_row: 5, .. }), "{message}");
    for named in ["step-000000", "lower learning rate", "5 in a row"] {
        assert!(message.contains(named), "{message}");
    }
    let trainer = open().unwrap();
    let step = trainer.position().step;
    // The step that destroys is one that counts: only the next loss tells. So the two newest are those after it and
    // before it, and the one before is what it was.
    let [.., (before, path, weights), (newest, ..)] = &saved[..] else { panic!("{} checkpoints", saved.len()) };
    assert_eq!((*before, *newest), (40, step));
    assert!(weights_of(path) == *weights && message.contains("step-00000040"), "{message}");
    assert!(message.contains(&format!("step-{step:08} from before is intact")), "{message}");
    assert_eq!(trainer.position().skipped_in_a_row, 0);
    // Its weights are finite, and so are those of the best validation, from before the destruction.
    let finite =
        |model: &sharnn_core::ShaRnn<B>| collect_params(model).iter().all(|p| p.data.iter().all(|x| x.is_finite()));
    assert!(finite(trainer.model()));
    let (best, manifest) = load_best::<B>(dir.path(), &Default::default()).unwrap();
    assert!(finite(&best) && manifest.best.step <= 40);
}

/// A few bad steps do not end a run: they are counted, nothing of the model changes, and no checkpoint is written among
/// them.
#[test]
fn skipped_steps_change_nothing_and_put_off_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let poisoned = dir.path().join("poisoned.safetensors");
    let fresh = config().init_seeded::<B>(1, &Default::default());
    save_weights(&fresh, &poisoned).unwrap();
    let mut tensors = load_tensors(&poisoned).unwrap();
    // Finite, but the distance of these logits is not.
    let bias = &mut tensors.get_mut("decoder.bias").unwrap().data;
    (bias[usize::from(b'e')], bias[usize::from(b't')]) = (f32::MAX, f32::MIN);
    let list: Vec<_> = tensors.clone().into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.data)).collect();
    save_tensors(&poisoned, &list, &BTreeMap::new()).unwrap();
    let run_dir = dir.path().join("run");
    let options =
        TrainOptions { initial_weights: Some(poisoned.into()), checkpoint_every: 1, log_every: 3, ..options(&run_dir) };
    let mut trainer = open(options).unwrap();
    let mut not_saved = 0;
    let mut watch = |event: Event<'_>| not_saved += usize::from(matches!(event, Event::NotSaved { .. }));
    assert_eq!(trainer.run(&steps(3), &mut watch, &Interrupt::default()).unwrap(), Stop::Steps);
    assert_eq!((trainer.position().skipped, trainer.position().skipped_in_a_row), (3, 3));
    assert!(not_saved > 0 && !run_dir.join("step-00000003").exists());
    for param in collect_params(trainer.model()) {
        let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let name = sharnn_core::pytorch_name(&param.name);
        assert_eq!(bits(&param.data), bits(&tensors[&name].data), "{name}");
    }
    let records = sharnn_train::Metrics::read(&run_dir).unwrap();
    let [Record::Train(record)] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.step, record.skipped, record.train_bpc, record.grad_norm), (3, 3, None, None));
}
