//! Which bytes are trained on and scored: the right ones, and a word where they are not what they seem.

use std::fs;

use crate::program::{Workplace, last_line};

/// The beginnings of files that are no text.
const NO_TEXT: [(&str, &[u8], &str); 11] = [
    ("a.gz", b"\x1f\x8b\x08\0", "a.gz is gzip data"),
    ("a.zip", b"PK\x03\x04", "a.zip is a zip archive"),
    ("a.xz", b"\xfd7zXZ\0", "a.xz is xz data"),
    ("a.zst", b"\x28\xb5\x2f\xfd", "a.zst is zstd data"),
    ("a.bz2", b"BZh91AY&SY", "a.bz2 is bzip2 data"),
    ("a.pdf", b"%PDF-1.7\n", "a.pdf is a PDF"),
    ("a.png", b"\x89PNG\r\n\x1a\n", "a.png is a PNG picture"),
    ("a.jpg", b"\xff\xd8\xff\xe0", "a.jpg is a JPEG picture"),
    ("a.gif", b"GIF89a", "a.gif is a GIF picture"),
    ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", "a.webp is a WebP picture"),
    ("a.txt", b"\xff\xfet\0e\0x\0t\0", "a.txt is UTF-16 text"),
];

#[test]
fn what_is_evidently_no_text_is_named_once_and_read_all_the_same() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    for (name, head, said) in NO_TEXT {
        at.write(name, &[head, &[b'x'; 600]].concat());
        let (_, err) = at.both(&["score", name, "--model", "run", "--total"]);
        assert!(
            err.starts_with(said) && err.contains("noise, not text; ") && err.lines().count() == 1,
            "{name}: {err}"
        );
    }
    let (_, err) = at.both(&at.train_on("a.zip", &["--out", "zip"]));
    assert_eq!(
        err,
        "a.zip is a zip archive: to a model of bytes that is noise, not text; unpack it: unzip -p a.zip > text\n"
    );
    let (_, err) = at.both(&["eval", "--model", "run", "--data", "a.gz", "--json"]);
    assert!(err.contains("gzip -dc a.gz > text") && err.lines().count() == 1, "{err}");
    let (_, err) = at.both(&["score", "log", "--model", "run", "--total"]);
    assert_eq!(err, "");
    // Whatever else is read as text; of what has no name no command is named that would need it.
    let generate = ["generate", "--model", "run", "--bytes", "1", "--prompt-file"];
    let attend = ["attend", "--model", "run", "--bytes", "9", "--out", "a.html", "--file"];
    at.write("my a.gz", b"\x1f\x8b\x08\0");
    for command in [&generate[..], &attend] {
        let (_, err) = at.both(&[command, &["my a.gz"]].concat());
        let said =
            "my a.gz is gzip data: to a model of bytes that is noise, not text; unpack it: gzip -dc 'my a.gz' > text\n";
        assert_eq!(err, said);
    }
    for command in [&generate[..], &attend, &["score", "--model", "run", "--total"]] {
        let typed = if command[0] == "score" { command.to_vec() } else { [command, &["-"]].concat() };
        let output = at.command(&typed).stdin(fs::File::open(at.path("a.xz")).unwrap()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let said =
            "standard input is xz data: to a model of bytes that is noise, not text; pipe it through xz -dc first\n";
        assert_eq!((err.as_str(), output.status.code()), (said, Some(0)), "{typed:?}");
    }
}

