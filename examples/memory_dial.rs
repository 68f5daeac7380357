//! What a trained model's memory is worth: the same weights scored with memories of several lengths, and with the memory
//! dropped on the way.
//!
//! ```text
//! cargo run --release --example memory_dial -- runs/001 --data enwik8 --svg memory.svg
//! ```
//!
//! Segments are 32 bytes, so that every length can be compared: none may be longer than the memory.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use clap::Parser;
use plotters::prelude::*;
use sharnn::data::enwik8;
use sharnn::train::load_best;
use sharnn::{Lanes, Pass, ShaRnn, ShaRnnState};

/// Score a trained model with memories of several lengths, and with its memory dropped midway.
#[derive(Parser, Debug)]
#[command(name = "memory_dial", max_term_width = 100)]
struct Args {
    /// Directory of a run
    run: PathBuf,
    /// File whose validation split is scored [default: the bundled slice of enwik8]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Score the first so many bytes of it
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    bytes: usize,
    /// Lanes scored side by side
    #[arg(long, value_name = "N", default_value_t = 8)]
    lanes: usize,
    /// Bytes of a segment
    #[arg(long, value_name = "N", default_value_t = 32)]
    seq_len: usize,
    /// Lengths of the memory
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [0, 64, 256, 512, 1024, 2048, 5000])]
    mem_len: Vec<usize>,
    /// Draw what the dropped memory costs into this file
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
}

/// Points of the picture before and after the memory is dropped.
const BEFORE: usize = 10;
const AFTER: usize = 70;

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    ensure!(args.seq_len > 0, "--seq-len 0 cannot be used: use at least 1");
    for &mem_len in args.mem_len.iter().filter(|&&n| n > 0) {
        ensure!(
            args.seq_len <= mem_len,
            "--seq-len {} is more than --mem-len {mem_len}: use shorter segments",
            args.seq_len
        );
    }
    let splits = match &args.data {
        Some(path) => enwik8::open_any(path)?,
        None => enwik8::sample(),
    };
    let valid = splits.valid.head(args.bytes);
    let lanes = Lanes::new(&valid[..], args.lanes)?;
    let (model, _) = load_best::<Flex>(&args.run, &Default::default())?;
    ensure!(model.vocab_size() == 256, "the model has {} tokens: it does not read bytes", model.vocab_size());
    ensure!(model.attends(), "no block of this model attends: it has no memory");

    let mut out = stdout().lock();
    let Args { lanes: n_lanes, seq_len, .. } = args;
    writeln!(out, "{} bytes of {} in {n_lanes} lanes, segments of {seq_len}\n", lanes.n_targets(), splits.name)?;
    writeln!(out, "{:>16} {:>14} {:>10} {:>22}", "memory", "bits per byte", "bytes/s", "bytes of state a lane")?;
    let mut longest = None;
    for &mem_len in &args.mem_len {
        let scored = score(&model.clone().with_mem_len(mem_len), &lanes, args.seq_len, None);
        scored.print(&mut out, &mem_len.to_string())?;
        longest = longest.filter(|(n, _)| *n > mem_len).or(Some((mem_len, scored)));
    }
    let Some((mem_len, kept)) = longest else { return Ok(()) };
    let drop_at = (lanes.lane_len() - 1) / 2;
    let dropped = score(&model.with_mem_len(mem_len), &lanes, args.seq_len, Some(drop_at));
    dropped.print(&mut out, &format!("{mem_len}, dropped"))?;
    let after = |scored: &Scored, bytes: usize| scored.bpc(drop_at..drop_at + bytes);
    let left = lanes.lane_len() - 1 - drop_at;
    for bytes in [64, 256, 1024, 4096].map(|n| n * seq_len / 32).into_iter().filter(|&bytes| bytes <= left) {
        let (kept, dropped) = (after(&kept, bytes), after(&dropped, bytes));
        writeln!(out, "the {bytes} bytes of each lane after the memory was dropped: {dropped:.4}, with it {kept:.4}")?;
    }
    if let Some(path) = &args.svg {
        draw(path, [&kept, &dropped], drop_at, mem_len).with_context(|| format!("cannot draw {}", path.display()))?;
        writeln!(out, "\n{}", path.display())?;
    }
    Ok(())
}

