//! Bytes to learn from: what they are taken for, how they are cut, and a score of them.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sharnn::data::{format, order0_entropy};
use sharnn::train::Vocabulary;
use sharnn::{Corpus, Lanes, Scorer, SegmentLengths, Segments, ShaRnnConfig, Splits, WeightFormat};
use sharnn_fuzz::{bounded, check_text, config, harmless, model, place, seed};

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let len = bytes.len();
    if let Some(format) = format::recognize(&bytes[..len.min(format::HEAD)]) {
        check_text(&format.describe("a file"));
    }
    let path = place().join("hostile.txt");
    fs::write(&path, bytes).unwrap();
    bounded(len, "Corpus::read", || harmless(Corpus::read(&path)));
    let Some(corpus) = bounded(len, "Corpus::open", || harmless(Corpus::open(&path))) else { return };
    assert!(corpus[..] == *bytes && corpus.check().is_ok());
    let entropy = order0_entropy(bytes);
    assert!((0.0..=8.0).contains(&entropy), "an entropy of {entropy}");
    let vocabulary = Vocabulary::by_frequency(bytes);
    assert!(vocabulary.symbols().is_some_and(|symbols| symbols.len() <= 256));

    // Fractions and lanes from the first bytes.
    let mut numbers = bytes.as_chunks().0.iter().map(|&number| f64::from_le_bytes(number));
    let [valid, test] = [(); 2].map(|()| numbers.next().unwrap_or(0.1));
    for (valid, test) in [(valid, test), (0.1, 0.1)] {
        let Some(splits) = harmless(Splits::by_fractions(corpus.clone(), valid, test)) else { continue };
        for n_lanes in [1, usize::from(bytes[0]), len] {
            let Some(lanes) = harmless(Lanes::new(splits.train.clone(), n_lanes)) else { continue };
            let segments = Segments::new(lanes, SegmentLengths::Fixed { len: 1 + usize::from(bytes[len - 1]) }, 1).unwrap();
            let read: usize = segments.map(|segment| segment.inputs.len()).sum();
            assert!(read < splits.train.len());
        }
    }
    let engine = model(&ShaRnnConfig { vocab_size: 256, ..config() }).engine(WeightFormat::F32);
    let bits = Scorer::new(engine.streams(1)).unwrap().score(&bytes[..len.min(64)]).unwrap();
    assert!(bits.iter().all(|bits| bits.is_finite()));
});

fn seeds() -> Vec<Vec<u8>> {
    [
        &b"2031-05-01 node1 job 1 took 37 ms\n2031-05-02 node2 job 2 took 74 ms\n"[..],
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        b"PK\x03\x04\x14\0\0\0\x08\0",
        b"\xfd7zXZ\0",
        b"BZh91AY&SY",
        b"%PDF-1.7\n",
        b"\xff\xfea\0b\0",
    ]
    .map(<[u8]>::to_vec)
    .into()
}