/// The file of the run, wherever it is asked from; moved with it; and no other one, nor one that has changed.
#[test]
fn a_run_is_scored_on_the_file_that_it_was_trained_on() {
    let at = Workplace::new();
    fs::create_dir_all(at.path("a")).unwrap();
    fs::create_dir_all(at.path("b")).unwrap();
    at.log("a/log", 300);
    at.log("b/log", 100);
    let train = at.train_on("log", &["--out", "run"]);
    assert!(at.run_in("a", &train).status.success());
    let eval = |dir: &str, model: &str| at.run_in(dir, &["eval", "--model", model, "--json"]);
    let scores = |dir: &str, model: &str| {
        let output = eval(dir, model);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let score = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["bpc"].as_f64().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(score).collect::<Vec<_>>()
    };
    let here = scores("a", "run");
    assert_eq!(scores("b", "../a/run"), here);
    assert_eq!(scores(".", "a/run"), here);
    // Kept as an earlier version kept it.
    let kept = at.read("a/run/data.json");
    at.write("a/run/data.json", br#"{"path": "log", "train_bytes": null, "scored_bytes": 500000}"#);
    assert_eq!(scores("b", "../a/run"), here);
    at.write("a/run/data.json", kept.as_bytes());
    // Moved with its data, and the data of another run in the old place.
    fs::rename(at.path("a"), at.path("c")).unwrap();
    assert_eq!(scores("b", "../c/run"), here);

    at.log("c/log", 301);
    let output = eval("b", "../c/run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    let line = last_line(&said);
    assert!(
        line.contains("../c/run was trained on other data than ") && line.contains("log: its training split had "),
        "{line}"
    );
    assert!(line.ends_with("Name what to score with --data"), "{line}");
    // By its name it is scored.
    assert!(at.run_in("b", &["eval", "--model", "../c/run", "--data", "../c/log"]).status.success());
    let resume = at.run_in("c", &["train", "--resume", "--out", "run", "--threads", "1"]);
    let said = String::from_utf8_lossy(&resume.stderr).into_owned();
    assert!(resume.status.code() == Some(1) && said.contains("was trained on other data than "), "{said}");
}

/// The command that a message ends with, as words.
fn command_of(error: &str) -> Vec<&str> {
    error.split_once(": sharnn ").unwrap_or_else(|| panic!("{error}")).1.split(' ').collect()
}

#[test]
fn a_change_is_refused_with_a_command_that_works() {
    let at = Workplace::new();
    at.log("log", 3000);
    let tiny = at.train_on("log", &["--recipe", "paper", "--out", "run"]);
    at.stdout(&tiny);
    let resume = |more: &[&str]| at.error(&[&["train", "--resume", "--out", "run"], more].concat());
    for (i, change) in [
        &["--segment-multiple", "8"][..],
        &["--fixed-segments"],
        &["--lr", "1e-3"],
        &["--mem-len", "32"],
        &["--batch", "3", "--seq-len", "12"],
        &["--dropout", "0.1"],
    ]
    .into_iter()
    .enumerate()
    {
        let said = resume(change);
        assert!(!said.contains("null"), "{said}");
        let (_, command) = said.split_once("from its weights: sharnn ").unwrap_or_else(|| panic!("{change:?}: {said}"));
        let (out, more) = (format!("other{i}"), ["--steps", "2", "--threads", "1", "--quiet", "--out"]);
        let words: Vec<_> = command.split_whitespace().chain(more).chain([&*out]).collect();
        at.stdout(&words);
    }
    let said = resume(&["--recipe", "paper"]);
    assert!(said.contains("that of --recipe paper: leave --recipe paper out"), "{said}");
    let said = resume(&["--attend", "all"]);
    assert!(said.contains("with --attend one, not all: "), "{said}");
}

#[test]
fn other_data_is_refused_with_the_command_that_trains_on_it() {
    let at = Workplace::new();
    at.log("log", 200);
    at.log("other", 210);
    at.stdout(&at.train_on("log", &["--out", "run", "--train-bytes", "3000"]));
    let resume = ["train", "--resume", "--out", "run", "--threads", "1"];
    for (more, difference, command) in [
        (
            &["--train-bytes", "2000"][..],
            "its training split had 3000 bytes, and has 2000",
            "train --from run --threads 1 --train-bytes 2000 --data ",
        ),
        (
            &["--data", "other"],
            "its validation split had 363 bytes, and has 381",
            "train --from run --threads 1 --data other --train-bytes 3000",
        ),
    ] {
        let error = at.error(&[&resume[..], more].concat());
        assert!(
            error.starts_with("error: run was trained on other data than ") && error.contains(difference),
            "{error}"
        );
        let mut words = command_of(&error);
        assert!(words.join(" ").starts_with(command), "{error}");
        words.extend(["--steps", "2", "--json"]);
        let reached = at.json(&words);
        assert_eq!(reached["from"].as_str().map(|from| from.starts_with("run, the weights")), Some(true), "{reached}");
    }
}

#[test]
fn a_stream_goes_on_with_the_weights_that_it_is_of_and_no_others() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "one"]));
    at.stdout(&at.train_on("log", &["--out", "other", "--seed", "2"]));
    at.stdout(&["score", "log", "--model", "one", "--total", "--to-state", "state"]);
    let go_on = |model: &'static str| ["score", "log", "--model", model, "--total", "--from-state", "state"];
    at.stdout(&go_on("one"));
    let (_, err) = at.both(&[&go_on("one")[..], &["--weights", "bf16"]].concat());
    assert_eq!(err, "", "packed otherwise, they are the same weights");
    let error = at.error(&go_on("other"));
    assert!(
        error.starts_with("error: cannot go on from state: it is the state of a stream of other weights"),
        "{error}"
    );
}

