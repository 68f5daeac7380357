//! `generate`: text from a model, byte by byte.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::module::AutodiffModule;

use super::adapt::AdaptArgs;
use super::input::Input;
use super::life::{self, UntilStopped};
use super::machine::{MachineArgs, dispatch};
use super::model::{FormatArgs, ModelArgs, stream_state};
use super::pipe;
use super::printable::Printable;
use crate::train::{GenerateError, weights_digest};
use crate::{AutodiffBackend, BackendJob, Generator, Sampling, Streams};

/// Write text with a model, byte by byte, to standard output
///
/// A file or a pipe gets the bytes as they are; a terminal gets a replacement character for what is no UTF-8 and for control
/// characters.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to go on from; a terminal shows it before what follows. Without any the text starts after a newline
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: OsString,
    /// File with the text to go on from, of any bytes and of any length; - for standard input
    #[arg(long, value_name = "PATH", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Go on where the stream stood whose state is in this file, as `score --to-state` keeps it; a prompt comes after that
    #[arg(long, value_name = "PATH")]
    from_state: Option<PathBuf>,
    /// Do not show the prompt
    #[arg(long)]
    no_echo: bool,
    /// Bytes to write
    #[arg(long, short = 'n', value_name = "N", default_value_t = 500)]
    bytes: usize,
    /// 1 samples the model as it is, less prefers likely bytes, 0 always takes the likeliest
    #[arg(long, short, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from so many of the likeliest bytes only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest bytes that together reach this probability only
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// The same seed, model and prompt give the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    adapt: AdaptArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    args.machine.set_threads()?;
    dispatch(args.machine.backend, args)?
}

impl BackendJob for Args {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let Self { temperature, top_k, top_p, seed, .. } = self;
        let sampling = Sampling { temperature, top_k, top_p, seed };
        sampling.validate()?;
        let prompt = self.open_prompt()?;
        let model = self.model.load::<B>(&device)?.model.valid();
        let streams = self.format.streams(&self.machine, &model, 1)?;
        let state = match &self.from_state {
            Some(path) => Some((path.as_path(), stream_state(path, streams.shape(), &weights_digest(&model))?)),
            None => None,
        };
        let from = state.as_ref().map(|(path, state)| (*path, state));
        let mut generator = match self.adapt.mixer(self.adapt.adapt, from)? {
            Some(mixer) => Generator::adaptive(streams, sampling, mixer)?,
            None => Generator::new(streams, sampling)?,
        };
        if let Some((_, state)) = from {
            generator.set_state(state)?;
        }

        let written = if io::stdout().is_terminal() {
            let mut text = Printable::new(pipe::stdout());
            feed(&mut generator, prompt, self.echoes().then_some(&mut text as &mut dyn Write))
                .with_context(|| self.cannot_read_prompt())?;
            life::heed(1);
            let written = generator.generate_to(UntilStopped(&mut text), self.bytes);
            // Also where a signal came: the next prompt begins a line.
            text.finish().map_err(GenerateError::Io).and(written)
        } else {
            feed(&mut generator, prompt, None).with_context(|| self.cannot_read_prompt())?;
            life::heed(1);
            generator.generate_to(UntilStopped(pipe::stdout()), self.bytes)
        };
        match written {
            Err(GenerateError::Io(error)) => Err(error).context(pipe::Unwritten),
            written => Ok(written.map(|()| ExitCode::SUCCESS)?),
        }
    }
}

impl Args {
    /// Whether a terminal is to show the prompt: not what was typed there just before.
    fn echoes(&self) -> bool {
        let typed = self.prompt_file.as_deref() == Some(Path::new("-")) && io::stdin().is_terminal();
        !self.no_echo && !typed
    }

    fn open_prompt(&self) -> Result<Box<dyn BufRead>> {
        match &self.prompt_file {
            Some(path) => Ok(Box::new(Input::open(path)?)),
            None => Ok(Box::new(io::Cursor::new(self.prompt.as_encoded_bytes().to_vec()))),
        }
    }

    fn cannot_read_prompt(&self) -> String {
        let file = self.prompt_file.as_deref().map_or(String::new(), |path| format!(" in {}", path.display()));
        format!("cannot read the prompt{file}")
    }
}

/// Reads a prompt of any length piece by piece, and writes it to `echo`.
fn feed(
    generator: &mut Generator<impl Streams>,
    mut prompt: impl BufRead,
    mut echo: Option<&mut dyn Write>,
) -> Result<()> {
    loop {
        let piece = prompt.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        generator.feed(piece)?;
        if let Some(echo) = &mut echo {
            echo.write_all(piece)?;
            echo.flush()?;
        }
        let read = piece.len();
        prompt.consume(read);
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use crate::{BackendKind, ShaRnnConfig};

    use super::*;

    /// A prompt in pieces is the prompt, and what is echoed is the prompt too, with what a terminal must not get replaced.
    #[test]
    fn a_prompt_is_read_in_pieces_and_echoed() {
        let config = ShaRnnConfig { d_model: 8, d_ff: 16, mem_len: 8, ..ShaRnnConfig::xs() };
        let model = config.init_seeded::<burn::backend::Flex>(1, &Default::default());
        let generator = || Generator::new(BackendKind::Flex.streams(&model, 1), Sampling::default()).unwrap();
        let text = b"one\0two\x1b[2J, and more of it";
        let (mut whole, mut pieces, mut shown) = (generator(), generator(), Vec::new());
        whole.feed(text).unwrap();
        let mut printable = Printable::new(&mut shown);
        feed(&mut pieces, io::BufReader::with_capacity(3, &text[..]), Some(&mut printable)).unwrap();
        printable.finish().unwrap();
        let next = |generator: &mut Generator<_>| (0..9).map(|_| generator.next_byte().unwrap()).collect::<Vec<_>>();
        assert_eq!(next(&mut pieces), next(&mut whole));
        assert_eq!(String::from_utf8(shown).unwrap(), "one\u{FFFD}two\u{FFFD}[2J, and more of it\n");
    }
}
