//! A run that goes on with another backend or other instructions says so, once, and goes on.

use std::fs;
use std::path::Path;

use crate::common::*;
use sharnn_core::kernels::Isa;
use sharnn_core::{AutodiffBackend, Precision};
use sharnn_train::{Event, Interrupt, Moved, Trainer, latest_manifest};

/// Runs up to a step, and returns what was said of another backend or other instructions.
fn run_to<B: AutodiffBackend>(trainer: &mut Trainer<B>, step: u64) -> Vec<Moved> {
    let mut said = Vec::new();
    let mut observer = |event: Event<'_>| {
        if let Event::Moved(moved) = event {
            said.push(moved.clone());
        }
    };
    trainer.run(&steps(step), &mut observer, &Interrupt::default()).unwrap();
    assert_eq!(trainer.position().step, step);
    said
}

/// Twelve steps, which say nothing, and then another text in place of one in the manifest.
fn twelve_steps_with(dir: &Path, from: &str, to: &str) {
    assert_eq!(run_to(&mut open(options(dir)).unwrap(), 12), []);
    let manifest = dir.join("step-00000012/checkpoint.json");
    let json = fs::read_to_string(&manifest).unwrap();
    assert!(json.contains(from), "{json}");
    write_with_checksum(&manifest, &json.replacen(from, to, 1));
}

fn instructions(of: &str) -> String {
    format!("\"instructions\": \"{of}\",")
}

#[test]
fn other_instructions_go_on_and_say_so_once() {
    let (reference, dir) = (uninterrupted(options), tempfile::tempdir().unwrap());
    let here = Isa::current().name();
    twelve_steps_with(dir.path(), &instructions(here), &instructions("another"));
    let mut trainer = open(options(dir.path())).unwrap();
    let moved = Moved { what: "instructions", from: "another".into(), to: here.into() };
    assert_eq!(run_to(&mut trainer, 15), [moved]);
    assert_eq!(run_to(&mut trainer, 16), [], "said twice");
    drop(trainer);
    let mut trainer = open(options(dir.path())).unwrap();
    assert_eq!(run_to(&mut trainer, 17), [], "its checkpoint is of these instructions");
    // In truth they were the same.
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[test]
fn a_checkpoint_that_does_not_say_its_instructions_is_resumed() {
    let (reference, dir) = (uninterrupted(options), tempfile::tempdir().unwrap());
    twelve_steps_with(dir.path(), &instructions(Isa::current().name()), "");
    assert_eq!(latest_manifest(dir.path()).unwrap().unwrap().1.instructions, None);
    let mut trainer = open(options(dir.path())).unwrap();
    assert_eq!(run_to(&mut trainer, 13), []);
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

#[cfg(feature = "ndarray")]
#[test]
fn another_backend_goes_on_and_says_so_once() {
    type Other = burn::backend::Autodiff<burn::backend::NdArray<f32>>;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run_to(&mut open(options(dir.path())).unwrap(), 12), []);
    let other = || open_in::<Other>(Precision::F32, options(dir.path())).unwrap();
    let [flex, ndarray] = ["autodiff<flex>", "autodiff<ndarray>"].map(String::from);
    let there = Moved { what: "backend", from: flex.clone(), to: ndarray.clone() };
    assert_eq!(run_to(&mut other(), 13), [there]);
    assert_eq!(latest_manifest(dir.path()).unwrap().unwrap().1.instructions, None);
    assert_eq!(run_to(&mut other(), 14), []);
    let back = Moved { what: "backend", from: ndarray, to: flex };
    assert_eq!(run_to(&mut open(options(dir.path())).unwrap(), 15), [back]);
}