#[test]
fn no_output_takes_the_place_of_an_input() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    at.stdout(&["export", "--model", "run", "--to", "a.safetensors"]);
    at.write("text.svg", b"some text");
    let weights = "run/best/weights.safetensors";
    for (args, read_as) in [
        (&["score", "log", "--model", "run", "--to-state", "log"][..], "FILE"),
        (&["score", "log", "--model", "a.safetensors", "--to-state", "a.safetensors"], "--model"),
        (&["score", "log", "--model", "run", "--to-state", weights], "--model"),
        (&["attend", "--model", "run", "--file", "text.svg", "--out", "text.svg"], "--file"),
        (&["export", "--model", "a.safetensors", "--dtype", "bf16", "--to", "a.safetensors"], "--model"),
        (&["export", "--model", "run", "--to", weights], "--model"),
        (&["import", "a.safetensors", "--to", "a.safetensors"], "FILE"),
        (&["plot", "run", "--svg", "run/metrics.jsonl"], "RUN"),
    ] {
        let error = at.error(args);
        assert!(error.contains(&format!("it is read as {read_as}, and would be replaced")), "{args:?}: {error}");
    }
    // A state that goes on in its own place is no accident.
    at.stdout(&["score", "log", "--model", "run", "--total", "--to-state", "state"]);
    at.stdout(&["score", "log", "--model", "run", "--total", "--from-state", "state", "--to-state", "state"]);
}

