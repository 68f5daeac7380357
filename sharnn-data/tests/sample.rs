//! The bundled beginning of enwik8.

use sharnn_data::{Corpus, enwik8, order0_entropy};

#[test]
fn sample_is_the_recorded_one() {
    let splits = enwik8::sample();
    let corpus = splits.train.corpus();
    assert_eq!(corpus.whole().sha256(), enwik8::SAMPLE_SHA256);
    assert_eq!(corpus.len(), 1_047_718);
    assert!(corpus.starts_with(b"<mediawiki "));
    assert!(corpus.ends_with(b"\n"));
    assert!(std::str::from_utf8(corpus).is_ok());
    assert!(!corpus.contains(&b'\r'));
}

#[test]
fn sample_is_split_like_enwik8() {
    let splits = enwik8::sample();
    assert_eq!(splits.valid.len(), 52_385);
    assert_eq!(splits.test.len(), 52_385);
    assert_eq!(splits.train.len(), 1_047_718 - 2 * 52_385);
    assert_eq!(splits.name, "enwik8 sample (90 / 5 / 5 %)");
}

#[test]
fn licence_names_the_file_it_covers() {
    let licence = include_str!("../data/LICENSE-enwik8-sample.md");
    assert!(licence.contains(enwik8::SAMPLE_SHA256));
    assert!(licence.contains("Wikipedia contributors"));
}

#[test]
fn sample_has_the_entropy_of_wikipedia_markup() {
    let bits = order0_entropy(enwik8::SAMPLE);
    // Computed from the byte counts by a few lines of Python; the tolerance is the rounding of 200 terms.
    assert!((bits - ENTROPY).abs() < 1e-12, "{bits}");
}

const ENTROPY: f64 = 5.076162836989594;

/// With the real file at hand (its path in `SHARNN_ENWIK8`): the sample is its beginning.
#[test]
fn sample_is_the_beginning_of_the_real_file() {
    let Some(path) = std::env::var_os("SHARNN_ENWIK8") else {
        return;
    };
    assert!(Corpus::open(path).unwrap().starts_with(enwik8::SAMPLE));
}
