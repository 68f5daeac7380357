//! JSON that says what a model, a recipe, segments or a vocabulary are. What is accepted is used.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sharnn::data::SegmentsState;
use sharnn::train::Vocabulary;
use sharnn::{Lanes, Recipe, SegmentLengths, Segments, ShaRnnConfig};
use sharnn_fuzz::{bounded, config, harmless, place, seed, splits};

fuzz_target!(init: seed(seeds()), |json: &[u8]| {
    let len = json.len();
    if let Ok(config) = serde_json::from_slice::<ShaRnnConfig>(json) {
        bounded(len, "ShaRnnConfig::validate", || {
            if harmless(config.validate()).is_some() {
                config.n_attending();
            }
        });
    }
    if let Ok(recipe) = serde_json::from_slice::<Recipe>(json) {
        bounded(len, "Recipe::validate", || harmless(recipe.validate()));
        if harmless(recipe.validate_for(&config())).is_some() {
            for phase in &recipe.phases {
                for step in [0, 1, u64::MAX] {
                    let lr = phase.lr_at(step, 0.5);
                    assert!(lr.is_finite() && lr >= 0.0, "a learning rate of {lr}");
                }
            }
            cut(recipe.segments);
        }
    }
    if let Ok(lengths) = serde_json::from_slice::<SegmentLengths>(json) {
        cut(lengths);
    }
    if let Ok(state) = serde_json::from_slice::<SegmentsState>(json) {
        let lanes = Lanes::new(splits().train, 2).unwrap();
        if let Some(mut segments) = harmless(Segments::restore(lanes, SegmentLengths::paper(), state)) {
            drop(segments.next_segment());
            segments.state();
        }
    }
    let path = place().join("vocabulary.json");
    fs::write(&path, json).unwrap();
    bounded(len, "Vocabulary::read", || harmless(Vocabulary::read(&path)));
});

/// Some segments of these lengths, where they can be.
fn cut(lengths: SegmentLengths) {
    let lanes = Lanes::new(splits().train, 2).unwrap();
    if let Some(segments) = harmless(Segments::new(lanes, lengths, 1)) {
        for segment in segments.take(4) {
            assert!(segment.len > 0 && segment.inputs.len() == 2 * segment.len);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let state = Segments::new(Lanes::new(splits().train, 2).unwrap(), SegmentLengths::paper(), 1).unwrap().state();
    [
        serde_json::to_vec(&config()),
        serde_json::to_vec(&Recipe::paper()),
        serde_json::to_vec(&Recipe::budget(Some(100))),
        serde_json::to_vec(&SegmentLengths::paper()),
        serde_json::to_vec(&SegmentLengths::Fixed { len: 7 }),
        serde_json::to_vec(&state),
        serde_json::to_vec(&[32u8, 101, 116]),
    ]
    .map(Result::unwrap)
    .into()
}
