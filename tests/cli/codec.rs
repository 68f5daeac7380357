//! `compress` and `decompress`: what comes back, and what is never lost.

use std::fs;
#[cfg(unix)]
use std::io::Write;

use crate::program::Workplace;

fn place() -> Workplace {
    let at = Workplace::new();
    at.log("text", 200);
    at.stdout(&at.train(&["--quiet"]));
    at
}

#[test]
fn a_file_becomes_smaller_and_comes_back() {
    let at = place();
    let original = fs::read(at.path("text")).unwrap();
    let line = at.stdout(&["compress", "text", "--model", "run"]);
    assert!(line.starts_with("text.sharn: ") && line.contains("bits a byte"), "{line}");
    let small = fs::read(at.path("text.sharn")).unwrap();
    assert!(small.len() < original.len() && fs::read(at.path("text")).unwrap() == original);
    // Nothing is replaced unless that is asked for.
    for args in [&["compress", "text", "--model", "run"][..], &["decompress", "text.sharn", "--model", "run"]] {
        let error = at.error(args);
        assert!(error.contains("is there: name another file, or replace it with --force"), "{error}");
    }
    at.stdout(&["compress", "text", "--model", "run", "--force", "--fast"]);
    at.stdout(&["decompress", "text.sharn", "--model", "run", "--to", "back", "--threads", "1"]);
    assert!(fs::read(at.path("back")).unwrap() == original);
    at.stdout(&["decompress", "text.sharn", "--model", "run", "--force"]);
    assert!(fs::read(at.path("text")).unwrap() == original);
    let (text, told) = at.both(&["decompress", "text.sharn", "--model", "run", "--to", "-"]);
    assert!(text == original && told.contains("standard output: "), "{told}");
    let error = at.error(&["compress", "text", "--model", "run", "--to", "text"]);
    assert!(error.contains("it is read as FILE, and would be replaced"), "{error}");
    let error = at.error(&["decompress", "text", "--model", "run"]);
    assert!(error.contains("does not end in .sharn"), "{error}");
    if cfg!(target_os = "linux") {
        let error = at.error(&["compress", "text", "--model", "run", "--to", "/dev/full"]);
        assert!(error.contains("cannot write /dev/full: No space left"), "{error}");
    }
    let error = at.error(&["compress", "text", "--model", "run", "--to", "b", "--lanes", "257"]);
    assert!(error.contains("lanes = 257 cannot be used: use 1 to 256"), "{error}");
    assert!(!at.path("b").exists());
}

#[test]
fn another_model_and_damage_are_told_and_what_can_be_had_is_restored() {
    let at = place();
    let original = fs::read(at.path("text")).unwrap();
    at.stdout(&["compress", "text", "--model", "run", "--lanes", "2"]);
    let error = at.error(&["decompress", "text.sharn", "--to", "back"]);
    assert!(error.contains("was compressed with model "), "{error}");
    let mut small = fs::read(at.path("text.sharn")).unwrap();
    let middle = small.len() / 2;
    small[middle] ^= 1;
    at.write("text.sharn", &small);
    let error = at.error(&["decompress", "text.sharn", "--model", "run", "--to", "back"]);
    assert!(error.contains("block 0 is damaged (its bytes have changed)") && !at.path("back").exists(), "{error}");
    let error = at.error(&["decompress", "text.sharn", "--model", "run", "--to", "back", "--salvage"]);
    assert!(error.contains("damaged in 1 places"), "{error}");
    assert_eq!(fs::read(at.path("back")).unwrap(), vec![0; original.len()]);
}

#[test]
fn a_file_says_which_bundled_model_reads_it() {
    let at = Workplace::new();
    let text = b"What is said of the [[history of France]] is said here.\n";
    at.write("text", text);
    for options in [&[][..], &["--fast"], &["--model", "bundled-small"], &["--fast", "--model", "bundled"]] {
        at.stdout(&[&["compress", "text", "--force"], options].concat());
        at.stdout(&["decompress", "text.sharn", "--to", "back", "--force"]);
        assert_eq!(fs::read(at.path("back")).unwrap(), text, "{options:?}");
    }
    let error = at.error(&["decompress", "text.sharn", "--model", "bundled-small", "--to", "back", "--force"]);
    assert!(error.contains("was compressed with model "), "{error}");
}

/// What is killed before its output is whole leaves what was there, and nothing under a name that was not.
#[cfg(unix)]
#[test]
fn a_killed_program_leaves_no_half_of_a_file() {
    let at = place();
    at.stdout(&["compress", "text", "--model", "run"]);
    let small = fs::read(at.path("text.sharn")).unwrap();
    let half = &small[..small.len() / 2];
    for (args, half) in [
        (["compress", "-", "--model", "run", "--to", "text.sharn", "--force"], &b"half of a text"[..]),
        (["decompress", "-", "--model", "run", "--to", "back", "--force"], half),
    ] {
        let mut program = at.start_with_stdin(&args);
        // It waits for the other half, with its output begun.
        program.stdin.as_mut().unwrap().write_all(half).unwrap();
        let begun = || fs::read_dir(at.path(".")).unwrap().any(|file| is_begun(&file.unwrap().file_name()));
        let start = std::time::Instant::now();
        while !begun() {
            assert!(start.elapsed().as_secs() < 60, "{args:?} writes nothing");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        program.kill().unwrap();
        program.wait().unwrap();
        assert!(fs::read(at.path("text.sharn")).unwrap() == small && !at.path("back").exists(), "{args:?}");
        fs::read_dir(at.path("."))
            .unwrap()
            .map(Result::unwrap)
            .filter(|file| is_begun(&file.file_name()))
            .for_each(|file| fs::remove_file(file.path()).unwrap());
    }
}

#[cfg(unix)]
fn is_begun(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(".tmp-")
}
