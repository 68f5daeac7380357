//! What ends the program from outside, and what it has kept and said by then.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::Workplace;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what} never came");
        sleep(Duration::from_millis(2));
    }
}

fn signal(program: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &program.id().to_string()]).status().unwrap().success());
}

/// Waits for the end, and returns what was written to standard error.
fn end(mut program: Child) -> (ExitStatus, String) {
    until("the end", || program.try_wait().unwrap().is_some());
    let mut said = String::new();
    if let Some(mut stderr) = program.stderr.take() {
        stderr.read_to_string(&mut said).unwrap();
    }
    (program.wait().unwrap(), said)
}

/// The exit code of a program that is to end now, and not at some time; it is ended where it does not.
fn code_soon(program: &mut Child) -> Option<i32> {
    let asked = Instant::now();
    while program.try_wait().unwrap().is_none() && asked.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_millis(2));
    }
    let ended = program.try_wait().unwrap();
    if ended.is_none() {
        program.kill().unwrap();
    }
    ended.and_then(|status| status.code())
}

/// Waits until a program has its handlers of signals.
fn until_it_hears(program: &Child) {
    let status = format!("/proc/{}/status", program.id());
    until("a handler", || {
        let Ok(status) = std::fs::read_to_string(&status) else {
            // A system without them.
            sleep(Duration::from_secs(2));
            return true;
        };
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() >> (libc::SIGTERM - 1) & 1 == 1
    });
}

/// Bytes that wait in a pipe.
fn waiting(pipe: &impl std::os::fd::AsRawFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: The descriptor is open, and the call writes one integer.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
    bytes
}

/// Options of a run that has no end within a test.
fn endless(at: &Workplace) -> Vec<&'static str> {
    let mut options = at.train(&["--recipe", "paper", "--valid-every", "1000000", "--threads", "1"]);
    options.truncate(options.len() - 2);
    *options.iter_mut().find(|option| **option == "3").unwrap() = "1000000";
    options
}

fn steps(at: &Workplace) -> usize {
    std::fs::read_to_string(at.path("run/metrics.jsonl")).map_or(0, |metrics| metrics.matches("\"train\"").count())
}

/// A run that was stopped goes on from where it stood.
fn goes_on(at: &Workplace, more: usize) {
    let stopped = at.json(&["inspect", "run", "--json"])["run"]["position"]["step"].as_u64().unwrap();
    let steps = (stopped + more as u64).to_string();
    let done = at.json(&["train", "--resume", "--out", "run", "--threads", "1", "--steps", &steps, "--json"]);
    assert_eq!(done["steps"].as_u64(), Some(stopped + more as u64), "{done}");
}

#[test]
fn each_signal_that_asks_to_stop_saves_and_ends_a_run() {
    for name in ["INT", "TERM", "HUP", "USR1", "USR2", "XCPU"] {
        let at = Workplace::new();
        let program = at.start(&endless(&at));
        until("a step", || steps(&at) > 1);
        signal(&program, name);
        let (status, said) = end(program);
        assert_eq!(status.code(), Some(130), "{name}: {said}");
        assert!(said.contains("stopping after the step under way"), "{name}: {said}");
        assert!(said.contains("go on with: --resume --out run"), "{name}: {said}");
        goes_on(&at, 1);
    }
}

/// A shell takes the commands that are named as they are.
#[test]
fn what_is_to_be_typed_is_quoted() {
    let at = Workplace::new();
    let options: Vec<_> = endless(&at).into_iter().map(|word| if word == "run" { "my run" } else { word }).collect();
    let program = at.start(&options);
    until("a step", || {
        std::fs::read_to_string(at.path("my run/metrics.jsonl")).is_ok_and(|metrics| metrics.contains("\"train\""))
    });
    signal(&program, "TERM");
    let (status, said) = end(program);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("go on with: --resume --out 'my run'\n"), "{said}");
    assert!(at.read("my run/README.md").contains("`sharnn train --resume --out 'my run'`"));
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    for name in ["HUP", "INT"] {
        let at = Workplace::new();
        let program = at.shell(&format!("trap '' {name}; exec \"$@\""), &endless(&at)).spawn().unwrap();
        until("a step", || steps(&at) > 1);
        signal(&program, name);
        let before = steps(&at);
        until("more steps", || steps(&at) > before + 20);
        signal(&program, "TERM");
        assert_eq!(end(program).0.code(), Some(130), "{name}");
    }
}

