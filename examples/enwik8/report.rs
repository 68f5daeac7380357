//! What a run reached: scores beside simple yardsticks on the same bytes, and a sample of text.

use std::io::{Write, stdout};

use anyhow::Result;
use sharnn::data::order0_entropy;
use sharnn::{Generator, Sampling, Splits, Streams};

/// Bytes of the sample.
const SAMPLE_BYTES: usize = 300;
/// Bytes of the validation split that the sample goes on from.
const PROMPT_BYTES: usize = 200;

/// Bits per byte of zstd -19 over these bytes alone.
fn zstd_bpc(bytes: &[u8]) -> Option<f64> {
    let compressed = zstd::bulk::compress(bytes, 19).ok()?;
    Some(8.0 * compressed.len() as f64 / bytes.len() as f64)
}

/// Prints both scores, the order-0 entropy and what zstd gets. Those of dynamic evaluation are named so.
pub fn scores(splits: &Splits, valid: f64, test: f64, whole: bool, dynamic: bool) {
    println!();
    let model = if dynamic { "dynamic" } else { "SHA-RNN" };
    println!("bits per byte      {model}   zstd -19   order-0 entropy");
    for (name, split, bpc) in [("validation", &splits.valid, valid), ("test", &splits.test, test)] {
        let zstd = zstd_bpc(split).map_or("-".into(), |bpc| format!("{bpc:.3}"));
        let entropy = order0_entropy(split);
        println!("{name:<16} {bpc:>9.4} {zstd:>10} {entropy:>17.3}   ({} bytes)", split.len());
    }
    if !whole && splits.name == "enwik8" {
        println!("(the first bytes of each split; --full-eval scores the whole)");
    }
}

/// Prints 300 bytes of text that go on from the beginning of the validation split.
pub fn sample(streams: impl Streams, splits: &Splits, seed: u64) -> Result<()> {
    let sampling = Sampling { temperature: 0.7, seed, ..Sampling::default() };
    let mut generator = Generator::new(streams, sampling)?;
    generator.feed(&splits.valid[..PROMPT_BYTES.min(splits.valid.len())])?;
    let mut text = Vec::with_capacity(SAMPLE_BYTES);
    generator.generate_to(&mut text, SAMPLE_BYTES)?;
    println!("\n{SAMPLE_BYTES} bytes of generated text:\n");
    println!("{}", String::from_utf8_lossy(&text));
    stdout().flush()?;
    Ok(())
}
