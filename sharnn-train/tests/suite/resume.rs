//! A run that is stopped, interrupted or killed at any moment and resumed is the run that never stopped, bit for bit.

use crate::common::*;
use burn::backend::Flex;
use sharnn_core::{AutodiffBackend, Precision};
use sharnn_data::Splits;
use sharnn_train::{
    Event, Interrupt, Limits, Metrics, MuonConfig, Phase, Recipe, Record, RunWeights, Schedule, Stop, TrainOptions,
    Trainer, evaluate, latest_manifest, load_best, run_weights,
};

/// The reference itself: all steps once, a memory that is full, a loss that falls, several validations.
#[test]
fn the_uninterrupted_run_is_a_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    let trace = trace(&trainer, dir.path());
    assert_eq!(train_steps(&trace), (1..=LAST_STEP).collect::<Vec<_>>());
    let bpc = |record: &Record| match record {
        Record::Train(record) => record.train_bpc,
        _ => None,
    };
    let losses: Vec<_> = trace.records.iter().filter_map(bpc).collect();
    assert!(losses[0] > 6.5 && losses[59] < 5.5, "{} then {}", losses[0], losses[59]);
    let valid = trace.records.iter().filter(|record| matches!(record, Record::Valid(_))).count();
    assert!(valid >= 6, "{valid} validations");
    let position = trainer.position();
    assert!(position.epoch >= 2 && position.phase == 2 && position.skipped == 0, "{position:?}");
}

/// The run that is stopped at these steps, and resumed after each.
fn stopped_at<B: AutodiffBackend>(precision: Precision, stops: &[u64]) -> Trace {
    stopped(|options| open_in::<B>(precision, options).unwrap(), stops)
}

fn stopped<B: AutodiffBackend>(open: impl Fn(TrainOptions) -> Trainer<B>, stops: &[u64]) -> Trace {
    let dir = tempfile::tempdir().unwrap();
    let open = || open(options(dir.path()));
    for &stop in stops {
        let mut trainer = open();
        let stopped = trainer.run(&steps(stop), &mut silent, &Interrupt::default()).unwrap();
        assert_eq!((stopped, trainer.position().step), (Stop::Steps, stop));
    }
    let mut trainer = open();
    assert_eq!(trainer.position().step, stops.last().copied().unwrap_or(0));
    complete(&mut trainer);
    trace(&trainer, dir.path())
}

#[test]
fn stopping_and_resuming_changes_nothing_in_either_precision() {
    let references = Precision::ALL.map(|(precision, _)| (precision, stopped_at::<B>(precision, &[])));
    assert!(references[0].1 != references[1].1, "both precisions compute the same");
    // A single stop at each, and all of them in one run: early, at a validation, between checkpoints, in phase two.
    let one_each = [1, 9, 13, 20, 40, 41, 57].map(|stop| vec![stop]);
    for stops in one_each.into_iter().chain([vec![1, 9, 13, 20, 40, 41, 57]]) {
        for (precision, reference) in &references {
            let trace = stopped_at::<B>(*precision, &stops);
            assert!(trace == *reference, "{} stopped at {stops:?}", precision.name());
        }
    }
}

#[test]
fn stopping_and_resuming_changes_nothing_with_muon() {
    let open = |options| open_with::<B>(Recipe { muon: Some(MuonConfig::default()), ..recipe() }, options).unwrap();
    let reference = stopped(open, &[]);
    assert!(reference != stopped_at::<B>(Precision::F32, &[]), "Muon makes no difference");
    for stops in [vec![1], vec![13, 41]] {
        assert!(stopped(open, &stops) == reference, "stopped at {stops:?}");
    }
}

/// Activations that are computed again are those that would have been kept; a run may change over at any time.
#[test]
fn computing_activations_again_changes_nothing() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let again = || TrainOptions { recompute: true, ..options(dir.path()) };
    let mut trainer = open(again()).unwrap();
    trainer.run(&steps(25), &mut silent, &Interrupt::default()).unwrap();
    drop(trainer);
    open(options(dir.path())).unwrap().run(&steps(33), &mut silent, &Interrupt::default()).unwrap();
    let mut trainer = open(again()).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[cfg(feature = "ndarray")]
#[test]
fn stopping_and_resuming_changes_nothing_on_ndarray() {
    type B = burn::backend::Autodiff<burn::backend::NdArray<f32>>;
    let reference = stopped_at::<B>(Precision::F32, &[]);
    for stops in [[13, 20], [38, 41]] {
        assert!(stopped_at::<B>(Precision::F32, &stops) == reference, "stopped at {stops:?}");
    }
}