#[test]
fn a_run_that_was_killed_before_its_first_step_goes_on() {
    let at = Workplace::new();
    let mut program = at.start(&endless(&at));
    until("the checkpoint of the start", || at.path("run/step-00000000").is_dir() || steps(&at) > 0);
    program.kill().unwrap();
    end(program);
    goes_on(&at, 2);
    // It has served its time once there is another.
    assert!(!at.path("run/step-00000000").exists());
}

/// Whenever the signal comes, there is a run that can go on, or no directory.
#[test]
fn a_signal_at_the_start_leaves_a_run_or_nothing() {
    let at = Workplace::new();
    at.write("text", &[b'a'; 3_000_000]);
    let mut options = endless(&at);
    options.splice(1..3, ["--data", "text"]);
    let mut n = 0;
    for moment in
        [Some(0), Some(5), Some(10), Some(15), Some(20), Some(30), Some(40), Some(60), Some(80), Some(120), None]
    {
        let program = at.start(&options);
        match moment {
            Some(milliseconds) => sleep(Duration::from_millis(milliseconds)),
            None => until("the directory", || std::fs::read_dir(at.path("runs")).is_ok_and(|runs| runs.count() > n)),
        }
        signal(&program, "TERM");
        let (status, said) = end(program);
        // Before it can hear a signal the system ends it.
        assert!(matches!(status.code(), Some(130) | None), "{moment:?} ms: {said}");
        n = std::fs::read_dir(at.path("runs")).map_or(0, Iterator::count);
        for run in std::fs::read_dir(at.path("runs")).into_iter().flatten() {
            let run = run.unwrap().path();
            let checkpoint = |entry: std::io::Result<std::fs::DirEntry>| {
                entry.unwrap().file_name().to_string_lossy().starts_with("step-")
            };
            let is_run = std::fs::read_dir(&run).unwrap().any(checkpoint);
            assert!(is_run, "{moment:?} ms: {} has no checkpoint: {said}", run.display());
        }
    }
}

/// A signal while the page is written comes too late to stop the run, and too early for what it reached to be said.
#[test]
fn a_signal_at_the_end_leaves_a_whole_run_and_is_not_taken_for_success() {
    let at = Workplace::new();
    let mut program = at.start(&at.train(&[]));
    let mut stdout = program.stdout.take().unwrap();
    until("the last test", || {
        std::fs::read_to_string(at.path("run/metrics.jsonl")).is_ok_and(|metrics| metrics.contains("\"test\""))
    });
    signal(&program, "TERM");
    let mut scores = String::new();
    stdout.read_to_string(&mut scores).unwrap();
    let (status, said) = end(program);
    assert!(at.path("run/sample.txt").is_file() && at.path("run/README.md").is_file(), "{said}");
    // On a machine that was busy elsewhere it may have been over.
    match status.code() {
        Some(0) => assert!(!said.contains("stopping"), "{said}"),
        code => {
            assert_eq!(code, Some(130), "{said}");
            // Either of them, whenever it came.
            let is_told = said.contains("the run has come to its end, after step 3; what it reached is in run");
            assert!(is_told || scores.starts_with("trained 3 steps; "), "{said}{scores}");
        }
    }
}

