//! What a run reached: scores beside simple yardsticks on the same bytes, and a sample of text.

use std::path::Path;

use anyhow::Result;
use indicatif::HumanCount;
use serde::Serialize;

use crate::data::order0_entropy;
use crate::train::{EvalRecord, Metrics, Record};
use crate::{Generator, Sampling, Splits, Streams};

/// Bytes of the sample.
const SAMPLE_BYTES: usize = 300;
/// Bytes of the validation split that the sample goes on from.
const PROMPT_BYTES: usize = 200;

/// What a run's metrics say that its model reached.
#[derive(Default, Serialize)]
pub struct Reached {
    /// The score of the validation split before the first step, of a run that goes on from a model.
    pub start: Option<EvalRecord>,
    /// The best of the validations.
    pub valid: Option<EvalRecord>,
    /// The last test.
    pub test: Option<EvalRecord>,
}

impl Reached {
    /// Of the run in a directory; nothing where it has no metrics.
    pub fn of(run_dir: &Path) -> Self {
        let mut reached = Self::default();
        for record in Metrics::read(run_dir).unwrap_or_default() {
            match record {
                Record::Valid(record) => {
                    if record.step == 0 {
                        reached.start.get_or_insert_with(|| record.clone());
                    }
                    if record.best {
                        reached.valid = Some(record);
                    }
                }
                Record::Test(record) => reached.test = Some(record),
                Record::Train(_) => {}
            }
        }
        reached
    }

    /// One line for each score.
    pub fn lines(&self) -> Vec<String> {
        let start = self.start.as_ref().and_then(|start| start.bpc);
        let before = start.map(|bpc| format!("validation before the first step: {bpc:.4} bits per byte"));
        let after = [("validation", &self.valid), ("test", &self.test)].map(|(name, record)| match record {
            Some(EvalRecord { bpc: Some(bpc), step, bytes, .. }) => {
                format!("{name}: {bpc:.4} bits per byte over {} bytes, after step {step}", HumanCount(*bytes))
            }
            _ => format!("{name}: not scored yet"),
        });
        before.into_iter().chain(after).collect()
    }
}

/// Bits per byte of zstd -19 over these bytes alone.
fn zstd_bpc(bytes: &[u8]) -> Option<f64> {
    let compressed = zstd::bulk::compress(bytes, 19).ok()?;
    Some(8.0 * compressed.len() as f64 / bytes.len() as f64)
}

/// Prints the score of each split beside the order-0 entropy and what zstd gets; `model` is the heading of the scores.
pub fn scores<'a>(
    splits: &Splits,
    scores: impl IntoIterator<Item = (&'a str, f64)>,
    model: &str,
    whole: bool,
) -> Result<()> {
    say!("");
    say!("bits per byte      {model}   zstd -19   order-0 entropy");
    for (name, bpc) in scores {
        let split = if name == "test" { &splits.test } else { &splits.valid };
        let zstd = zstd_bpc(split).map_or("-".into(), |bpc| format!("{bpc:.3}"));
        let entropy = order0_entropy(split);
        say!("{name:<16} {bpc:>9.4} {zstd:>10} {entropy:>17.3}   ({} bytes)", split.len());
    }
    if !whole && splits.name == "enwik8" {
        say!("(the first bytes of each split; --full-eval scores the whole)");
    }
    Ok(())
}

/// 300 bytes that go on from the beginning of the validation split.
pub fn sample(streams: impl Streams, splits: &Splits, seed: u64) -> Result<Vec<u8>> {
    let sampling = Sampling { temperature: 0.7, seed, ..Sampling::default() };
    let mut generator = Generator::new(streams, sampling)?;
    generator.feed(&splits.valid[..PROMPT_BYTES.min(splits.valid.len())])?;
    let mut text = Vec::with_capacity(SAMPLE_BYTES);
    generator.generate_to(&mut text, SAMPLE_BYTES)?;
    Ok(text)
}

/// Prints generated text, of which a terminal obeys nothing.
pub fn print_sample(text: &[u8]) -> Result<()> {
    say!("\n{} bytes of generated text:\n", text.len());
    say!("{}", String::from_utf8_lossy(text));
    Ok(())
}
