//! Many processes, here threads, that train one run: what they compute, save and refuse together.

use std::path::Path;
use std::time::Duration;

use crate::common::threads::in_group;
use crate::common::{self, *};
use sharnn_core::ShaRnnConfig;
use sharnn_data::{Corpus, Splits};
use sharnn_train::{
    Event, GroupError, HostTensor, Interrupt, Limits, MuonConfig, Recipe, Record, SharedGroup, Stop, TrainError,
    TrainOptions, Trainer, collect_params, load_metadata, load_tensors, save_tensors,
};

fn open_with(group: SharedGroup, recipe: Recipe, options: TrainOptions) -> Result<Trainer<B>, TrainError> {
    Trainer::open_in(group, config(), recipe, splits(), options, &Default::default())
}

/// The whole run by so many processes, stopped after `stops`, each part by as many as is said.
fn run(parts: &[(usize, Option<u64>)], dir: &Path) -> Trace {
    let mut traces = Vec::new();
    for &(size, stop) in parts {
        traces = in_group(size, |group| {
            let mut trainer = open_with(group, recipe(), options(dir)).unwrap();
            let limits = stop.map_or_else(Limits::default, steps);
            let stopped = trainer.run(&limits, &mut silent, &Interrupt::default()).unwrap();
            assert_eq!(stopped, if stop.is_some() { Stop::Steps } else { Stop::Finished });
            collect_params(trainer.model())
        });
        assert!(traces.iter().all(|weights| *weights == traces[0]), "weights differ between processes");
    }
    let trainer = open(options(dir)).unwrap();
    assert_eq!(collect_params(trainer.model()), traces[0]);
    trace(&trainer, dir)
}

fn run_anew(parts: &[(usize, Option<u64>)]) -> Trace {
    run(parts, tempfile::tempdir().unwrap().path())
}

fn scores(trace: &Trace) -> Vec<f64> {
    let score = |record: &Record| match record {
        Record::Train(record) => record.train_bpc,
        Record::Valid(record) | Record::Test(record) => record.bpc,
    };
    trace.records.iter().filter_map(score).collect()
}

/// Rounding grows with the steps of this run at its high learning rate; a lane too many or a wrong mask is far beyond it.
fn assert_near(trace: &Trace, reference: &Trace) {
    assert_eq!(train_steps(trace), train_steps(reference));
    let (got, want) = (scores(trace), scores(reference));
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() < 2e-4 * want, "record {i}: {got} and {want}");
    }
}

#[test]
fn many_processes_compute_what_one_does_up_to_rounding() {
    let reference = uninterrupted(options);
    for size in [2, 4] {
        assert_near(&run_anew(&[(size, None)]), &reference);
    }
    assert!(run_anew(&[(1, None)]) == reference, "a group of one is no group");
}

#[test]
fn as_many_processes_give_the_same_bits() {
    let twice = [(); 2].map(|()| run_anew(&[(2, None)]));
    assert!(twice[0] == twice[1]);
    let stopped = run_anew(&[(2, Some(13)), (2, Some(40)), (2, None)]);
    assert!(stopped == twice[0]);
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let reference = uninterrupted(options);
    assert_near(&run_anew(&[(4, Some(13)), (1, Some(27)), (2, None)]), &reference);
}

/// An interruption that only one process sees stops all of them after the same step, with one checkpoint.
#[test]
fn an_interruption_of_one_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let stops = in_group(2, |group| {
        let rank = group.rank();
        let mut trainer = open_with(group, recipe(), options(dir.path())).unwrap();
        let interrupt = Interrupt::default();
        let mut saved = Vec::new();
        let mut observer = |event: Event<'_>| match event {
            Event::Train { record, .. } if record.step == 14 && rank == 1 => interrupt.raise(),
            // Before it there are others: by steps, and where a second has gone by before a validation.
            Event::Checkpoint { step, .. } if step >= 14 => saved.push(step),
            _ => {}
        };
        let stop = trainer.run(&Limits::default(), &mut observer, &interrupt).unwrap();
        (stop, trainer.position().step, saved)
    });
    // It is told with the next step.
    assert_eq!(stops[0], (Stop::Interrupted, 15, vec![15]));
    assert_eq!(stops[1], (Stop::Interrupted, 15, vec![]));
}

#[test]
fn no_time_is_no_step() {
    let dir = tempfile::tempdir().unwrap();
    let stops = in_group(2, |group| {
        let mut trainer = open_with(group, recipe(), options(dir.path())).unwrap();
        let limits = Limits { max_time: Some(Duration::ZERO), ..Limits::default() };
        let stop = trainer.run(&limits, &mut silent, &Interrupt::default()).unwrap();
        (stop, trainer.position().step)
    });
    assert_eq!(stops, [(Stop::Time, 0); 2]);
}

