//! `compress` and `decompress`: files made smaller by a model, and back.

use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use burn::module::AutodiffModule;
use indicatif::{DecimalBytes, HumanCount, ProgressBar, ProgressStyle};

use super::input::Input;
use super::life;
use super::machine::{MachineArgs, dispatch};
use super::model::{BUNDLED, ModelArgs};
use super::pipe::{self, Unwritten};
use crate::codec::{Codec, CodecError, HEADER_LEN, Options, Progress, Totals};
use crate::data::whole_file;
use crate::train::{Interrupt, draws_live_lines};
use crate::{AutodiffBackend, BackendJob, WeightFormat};

/// What a compressed file's name ends in.
const SUFFIX: &str = "sharn";

/// The model of `--fast` where none is named.
const FAST_MODEL: &str = "bundled-small";

/// Make a file smaller by what a model expects
///
/// FILE becomes FILE.sharn, and is kept. Only the same model reads that again, on any CPU. What a model of the same kind of text expects
/// costs little, and what was read is learned from.
#[derive(clap::Args, Debug)]
#[command(after_help = "The format is stated in docs/codec.md of the repository.")]
pub struct CompressArgs {
    /// The file; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    to: OutputArgs,
    /// 2 lanes in place of 16, and 64 MiB of memory: slower, and somewhat smaller
    #[arg(long, conflicts_with_all = ["fast", "lanes"])]
    best: bool,
    /// The model `bundled-small` where none is named, 8 lanes and 32 MiB of memory: faster, and larger
    #[arg(long, conflicts_with = "lanes")]
    fast: bool,
    /// Parts of a block that are read side by side, 1 to 256
    #[arg(long, value_name = "N")]
    lanes: Option<usize>,
    /// MiB of text in a block, 1 to 64: what a damaged byte loses
    #[arg(long, value_name = "MIB", default_value_t = 8)]
    block: usize,
    /// MiB of memory for what was read, 0 to 64; 0 lets the model predict alone [default: 16]
    #[arg(long, value_name = "MIB")]
    adapt_memory: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Restore a file that `compress` made smaller
///
/// FILE.sharn becomes FILE, and is kept.
#[derive(clap::Args, Debug)]
pub struct DecompressArgs {
    /// The file; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    to: OutputArgs,
    /// Of a damaged file restore what can be had, with zeros in the place of the rest
    #[arg(long)]
    salvage: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(clap::Args, Debug)]
struct OutputArgs {
    /// File to write, which must not be there yet; - for standard output, the default where standard input is read
    #[arg(long, short = 'o', value_name = "PATH")]
    to: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// Where the result goes.
enum Output {
    Stdout,
    File(PathBuf),
}

impl OutputArgs {
    /// Where it goes; `name` makes of an input's name that of its result.
    fn output(&self, input: &Path, model: &ModelArgs, name: impl Fn(&Path) -> Result<PathBuf>) -> Result<Output> {
        let dash = Path::new("-");
        let path = match &self.to {
            Some(path) if path == dash => return Ok(Output::Stdout),
            Some(path) => path.clone(),
            None if input == dash => return Ok(Output::Stdout),
            None => name(input)?,
        };
        model.refuse_as_output("--to", &path, [("FILE", input)])?;
        let is_there = path.symlink_metadata().is_ok() && !whole_file::is_stream(&path);
        ensure!(self.force || !is_there, "{} is there: name another file, or replace it with --force", path.display());
        Ok(Output::File(path))
    }
}

pub fn compress(args: CompressArgs) -> Result<ExitCode> {
    args.machine.set_threads()?;
    dispatch(args.machine.backend, args)?
}

pub fn decompress(args: DecompressArgs) -> Result<ExitCode> {
    args.machine.set_threads()?;
    dispatch(args.machine.backend, args)?
}

impl BackendJob for CompressArgs {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let with_suffix = |file: &Path| Ok(file.with_added_extension(SUFFIX));
        let model = if self.fast { self.model.or(FAST_MODEL) } else { self.model };
        let output = self.to.output(&self.file, &model, with_suffix)?;
        let plain = Options::default();
        let chosen = match (self.fast, self.best) {
            (true, _) => Options { lanes: 8, memory: Some(32 << 20), ..plain },
            (_, true) => Options { lanes: 2, memory: Some(64 << 20), ..plain },
            _ => plain,
        };
        let options = Options {
            lanes: self.lanes.unwrap_or(chosen.lanes),
            block: self.block << 20,
            memory: self.adapt_memory.map_or(chosen.memory, |mib| (mib > 0).then_some(mib << 20)),
        };
        let input = Waiting(Input::open(&self.file)?, life::heed(1));
        let codec = codec::<B>(&model, &device)?;
        let work = Work { input: &self.file, output, verb: "compressed" };
        work.run(|to, watch| codec.compress(input, to, &options, watch))
    }
}

impl BackendJob for DecompressArgs {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let without_suffix = |file: &Path| {
            let is_ours = file.extension().is_some_and(|extension| extension == SUFFIX);
            ensure!(is_ours, "{} does not end in .{SUFFIX}: name the file to write with --to", file.display());
            Ok(file.with_extension(""))
        };
        let output = self.to.output(&self.file, &self.model, without_suffix)?;
        let mut input = Waiting(Input::open(&self.file)?, life::heed(1));
        // Where no model is named, it is the bundled one that the file says.
        let codecs: Vec<_> =
            BUNDLED.iter().map(|(name, _)| codec::<B>(&self.model.or(name), &device)).collect::<Result<_>>()?;
        let work = Work { input: &self.file, output, verb: "decompressed" };
        let mut lost = 0;
        let code = work.run(|to, watch| {
            let mut beginning = Vec::new();
            input.by_ref().take(HEADER_LEN as u64).read_to_end(&mut beginning)?;
            let codec = codecs.iter().find(|codec| codec.is_of(&beginning)).unwrap_or(&codecs[0]);
            let input = beginning.chain(input);
            match self.salvage {
                false => codec.decompress(input, to, watch),
                true => codec.salvage(input, to, watch, &mut |error| {
                    lost += 1;
                    tell!("{error}");
                }),
            }
        })?;
        ensure!(lost == 0, "{} is damaged in {lost} places; what could be had was written", self.file.display());
        Ok(code)
    }
}