#[test]
fn a_validation_is_broken_off_and_nothing_is_lost() {
    let at = Workplace::new();
    // So much that it takes far longer than the test waits before it stops it.
    at.write("text", &b"abcdefghijklmnopqrstuvw".repeat(2_000_000));
    let mut options = endless(&at);
    *options.iter_mut().find(|option| **option == "1000000").unwrap() = "2000000";
    let (at_valid, _) = options.iter().enumerate().find(|(_, option)| **option == "--valid-every").unwrap();
    options[at_valid + 1] = "2";
    let at_bytes = options.iter().position(|option| *option == "--valid-bytes").unwrap();
    options.drain(at_bytes..at_bytes + 2);
    options.extend(["--full-eval", "--data", "text"]);
    let program = at.start(&options);
    until("the second step", || steps(&at) == 2);
    sleep(Duration::from_millis(300));
    signal(&program, "TERM");
    let (status, said) = end(program);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("stopped after step 2;"), "{said}");
    assert!(!at.read("run/metrics.jsonl").contains("valid"), "it was broken off");
    assert!(at.path("run/step-00000002").is_dir());
}

#[test]
fn a_line_is_answered_as_soon_as_no_more_is_waiting() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    for more in [&["--to-state", "state"][..], &["--alone"], &["--json", "--alone"]] {
        let mut program = at.start_with_stdin(&[&["score", "--model", "run"], more].concat());
        let (mut stdin, stdout) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        let mut lines = BufReader::new(stdout).lines();
        for text in ["first\n", "second\n", "third\nfourth"] {
            stdin.write_all(text.as_bytes()).unwrap();
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains(text.lines().next().unwrap()), "{more:?}: {line}");
        }
        signal(&program, "INT");
        let (status, said) = end(program);
        assert_eq!(status.code(), Some(130), "{more:?}: {said}");
        assert!(said.lines().last().is_some_and(|last| last.starts_with("stopped after ")), "{said}");
        assert_eq!(at.path("state").is_file(), more[0] == "--to-state");
        let _ = std::fs::remove_file(at.path("state"));
    }
}

#[test]
fn an_interrupted_score_prints_what_it_has() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    for (more, wanted) in [(&["--total", "--json"][..], 1), (&["--top", "5"], 2), (&["--top", "5", "--alone"], 2)] {
        let mut program = at.start_with_stdin(&[&["score", "--model", "run"], more].concat());
        let mut stdin = program.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").unwrap();
        until("that they are read", || waiting(&stdin) == 0);
        // Nothing says that they were scored, which takes a few milliseconds.
        sleep(Duration::from_secs(1));
        signal(&program, "TERM");
        let mut out = String::new();
        program.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let (status, said) = end(program);
        assert_eq!((status.code(), out.lines().count()), (Some(130), wanted), "{more:?}: {out}{said}");
        assert!(said.contains("stopped after 2 lines, 8 bytes"), "{said}");
    }
}

/// A pipe that nobody reads takes no more, and a signal is heeded all the same.
#[cfg(target_os = "linux")]
#[test]
fn a_full_pipe_keeps_no_signal_waiting() {
    use std::os::fd::AsRawFd;
    // As little as a pipe can hold twice.
    fn shrink(pipe: &impl AsRawFd) {
        // SAFETY: The descriptor is open, and the call takes an integer.
        assert!(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 8192) } >= 8192);
    }
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.log("log", 20_000);
    let endless: Vec<_> = endless(&at).into_iter().map(|word| if word == "run" { "other" } else { word }).collect();
    for (args, code) in [
        (&["generate", "--model", "run", "--bytes", "1000000000"][..], 130),
        (&["score", "log", "--model", "run", "--to-state", "state"], 130),
        (&["score", "log", "--model", "run", "--alone", "--json"], 130),
        (&endless, 130),
    ] {
        let mut program = at.start(args);
        let (stdout, stderr) = (program.stdout.take().unwrap(), program.stderr.take().unwrap());
        shrink(&stdout);
        shrink(&stderr);
        until("a full pipe", || waiting(&stdout).max(waiting(&stderr)) > 4096);
        sleep(Duration::from_millis(500));
        signal(&program, "TERM");
        assert_eq!(code_soon(&mut program), Some(code), "{args:?}");
        assert!(!at.path("state").exists(), "of lines that nobody read");
    }
    let stopped = at.json(&["inspect", "other", "--json"])["run"]["position"]["step"].as_u64().unwrap();
    assert!(stopped > 0, "it was saved");
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_is_full_is_named_by_every_command() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.log("log", 20);
    let score = ["score", "log", "--model", "run"];
    for args in [
        &score[..],
        &[&score[..], &["--top", "2"]].concat(),
        &[&score[..], &["--total"]].concat(),
        &[&score[..], &["--alone", "--json"]].concat(),
        &[&score[..], &["--to-state", "state"]].concat(),
        &["generate", "--model", "run", "--bytes", "9"],
        &["inspect", "run"],
        &["plot", "run"],
        &["--help"],
        &["--version"],
        &["help", "train"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = at.command(args).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1, "{args:?}: {said}");
        assert!(errors[0].starts_with("error: cannot write to standard output: No space left"), "{args:?}: {said}");
        assert!(!at.path("state").exists());
    }
}