fn refusals(size: usize, job: impl Fn(SharedGroup) -> Result<Trainer<B>, TrainError> + Sync) -> Vec<String> {
    in_group(size, |group| match job(group) {
        Ok(_) => "opened".to_string(),
        Err(error) => error.to_string(),
    })
}

#[test]
fn a_process_that_was_started_otherwise_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusals(3, |group| {
        let mut recipe = recipe().with_batch_size(6);
        if group.rank() == 2 {
            recipe.phases[1].lr = 0.5;
        }
        open_with(group, recipe, options(dir.path()))
    });
    let expected = "process 2 of 3 has recipe.phases[1].lr = 0.5 where process 0 has 0.005";
    assert!(said[0].starts_with(expected), "{}", said[0]);
    assert_eq!(said[1..], [GroupError::Elsewhere.to_string(), GroupError::Elsewhere.to_string()]);

    let said = refusals(2, |group| {
        let other = splits_of(7 + group.rank() as u64);
        Trainer::open_in(group, config(), recipe(), other, options(dir.path()), &Default::default())
    });
    assert!(said[0].starts_with("process 1 of 2 has corpus."), "{}", said[0]);
}

#[test]
fn a_process_that_fails_to_begin_is_named_by_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusals(2, |group| {
        let missing = (group.rank() == 1).then(|| dir.path().join("missing.safetensors"));
        open_with(group, recipe(), TrainOptions { initial_weights: missing.map(Into::into), ..options(dir.path()) })
    });
    assert!(said[0].starts_with("process 1 of 2 cannot train: "), "{}", said[0]);
    assert!(said[0].contains("missing.safetensors"), "{}", said[0]);
    assert_eq!(said[1], GroupError::Elsewhere.to_string());
    let said = refusals(3, |group| open_with(group, recipe(), options(dir.path())));
    assert_eq!(said[0], "4 lanes cannot be shared by 3 processes: use a multiple of 3, or fewer processes");
}

/// A directory of each machine's own would be missed only when the best weights are needed. Nor does it help that it was a run's
/// before.
#[test]
fn a_run_directory_that_is_not_shared_is_found_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    for used_before in [false, true] {
        let said = refusals(2, |group| {
            let own = dir.path().join(group.rank().to_string());
            if used_before {
                std::fs::create_dir_all(&own).unwrap();
                std::fs::write(own.join("group"), "process 1 at 1 ns\n").unwrap();
            }
            open_with(group, recipe(), options(&own))
        });
        assert!(said[0].starts_with("process 1 of 2 cannot train: it does not see "), "{}", said[0]);
        assert_eq!(dir.path().join("1").exists(), used_before, "a directory was left");
    }
}

#[test]
fn all_finish_with_one_score_and_the_same_model() {
    let finish = |size: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut crowded = recipe();
        (crowded.valid.lanes, crowded.test.lanes) = (3, 3);
        in_group(size, |group| {
            let mut trainer = open_with(group, crowded.clone(), options(dir.path())).unwrap();
            trainer.run(&steps(12), &mut silent, &Interrupt::default()).unwrap();
            let finished = trainer.finish(&mut silent).unwrap();
            (finished.best, finished.test.nats, finished.test.bytes_scored, collect_params(&finished.model))
        })
    };
    let (alone, together) = (finish(1), finish(2));
    assert_eq!(together[0], together[1]);
    assert_eq!((alone[0].0.step, alone[0].2), (together[0].0.step, together[0].2));
    assert!((alone[0].1 - together[0].1).abs() < 1e-4 * alone[0].1, "{} and {}", alone[0].1, together[0].1);
}

#[test]
fn best_weights_of_somebody_else_are_not_taken() {
    let (dir, other) = (twelve_steps(), tempfile::tempdir().unwrap());
    let another = Recipe { seed: 2, ..recipe() };
    let mut of_other: Trainer<B> = common::open_with(another, options(other.path())).unwrap();
    of_other.run(&steps(12), &mut silent, &Interrupt::default()).unwrap();

    // After the last validation, before the test.
    let replace = |event: Event<'_>| {
        if let Event::Valid(_) = event {
            let best = dir.path().join("best");
            std::fs::remove_dir_all(&best).unwrap();
            std::fs::rename(other.path().join("best"), &best).unwrap();
        }
    };
    let mut trainer = open(options(dir.path())).unwrap();
    trainer.run(&steps(12), &mut silent, &Interrupt::default()).unwrap();
    let error = trainer.finish(&mut { replace }).unwrap_err();
    assert!(matches!(error, TrainError::OtherBest { .. }), "{error}");
    assert!(error.to_string().contains("are not those of this run"), "{error}");
}

