//! Epochs as short as a step: what is scored and saved then, and that a resumed run does the same.

use crate::common::*;
use sharnn_train::{Event, Interrupt, Limits, Recipe, Record, Stop, TrainOptions, Trainer};

/// A hundred and fifty epochs, and then as many again from the best weights; each of one step.
fn recipe_of_short_epochs() -> Recipe {
    let mut recipe = recipe();
    recipe.segments = sharnn_data::SegmentLengths::Fixed { len: 20 };
    recipe.batch_size = 40;
    recipe.valid_every_steps = None;
    for phase in &mut recipe.phases {
        (phase.epochs, phase.steps) = (150, None);
    }
    recipe
}

fn open(dir: &std::path::Path) -> Trainer<B> {
    let options = TrainOptions { log_every: 50, checkpoint_every: 0, ..options(dir) };
    open_with::<B>(recipe_of_short_epochs(), options).unwrap()
}

fn validated_at(records: &[Record]) -> Vec<u64> {
    let step = |record: &Record| match record {
        Record::Valid(record) => Some(record.step),
        _ => None,
    };
    records.iter().filter_map(step).collect()
}

#[test]
fn short_epochs_are_scored_when_it_is_worth_it_and_at_the_end_of_a_phase() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(dir.path());
    let mut checkpoints = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Checkpoint { step, .. } = event {
            checkpoints.push(step);
        }
    };
    let stop = trainer.run(&Limits::default(), &mut watch, &Interrupt::default()).unwrap();
    let position = trainer.position().clone();
    assert_eq!((stop, position.step, position.epoch), (Stop::Finished, 300, 300), "an epoch is a step");
    let whole = trace(&trainer, dir.path());
    assert_eq!(validated_at(&whole.records), [100, 150, 250, 300]);
    // At the ends of the phases, and where one was earned by the time that passed: not at every step.
    assert!(checkpoints.contains(&150) && checkpoints.contains(&300), "{checkpoints:?}");
    assert!(checkpoints.len() < 30, "{checkpoints:?}");

    // Stopped anywhere and resumed, it is scored at the same steps and goes on from the same weights.
    let dir = tempfile::tempdir().unwrap();
    for stop in [3, 99, 100, 149, 151, 260] {
        open(dir.path()).run(&steps(stop), &mut silent, &Interrupt::default()).unwrap();
    }
    let mut trainer = open(dir.path());
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == whole);
}

/// One that is asked for is made, however often.
#[test]
fn validations_that_are_asked_for_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe { valid_every_steps: Some(7), ..recipe_of_short_epochs() };
    let mut trainer = open_with::<B>(recipe, options(dir.path())).unwrap();
    trainer.run(&steps(22), &mut silent, &Interrupt::default()).unwrap();
    assert_eq!(validated_at(&trace(&trainer, dir.path()).records), [7, 14, 21]);
}