/// Neither side of a pipe ever comes: what is read is refused, what is written waits until a signal comes.
#[test]
fn a_pipe_without_another_end_keeps_no_command() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.log("log", 20);
    let pipe = |name: &str| assert!(Command::new("mkfifo").arg(at.path(name)).status().unwrap().success());
    pipe("pipe");
    let weights = "run/best/weights.safetensors";
    for args in [
        &["score", "log", "--model", "run", "--total", "--from-state", "pipe"][..],
        &["generate", "--model", "run", "--from-state", "pipe"],
        &["import", weights, "--to", "z.safetensors", "--vocabulary", "pipe"],
    ] {
        assert!(at.error(args).ends_with("it is not a regular file"), "{args:?}: {}", at.error(args));
    }
    for (file, args) in [
        ("metrics.jsonl", &["plot", "run"][..]),
        ("metrics.jsonl", &["train", "--resume", "--out", "run"]),
        ("lock", &["train", "--resume", "--out", "run"]),
    ] {
        let (file, kept) = (at.path("run").join(file), at.path("kept"));
        std::fs::rename(&file, &kept).unwrap();
        pipe(file.to_str().unwrap());
        assert!(at.error(args).ends_with("it is not a regular file"), "{args:?}: {}", at.error(args));
        std::fs::rename(&kept, &file).unwrap();
    }
    let reader = || std::fs::File::options().read(true).write(true).open(at.path("pipe")).unwrap();
    for args in
        [&["plot", "run", "--svg", "pipe"][..], &["score", "log", "--model", "run", "--total", "--to-state", "pipe"]]
    {
        for is_open in [false, true] {
            let full = is_open.then(|| {
                let mut full = reader();
                // As much as a pipe holds.
                full.write_all(&[0; 1 << 16]).unwrap();
                full
            });
            let mut program = at.start(args);
            until_it_hears(&program);
            sleep(Duration::from_millis(700));
            assert!(program.try_wait().unwrap().is_none(), "{args:?}: somebody read");
            signal(&program, "TERM");
            assert_eq!(code_soon(&mut program), Some(130), "{args:?}");
            drop(full);
        }
    }
}

#[test]
fn commands_without_anything_to_keep_end_at_once() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.write("text", &[b'a'; 4_000_000]);
    for args in [&["generate", "--model", "run", "--bytes", "1000000000"][..], &["bench", "--size", "L", "--json"]] {
        let mut program = at.start(args);
        until_it_hears(&program);
        if args[0] == "generate" {
            program.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        }
        signal(&program, "TERM");
        assert_eq!(code_soon(&mut program), Some(130), "{args:?}");
    }
    let mut program = at.start(&["eval", "--model", "run", "--data", "text", "--full-eval"]);
    let mut stderr = BufReader::new(program.stderr.take().unwrap());
    stderr.read_line(&mut String::new()).unwrap();
    signal(&program, "USR1");
    let (status, _) = end(program);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted after"), "{said}");
}

