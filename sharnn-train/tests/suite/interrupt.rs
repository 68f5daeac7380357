//! Ctrl-C, for real: a child process that is sent the signal.

#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use sharnn_train::{EXIT_STATUS, Interrupt};

const CHILD: &str = "SHARNN_TEST_INTERRUPT_CHILD";

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
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "the_first_ctrl_c_asks_and_the_second_ends"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    let pid = process.id().to_string();
    let interrupt = || assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(lines.any(|line| line == "ready"));
    interrupt();
    assert!(lines.any(|line| line == "raised"));
    interrupt();
    assert_eq!(process.wait().unwrap().code(), Some(EXIT_STATUS));
}
