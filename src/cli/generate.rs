//! `generate`: text from a model, byte by byte.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::module::AutodiffModule;

use super::life::{self, UntilStopped};
use super::machine::{MachineArgs, dispatch};
use super::model::{FormatArgs, ModelArgs};
use super::printable::Printable;
use crate::train::GenerateError;
use crate::{AutodiffBackend, BackendJob, Generator, Sampling};

/// Write text with a model, byte by byte, to standard output
///
/// A file or a pipe gets the bytes as they are; a terminal gets a replacement character for what is no UTF-8 and for control
/// characters.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to go on from; it is not written again. Without one the text starts after a newline
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: OsString,
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
        let model = self.model.load::<B>(&device)?.model.valid();
        let mut generator = Generator::new(self.format.streams(&self.machine, &model, 1)?, sampling)?;
        generator.feed(self.prompt.as_encoded_bytes())?;

        life::heed(1);
        let stdout = io::stdout();
        let written = if stdout.is_terminal() {
            let mut text = Printable::new(stdout.lock());
            let written = generator.generate_to(UntilStopped(&mut text), self.bytes);
            // Also where a signal came: the next prompt begins a line.
            text.finish().map_err(GenerateError::Io).and(written)
        } else {
            generator.generate_to(UntilStopped(stdout.lock()), self.bytes)
        };
        match written {
            Err(GenerateError::Io(error)) if life::is_stopped_io(&error) => Ok(life::stopped()),
            Err(GenerateError::Io(error)) => Err(error).context("cannot write to standard output"),
            written => Ok(written.map(|()| ExitCode::SUCCESS)?),
        }
    }
}