#[test]
fn a_limit_on_the_size_of_files_is_told() {
    let at = Workplace::new();
    let output = at.shell("ulimit -f 8; exec \"$@\"", &at.train(&["--quiet"])).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: ") && said.contains("(ulimit -f)") && !said.contains("full"), "{said}");
    assert!(!at.path("run").exists(), "its first checkpoint could not be written: there is no run");
}

#[test]
fn what_belongs_in_the_directory_is_written_before_anything_is_said() {
    for (redirected, code) in [(">/dev/full", 1), ("| true", 0)] {
        let at = Workplace::new();
        let script = match redirected {
            "| true" => "\"$@\" | sleep 0".into(),
            _ => format!("exec \"$@\" {redirected}"),
        };
        let output = at.shell(&script, &at.train(&["--quiet"])).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(code == 1, said.contains("cannot write to standard output"), "{said}");
        for file in ["README.md", "loss.svg", "sample.txt"] {
            assert!(at.path("run").join(file).is_file(), "{redirected}: {file}");
        }
    }
    let at = Workplace::new();
    let mut program = at.start(&at.train(&["--quiet"]));
    drop(program.stdout.take());
    let (status, said) = end(program);
    assert_eq!((status.code(), &said[..]), (Some(0), ""), "a closed pipe is quiet");
}

#[test]
fn nothing_that_is_said_can_be_obeyed_by_a_terminal() {
    let at = Workplace::new();
    let harmless = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        assert!(text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'), "{text:?}");
        text
    };
    at.write("colours", b"\x1b[31mred\x1b[0m\x07 and \x9b1mbold\r\n".repeat(500).as_slice());
    let mut options = at.train(&["--data", "colours", "--set", "model.n_layers=2"]);
    let at_run = options.iter().position(|option| *option == "run").unwrap();
    options[at_run] = "run\x1b[2J";
    let output = at.run(&options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    harmless(&output.stdout);
    assert!(harmless(&output.stderr).contains("saved run\u{FFFD}[2J"));
    for args in [
        &["inspect", "run\x1b[2J"][..],
        &["inspect", "no\x1b[2Jwhere"],
        &["eval", "--model", "run\x1b[2J", "--json"],
        &["score", "no\x1b[2Jwhere"],
        &["export", "--model", "run\x1b[2J", "--to", "a\x1b[2J.onnx"],
        &["plot", "run\x1b[2J", "--svg", "a\x1b[2J.svg"],
        &["train", "--st\x1b[2Jeps", "1"],
        &["score", "colours", "--model", "run\x1b[2J", "--json", "--top", "2"],
    ] {
        let output = at.run(args);
        harmless(&output.stdout);
        harmless(&output.stderr);
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{args:?}");
    }
    let lines = at.json_lines(&["score", "colours", "--model", "run\x1b[2J", "--json", "--top", "1"]);
    assert!(lines[0]["text"].as_str().unwrap().contains('\x1b'), "JSON keeps the text: {lines:?}");
    // What JSON need not escape.
    std::fs::rename(at.path("run\x1b[2J"), at.path("run\x7f\u{9b}")).unwrap();
    let output = at.run(&["inspect", "run\x7f\u{9b}", "--json"]);
    let report: Value = serde_json::from_str(&harmless(&output.stdout)).unwrap();
    assert_eq!(report["path"], "run\x7f\u{9b}", "JSON keeps the name");
}

/// A terminal of so many columns, and what the program is to take for it.
fn terminal(columns: u16) -> (File, Stdio) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: Two integers to write to, no name and no settings wanted, and a size that lives as long as the call.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), (&raw const size).cast_mut()) };
    assert_eq!(opened, 0);
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: Just opened, and owned by nobody else.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs).into()) }
}

