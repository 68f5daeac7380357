//! Writes text with the best weights of a training run.
//!
//! ```text
//! cargo run --release --example generate -- --run runs/001 --prompt "The history of " --temperature 0.7
//! ```
//!
//! The bytes after the prompt go to standard output as they come. A file or a pipe gets them as they are; a terminal gets a
//! replacement character for what is no UTF-8 and for control characters.

mod support;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sharnn::train::{GenerateError, load_best};
use sharnn::{AutodiffBackend, BackendJob, BackendKind, Generator, Sampling};

/// Write text with the best weights of a training run, byte by byte, to standard output.
#[derive(Parser, Debug)]
#[command(name = "generate", max_term_width = 100)]
struct Args {
    /// Directory of the run, or its directory `best`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Text to go on from; it is not written again. Without one the text starts after a newline
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: OsString,
    /// Bytes to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    bytes: usize,
    /// 1 samples the model as it is, less prefers likely bytes, 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from so many of the likeliest bytes only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest bytes that together reach this probability only
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// The same seed, run and prompt give the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Backend, of those compiled in: flex, ndarray, cuda, wgpu or tch
    #[arg(long, value_name = "NAME", default_value_t)]
    backend: BackendKind,
    /// Threads of the CPU backends written in Rust [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    support::exit_code(run().map(|()| ExitCode::SUCCESS))
}

fn run() -> Result<()> {
    let args = Args::parse();
    if let Some(threads) = args.threads {
        args.backend.set_threads(threads)?;
    }
    args.backend.dispatch(args)?
}

impl BackendJob for Args {
    type Output = Result<()>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<()> {
        let Self { temperature, top_k, top_p, seed, .. } = self;
        let sampling = Sampling { temperature, top_k, top_p, seed };
        sampling.validate()?;
        let (model, _) = load_best::<B::InnerBackend>(&self.run, &device)?;
        let mut generator = Generator::new(self.backend.streams(&model, 1), sampling)?;
        generator.feed(self.prompt.as_encoded_bytes())?;

        let stdout = io::stdout();
        let written = if stdout.is_terminal() {
            let mut text = Printable { out: stdout.lock(), pending: Vec::new() };
            generator.generate_to(&mut text, self.bytes).and_then(|()| Ok(text.finish()?))
        } else {
            generator.generate_to(stdout.lock(), self.bytes)
        };
        match written {
            // Whoever read has seen enough.
            Err(GenerateError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(GenerateError::Io(error)) => Err(error).context("cannot write to standard output"),
            written => Ok(written?),
        }
    }
}

/// Writes bytes as text for a terminal. A character that is not complete yet waits for its other bytes.
struct Printable<W> {
    out: W,
    pending: Vec<u8>,
}

impl<W: Write> Printable<W> {
    /// Writes what still waits, and ends the line.
    fn finish(mut self) -> io::Result<()> {
        let rest = if self.pending.is_empty() { "\n" } else { "\u{FFFD}\n" };
        self.out.write_all(rest.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut complete = 0;
        for chunk in self.pending.utf8_chunks() {
            let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c };
            text.extend(chunk.valid().chars().map(shown));
            complete += chunk.valid().len();
            let invalid = chunk.invalid();
            // At the end it may be the beginning of a character: the error then has no length.
            let at_end = complete + invalid.len() == self.pending.len();
            let waits = at_end && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if invalid.is_empty() || waits {
                continue;
            }
            text.push('\u{FFFD}');
            complete += invalid.len();
        }
        self.pending.drain(..complete);
        self.out.write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal gets of `bytes`, written one at a time.
    fn printed(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let mut printable = Printable { out: &mut out, pending: Vec::new() };
        for byte in bytes {
            printable.write_all(&[*byte]).unwrap();
        }
        printable.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn characters_cut_into_bytes_come_out_whole() {
        assert_eq!(printed("naïve €\t🦀\n".as_bytes()), "naïve €\t🦀\n\n");
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(printed(b"a\xFFb\xC3(\x1B[2J"), "a\u{FFFD}b\u{FFFD}(\u{FFFD}[2J\n");
        assert_eq!(printed(b"a\xE2\x82"), "a\u{FFFD}\n");
    }

    #[test]
    fn every_pair_of_bytes_can_be_printed() {
        for pair in 0..=u16::MAX {
            let bytes = pair.to_be_bytes();
            let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c };
            let expected: String = String::from_utf8_lossy(&bytes).chars().map(shown).collect();
            assert_eq!(printed(&bytes), expected + "\n", "{bytes:?}");
        }
    }
}
