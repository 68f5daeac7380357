//! `score`: bits per byte of each line of a file, as for finding the odd ones in a log.

use std::io::{BufRead, BufWriter, IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use burn::module::AutodiffModule;
use serde::Serialize;

use super::adapt::{self, AdaptArgs};
use super::input::Input;
use super::machine::{MachineArgs, dispatch};
use super::model::{FormatArgs, ModelArgs, stream_state};
use super::pipe::{self, Pipe, Unwritten};
use super::printable::json;
use super::{in_one_line, life};
use crate::core::{BatchScorer, Scorer, Streams};
use crate::data::whole_file;
use crate::train::{Interrupt, printable, save_state, weights_digest};
use crate::{AutodiffBackend, BackendJob};

/// Print the bits per byte of each line of a file
///
/// A line's end is part of it. By default lines are one stream: each is judged after all before it, and the model's predictions are mixed
/// with what was read, so that what repeats becomes cheap (--no-adapt: the model's alone). With --alone each is judged for itself, by the model,
/// after a newline. Lines that surprise stand out by their bits per byte.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The file; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Judge each line for itself; with --adapt and --from-state, each after what that stream had read
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
    #[arg(long, value_name = "PATH")]
    from_state: Option<PathBuf>,
    /// Keep where the stream stands at the end in this file, to go on from with --from-state
    #[arg(long, value_name = "PATH", conflicts_with = "alone")]
    to_state: Option<PathBuf>,
    #[command(flatten)]
    adapt: AdaptArgs,
    /// Score with the model's predictions alone
    #[arg(long, conflicts_with_all = ["adapt", "adapt_memory"], help_heading = "Adaptive mixing")]
    no_adapt: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Of a longer line this much is shown.
const SHOWN: usize = 1 << 16;
/// Lines judged alone side by side.
const SIDE_BY_SIDE: usize = 8;
/// Bytes of each line between two looks at the interrupt.
const STRETCH: usize = 256;
/// A longer line can't be judged alone.
const LONGEST_ALONE: usize = 1 << 20;

pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.top != Some(0), "--top 0 cannot be used: use at least 1, or --total for the sum alone");
    if let Some(state) = &args.to_state {
        args.model.refuse_as_output("--to-state", state, [("FILE", &*args.file)])?;
    }
    ensure!(
        !args.alone || args.adapt.adapt == args.from_state.is_some(),
        "--alone takes --adapt and --from-state together: what each line is judged after, or neither"
    );
    args.machine.set_threads()?;
    dispatch(args.machine.backend, args)?
}

impl Args {
    /// Whether predictions are mixed with what was read.
    fn adapts(&self) -> bool {
        if self.alone { self.adapt.adapt } else { !self.no_adapt }
    }
}

impl BackendJob for Args {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let input = Input::open(&self.file)?;
        let model = self.model.load::<B>(&device)?.model.valid();
        let n = if self.alone { SIDE_BY_SIDE } else { 1 };
        // Of weights that are not kept nothing need be known.
        let weights = (self.from_state.is_some() || self.to_state.is_some()).then(|| weights_digest(&model));
        let streams = self.format.streams(&self.machine, &model, n)?;
        let state = match (&self.from_state, &weights) {
            (Some(path), Some(weights)) => Some((path.as_path(), stream_state(path, streams.shape(), weights)?)),
            _ => None,
        };
        let from = state.as_ref().map(|(path, state)| (*path, state));
        let mixer = self.adapt.mixer(self.adapts(), from)?;
        let mut out = Output::new(&self);
        if self.adapts() && !self.json && !self.total {
            tell!("{} scores: --no-adapt gives the model's own", adapt::NAME);
        }
        let interrupt = life::heed(1);
        let (scored, stream) = if self.alone {
            let scorer = match (mixer, &state) {
                (Some(mut mixer), Some((path, state))) => {
                    let known = state.adaptive();
                    let known = known.with_context(|| {
                        format!("{} has nothing to judge lines after: use one of an adaptive stream", path.display())
                    })?;
                    mixer.set_bytes(known)?;
                    BatchScorer::adaptive(streams, mixer)?
                }
                _ => BatchScorer::new(streams)?,
            };
            (each_alone(input, scorer, &mut out, interrupt), None)
        } else {
            let mut scorer = match mixer {
                Some(mixer) => Scorer::adaptive(streams, mixer)?,
                None => Scorer::new(streams)?,
            };
            if let Some((_, state)) = &state {
                scorer.set_state(state)?;
            }
            (one_stream(input, &mut scorer, &mut out, interrupt), Some(scorer))
        };
        // What was scored before an error or a signal is not lost.
        let (lines, bytes) = (out.lines, out.bytes);
        let printed = out.finish();
        let done = scored.and_then(|end| printed.map(|()| end)).map_err(|error| match error.is::<Unwritten>() {
            true => error,
            false => error.context(format!("cannot score {}", self.file.display())),
        });
        if done.as_ref().is_err_and(life::is_stopped) {
            let state = self.to_state.iter().map(|path| format!("; {} was not written", path.display()));
            tell!("stopped while nobody read what was scored{}", state.collect::<String>());
            return Ok(life::stopped());
        }
        if let (Some(scorer), Some(path), Some(weights)) = (stream, &self.to_state, weights) {
            if let Err(error) = done {
                // Not the error itself: a pipe that was closed would pass for success.
                bail!("{}: {} was not written", in_one_line(&error), path.display());
            }
            if whole_file::is_stream(path) && life::heed(0).is_raised() {
                tell!("stopped after {lines} lines, {bytes} bytes; {} was not written", path.display());
                return Ok(life::stopped());
            }
            save_state(&scorer.state().of_weights(weights), path)?;
        }
        if done? == End::Input {
            return Ok(ExitCode::SUCCESS);
        }
        tell!("stopped after {lines} lines, {bytes} bytes");
        Ok(life::stopped())
    }
}