#[test]
fn no_output_takes_the_place_of_a_runs_own_file() {
    let at = Workplace::new();
    at.log("log", 200);
    for run in ["run", "other"] {
        at.stdout(&at.train_on("log", &["--out", run]));
    }
    at.stdout(&["export", "--model", "other", "--to", "a.safetensors"]);
    let refuses = |args: &[&str], run: &str| {
        let error = at.error(args);
        let says = format!(
            " cannot be used: the run in {} keeps a file of its own there; ",
            at.path(run).canonicalize().unwrap().display()
        );
        assert!(error.contains(&says), "{args:?}: {error}");
    };
    let mut own: Vec<_> = std::fs::read_dir(at.path("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    own.extend(["group", "from.json", "step-00000009"].map(Into::into));
    assert!(own.len() > 10, "{own:?}");
    for name in own {
        let file = format!("run/{}", name.to_str().unwrap());
        if !file.ends_with("loss.svg") {
            refuses(&["plot", "other", "--svg", &file], "run");
        }
        refuses(&["score", "log", "--model", "other", "--to-state", &file], "run");
    }
    std::fs::create_dir(at.path("copy")).unwrap();
    for name in ["best.json", "weights.safetensors"] {
        std::fs::copy(at.path("run/best").join(name), at.path("copy").join(name)).unwrap();
    }
    refuses(&["export", "--model", "bundled", "--to", "copy/weights.safetensors"], "copy");
    refuses(&["export", "--model", "other", "--to", "run/best/model.onnx"], "run");
    refuses(&["import", "a.safetensors", "--to", "run/step-00000003/weights.safetensors"], "run");
    // Where it is no run's it is as good a name as any, and a run's picture may be drawn anew.
    at.stdout(&["score", "log", "--model", "run", "--total", "--to-state", "data.json"]);
    at.stdout(&["plot", "run", "--svg", "run/loss.svg", "--over", "seconds"]);
    at.stdout(&["train", "--resume", "--out", "run", "--quiet", "--threads", "1"]);
    for args in [&["plot", "run", "--svg", "-"][..], &["score", "log", "--model", "run", "--to-state", "-"]] {
        assert!(at.error(args).ends_with(" - cannot be used: name a file"), "{args:?}");
        assert!(!at.path("-").exists());
    }
}

/// Forty bytes, and two hundred gigabytes of which nearly none are there.
#[test]
fn a_corpus_of_any_size_is_begun_at_once() {
    let at = Workplace::new();
    at.write("forty", &[b'a'; 40]);
    let options = ["--out", "small", "--steps", "250", "--set", "model.d_model=16", "--set", "model.d_ff=40"];
    let train = [&["train", "--data", "forty", "--threads", "1"], &options[..]].concat();
    let (out, err) = at.both(&train);
    assert!(String::from_utf8_lossy(&out).starts_with("trained 250 steps; "));
    assert!(
        err.contains("batches of 1 x up to 32 bytes of forty (90 / 5 / 5 %) (36 bytes, some 2 steps an epoch)"),
        "{err}"
    );
    let valid = at.read("small/metrics.jsonl").lines().filter(|line| line.contains(r#""event":"valid""#)).count();
    assert!(valid <= 3, "{valid} validations of 125 epochs");

    let file = fs::File::create(at.path("huge")).unwrap();
    // Where the file system has no such files there is nothing to try.
    if file.set_len(200_000_000_000).is_ok() {
        at.stdout(&at.train_on("huge", &["--out", "large", "--valid-bytes", "600"]));
        let (_, err) = at.both(&["train", "--resume", "--out", "large", "--threads", "1"]);
        assert!(err.contains("(180000000000 bytes, some "), "{err}");
        at.stdout(&["eval", "--model", "large", "--split", "valid"]);
    }
}

/// A log that is rotated while it is read.
#[cfg(unix)]
#[test]
fn a_corpus_that_is_cut_short_ends_in_one_line() {
    use std::io::{BufRead, BufReader, Read};
    let at = Workplace::new();
    at.log("live log", 3000);
    let mut args = at.train_on("live log", &["--out", "run", "--checkpoint-every", "1"]);
    *args.iter_mut().find(|option| **option == "3").unwrap() = "1000000";
    args.retain(|option| *option != "--quiet");
    let mut program = at.start(&args);
    let mut said = BufReader::new(program.stderr.take().unwrap());
    let mut line = String::new();
    while !at.path("run/step-00000002").exists() && said.read_line(&mut line).unwrap() > 0 {}
    fs::write(at.path("live log"), b"").unwrap();
    let mut rest = Vec::new();
    said.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert_eq!(program.wait().unwrap().code(), Some(1), "{line}{rest}");
    let (said, path) = (last_line(&rest), at.path("live log").canonicalize().unwrap());
    assert!(said.contains("live log was cut short while it was read: it had "), "{rest}");
    assert!(said.ends_with(&format!("as of a log: cp '{}' copy", path.display())), "{rest}");
    // The checkpoint is whole: on the file that it was, the run goes on.
    at.log("live log", 3000);
    let on = at.run(&["train", "--resume", "--out", "run", "--threads", "1", "--minutes", "0.001"]);
    let said = String::from_utf8_lossy(&on.stderr).into_owned();
    assert!(on.status.success(), "{said}");
}
