//! The command line: what the program `sharnn` and the example `enwik8` run.

/// Prints a line to standard output, with nothing in it that a terminal would obey, or returns the error: a pipe whose reader has
/// gone is one.
macro_rules! say {
    ($($text:tt)*) => {
        crate::cli::print(&mut crate::cli::pipe::stdout(), &format!($($text)*))
            .map_err(|error| anyhow::Error::from(error).context(crate::cli::pipe::Unwritten))?
    };
}

/// Prints text of several lines to standard output, likewise. What is put into it is no name of anybody's choice.
macro_rules! say_text {
    ($text:expr) => {
        crate::cli::print_text(&mut crate::cli::pipe::stdout(), &$text)
            .map_err(|error| anyhow::Error::from(error).context(crate::cli::pipe::Unwritten))?
    };
}

/// Prints a line to standard error, likewise: a reader that has gone is no reason to stop.
macro_rules! tell {
    ($($text:tt)*) => {
        drop(crate::cli::print(&mut crate::cli::pipe::stderr(), &format!($($text)*)))
    };
}

mod adapt;
mod attend;
mod bench;
#[cfg(feature = "codec")]
mod codec;
mod data;
mod eval;
mod export;
mod generate;
mod import;
mod input;
mod inspect;
mod life;
mod machine;
mod model;
mod options;
mod outputs;
mod paths;
mod pipe;
mod plot;
mod printable;
mod processes;
mod report;
mod runs;
mod score;
mod train;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use crate::train::{SharedGroup, printable, printable_line};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 an error, which is told in one line, 2 a command line that cannot be parsed, 130 stopped by a signal.";

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
    #[cfg(feature = "codec")]
    Compress(codec::CompressArgs),
    #[cfg(feature = "codec")]
    Decompress(codec::DecompressArgs),
    Export(export::Args),
    Import(import::Args),
    Inspect(inspect::Args),
    Plot(plot::Args),
    Bench(bench::Args),
}

// `sharnn train` as a program of its own, with the same help: a line of documentation here would take its place.
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
                #[cfg(feature = "codec")]
                Command::Compress(args) => codec::compress(args),
                #[cfg(feature = "codec")]
                Command::Decompress(args) => codec::decompress(args),
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
    life::begin();
    let parsed = match P::try_parse_from(args) {
        Ok(parsed) => parsed,
        Err(error) => return processes::refuse_arguments(group.as_ref(), &error),
    };
    let result = work(parsed, group.clone());
    processes::exit_code(group.as_ref(), result)
}

/// A line, as a terminal may show it.
fn print(out: &mut dyn Write, line: &str) -> io::Result<()> {
    print_text(out, &printable_line(line))
}

/// Lines, likewise.
fn print_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all((printable(text) + "\n").as_bytes())
}

/// The exit code of a program; an error is printed in one line.
fn exit_code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        if life::is_stopped(&error) {
            return life::stopped();
        }
        // Whoever read has seen enough.
        if error.chain().any(is_broken_pipe) {
            return ExitCode::SUCCESS;
        }
        tell!("error: {}", in_one_line(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes, by the names that were typed. Those that quote their cause themselves do not have it said twice.
fn in_one_line(error: &anyhow::Error) -> String {
    let causes: Vec<_> = error.chain().map(|cause| (cause.to_string(), options::told(cause))).collect();
    let mut line = String::new();
    for (i, (text, told)) in causes.iter().enumerate() {
        let mut said = told.as_ref().unwrap_or(text).clone();
        for (quoted, told) in &causes[i + 1..] {
            if let Some(told) = told {
                said = said.replace(quoted, told);
            }
        }
        if line.is_empty() {
            line = said;
        } else if !line.contains(&said) {
            line = format!("{line}: {said}");
        }
    }
    line
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::path::Path;

    use super::*;

    /// Commands of the program, of whatever a page sets as code.
    fn commands(page: &str) -> Vec<Vec<String>> {
        let (fenced, text): (Vec<_>, Vec<_>) = page.split("```").enumerate().partition(|(i, _)| i % 2 == 1);
        let lines = fenced.into_iter().flat_map(|(_, block)| block.lines().map(str::to_string));
        let text: String = text.into_iter().map(|(_, text)| text.replace('\n', " ")).collect();
        let inline = text.split('`').skip(1).step_by(2).map(str::to_string);
        let all = lines.chain(inline).filter(|line| line.starts_with("sharnn ")).map(|line| words(&line));
        // Not what is no command to be typed: the name of one alone, and a line of Cargo.toml.
        all.filter(|words| words.len() > 2 && !["help", "="].contains(&&words[1][..])).collect()
    }

    /// The words of a command up to a comment; those in double quotes are one. A place holder, as `DIR` or `N`, is a number, and
    /// the backend one that is compiled in.
    fn words(command: &str) -> Vec<String> {
        let (mut words, mut quoted, mut open) = (vec![String::new()], false, false);
        for c in command.chars() {
            match c {
                '"' => (quoted, open) = (!quoted, true),
                '#' if !quoted && !open => break,
                c if c.is_whitespace() && !quoted => {
                    if open {
                        words.push(String::new());
                    }
                    open = false;
                }
                c => {
                    words.last_mut().expect("one at least").push(c);
                    open = true;
                }
            }
        }
        if !open {
            words.pop();
        }
        let stands_for = |word: String| match &word[..] {
            "cuda" => "flex".into(),
            // Sizes of a model.
            "XS" | "S" | "M" | "L" => word,
            name if name.bytes().all(|byte| byte.is_ascii_uppercase()) => "1".into(),
            _ => word,
        };
        words.into_iter().map(stands_for).collect()
    }

    #[test]
    fn no_cause_is_told_twice() {
        let cause = || io::Error::other("no such file");
        let quoted =
            anyhow::Error::from(cause()).context("cannot read a: no such file; check its name").context("it failed");
        assert_eq!(in_one_line(&quoted), "it failed: cannot read a: no such file; check its name");
        assert_eq!(in_one_line(&anyhow::Error::from(cause()).context("cannot read a")), "cannot read a: no such file");
    }

    #[test]
    fn the_commands_of_the_pages_are_some() {
        let pages = [
            ("README.md", 6),
            ("docs/guide.md", 8),
            ("docs/export.md", 1),
            ("docs/weights.md", 1),
            ("docs/recipes.md", 1),
            ("models/README.md", 1),
        ];
        for (name, at_least) in pages {
            let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
            let commands = commands(&page);
            assert!(commands.len() >= at_least, "{name}: {commands:?}");
            for command in commands {
                if let Err(error) = Cli::try_parse_from(&command) {
                    panic!("{name}: {command:?}: {error}");
                }
            }
        }
    }
}