/// What a pass over the lanes gave.
struct Scored {
    seq_len: usize,
    /// The mean loss of each segment in nats, and its bytes a lane.
    segments: Vec<(f64, usize)>,
    bytes_per_second: f64,
    /// Of one lane, at the end.
    state_bytes: usize,
}

impl Scored {
    /// Bits per byte over these bytes of each lane, widened to whole segments.
    fn bpc(&self, bytes: std::ops::Range<usize>) -> f64 {
        let segments = self.segments.iter().enumerate().filter(|(i, (_, n))| {
            let start = i * self.seq_len;
            start < bytes.end && start + n > bytes.start
        });
        let (nats, n) = segments.fold((0.0, 0), |(nats, all), (_, &(loss, n))| (nats + loss * n as f64, all + n));
        nats / n as f64 / std::f64::consts::LN_2
    }

    fn print(&self, out: &mut impl Write, memory: &str) -> std::io::Result<()> {
        let all = self.bpc(0..usize::MAX);
        writeln!(out, "{memory:>16} {all:>14.4} {:>10.0} {:>22}", self.bytes_per_second, self.state_bytes)
    }
}

/// Scores the lanes side by side; before the segment that holds byte `drop_at` of each, the memory is dropped.
fn score(model: &ShaRnn<Flex>, lanes: &Lanes<&[u8]>, seq_len: usize, drop_at: Option<usize>) -> Scored {
    let targets = lanes.lane_len() - 1;
    let tokens = |start: usize, end: usize| -> Tensor<Flex, 2, Int> {
        let lane = |i: usize| lanes.lane(i)[start..end].iter().map(|&byte| i32::from(byte));
        let tokens: Vec<i32> = (0..lanes.n_lanes()).flat_map(lane).collect();
        Tensor::from_data(TensorData::new(tokens, [lanes.n_lanes(), end - start]), &Default::default())
    };
    let (mut state, mut segments) = (model.empty_state(), Vec::new());
    let started = Instant::now();
    for start in (0..targets).step_by(seq_len) {
        let end = targets.min(start + seq_len);
        if drop_at.is_some_and(|at| (start..end).contains(&at)) {
            state = state.drop_memory();
        }
        let (loss, next) = model.loss(tokens(start, end), tokens(start + 1, end + 1), state, &Pass::default());
        state = next;
        segments.push((f64::from(loss.into_scalar()), end - start));
    }
    let bytes_per_second = lanes.n_targets() as f64 / started.elapsed().as_secs_f64();
    Scored { seq_len, segments, bytes_per_second, state_bytes: state_bytes(&state) / lanes.n_lanes() }
}

/// Bytes of every tensor that is carried on.
fn state_bytes(state: &ShaRnnState<Flex>) -> usize {
    let block = |state: &sharnn::core::BlockState<Flex>| {
        let lstm = state.lstm.as_ref().map_or(0, |lstm| lstm.h.shape().num_elements() + lstm.c.shape().num_elements());
        lstm + state.memory.as_ref().map_or(0, |memory| memory.shape().num_elements())
    };
    size_of::<f32>() * state.blocks.iter().map(block).sum::<usize>()
}

/// What the dropped memory costs, around the place where it was dropped.
fn draw(path: &Path, [kept, dropped]: [&Scored; 2], drop_at: usize, mem_len: usize) -> Result<()> {
    let seq_len = kept.seq_len;
    let width = 2 * seq_len;
    let first = drop_at / seq_len * seq_len;
    let begin = first - first.min(BEFORE * width);
    let starts = (begin..first + AFTER * width).step_by(width).filter(|start| start + width <= 2 * drop_at);
    let cost = |start: usize| dropped.bpc(start..start + width) - kept.bpc(start..start + width);
    let line: Vec<_> = starts.map(|start| (start as f64 - first as f64, cost(start))).collect();
    let bounds = line.iter().fold([0.0f64; 2], |[low, high], (_, y)| [low.min(*y), high.max(*y)]);

    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("What it costs to drop a memory of {mem_len} bytes"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(begin as f64 - first as f64..(AFTER * width) as f64, bounds[0] - 0.02..bounds[1] + 0.02)?;
    chart
        .configure_mesh()
        .x_desc("bytes of each lane since then")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_desc("bits per byte more than with it")
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(line, BLUE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}