/// All that is written to a terminal.
fn shown(mut terminal: File) -> String {
    let mut said = Vec::new();
    // The end of a terminal is an error, not an end.
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = terminal.read(&mut buffer) {
        said.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(said).unwrap()
}

/// What the program writes to standard error, which is a terminal of so many columns with this variable.
fn on_terminal(at: &Workplace, args: &[&str], columns: u16, (name, value): (&str, &str)) -> (ExitStatus, String) {
    let (ours, theirs) = terminal(columns);
    let mut command = at.command(args);
    for unset in ["NO_COLOR", "CI"] {
        command.env_remove(unset);
    }
    let mut program =
        command.env("TERM", "xterm").env(name, value).stdout(Stdio::null()).stderr(theirs).spawn().unwrap();
    drop(command);
    let said = shown(ours);
    (program.wait().unwrap(), said)
}

/// A file as long as enwik8, whose digest is looked at; nothing is downloaded in its place.
#[cfg(feature = "fetch")]
#[test]
fn a_download_says_how_far_it_is_as_a_run_does() {
    let at = Workplace::new();
    File::create(at.path("long")).unwrap().set_len(100_000_000).unwrap();
    let eval = ["eval", "--download", "--data", "long"];
    let (status, said) = on_terminal(&at, &eval, 80, ("TERM", "dumb"));
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.starts_with("verifying 95.37 MiB") && !said.contains('\x1b'), "{said:?}");
    let (_, said) = on_terminal(&at, &eval, 80, ("TERM", "xterm"));
    assert!(said.contains("verifying") && said.contains('\x1b'), "{said:?}");
}

#[test]
fn a_terminal_shows_the_prompt_before_what_follows_it() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.write("prompt", "naïve\x1b[2J words".as_bytes());
    let generate = ["generate", "--model", "run", "--bytes", "20", "--temperature", "0"];
    let shown = |more: &[&str]| {
        let (ours, theirs) = terminal(80);
        let mut command = at.command(&[&generate[..], more].concat());
        let mut program = command.stdout(theirs).stderr(Stdio::null()).spawn().unwrap();
        drop(command);
        let text = shown(ours);
        assert!(program.wait().unwrap().success());
        text
    };
    for prompt in [&["--prompt", "some words"][..], &["--prompt-file", "prompt"]] {
        let [echoed, alone] = [&[][..], &["--no-echo"]].map(|more| shown(&[prompt, more].concat()));
        let before = if prompt[0] == "--prompt" { "some words" } else { "naïve\u{FFFD}[2J words" };
        assert_eq!(echoed, format!("{before}{alone}"));
        assert!(!alone.contains("words") && alone.ends_with("\r\n"), "{alone:?}");
    }
    let piped = at.run(&[&generate[..], &["--prompt", "some words"]].concat()).stdout;
    assert_eq!(piped.len(), 20, "only what the model wrote");
}

#[test]
fn a_terminal_that_draws_no_live_line_gets_no_less_than_a_file() {
    for (columns, name, value) in
        [(0, "TERM", "xterm"), (80, "TERM", "dumb"), (80, "TERM", ""), (80, "NO_COLOR", "1"), (80, "CI", "true")]
    {
        let at = Workplace::new();
        let (status, said) = on_terminal(&at, &at.train(&[]), columns, (name, value));
        assert!(status.success(), "{said}");
        for line in ["step 1 |", "step 2 |", "step 3 |", "validation after step 3", "test after step 3"] {
            assert!(said.contains(line), "{name}={value:?}, {columns} columns: {said}");
        }
        assert!(!said.contains('\x1b'), "{said:?}");
    }
}

#[test]
fn a_line_too_long_to_be_judged_alone_is_named_and_the_others_are_scored() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.write("log", &[b"one\n", &[b'x'; (1 << 20) + 5][..], b"\nthree\n"].concat());
    let (out, said) = at.both(&["score", "log", "--model", "run", "--alone", "--json"]);
    let lines: Vec<Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["line"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    assert!(said.contains("line 2 of 1048582 bytes is left out"), "{said}");
}
