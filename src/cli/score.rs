//! `score`: bits per byte of each line of a file, as for finding the odd ones in a log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use burn::module::AutodiffModule;
use serde::Serialize;

use super::in_one_line;
use super::machine::MachineArgs;
use super::model::{FormatArgs, ModelArgs};
use crate::core::{BatchScorer, Scorer, Streams};
use crate::train::{load_state, save_state};
use crate::{AutodiffBackend, BackendJob};

/// Print the bits per byte of each line of a file
///
/// A line's end is part of it. By default lines are one stream: each is judged after all before it, and what repeats becomes cheap.
/// With --alone each is judged for itself, after a newline. Lines that surprise the model stand out by their bits per byte.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The file; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Judge each line for itself
    #[arg(long)]
    alone: bool,
    /// Print so many lines only, those that cost most bits per byte, the most costly first
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Print a JSON object for each line
    #[arg(long)]
    json: bool,
    /// Print nothing but the sum of all lines
    #[arg(long, conflicts_with = "top")]
    total: bool,
    /// Begin where the stream stood whose state is in this file
    #[arg(long, value_name = "PATH", conflicts_with = "alone")]
    from_state: Option<PathBuf>,
    /// Keep where the stream stands at the end in this file, to go on from with --from-state
    #[arg(long, value_name = "PATH", conflicts_with = "alone")]
    to_state: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Of a longer line this much is shown.
const SHOWN: usize = 1 << 16;
/// Lines judged alone side by side.
const SIDE_BY_SIDE: usize = 8;
/// A longer line is not judged side by side with others, but in pieces of this length.
const LONGEST_ALONE: usize = 1 << 16;

pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.top != Some(0), "--top 0 cannot be used: use at least 1, or --total for the sum alone");
    args.machine.set_threads()?;
    args.machine.backend.dispatch(args)?
}

impl BackendJob for Args {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let input = open(&self.file)?;
        let model = self.model.load::<B>(&device)?.model.valid();
        let n = if self.alone { SIDE_BY_SIDE } else { 1 };
        let streams = self.format.streams(&self.machine, &model, n)?;
        let mut out = Output::new(&self);
        let (scored, stream) = if self.alone {
            (each_alone(input, BatchScorer::new(streams)?, &mut out), None)
        } else {
            let mut scorer = Scorer::new(streams)?;
            if let Some(path) = &self.from_state {
                scorer.set_state(&load_state(path, scorer.streams().shape())?)?;
            }
            (one_stream(input, &mut scorer, &mut out), Some(scorer))
        };
        // What was scored before an error is not lost.
        let printed = out.finish();
        let done = scored.and(printed).with_context(|| format!("cannot score {}", self.file.display()));
        if let (Some(scorer), Some(path)) = (stream, &self.to_state) {
            if let Err(error) = done {
                // Not the error itself: a pipe that was closed would pass for success.
                bail!("{}: {} was not written", in_one_line(&error), path.display());
            }
            save_state(&scorer.state(), path)?;
        }
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// Opens a file, or standard input where `-` names it.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(stdin().lock()));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!file.metadata()?.is_dir(), "{} is a directory: name a file", path.display());
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}

/// Scores a file of any size, with lines of any length, in constant memory.
fn one_stream(mut input: Box<dyn BufRead>, scorer: &mut Scorer<Box<dyn Streams>>, out: &mut Output<'_>) -> Result<()> {
    let mut line = Line::default();
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let (part, ends) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&buffer[..=end], true),
            None => (buffer, false),
        };
        line.add(part, &scorer.score(part)?);
        let read = part.len();
        input.consume(read);
        if ends {
            out.line(std::mem::take(&mut line))?;
        }
    }
    if line.bytes > 0 {
        out.line(line)?;
    }
    Ok(())
}

