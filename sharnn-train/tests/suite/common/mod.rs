//! A run that is small enough to be repeated many times, and what is compared of two runs.

pub mod threads;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use sharnn_core::{AutodiffBackend, Precision, ShaRnnConfig};
use sharnn_data::{Corpus, SegmentLengths, Splits};
use sharnn_train::{
    Event, HostTensor, Interrupt, Limits, Metrics, NamedTensor, Observer, Phase, Recipe, Record, Schedule, Stop,
    TrainError, TrainOptions, Trainer, collect_params, save_tensors,
};

/// The backend of most tests.
pub type B = Autodiff<Flex>;

/// Steps of the whole run of [`recipe`].
pub const LAST_STEP: u64 = 60;

/// Words in an order that a small model can learn a little of.
pub fn splits() -> Splits {
    splits_of(7)
}

pub fn splits_of(seed: u64) -> Splits {
    let words = ["the ", "cat ", "sat ", "on ", "a ", "mat. "];
    let mut x = seed;
    let mut text = String::new();
    while text.len() < 1200 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(x >> 33) as usize % words.len()]);
    }
    Splits::by_fractions(Corpus::from_bytes(text.into_bytes()), 0.2, 0.2).unwrap()
}

/// The memory is as short as the longest segment, so it is full after the second.
pub fn config() -> ShaRnnConfig {
    ShaRnnConfig { vocab_size: 128, d_model: 16, d_ff: 32, n_layers: 3, mem_len: 24, ..ShaRnnConfig::xs() }
        .with_dropout(0.1)
}

/// Two phases: some epochs of about 16 segments, then steps at a decaying rate, 60 steps in all.
pub fn recipe() -> Recipe {
    let mut recipe = Recipe::paper().with_batch_size(4);
    let (base, short_base, short_probability, std_dev) = (12, 6, 0.2, 3.0);
    recipe.segments =
        SegmentLengths::Random { base, short_base, short_probability, std_dev, min: 2, max: 20, multiple: 1 };
    let first = Phase { lr: 2e-2, warmup_steps: 5, schedule: Schedule::Constant, epochs: 100, steps: Some(40) };
    let second = Phase { lr: 5e-3, warmup_steps: 5, schedule: Schedule::Cosine, epochs: 100, steps: Some(20) };
    recipe.phases = vec![first, second];
    recipe.valid_every_steps = Some(9);
    (recipe.valid.lanes, recipe.valid.seq_len) = (2, 16);
    (recipe.test.lanes, recipe.test.seq_len) = (1, 16);
    recipe
}

/// A record every step, a checkpoint every 10.
pub fn options(run_dir: &Path) -> TrainOptions {
    TrainOptions { log_every: 1, checkpoint_every: 10, checkpoint_interval: None, ..TrainOptions::new(run_dir) }
}

pub fn open(options: TrainOptions) -> Result<Trainer<B>, TrainError> {
    open_in(Precision::F32, options)
}

/// Trained and scored in this precision.
pub fn open_in<B: AutodiffBackend>(precision: Precision, options: TrainOptions) -> Result<Trainer<B>, TrainError> {
    let mut recipe = recipe();
    [recipe.precision, recipe.valid.precision, recipe.test.precision] = [precision; 3];
    open_with(recipe, options)
}

pub fn open_with<B: AutodiffBackend>(recipe: Recipe, options: TrainOptions) -> Result<Trainer<B>, TrainError> {
    Trainer::open(config(), recipe, splits(), options, &Default::default())
}

/// A run directory with checkpoints of steps 10 and 12, and best weights.
pub fn twelve_steps() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    trainer.run(&steps(12), &mut silent, &Interrupt::default()).unwrap();
    dir
}

/// Trains until somebody who presses so long after the start has stopped it, if the run has not ended before.
pub fn press_after(milliseconds: u64, trainer: &mut Trainer<B>) -> Stop {
    let interrupt = Interrupt::default();
    let presses = interrupt.clone();
    let (started, starts) = std::sync::mpsc::channel();
    let finger = std::thread::spawn(move || {
        starts.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        presses.raise();
        presses.raise();
    });
    let mut watch = |event: Event<'_>| {
        if matches!(event, Event::Started { .. }) {
            started.send(()).unwrap();
        }
    };
    let stop = trainer.run(&Limits::default(), &mut watch, &interrupt).unwrap();
    finger.join().unwrap();
    stop
}

