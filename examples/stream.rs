//! The library embedded: a stream of bytes is scored as it comes, each byte before the model reads it, in constant memory. What
//! the model knows of the stream is kept in a file, from which the next run goes on, bit for bit.
//!
//! ```text
//! cargo run --release --example stream < text.txt                          a fresh model: about 8 bits per byte
//! cargo run --release --example stream -- runs/001 < text.txt              the best weights of a training run
//! cargo run --release --example stream -- runs/001 log.state < more.txt    goes on where log.state was left
//! ```

use std::io::{Read, Write, stdin, stdout};
use std::path::Path;

use anyhow::{Context, Result};
use burn::backend::Flex;
use sharnn::train::load_best;
use sharnn::{DecodeEngine, Scorer, ShaRnnConfig, Streams, WeightFormat, load_state, save_state};

/// Bytes between two lines of output.
const EVERY: usize = 1 << 14;

fn stream() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let device = Default::default();
    let model = match args.next() {
        Some(run) => load_best::<Flex>(Path::new(&run), &device)?.0,
        None => ShaRnnConfig::xs().init_seeded(1, &device),
    };
    let mut scorer = Scorer::new(DecodeEngine::new(&model, WeightFormat::Bf16).streams(1))?;
    let kept = args.next();
    let kept = kept.as_deref().map(Path::new);
    if let Some(path) = kept.filter(|path| path.exists()) {
        scorer.set_state(&load_state(path, scorer.streams().shape())?)?;
    }

    let mut text = Vec::with_capacity(EVERY);
    loop {
        text.clear();
        stdin().take(EVERY as u64).read_to_end(&mut text).context("cannot read standard input")?;
        if text.is_empty() {
            break;
        }
        scorer.score(&text)?;
        let tally = scorer.tally();
        if let Some(bits) = tally.bits_per_byte() {
            writeln!(stdout(), "{:>10} bytes  {bits:.4} bits per byte", tally.bytes)?;
        }
    }
    if let Some(path) = kept {
        save_state(&scorer.state(), path)?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = stream() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