/// How a command came to its end.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Input,
    Interrupted,
}

/// Scores a file of any size, with lines of any length, in constant memory. Once interrupted it goes on to the end of the line, if
/// that is near.
fn one_stream(
    mut input: Input,
    scorer: &mut Scorer<Box<dyn Streams>>,
    out: &mut Output<'_>,
    interrupt: &Interrupt,
) -> Result<End> {
    let mut line = Line::default();
    // Bytes of this line since the interruption.
    let mut late = 0;
    let end = loop {
        let raised = interrupt.is_raised();
        if raised && (line.bytes == 0 || late >= STRETCH) {
            break End::Interrupted;
        }
        // Whoever waits for an answer has it before more is waited for.
        if input.pauses() {
            out.flush()?;
        }
        let Some(buffer) = input.wait(interrupt)? else { break End::Interrupted };
        if buffer.is_empty() {
            break End::Input;
        }
        let buffer = &buffer[..buffer.len().min(STRETCH)];
        let (part, ends) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&buffer[..=end], true),
            None => (buffer, false),
        };
        line.add(part, &scorer.score(part)?);
        let read = part.len();
        late = if raised { late + read } else { 0 };
        input.consume(read);
        if ends {
            out.line(std::mem::take(&mut line))?;
        }
    };
    if line.bytes > 0 {
        out.line(line)?;
    }
    Ok(end)
}

/// Scores each line in a stream of its own, those that are there at once.
fn each_alone(
    mut input: Input,
    mut scorer: BatchScorer<Box<dyn Streams>>,
    out: &mut Output<'_>,
    interrupt: &Interrupt,
) -> Result<End> {
    let n = scorer.streams().n_streams();
    let mut reader = WholeLines::default();
    loop {
        let mut lines = Vec::with_capacity(n);
        let mut end = None;
        while lines.len() < n && !interrupt.is_raised() && (lines.is_empty() || !input.pauses()) {
            match reader.next(&mut input, interrupt)? {
                Next::Line(line) => lines.push(line),
                Next::Part => {}
                Next::End(reached) => {
                    end = Some(reached);
                    break;
                }
            }
        }
        let scored = score_together(&mut scorer, &lines, interrupt)?;
        let stopped = scored.len() < lines.len();
        for (Numbered { number, text }, nats) in lines.iter().zip(scored) {
            let mut line = Line::default();
            line.add(text, &nats);
            out.numbered(*number, line)?;
        }
        if input.pauses() {
            out.flush()?;
        }
        match end {
            _ if stopped || interrupt.is_raised() => return Ok(End::Interrupted),
            Some(end) => return Ok(end),
            None => {}
        }
    }
}