#[test]
fn a_killed_process_resumes_from_its_last_checkpoint() {
    let reference = uninterrupted(options);
    for killed_at in [3, 17, 29, 44, 59] {
        let dir = tempfile::tempdir().unwrap();
        die(options(dir.path()), |event| matches!(event, Event::Train { record, .. } if record.step == killed_at));
        let mut trainer = open(options(dir.path())).unwrap();
        assert!(trainer.position().step < killed_at, "nothing was saved at step {killed_at}");
        complete(&mut trainer);
        assert!(trace(&trainer, dir.path()) == reference, "killed at {killed_at}");
    }
}

/// The moments between two writes: a validation that is in the metrics and in `best/` but in no checkpoint, and so on.
#[test]
fn a_process_killed_between_two_writes_resumes() {
    let reference = uninterrupted(options);
    let moments: [fn(&Event<'_>) -> bool; 4] = [
        |event| matches!(event, Event::Valid(record) if record.step == 18),
        |event| matches!(event, Event::Valid(record) if record.step == 45),
        |event| matches!(event, Event::Phase { .. }),
        |event| matches!(event, Event::Checkpoint { step: 30, .. }),
    ];
    for (i, moment) in moments.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        die(options(dir.path()), moment);
        // What a crash in the middle of a write leaves.
        std::fs::create_dir(dir.path().join(".tmp-step-00000050")).unwrap();
        let mut trainer = open(options(dir.path())).unwrap();
        assert!(!dir.path().join(".tmp-step-00000050").exists());
        complete(&mut trainer);
        assert!(trace(&trainer, dir.path()) == reference, "moment {i}");
    }
}

#[test]
fn records_of_many_steps_are_the_same_after_a_stop_between_them() {
    let sparse = |dir: &std::path::Path| TrainOptions { log_every: 7, checkpoint_every: 0, ..options(dir) };
    let reference = uninterrupted(sparse);
    assert_eq!(train_steps(&reference), [7, 14, 21, 28, 35, 42, 49, 56, 60]);
    let dir = tempfile::tempdir().unwrap();
    for stop in [5, 6, 23, 58] {
        let mut trainer = open(sparse(dir.path())).unwrap();
        trainer.run(&steps(stop), &mut silent, &Interrupt::default()).unwrap();
    }
    let mut trainer = open(sparse(dir.path())).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[test]
fn an_interrupt_saves_and_stops_at_the_next_step() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    let interrupt = Interrupt::default();
    let mut raise = |event: Event<'_>| {
        if matches!(event, Event::Train { record, .. } if record.step == 23) {
            interrupt.raise();
        }
    };
    let stop = trainer.run(&Limits::default(), &mut raise, &interrupt).unwrap();
    assert_eq!((stop, trainer.position().step), (Stop::Interrupted, 23));
    drop(trainer);
    let mut trainer = open(options(dir.path())).unwrap();
    assert_eq!(trainer.position().step, 23);
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[test]
fn an_evaluation_is_broken_off_and_begun_anew() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    // Each of the validations that come: resumed, the run is let through it.
    for _ in 0..6 {
        let mut trainer = open(options(dir.path())).unwrap();
        let (interrupt, mut seen, at_first) = (Interrupt::default(), 0, trainer.position().step);
        let mut raise = |event: Event<'_>| match event {
            Event::Valid(_) => seen += 1,
            Event::Evaluating { done, total, .. } if (seen > 0 || at_first == 0) && done < total => interrupt.raise(),
            _ => {}
        };
        let stop = trainer.run(&Limits::default(), &mut raise, &interrupt).unwrap();
        assert_eq!(stop, Stop::Interrupted);
        assert!(trainer.position().validated < trainer.position().step, "{:?}", trainer.position());
    }
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);

    // The last test too.
    let interrupt = Interrupt::default();
    trainer.run(&Limits::default(), &mut silent, &interrupt).unwrap();
    let mut raise = |event: Event<'_>| {
        if matches!(event, Event::Evaluating { split: "test", .. }) {
            interrupt.raise();
        }
    };
    let error = trainer.finish(&mut raise).map(|_| ()).expect_err("it was interrupted");
    assert!(error.is_interrupted(), "{error}");
}

/// Best weights that were scored otherwise are scored anew, if not now then by whoever resumes next, without being told again.
#[test]
fn the_best_weights_are_scored_anew_once_and_by_whoever_resumes() {
    let dir = twelve_steps();
    let manifest = || latest_manifest(dir.path()).unwrap().unwrap().1;
    let mut other = recipe();
    other.valid.lanes = 1;
    assert!(!manifest().rescore_best);
    let interrupt = Interrupt::default();
    let mut raise = |event: Event<'_>| {
        if matches!(event, Event::Evaluating { .. }) {
            interrupt.raise();
        }
    };
    let stop = open_with::<B>(other.clone(), options(dir.path())).unwrap().run(&steps(14), &mut raise, &interrupt);
    assert_eq!(stop.unwrap(), Stop::Interrupted);
    assert_eq!((manifest().recipe, manifest().rescore_best), (other, true));

    let mut scored = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Valid(record) = event {
            scored.push((record.step, record.bpc));
        }
    };
    let mut trainer = Trainer::<B>::resume(splits(), options(dir.path()), &Default::default()).unwrap();
    trainer.run(&steps(13), &mut watch, &Interrupt::default()).unwrap();
    trainer.run(&steps(14), &mut watch, &Interrupt::default()).unwrap();
    let best = manifest().best.unwrap();
    assert_eq!((scored, manifest().rescore_best), (vec![(best.step, Some(best.bpc))], false));
}

