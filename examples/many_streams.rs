//! Many streams at once: each has a text and a memory of its own, and all share one copy of the weights. Packed weights read byte
//! after byte, and give the very bits that each stream alone gives; the model itself reads as many bytes as there are at once.
//!
//! ```text
//! cargo run --release --example many_streams            1,000 streams of 200 bytes, by the bundled model
//! cargo run --release --example many_streams -- 64 1000
//! ```

use std::io::{Write, stdout};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::backend::Flex;
use sharnn::data::enwik8::SAMPLE;
use sharnn::{BatchScorer, ModelStreams, Scorer, Streams, WeightFormat, pretrained};

/// Streams that are scored once more, alone.
const COMPARED: usize = 20;

/// A number among the arguments.
fn number(argument: Option<String>, default: usize) -> Result<usize> {
    let Some(text) = argument else { return Ok(default) };
    let n = text.parse().with_context(|| format!("{text:?} is no number: give streams, and bytes of each"))?;
    ensure!((1..=100_000).contains(&n), "{n} is not from 1 to 100000");
    Ok(n)
}

/// Scores a text in each stream.
fn together(how: &str, streams: impl Streams, texts: &[&[u8]]) -> Result<Vec<Vec<f64>>> {
    let mut scorer = BatchScorer::new(streams)?;
    let clock = Instant::now();
    let nats = scorer.score(texts)?;
    let seconds = clock.elapsed().as_secs_f64();
    let rate = nats.iter().map(Vec::len).sum::<usize>() as f64 / seconds;
    let kib = scorer.streams().shape().most_bytes() / 1024;
    writeln!(
        stdout(),
        "{} streams together {how}: {rate:.0} bytes/s, at most {kib} KiB of state a stream",
        texts.len()
    )?;
    Ok(nats)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let n_streams = number(args.next(), 1000)?;
    let len = number(args.next(), 200)?;

    let model = pretrained::LARGE.model::<Flex>(&Default::default());
    let engine = model.engine(WeightFormat::F32);
    let start_of = |stream: usize| stream * (SAMPLE.len() - len) / n_streams;
    let texts: Vec<&[u8]> = (0..n_streams).map(|stream| &SAMPLE[start_of(stream)..][..len]).collect();

    let nats = together("on packed weights", engine.streams(n_streams), &texts)?;
    let by_model = together("by the model", ModelStreams::new(&model, n_streams, 1)?, &texts)?;
    let pairs = nats.iter().flatten().zip(by_model.iter().flatten());
    let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    writeln!(stdout(), "they differ by at most {difference:.1e} nats a byte")?;

    let compared = COMPARED.min(n_streams);
    let clock = Instant::now();
    for stream in (0..compared).map(|i| i * n_streams / compared) {
        let alone = Scorer::new(engine.streams(1))?.score(texts[stream])?;
        ensure!(alone == nats[stream], "stream {stream} differs when it is scored alone");
    }
    let alone = (compared * len) as f64 / clock.elapsed().as_secs_f64();
    writeln!(stdout(), "one by one: {alone:.0} bytes/s; {compared} streams compared, equal bit for bit")?;
    Ok(())
}