/// The bits of each line, side by side; of the first lines alone where it is interrupted.
fn score_together(
    scorer: &mut BatchScorer<Box<dyn Streams>>,
    lines: &[Numbered],
    interrupt: &Interrupt,
) -> Result<Vec<Vec<f64>>> {
    let n = scorer.streams().n_streams();
    (0..n).for_each(|stream| scorer.reset(stream));
    let longest = lines.iter().map(|line| line.text.len()).max().unwrap_or(0);
    let mut scored = vec![Vec::new(); lines.len()];
    for start in (0..longest).step_by(STRETCH) {
        if interrupt.is_raised() {
            break;
        }
        let part = |stream: usize| -> &[u8] {
            let text = lines.get(stream).map_or(&[][..], |line| &line.text);
            &text[start.min(text.len())..(start + STRETCH).min(text.len())]
        };
        let parts: Vec<&[u8]> = (0..n).map(part).collect();
        for (nats, more) in scored.iter_mut().zip(scorer.score(&parts)?) {
            nats.extend(more);
        }
    }
    let whole = lines.iter().zip(&scored).take_while(|(line, nats)| line.text.len() == nats.len()).count();
    scored.truncate(whole);
    Ok(scored)
}

/// A line, with its end, and which it is.
struct Numbered {
    number: u64,
    text: Vec<u8>,
}

/// Brings the parts together that a line comes in.
#[derive(Default)]
struct WholeLines {
    /// The beginning of a line.
    begun: Vec<u8>,
    /// Bytes of it, those that were left out among them.
    bytes: u64,
    number: u64,
}

enum Next {
    Line(Numbered),
    /// It goes on, or was too long.
    Part,
    End(End),
}

impl WholeLines {
    fn next(&mut self, input: &mut Input, interrupt: &Interrupt) -> Result<Next> {
        let Some(buffer) = input.wait(interrupt)? else { return Ok(Next::End(End::Interrupted)) };
        let at_end = buffer.is_empty();
        let (part, ends) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&buffer[..=end], true),
            None => (buffer, false),
        };
        self.begun.extend_from_slice(&part[..part.len().min(LONGEST_ALONE.saturating_sub(self.begun.len()))]);
        self.bytes += part.len() as u64;
        let read = part.len();
        input.consume(read);
        if self.bytes == 0 {
            return Ok(Next::End(End::Input));
        }
        if !ends && !at_end {
            return Ok(Next::Part);
        }
        self.number += 1;
        let (number, bytes, text) = (self.number, std::mem::take(&mut self.bytes), std::mem::take(&mut self.begun));
        if bytes > text.len() as u64 {
            tell!(
                "line {number} of {bytes} bytes is left out: --alone takes {LONGEST_ALONE} a line; leave it out for longer ones"
            );
            return Ok(Next::Part);
        }
        Ok(Next::Line(Numbered { number, text }))
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
    /// Whether the model's predictions were mixed with what was read.
    adaptive: bool,
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
    out: BufWriter<Pipe>,
    /// The most costly so far, the least costly of them last.
    top: Vec<Scored>,
    lines: u64,
    bytes: u64,
    bits: f64,
}

impl<'a> Output<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, out: BufWriter::new(pipe::stdout()), top: Vec::new(), lines: 0, bytes: 0, bits: 0.0 }
    }

    fn line(&mut self, line: Line) -> Result<()> {
        self.numbered(self.lines + 1, line)
    }

    fn numbered(&mut self, number: u64, line: Line) -> Result<()> {
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
        let scored =
            Scored { line: number, bytes: line.bytes, bits, bits_per_byte, adaptive: self.args.adapts(), text };
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
            writeln!(self.out, "{}", json(scored)?).context(Unwritten)?;
        } else {
            let text = printable(&scored.text);
            writeln!(self.out, "{:>8} {:>8.3}  {text}", scored.line, scored.bits_per_byte).context(Unwritten)?;
        }
        // Whoever looks on sees each line at once.
        if self.args.top.is_none() && stdout().is_terminal() {
            self.out.flush().context(Unwritten)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().context(Unwritten)
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
                adaptive: bool,
            }
            let adaptive = self.args.adapts();
            writeln!(self.out, "{}", json(&Total { lines, bytes, bits, bits_per_byte, adaptive })?)
                .context(Unwritten)?;
        } else if self.args.total {
            let name = if self.args.adapts() { format!(", {}", adapt::NAME) } else { String::new() };
            writeln!(self.out, "{lines} lines, {bytes} bytes, {bits_per_byte:.4} bits per byte{name}")
                .context(Unwritten)?;
        }
        self.out.flush().context(Unwritten)?;
        Ok(())
    }
}
