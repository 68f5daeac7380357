//! A run's directory with one file replaced, and signed anew: the first byte says which file, the others are what is in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sharnn::Trainer;
use sharnn::burn::backend::Flex;
use sharnn::train::{Interrupt, Limits, Metrics, latest_manifest, load_best, load_run, run_weights};
use sharnn_fuzz::{B, RUN, RUN_FILES, bounded, harmless, options, place, seed, silent, splits, write_run};

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let Some((which, contents)) = bytes.split_first() else { return };
    let dir = place().join("run");
    let len = write_run(&dir, RUN_FILES[usize::from(*which) % RUN_FILES.len()], contents);
    bounded(len, "Metrics::read", || harmless(Metrics::read(&dir)));
    bounded(len, "latest_manifest", || harmless(latest_manifest(&dir)));
    bounded(len, "run_weights", || harmless(run_weights(&dir)));
    bounded(len, "load_best", || harmless(load_best::<Flex>(&dir, &Default::default())));
    bounded(len, "load_run", || harmless(load_run::<Flex>(&dir, &Default::default())));
    // What it takes is measured where every leaf that Burn keeps is the reader's: hostile_files.rs.
    let resumed = Trainer::<B>::resume(splits(), options(&dir), &Default::default());
    if let Some(mut trainer) = harmless(resumed) {
        let step = trainer.position().step;
        let limits = Limits { max_steps: Some(step.saturating_add(2)), ..Limits::default() };
        harmless(trainer.run(&limits, &mut silent, &Interrupt::default()));
    }
});

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    RUN_FILES.into_iter().enumerate().map(|(i, name)| {
        let contents = &RUN[std::path::Path::new(name)];
        std::iter::once(i as u8).chain(contents.iter().copied()).collect()
    })
}