#[test]
fn muon_makes_the_same_steps_in_all_processes() {
    let muon = Recipe { muon: Some(MuonConfig::default()), ..recipe() };
    let weights = |size: usize| {
        let dir = tempfile::tempdir().unwrap();
        in_group(size, |group| {
            let mut trainer = open_with(group, muon.clone(), options(dir.path())).unwrap();
            trainer.run(&steps(12), &mut silent, &Interrupt::default()).unwrap();
            collect_params(trainer.model())
        })
    };
    let (alone, together) = (weights(1), weights(2));
    assert_eq!(together[0], together[1]);
    for (alone, together) in alone[0].iter().zip(&together[0]) {
        for (a, b) in alone.data.iter().zip(&together.data) {
            assert!((a - b).abs() < 1e-3 * (1.0 + a.abs()), "{}: {a} and {b}", alone.name);
        }
    }
}

/// The byte `z`, in the third of four lanes alone (of validation in the last of two), is embedded so far out that nothing finite comes of it.
#[test]
fn a_loss_that_is_not_finite_in_one_process_is_not_in_any() {
    let dir = tempfile::tempdir().unwrap();
    let untied = ShaRnnConfig { tied: false, ..config() };
    let Splits { train, valid, test, .. } = splits();
    let mut text = [&train[..], &valid, &test].concat();
    text[train.len() * 5 / 8] = b'z';
    text[train.len() + valid.len() * 3 / 4] = b'z';
    let splits = Splits::by_fractions(Corpus::from_bytes(text), 0.2, 0.2).unwrap();
    let weights = dir.path().join("far.safetensors");
    sharnn_train::save_weights(&untied.init_seeded::<B>(3, &Default::default()), &weights).unwrap();
    let mut tensors = load_tensors(&weights).unwrap();
    let embedding = tensors.get_mut("encoder.weight").unwrap();
    embedding.data[usize::from(b'z') * 16..][..16].fill(3e38);
    let tensors: Vec<_> = tensors.into_iter().map(|(name, HostTensor { shape, data })| (name, shape, data)).collect();
    save_tensors(&weights, &tensors, &load_metadata(&weights).unwrap()).unwrap();
    let skipped = in_group(2, |group| {
        let options =
            TrainOptions { initial_weights: Some(weights.clone().into()), ..options(&dir.path().join("run")) };
        let mut trainer =
            Trainer::<B>::open_in(group, untied.clone(), recipe(), splits.clone(), options, &Default::default())
                .unwrap();
        let (mut skipped, mut valid) = (Vec::new(), Vec::new());
        let mut observer = |event: Event<'_>| match event {
            Event::Skipped { step, .. } => skipped.push(step),
            Event::Valid(record) => valid.push(record.bpc),
            _ => {}
        };
        trainer.run(&steps(16), &mut observer, &Interrupt::default()).unwrap();
        (skipped, collect_params(trainer.model()), valid)
    });
    assert_eq!(skipped[0].2, [None], "the validation after step 9");
    assert!(!skipped[0].0.is_empty(), "no step was skipped");
    assert!(skipped[0].0.len() < 16, "no step was made");
    assert!(skipped[0] == skipped[1]);
}

#[test]
fn limits_that_differ_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = in_group(2, |group| {
        let limits = steps(5 + group.rank() as u64);
        let mut trainer = open_with(group, recipe(), options(dir.path())).unwrap();
        trainer.run(&limits, &mut silent, &Interrupt::default()).unwrap_err().to_string()
    });
    assert!(said[0].starts_with("process 1 of 2 has max_steps = 6 where process 0 has 5"), "{}", said[0]);
}

#[test]
fn weights_that_differ_are_found_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.safetensors");
    sharnn_train::save_weights(&config().init_seeded::<B>(99, &Default::default()), &other).unwrap();
    let said = refusals(2, |group| {
        let initial_weights = (group.rank() == 1).then(|| other.clone().into());
        open_with(group, recipe(), TrainOptions { initial_weights, ..options(&dir.path().join("run")) })
    });
    assert!(said[0].starts_with("after step 0 the weights of process 1 of 2 differ"), "{}", said[0]);
}