/// Scores each line in a stream of its own, some at once.
fn each_alone(
    mut input: Box<dyn BufRead>,
    mut scorer: BatchScorer<Box<dyn Streams>>,
    out: &mut Output<'_>,
) -> Result<()> {
    let n = scorer.streams().n_streams();
    loop {
        let mut lines = Vec::with_capacity(n);
        let mut long = None;
        while lines.len() < n {
            let mut line = Vec::new();
            let read = io::Read::take(&mut input, LONGEST_ALONE as u64 + 1).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            if read > LONGEST_ALONE {
                long = Some(line);
                break;
            }
            lines.push(line);
        }
        if lines.is_empty() && long.is_none() {
            return Ok(());
        }
        let last = lines.len() < n && long.is_none();
        lines.resize(n, Vec::new());
        (0..n).for_each(|stream| scorer.reset(stream));
        for (text, nats) in lines.iter().zip(scorer.score(&lines)?) {
            if !text.is_empty() {
                let mut line = Line::default();
                line.add(text, &nats);
                out.line(line)?;
            }
        }
        if let Some(beginning) = long {
            out.line(long_alone(beginning, &mut input, &mut scorer)?)?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Scores a line of any length in a stream of its own, in constant memory.
fn long_alone(beginning: Vec<u8>, input: &mut dyn BufRead, scorer: &mut BatchScorer<Box<dyn Streams>>) -> Result<Line> {
    scorer.reset(0);
    let mut texts = vec![Vec::new(); scorer.streams().n_streams()];
    texts[0] = beginning;
    let mut line = Line::default();
    loop {
        line.add(&texts[0], &scorer.score(&texts)?[0]);
        let ended = texts[0].ends_with(b"\n");
        texts[0].clear();
        if ended || io::Read::take(&mut *input, LONGEST_ALONE as u64).read_until(b'\n', &mut texts[0])? == 0 {
            return Ok(line);
        }
    }
}

/// A line that is being scored.
#[derive(Default)]
struct Line {
    /// Its beginning.
    text: Vec<u8>,
    bytes: u64,
    nats: f64,
}

/// A line that was scored.
#[derive(Serialize)]
struct Scored {
    /// From 1.
    line: u64,
    /// Its length, with its end.
    bytes: u64,
    bits: f64,
    bits_per_byte: f64,
    /// What it says, without its end; of a long one the beginning. What is no UTF-8 is replaced.
    text: String,
}

impl Line {
    fn add(&mut self, part: &[u8], nats: &[f64]) {
        self.text.extend_from_slice(&part[..part.len().min(SHOWN.saturating_sub(self.text.len()))]);
        self.bytes += part.len() as u64;
        self.nats += nats.iter().sum::<f64>();
    }
}

/// Where lines go.
struct Output<'a> {
    args: &'a Args,
    out: BufWriter<io::StdoutLock<'static>>,
    /// The most costly so far, the least costly of them last.
    top: Vec<Scored>,
    lines: u64,
    bytes: u64,
    bits: f64,
}

impl<'a> Output<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, out: BufWriter::new(stdout().lock()), top: Vec::new(), lines: 0, bytes: 0, bits: 0.0 }
    }

    fn line(&mut self, line: Line) -> Result<()> {
        let bits = line.nats / std::f64::consts::LN_2;
        self.lines += 1;
        self.bytes += line.bytes;
        self.bits += bits;
        if self.args.total {
            return Ok(());
        }
        let text = line.text.strip_suffix(b"\n").unwrap_or(&line.text);
        let text = String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned();
        let bits_per_byte = bits / line.bytes as f64;
        let scored = Scored { line: self.lines, bytes: line.bytes, bits, bits_per_byte, text };
        let Some(n) = self.args.top else { return self.print(&scored) };
        // Of equals the earlier line stays first.
        let at = self.top.partition_point(|other| other.bits_per_byte >= scored.bits_per_byte);
        if at < n {
            self.top.insert(at, scored);
            self.top.truncate(n);
        }
        Ok(())
    }

    fn print(&mut self, scored: &Scored) -> Result<()> {
        if self.args.json {
            serde_json::to_writer(&mut self.out, scored).map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else {
            let shown = |c: char| if c.is_control() && c != '\t' { '\u{FFFD}' } else { c };
            let text: String = scored.text.chars().map(shown).collect();
            writeln!(self.out, "{:>8} {:>8.3}  {text}", scored.line, scored.bits_per_byte)?;
        }
        // Whoever looks on sees each line at once.
        if self.args.top.is_none() && stdout().is_terminal() {
            self.out.flush()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        for scored in std::mem::take(&mut self.top) {
            self.print(&scored)?;
        }
        let Self { lines, bytes, bits, .. } = self;
        let bits_per_byte = if bytes > 0 { bits / bytes as f64 } else { 0.0 };
        if self.args.total && self.args.json {
            #[derive(Serialize)]
            struct Total {
                lines: u64,
                bytes: u64,
                bits: f64,
                bits_per_byte: f64,
            }
            serde_json::to_writer(&mut self.out, &Total { lines, bytes, bits, bits_per_byte })
                .map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else if self.args.total {
            writeln!(self.out, "{lines} lines, {bytes} bytes, {bits_per_byte:.4} bits per byte")?;
        }
        self.out.flush()?;
        Ok(())
    }
}