fn codec<B: AutodiffBackend>(model: &ModelArgs, device: &B::Device) -> Result<Codec> {
    let model = model.load::<B>(device)?.model.valid();
    Ok(Codec::new(model.engine(WeightFormat::Exact))?)
}

/// Input that is waited for no longer than until a signal comes.
struct Waiting(Input, &'static Interrupt);

impl Read for Waiting {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self(input, interrupt) = self;
        let Some(mut bytes) = input.wait(interrupt)? else { return Err(life::stopped_io()) };
        let n = bytes.read(into)?;
        input.consume(n);
        Ok(n)
    }
}

/// What is done with a file.
struct Work<'a> {
    input: &'a Path,
    output: Output,
    verb: &'static str,
}

impl Work<'_> {
    fn run(
        self,
        work: impl FnOnce(&mut dyn Write, &mut dyn FnMut(Progress) -> bool) -> Result<Totals, CodecError>,
    ) -> Result<ExitCode> {
        let interrupt = life::interrupt();
        let start = Instant::now();
        let size = std::fs::metadata(self.input).ok().filter(|file| file.is_file()).map_or(0, |file| file.len());
        let bar = if draws_live_lines() { ProgressBar::new(size) } else { ProgressBar::hidden() };
        bar.set_style(
            ProgressStyle::with_template("{decimal_bytes} of text, {decimal_bytes_per_sec}").expect("a template"),
        );
        let mut watch = |progress: Progress| {
            bar.set_position(progress.text);
            !interrupt.is_raised()
        };
        let done = match &self.output {
            Output::Stdout => {
                let mut out = BufWriter::with_capacity(1 << 16, pipe::stdout());
                work(&mut out, &mut watch).map_err(unwritten)
            }
            Output::File(path) => {
                let mut totals = Totals::default();
                let written = whole_file::write(path, |out| {
                    totals = work(out, &mut watch)?;
                    Ok(())
                });
                // What the work says of reading and writing is a CodecError.
                let is_of_output =
                    |error: &Error| error.is::<io::Error>() || error.downcast_ref().is_some_and(says_full);
                written.map(|()| totals).map_err(|error: Error| match is_of_output(&error) {
                    true => error.context(format!("cannot write {}", path.display())),
                    false => error,
                })
            }
        };
        bar.finish_and_clear();
        let totals = match done {
            Err(error) if matches!(error.downcast_ref(), Some(CodecError::Stopped)) || life::is_stopped(&error) => {
                let left = match &self.output {
                    Output::Stdout => String::new(),
                    Output::File(path) => format!("; {} was not written", path.display()),
                };
                tell!("stopped{left}");
                return Ok(life::stopped());
            }
            Err(error) if error.is::<Unwritten>() => return Err(error),
            done => done.with_context(|| format!("{} was not {}", self.input.display(), self.verb))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let name = match &self.output {
            Output::Stdout => "standard output".into(),
            Output::File(path) => path.display().to_string(),
        };
        let Totals { text, code, .. } = totals;
        let ratio = match text {
            0 => String::new(),
            text => format!(
                ", {:.1} % of it, {:.3} bits a byte",
                100.0 * code as f64 / text as f64,
                8.0 * code as f64 / text as f64
            ),
        };
        let line = format!(
            "{name}: {} bytes of text, {} bytes compressed{ratio}; {:.1} s, {}/s",
            HumanCount(text),
            HumanCount(code),
            seconds,
            DecimalBytes((text as f64 / seconds.max(1e-9)) as u64)
        );
        match self.output {
            Output::Stdout => tell!("{line}"),
            Output::File(_) => say!("{line}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A disk that is full is the output's.
fn says_full(error: &CodecError) -> bool {
    matches!(error, CodecError::Io(error) if error.kind() == io::ErrorKind::StorageFull)
}

/// An error of a pipe is no error of the file.
fn unwritten(error: CodecError) -> Error {
    match error {
        CodecError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => Error::from(error).context(Unwritten),
        error if says_full(&error) => Error::from(error).context("cannot write to standard output"),
        error => error.into(),
    }
}
