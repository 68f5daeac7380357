//! Ctrl-C, for real: a child process that is sent the signal.

#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sharnn_train::{EXIT_STATUS, Interrupt};

const CHILD: &str = "SHARNN_TEST_INTERRUPT_CHILD";

/// Runs this test again, in a process of its own that is to play the child, until it is ready; and what it says from then on.
fn play_until_ready(test: &str) -> (Child, impl Iterator<Item = String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--nocapture", test]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::piped());
    let hear = || {
        // Whoever runs the tests in the background has it ignored, which the child would keep to.
        // SAFETY: The call takes integers, and may be made between fork and exec.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: The closure makes no other call.
    unsafe { command.pre_exec(hear) };
    let mut process = command.spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "ready"));
    (process, lines)
}

fn signal(process: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.id().to_string()]).status().unwrap().success());
}

/// What the child does: says when it is ready and when it was asked to stop, and then never stops by itself.
fn child() {
    let interrupt = Interrupt::on_ctrl_c().unwrap();
    assert!(Interrupt::on_ctrl_c().is_err(), "one handler a process");
    eprintln!("ready");
    while !interrupt.is_raised() {
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("raised");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_first_ctrl_c_asks_and_the_second_ends() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let (mut process, mut lines) = play_until_ready("the_first_ctrl_c_asks_and_the_second_ends");
    signal(&process, "INT");
    assert!(lines.any(|line| line == "raised"));
    signal(&process, "INT");
    assert_eq!(process.wait().unwrap().code(), Some(EXIT_STATUS));
}

/// A limit on processor time is reported each second for as long as the process lives.
#[test]
fn a_limit_that_is_reported_again_is_one_request() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let (mut process, mut lines) = play_until_ready("a_limit_that_is_reported_again_is_one_request");
    signal(&process, "XCPU");
    assert!(lines.any(|line| line == "raised"));
    for _ in 0..3 {
        signal(&process, "XCPU");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(process.try_wait().unwrap().is_none(), "it goes on to save");
    signal(&process, "USR2");
    assert_eq!(process.wait().unwrap().code(), Some(EXIT_STATUS));
}

#[test]
fn a_process_that_has_nothing_to_keep_ends_at_the_first_signal() {
    if std::env::var_os(CHILD).is_some() {
        let _interrupt = Interrupt::on_signals(0).unwrap();
        eprintln!("ready");
        return std::thread::sleep(Duration::from_secs(60));
    }
    let (mut process, _lines) = play_until_ready("a_process_that_has_nothing_to_keep_ends_at_the_first_signal");
    signal(&process, "TERM");
    assert_eq!(process.wait().unwrap().code(), Some(EXIT_STATUS));
}
