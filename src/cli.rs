//! The command line: what the program `sharnn` and the example `enwik8` run.

/// Prints a line to standard output, or returns the error: a pipe whose reader has gone is one.
macro_rules! say {
    ($($text:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stdout().lock(), format_args!("{}\n", format_args!($($text)*)))?
    };
}

mod attend;
mod bench;
mod data;
mod eval;
mod export;
mod generate;
mod import;
mod inspect;
mod machine;
mod model;
mod plot;
mod processes;
mod report;
mod runs;
mod score;
mod train;
mod values;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use crate::train::SharedGroup;

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 an error, which is told in one line, 2 options that cannot be used, 130 stopped by Ctrl-C.";

/// Train, score and use SHA-RNN language models.
#[derive(Parser, Debug)]
#[command(name = "sharnn", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(Box<train::Args>),
    Eval(eval::Args),
    Generate(generate::Args),
    Score(score::Args),
    Attend(attend::Args),
    Export(export::Args),
    Import(import::Args),
    Inspect(inspect::Args),
    Plot(plot::Args),
    Bench(bench::Args),
}

/// `sharnn train` as a program of its own.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct TrainOnly {
    #[command(flatten)]
    args: train::Args,
}

/// Runs the program `sharnn` with these arguments, of which the first is its name, and returns its exit code.
pub fn run<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> ExitCode {
    parse_and(args, |Cli { command }, group| match command {
        Command::Train(args) => train::run(*args, group),
        command => {
            ensure!(
                group.size() == 1,
                "only `sharnn train` runs in {} processes together: leave out mpirun",
                group.size()
            );
            match command {
                Command::Train(_) => unreachable!("matched above"),
                Command::Eval(args) => eval::run(args),
                Command::Generate(args) => generate::run(args),
                Command::Score(args) => score::run(args),
                Command::Attend(args) => attend::run(&args),
                Command::Export(args) => export::run(args),
                Command::Import(args) => import::run(args),
                Command::Inspect(args) => inspect::run(&args),
                Command::Plot(args) => plot::run(&args),
                Command::Bench(args) => bench::run(&args),
            }
        }
    })
}

/// Runs `sharnn train` with these arguments, of which the first is the program's name, and returns its exit code.
pub fn run_train<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> ExitCode {
    parse_and(args, |TrainOnly { args }, group| train::run(args, group))
}

/// Joins the group of processes, parses the arguments, and does the work. An error is printed in one line.
fn parse_and<A: Into<OsString> + Clone, P: Parser>(
    args: impl IntoIterator<Item = A>,
    work: impl FnOnce(P, SharedGroup) -> Result<ExitCode>,
) -> ExitCode {
    let group = match processes::join() {
        Ok(group) => group,
        Err(error) => return exit_code(Err(error)),
    };
    let parsed = match P::try_parse_from(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            if group.is_first() {
                // There is nobody left to tell.
                let _ = error.print();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let result = work(parsed, group.clone());
    processes::exit_code(group.as_ref(), result)
}

/// The exit code of a program; an error is printed in one line.
fn exit_code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        // Whoever read has seen enough.
        if error.chain().any(is_broken_pipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