/// Writes a checkpoint's file of tensors anew, changed, as if the run had written it.
pub fn change_tensors(step: &Path, name: &str, good: &Tensors, change: Change) {
    let mut tensors = good.clone();
    change(&mut tensors);
    let list: Vec<_> = tensors.into_iter().map(|(name, x)| (name, x.shape, x.data)).collect();
    save_tensors(&step.join(name), &list, &BTreeMap::new()).unwrap();
    sign(&step.join("checkpoint.json"), &step.join(name));
}

/// The tensors of a file by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// What is done to them.
pub type Change = fn(&mut Tensors);

/// Notes a checkpoint's file in its manifest as it is now.
pub fn sign(manifest: &Path, file: &Path) {
    use sha2::{Digest, Sha256};
    let bytes = std::fs::read(file).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    json["files"][file.file_name().unwrap().to_str().unwrap()] =
        serde_json::json!({"bytes": bytes.len(), "sha256": format!("{:x}", Sha256::digest(&bytes))});
    write_with_checksum(manifest, &json.to_string());
}

/// Writes a manifest anew, as if a run had written it.
pub fn write_with_checksum(manifest: &Path, json: &str) {
    use sha2::{Digest, Sha256};
    std::fs::write(manifest, json).unwrap();
    let sum = format!("{:x}  checkpoint.json\n", Sha256::digest(json));
    std::fs::write(manifest.with_extension("json.sha256"), sum).unwrap();
}

pub fn silent(_: Event<'_>) {}

pub fn steps(max: u64) -> Limits {
    Limits { max_steps: Some(max), ..Limits::default() }
}

/// Runs a trainer to its end.
pub fn complete<B: AutodiffBackend>(trainer: &mut Trainer<B>) {
    let stop = trainer.run(&Limits::default(), &mut silent, &Interrupt::default()).unwrap();
    assert_eq!(stop, Stop::Finished);
}

/// Opens the run, and lets the process "die" in the middle of an event that `fatal` chooses: nothing is saved after it.
pub fn die(options: TrainOptions, mut fatal: impl FnMut(&Event<'_>) -> bool) {
    let mut trainer = open(options).unwrap();
    let mut observer = |event: Event<'_>| {
        if fatal(&event) {
            // No message of the panic hook: it is no failure.
            std::panic::resume_unwind(Box::new("dead"));
        }
    };
    let observer: &mut dyn Observer = &mut observer;
    let run = AssertUnwindSafe(|| trainer.run(&Limits::default(), observer, &Interrupt::default()));
    assert!(catch_unwind(run).is_err(), "the event never came");
}

/// Everything of a run that must not depend on how often it was interrupted.
#[derive(Debug, PartialEq)]
pub struct Trace {
    pub weights: Vec<NamedTensor>,
    pub records: Vec<Record>,
}

/// The trace of a run that has come to its end; wall-clock times are blanked.
pub fn trace<B: AutodiffBackend>(trainer: &Trainer<B>, run_dir: &Path) -> Trace {
    let records = Metrics::read(run_dir).unwrap().into_iter().map(|mut record| {
        match &mut record {
            Record::Train(record) => (record.seconds, record.bytes_per_s) = (0.0, 0.0),
            Record::Valid(record) | Record::Test(record) => record.seconds = 0.0,
        }
        record
    });
    Trace { weights: collect_params(trainer.model()), records: records.collect() }
}

/// The run that nothing interrupts.
pub fn uninterrupted(options: impl FnOnce(&Path) -> TrainOptions) -> Trace {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = open(options(dir.path())).unwrap();
    complete(&mut trainer);
    trace(&trainer, dir.path())
}

/// Steps of the training records, in the order of the file.
pub fn train_steps(trace: &Trace) -> Vec<u64> {
    let step = |record: &Record| match record {
        Record::Train(record) => Some(record.step),
        _ => None,
    };
    trace.records.iter().filter_map(step).collect()
}
