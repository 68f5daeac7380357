//! What a run has measured, a line of JSON each: read whole, and cut off where a run goes on.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sharnn::train::{METRICS_FILE, Metrics};
use sharnn_fuzz::{RUN, bounded, harmless, place, seed};

fuzz_target!(init: seed([RUN[Path::new(METRICS_FILE)].clone()]), |bytes: &[u8]| {
    let dir = place().join("measured");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(METRICS_FILE);
    fs::write(&path, bytes).unwrap();
    let read = bounded(bytes.len(), "Metrics::read", || harmless(Metrics::read(&dir)));
    for (step, validated) in [(u64::MAX, u64::MAX), (2, 2), (1, 0), (0, 0)] {
        fs::write(&path, bytes).unwrap();
        let Some(mut metrics) = bounded(bytes.len(), "Metrics::open", || harmless(Metrics::open(&dir, step, validated)))
        else {
            continue;
        };
        let kept = fs::read(&path).unwrap();
        assert!(bytes.starts_with(&kept));
        // Whatever it can be read as can be written, and read again.
        for record in read.iter().flatten() {
            metrics.append(record).unwrap();
        }
        drop(metrics);
        harmless(Metrics::read(&dir)).expect("what was kept and what was written are records");
    }
});