/// Of a run that is over too: what it is resumed with is what it then says of itself.
#[test]
fn other_evaluation_data_is_kept_with_the_run() {
    let dir = twelve_steps();
    let mut shorter = splits();
    (shorter.valid, shorter.test) = (shorter.valid.head(100), shorter.test.head(90));
    let resume = |splits: &Splits, other_evaluation_data| {
        let options = TrainOptions { other_evaluation_data, ..options(dir.path()) };
        let mut trainer = Trainer::<B>::resume(splits.clone(), options, &Default::default())?;
        trainer.run(&steps(12), &mut silent, &Interrupt::default())?;
        trainer.finish(&mut silent)
    };
    let once = resume(&shorter, true).unwrap();
    assert!(resume(&splits(), false).is_err());
    let (_, manifest) = latest_manifest(dir.path()).unwrap().unwrap();
    assert_eq!((manifest.corpus.valid.bytes, manifest.corpus.test.bytes, manifest.rescore_best), (100, 90, false));
    let again = resume(&shorter, false).unwrap();
    assert_eq!((again.best, again.test.bpc()), (once.best, once.test.bpc()));
}

#[test]
fn who_presses_loses_no_more_than_the_step_under_way() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    for milliseconds in [1, 3, 5, 7, 9] {
        let mut trainer = open(options(dir.path())).unwrap();
        let begun = trainer.position().step;
        let stop = press_after(milliseconds, &mut trainer);
        assert!(matches!(stop, Stop::Interrupted | Stop::Finished), "{stop:?}");
        assert!(trainer.position().step >= begun);
    }
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

/// A run can be resumed from its first moment on.
#[test]
fn a_run_has_a_checkpoint_before_its_first_step() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::default();
    interrupt.raise();
    let stop = open(options(dir.path())).unwrap().run(&Limits::default(), &mut silent, &interrupt).unwrap();
    assert_eq!(stop, Stop::Interrupted);
    let (_, manifest) = latest_manifest(dir.path()).unwrap().expect("a checkpoint");
    assert_eq!(manifest.position.step, 0);
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

/// Testing a run that a limit stopped scores weights that the run itself would not have scored; it must not notice.
#[test]
fn a_run_that_was_tested_early_goes_on_as_if_it_had_not_been() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    trainer.run(&steps(38), &mut silent, &Interrupt::default()).unwrap();
    let early = trainer.finish(&mut silent).unwrap();
    assert!(early.test.bpc().is_finite() && early.best.bpc.is_finite());
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

/// How it is scored changes no step that was made. The best so far is scored as the next ones will be.
#[test]
fn a_run_may_go_on_with_other_evaluations() {
    let reference = uninterrupted(options);
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    trainer.run(&steps(20), &mut silent, &Interrupt::default()).unwrap();
    drop(trainer);
    let mut other = Recipe { valid_every_steps: Some(100), max_skipped_in_a_row: 9, ..recipe() };
    (other.valid.lanes, other.test.seq_len) = (3, 8);
    let mut trainer = open_with::<B>(other.clone(), options(dir.path())).unwrap();
    assert_eq!(trainer.recipe(), &other);
    trainer.run(&steps(33), &mut silent, &Interrupt::default()).unwrap();
    drop(trainer);
    let trained = |trace: &[Record]| -> Vec<Record> {
        trace.iter().filter(|record| matches!(record, Record::Train(record) if record.step <= 33)).cloned().collect()
    };
    let trainer = open_with::<B>(other.clone(), options(dir.path())).unwrap();
    let own = trace(&trainer, dir.path());
    drop(trainer);
    assert_eq!(trained(&own.records), trained(&reference.records));
    let (_, manifest) = latest_manifest(dir.path()).unwrap().unwrap();
    let best = manifest.best.unwrap();
    let (model, kept) = load_best::<Flex>(dir.path(), &Default::default()).unwrap();
    let scored =
        evaluate(&model, &splits().valid, &other.valid, &Default::default(), &Interrupt::default(), |_, _| {}).unwrap();
    assert_eq!((best.bpc, kept.best), (scored.bpc(), best.clone()));
    // What computes the steps is still refused.
    let error = open_with::<B>(other.with_batch_size(8), options(dir.path())).err().unwrap().to_string();
    assert!(error.contains("batch_size = 4, not 8"), "{error}");
}

