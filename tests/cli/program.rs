//! The program in a directory of its own.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// An empty directory, in which the program runs.
pub struct Workplace {
    dir: TempDir,
}

/// Three steps of a tiny model, with tables of n-grams that are written in no time.
const TINY: &str = "--preset xs --set model.d_model=16 --set model.d_ff=40 --mem-len 64 --batch 4 --seq-len 16 --steps 3 --log-every 1 \
                    --precision f32 --threads 1 --set model.ngrams={\"orders\":[2,3],\"rows\":200,\"width\":4,\"at\":\"both\"}";

impl Workplace {
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// Options that train three steps of a tiny model into `run`, which is named first, and more of them.
    pub fn train<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let here = "train --out run --train-bytes 5000 --valid-bytes 600".split_whitespace();
        here.chain(TINY.split_whitespace()).chain(more.iter().copied()).collect()
    }

    /// Options that train three steps of a tiny model on a file into a directory that is chosen for it.
    pub fn train_on<'a>(&self, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let tiny = ["train"].into_iter().chain(TINY.split_whitespace());
        tiny.chain(["--quiet", "--data", data]).chain(more.iter().copied()).collect()
    }

    /// A log of so many lines under this name.
    pub fn log(&self, name: &str, lines: u32) {
        let line = |i: u32| format!("2031-05-{:02} node{} job {i} took {} ms\n", 1 + i % 28, i % 7, i * 37 % 991);
        self.write(name, (1..=lines).map(line).collect::<String>().as_bytes());
    }

    /// Runs the program in a directory below, whatever comes of it.
    pub fn run_in(&self, dir: &str, args: &[&str]) -> Output {
        self.command(args).current_dir(self.path(dir)).output().unwrap()
    }

    /// Runs the program, which must fail, and returns the last line that it says.
    pub fn error(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        last_line(&said).into()
    }

    /// Runs the program, whatever comes of it.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same with arguments that need not be UTF-8.
    pub fn run_os(&self, args: &[impl AsRef<OsStr>]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What the program writes of what it is given on standard input; it must succeed.
    pub fn with_stdin(&self, args: &[&str], stdin: &[u8]) -> Vec<u8> {
        let mut command = self.command(args);
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = program.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A program that does not read it may be gone.
            scope.spawn(move || drop(input.write_all(stdin)));
            let output = program.wait_with_output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        })
    }

    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sharnn"));
        command.args(args).current_dir(self.dir.path());
        hear_signals(&mut command);
        command
    }

    /// Starts the program, with pipes for what it says.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// As [`start`](Self::start), with a pipe to what it reads.
    #[cfg(unix)]
    pub fn start_with_stdin(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A script for `sh`, in which `"$@"` is the program with these arguments; with pipes for what it says.
    #[cfg(unix)]
    pub fn shell(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_sharnn")]).args(args).current_dir(self.dir.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        hear_signals(&mut command);
        command
    }

    /// Runs the program until it has written something, and reads no more of it.
    pub fn first_byte(&self, args: &[&str]) -> Output {
        let mut program = self.start(args);
        program.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        program.wait_with_output().unwrap()
    }

    /// Runs the program while nobody reads its standard error.
    pub fn without_stderr(&self, args: &[&str]) -> Output {
        let mut program = self.start(args);
        drop(program.stderr.take());
        program.wait_with_output().unwrap()
    }

    /// Runs the program, which must succeed, and returns what it says.
    pub fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the program writes, and what it says beside it; it must succeed.
    pub fn both(&self, args: &[&str]) -> (Vec<u8>, String) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        (output.stdout, said)
    }

    pub fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        self.stdout(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args)).unwrap()
    }
}

pub fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// Gives signals their meaning: whoever runs the tests in the background has some of them ignored, which the program would keep to.
fn hear_signals(command: &mut Command) {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let give = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                // SAFETY: The call takes integers, and may be made between fork and exec.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: The closure makes no other call.
        unsafe { command.pre_exec(give) };
    }
    #[cfg(not(unix))]
    let _ = command;
}
