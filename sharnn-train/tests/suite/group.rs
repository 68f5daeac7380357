//! Many processes, here threads, that train one run: what they compute, save and refuse together.

use std::path::Path;

use crate::common::threads::in_group;
use crate::common::*;
use sharnn_train::{
    Event, GroupError, Interrupt, Limits, Recipe, Record, SharedGroup, Stop, TrainError, TrainOptions, Trainer,
    collect_params,
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
            Event::Checkpoint { step, .. } => saved.push(step),
            _ => {}
        };
        let stop = trainer.run(&Limits::default(), &mut observer, &interrupt).unwrap();
        (stop, trainer.position().step, saved)
    });
    // It is told with the next step.
    assert_eq!(stops[0], (Stop::Interrupted, 15, vec![10, 15]));
    assert_eq!(stops[1], (Stop::Interrupted, 15, vec![]));
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
        open_with(group, recipe(), TrainOptions { initial_weights: missing, ..options(dir.path()) })
    });
    assert!(said[0].starts_with("process 1 of 2 cannot train: "), "{}", said[0]);
    assert!(said[0].contains("missing.safetensors"), "{}", said[0]);
    assert_eq!(said[1], GroupError::Elsewhere.to_string());
    let said = refusals(3, |group| open_with(group, recipe(), options(dir.path())));
    assert_eq!(said[0], "batch_size = 4 cannot be shared by 3 processes: use a multiple of 3, or fewer processes");
}

/// A directory of each machine's own would be missed only when the best weights are needed.
#[test]
fn a_run_directory_that_is_not_shared_is_found_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusals(2, |group| {
        let own = dir.path().join(group.rank().to_string());
        open_with(group, recipe(), options(&own))
    });
    assert!(said[0].starts_with("process 1 of 2 cannot train: it does not see "), "{}", said[0]);
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
        let initial_weights = (group.rank() == 1).then(|| other.clone());
        open_with(group, recipe(), TrainOptions { initial_weights, ..options(&dir.path().join("run")) })
    });
    assert!(said[0].starts_with("after step 0 the weights of process 1 of 2 differ"), "{}", said[0]);
}