/// A run at a constant rate is given its end later: it is the run that was to end there from the start. A rate that falls already is kept.
#[test]
fn a_rate_that_stayed_may_be_let_fall() {
    let recipe_with = |schedule, steps| {
        let mut recipe = recipe();
        recipe.phases = vec![Phase { lr: 2e-2, warmup_steps: 5, schedule, epochs: 100, steps }];
        recipe
    };
    let constant = recipe_with(Schedule::Constant, None);
    let late = |steps| recipe_with(Schedule::Late, Some(steps));
    let [reference, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut whole = open_with::<B>(late(40), options(reference.path())).unwrap();
    complete(&mut whole);
    let stop_at = |recipe: Recipe, stop| {
        let mut trainer = open_with::<B>(recipe, options(dir.path())).unwrap();
        trainer.run(&steps(stop), &mut silent, &Interrupt::default()).unwrap();
    };
    stop_at(constant.clone(), 12);
    // The first steps of a line are below the rate that these had; a fall that would have begun is too late as well.
    for recipe in [recipe_with(Schedule::Linear, Some(40)), late(16)] {
        let error = open_with::<B>(recipe, options(dir.path())).err().unwrap().to_string();
        assert!(error.contains("recipe.phases[0].s"), "{error}");
    }
    stop_at(late(30), 20);
    stop_at(constant.clone(), 21);
    stop_at(late(40), 30);
    for recipe in [constant, late(50)] {
        let error = open_with::<B>(recipe, options(dir.path())).err().unwrap().to_string();
        assert!(error.contains("recipe.phases[0].s"), "{error}");
    }
    let mut parts = open_with::<B>(late(40), options(dir.path())).unwrap();
    complete(&mut parts);
    assert_eq!(trace(&parts, dir.path()), trace(&whole, reference.path()));
}

/// Weights that were trained before count as the best until a step is better, and what they score is kept.
#[test]
fn a_run_that_goes_on_from_weights_scores_them_first() {
    let first = twelve_steps();
    let weights = first.path().join("best/weights.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let from =
        || TrainOptions { initial_weights: Some(weights.clone().into()), score_start: true, ..options(dir.path()) };
    let mut trainer = open(from()).unwrap();
    trainer.run(&steps(3), &mut silent, &Interrupt::default()).unwrap();
    drop(trainer);
    let (model, _) = load_best::<Flex>(first.path(), &Default::default()).unwrap();
    let scored =
        evaluate(&model, &splits().valid, &recipe().valid, &Default::default(), &Interrupt::default(), |_, _| {})
            .unwrap();
    let file = dir.path().join("best/weights.safetensors");
    let expected = RunWeights { file, config: model.config(), step: 0, is_best: true };
    assert_eq!(run_weights(dir.path()).unwrap(), expected);
    // The same again after it is resumed: it was scored.
    let mut trainer = open(TrainOptions { score_start: true, ..options(dir.path()) }).unwrap();
    trainer.run(&steps(5), &mut silent, &Interrupt::default()).unwrap();
    let records = Metrics::read(dir.path()).unwrap();
    let starts: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Valid(record) if record.step == 0 => Some((record.bpc, record.best)),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [(Some(scored.bpc()), true)]);
}

#[test]
fn a_finished_run_stays_finished_and_keeps_the_last_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    drop(trainer);
    let is_checkpoint = |name: &String| name.starts_with("step-");
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept: Vec<_> = names.filter(is_checkpoint).collect();
    assert!(kept.len() == 2 && kept.contains(&"step-00000060".to_string()), "{kept:?}");
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    assert_eq!(trainer.position().step, LAST_STEP);
    let (_, manifest) = latest_manifest(dir.path()).unwrap().unwrap();
    assert_eq!((manifest.position.step, manifest.position.phase), (LAST_STEP, 2));
}

#[test]
fn limits_stop_by_epochs_and_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    let no_time = Limits { max_time: Some(std::time::Duration::ZERO), ..Limits::default() };
    assert_eq!(trainer.run(&no_time, &mut silent, &Interrupt::default()).unwrap(), Stop::Time);
    assert_eq!(trainer.position().step, 0);
    let one_epoch = Limits { max_epochs: Some(1), ..Limits::default() };
    assert_eq!(trainer.run(&one_epoch, &mut silent, &Interrupt::default()).unwrap(), Stop::Epochs);
    let position = trainer.position();
    assert!(position.epoch == 1 && position.validated == position.step / 9 * 9, "{position:?}");
}
