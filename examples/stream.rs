//! The library embedded: a stream of bytes is scored as it comes, each byte before the model reads it, in constant memory.
//! What the model knows of the stream is kept in a file, from which the next run goes on, bit for bit.
//!
//! ```text
//! cargo run --release --example stream < text.txt                          a fresh model: about 8 bits per byte
//! cargo run --release --example stream -- runs/001 < text.txt              the best weights of a training run
//! cargo run --release --example stream -- runs/001 log.state < more.txt    goes on where log.state was left
//! ```

use std::io::{Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::backend::Flex;
use sharnn::train::load_best;
use sharnn::{Scorer, ShaRnnConfig, Streams, WeightFormat, load_state, save_state};

fn stream() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let device = Default::default();
    let model = match args.next() {
        Some(run) => load_best::<Flex>(Path::new(&run), &device)?.0,
        None => ShaRnnConfig::xs().init_seeded(1, &device),
    };
    let mut scorer = Scorer::new(model.engine(WeightFormat::Bf16).streams(1))?;
    let kept = args.next().map(PathBuf::from);
    if let Some(path) = &kept
        && path.try_exists().with_context(|| format!("cannot look for {}", path.display()))?
    {
        scorer.set_state(&load_state(path, scorer.streams().shape())?)?;
    }

    let mut buffer = vec![0; 1 << 14];
    loop {
        let n = stdin().read(&mut buffer).context("cannot read standard input")?;
        if n == 0 {
            break;
        }
        scorer.score(&buffer[..n])?;
        let tally = scorer.tally();
        if let Some(bits) = tally.bits_per_byte() {
            writeln!(stdout(), "{:>10} bytes  {bits:.4} bits per byte", tally.bytes)?;
        }
    }
    if let Some(path) = kept {
        save_state(&scorer.state(), &path)?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = stream() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
