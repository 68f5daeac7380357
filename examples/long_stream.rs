//! Streams without end take no more memory than short ones: scores a file, cut into as many parts as there are streams, and says at ten
//! moments what the process holds (Linux).
//!
//! ```text
//! cargo run --release --example long_stream -- FILE                              the bundled model, one stream, the whole file
//! cargo run --release --example long_stream -- FILE 100 50000000 run/best/weights.safetensors
//! ```

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::backend::Flex;
use sharnn::train::ImportOptions;
use sharnn::{BatchScorer, WeightFormat, import_weights, pretrained};

/// Bytes of each stream that are read and scored at a time, where there are so many between two moments.
const PIECE: usize = 1 << 14;
const MOMENTS: usize = 10;

/// What of the process is in memory, in KiB.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("this system does not tell")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS is missing")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("name a file to score")?;
    let n_streams: usize = args.next().map_or(Ok(1), |n| n.parse()).context("give a number of streams")?;
    let file_len = usize::try_from(fs::metadata(&path).with_context(|| path.clone())?.len())?;
    let bytes: usize = args.next().map_or(Ok(file_len), |n| n.parse()).context("give a number of bytes")?;
    ensure!((1..=bytes.min(file_len)).contains(&n_streams), "give each stream a byte at least");
    let model = match args.next() {
        Some(path) => import_weights::<Flex>(Path::new(&path), &ImportOptions::default(), &Default::default())?,
        None => pretrained::LARGE.model::<Flex>(&Default::default()),
    };
    let mut file = File::open(&path).with_context(|| path.clone())?;
    let engine = model.engine(WeightFormat::F32);
    let mut scorer = BatchScorer::new(engine.streams(n_streams))?;

    // Of each stream.
    let len = bytes.min(file_len) / n_streams;
    let clock = Instant::now();
    let mut pieces = vec![Vec::new(); n_streams];
    let (mut start, mut moment) = (0, 0);
    while start < len {
        let piece = PIECE.min(len.div_ceil(MOMENTS)).min(len - start);
        for (stream, text) in pieces.iter_mut().enumerate() {
            text.resize(piece, 0);
            file.seek(SeekFrom::Start((stream * len + start) as u64))?;
            file.read_exact(text)?;
        }
        drop(scorer.score(&pieces)?);
        start += piece;
        while moment < MOMENTS && start * MOMENTS >= (moment + 1) * len {
            moment += 1;
            let (seconds, read) = (clock.elapsed().as_secs_f64(), start * n_streams);
            writeln!(stdout(), "{seconds:7.1} s {read:10} bytes {:8} KiB resident", resident()?)?;
        }
    }
    let nats: f64 = (0..n_streams).map(|stream| scorer.tally(stream).nats).sum();
    writeln!(stdout(), "{:.4} bits per byte", nats / (len * n_streams) as f64 / std::f64::consts::LN_2)?;
    Ok(())
}
