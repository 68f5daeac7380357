//! What a run reached: scores beside simple yardsticks on the same bytes, and a sample of text.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use indicatif::HumanCount;
use serde::Serialize;

use super::{adapt, life};
use crate::data::ByteCounts;
use crate::train::{EvalRecord, Interrupt, Metrics, Record};
use crate::{Generator, Sampling, Splits, Streams};

/// Bytes of the sample.
const SAMPLE_BYTES: usize = 300;
/// Bytes of the validation split that the sample goes on from.
const PROMPT_BYTES: usize = 200;

/// zstd -19 takes some seconds for so many bytes.
const MOST_COMPRESSED: usize = 16 << 20;
/// Bytes of a split between two looks at the interrupt.
const PIECE: usize = 1 << 16;

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

/// Bits per byte of zstd -19 over these bytes alone; `None` of more than it compresses in some seconds, or where somebody asks to
/// stop.
fn zstd_bpc(bytes: &[u8], interrupt: &Interrupt) -> Option<f64> {
    if bytes.len() > MOST_COMPRESSED {
        return None;
    }
    let mut encoder = zstd::Encoder::new(Counted(0), 19).ok()?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64)).ok()?;
    for piece in bytes.chunks(PIECE).take_while(|_| !interrupt.is_raised()) {
        encoder.write_all(piece).ok()?;
    }
    // Of fewer bytes than were promised there is no end.
    let Counted(compressed) = encoder.finish().ok()?;
    Some(8.0 * compressed as f64 / bytes.len() as f64)
}

/// The order-0 entropy in bits per byte; `None` where somebody asks to stop.
fn entropy(bytes: &[u8], interrupt: &Interrupt) -> Option<f64> {
    let mut counts = ByteCounts::default();
    for piece in bytes.chunks(PIECE) {
        if interrupt.is_raised() {
            return None;
        }
        counts.add(piece);
    }
    Some(counts.order0_entropy())
}

/// Counts what is written.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bits per byte of a split.
pub struct Score {
    /// validation or test.
    pub split: &'static str,
    /// Those that the heading is of.
    pub bpc: f64,
    /// Mixed with what was read, where that was measured too.
    pub adaptive: Option<f64>,
}

/// Prints the score of each split beside the order-0 entropy and what zstd gets; `model` is the heading of the scores. Where a signal
/// comes the scores are printed without what is not known yet.
pub fn scores(splits: &Splits, scores: &[Score], model: &str, whole: bool) -> Result<()> {
    let interrupt = life::heed(1);
    let has_adaptive = scores.iter().any(|score| score.adaptive.is_some());
    let row = |&Score { split: name, bpc, adaptive }: &Score| {
        let split = if name == "test" { &splits.test } else { &splits.valid };
        let known = |bpc: Option<f64>| bpc.map_or("-".into(), |bpc| format!("{bpc:.3}"));
        let [zstd, entropy] = [zstd_bpc, entropy].map(|yardstick| known(yardstick(split, interrupt)));
        let adaptive = match (has_adaptive, adaptive) {
            (false, _) => String::new(),
            (true, bpc) => format!(" {:>10}", bpc.map_or("-".into(), |bpc| format!("{bpc:.4}"))),
        };
        format!("{name:<16} {bpc:>9.4}{adaptive} {zstd:>10} {entropy:>17}   ({} bytes)", split.len())
    };
    let rows: Vec<_> = scores.iter().map(row).collect();
    // Nobody may be reading.
    interrupt.heed(0);
    say!("");
    let adaptive = if has_adaptive { format!(" {:>10}", adapt::NAME) } else { String::new() };
    say!("{:<16} {model:>9}{adaptive} {:>10} {:>17}", "bits per byte", "zstd -19", "order-0 entropy");
    for row in rows {
        say!("{row}");
    }
    if !whole && splits.name == "enwik8" {
        say!("(the first bytes of each split; --full-eval scores the whole)");
    }
    if has_adaptive {
        say!(
            "({}: in one lane, mixed with what was read of the split before each byte, as by eval --adapt)",
            adapt::NAME
        );
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
    say_text!(format!("\n{} bytes of generated text:\n", text.len()));
    say_text!(String::from_utf8_lossy(text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that differ, as zstd needs its time for.
    fn text(bytes: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut text = Vec::with_capacity(bytes + 16);
        while text.len() < bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend(format!("{:x} took {} ms\n", state >> 12, state % 991).bytes());
        }
        text.truncate(bytes);
        text
    }

    #[test]
    fn the_yardsticks_are_those_of_all_bytes() {
        let text = text(3 * PIECE + 5);
        let going = Interrupt::default();
        let at_once = 8.0 * zstd::bulk::compress(&text, 19).unwrap().len() as f64 / text.len() as f64;
        // Blocks may be cut elsewhere.
        assert!((zstd_bpc(&text, &going).unwrap() - at_once).abs() < 0.01 * at_once);
        assert_eq!(entropy(&text, &going), Some(crate::data::order0_entropy(&text)));
        assert_eq!(zstd_bpc(&vec![b'a'; MOST_COMPRESSED + 1], &going), None);
    }

    #[test]
    fn a_yardstick_is_left_where_somebody_asks_to_stop() {
        let (text, interrupt) = (text(MOST_COMPRESSED), Interrupt::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                interrupt.raise();
            });
            assert_eq!(zstd_bpc(&text, &interrupt), None, "it takes seconds");
        });
        assert_eq!(entropy(&text, &interrupt), None);
    }
}
