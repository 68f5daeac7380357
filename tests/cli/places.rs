//! Where runs are kept and what is written: numbers, names, and nothing of a start that came to nothing.

use std::fs;

use crate::program::{Workplace, last_line};

fn names(at: &Workplace, dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(at.path(dir)) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_latest_run_is_the_newest_that_has_what_is_needed_and_is_named() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &[]));
    at.stdout(&at.train_on("log", &["--out", "runs/7"]));
    // Begun by hand, and by a start that was killed.
    fs::create_dir(at.path("runs/9")).unwrap();
    fs::create_dir(at.path("runs/010")).unwrap();
    at.write("runs/010/metrics.jsonl", b"");
    let line = "is runs/7: runs/010 has none yet\n";
    for (args, needed) in [
        (&["generate", "--model", "latest", "--bytes", "3"][..], "weights"),
        (&["score", "log", "--model", "latest", "--total"], "weights"),
        (&["eval", "--model", "latest", "--json"], "weights"),
        (&["inspect", "latest"], "a checkpoint"),
        (&["plot", "latest"], "a measurement"),
        (&["train", "--resume", "--quiet", "--threads", "1"], "a checkpoint"),
    ] {
        let (_, err) = at.both(args);
        assert!(err.starts_with(&format!("the latest run with {needed} {line}")), "{args:?}: {err}");
    }
    fs::remove_dir_all(at.path("runs/9")).unwrap();
    fs::remove_dir_all(at.path("runs/010")).unwrap();
    let (_, err) = at.both(&["inspect", "latest"]);
    assert_eq!(err, "the latest run is runs/7\n");
    // The next number is that after the highest, whatever its name looks like.
    at.stdout(&at.train_on("log", &[]));
    assert_eq!(names(&at, "runs"), ["001", "008", "7"]);
    let none = Workplace::new();
    fs::create_dir_all(none.path("runs/3")).unwrap();
    let error = none.error(&["generate", "--model", "latest"]);
    assert!(error.contains("no run under runs/ has weights, as runs/3 has not"), "{error}");
}

#[test]
fn a_start_that_comes_to_nothing_leaves_nothing() {
    let at = Workplace::new();
    at.log("log", 200);
    at.write("bad.safetensors", b"no weights");
    at.write("short", b"abc");
    let starts: [(&[&'static str], &'static str); 6] = [
        (&["--from", "bad.safetensors"], "log"),
        (&["--from", "nowhere.safetensors"], "log"),
        (&["--lr", "nan"], "log"),
        (&["--set", "model.d_ff=1"], "log"),
        (&[], "nowhere"),
        (&[], "short"),
    ];
    // Which model it goes on from says what sizes it has.
    let start = |data: &'static str, options: &[&'static str]| {
        let mut args = at.train_on(data, options);
        if options.contains(&"--from") {
            assert_eq!(args.drain(1..3).collect::<Vec<_>>(), ["--preset", "xs"]);
        }
        args
    };
    for (options, data) in starts {
        at.error(&start(data, options));
        at.error(&start(data, &[options, &["--out", "some/where"]].concat()));
        assert!(!at.path("runs").exists() && !at.path("some").exists(), "{options:?} on {data}");
        fs::create_dir(at.path("mine")).unwrap();
        at.write("mine/notes", b"mine");
        at.error(&start(data, &[options, &["--out", "mine"]].concat()));
        assert_eq!(names(&at, "mine"), ["notes"], "{options:?} on {data}");
        fs::remove_dir_all(at.path("mine")).unwrap();
    }
    // Beside a run that is whole.
    at.stdout(&at.train_on("log", &[]));
    at.error(&start("log", &["--from", "bad.safetensors"]));
    assert_eq!(names(&at, "runs"), ["001"]);
    at.error(&at.train_on("log", &["--out", "runs/001"]));
    assert!(at.path("runs/001/data.json").is_file(), "what was there is whole");
    at.both(&["generate", "--model", "latest", "--bytes", "3"]);
}

#[test]
fn a_run_is_not_said_to_come_from_where_an_earlier_start_did() {
    let at = Workplace::new();
    at.log("log", 200);
    // As a start with --from leaves it that was killed.
    fs::create_dir(at.path("run")).unwrap();
    at.write("run/from.json", br#"{"model": "another model"}"#);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    assert!(!at.path("run/from.json").exists());
    assert!(!at.read("run/README.md").contains("another model"));
}

#[test]
fn a_new_run_takes_the_place_of_no_weights() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    fs::create_dir(at.path("kept")).unwrap();
    fs::rename(at.path("run/best"), at.path("kept/best")).unwrap();
    let weights = fs::read(at.path("kept/best/weights.safetensors")).unwrap();
    let error = at.error(&at.train_on("log", &["--out", "kept"]));
    assert!(
        error.starts_with("error: there are best weights in kept, ") && error.ends_with("name another --out"),
        "{error}"
    );
    assert_eq!(names(&at, "kept"), ["best"]);
    assert!(fs::read(at.path("kept/best/weights.safetensors")).unwrap() == weights);
    fs::create_dir(at.path("measured")).unwrap();
    let metrics = at.read("run/metrics.jsonl");
    at.write("measured/metrics.jsonl", metrics.as_bytes());
    let error = at.error(&at.train_on("log", &["--out", "measured"]));
    assert!(error.starts_with("error: there are measurements of a run (metrics.jsonl) in measured, "), "{error}");
    assert_eq!(at.read("measured/metrics.jsonl"), metrics);
}

/// What a run reads, and what somebody keeps where it is to be, stays as it is.
#[test]
fn a_new_run_writes_over_nobodys_files() {
    let at = Workplace::new();
    at.log("log", 200);
    let log = at.read("log");
    let own = ["README.md", "data.json", "ends.json", "from.json", "group", "lock", "loss.svg", "sample.txt"];
    for name in own.into_iter().chain(["metrics.jsonl", "step-00000000"]) {
        let file = format!("notes/{name}");
        fs::create_dir(at.path("notes")).unwrap();
        at.write(&file, log.as_bytes());
        let error = at.error(&at.train_on(&file, &["--out", "notes"]));
        assert_eq!(
            error,
            format!(
                "error: --out notes cannot be used: --data {file} is read, and the run would write over it: name another --out"
            )
        );
        let error = at.error(&at.train_on("log", &["--out", "notes"]));
        let says = if name == "metrics.jsonl" { "error: there are measurements" } else { "error: there is a " };
        assert!(error.starts_with(says) && error.contains(name) && error.ends_with("name another --out"), "{error}");
        assert_eq!((names(&at, "notes"), at.read(&file) == log), (vec![name.to_string()], true), "{name}");
        fs::remove_dir_all(at.path("notes")).unwrap();
    }
    at.stdout(&at.train_on("log", &["--out", "run"]));
    fs::create_dir(at.path("n5")).unwrap();
    fs::copy(at.path("run/best/weights.safetensors"), at.path("n5/README.md")).unwrap();
    let error = at.error(&["train", "--from", "n5/README.md", "--data", "log", "--out", "n5", "--steps", "1"]);
    assert!(error.contains("--from n5/README.md is read, "), "{error}");
    // Beside what is somebody's and in nobody's way.
    fs::create_dir(at.path("mine")).unwrap();
    at.write("mine/log.txt", log.as_bytes());
    at.stdout(&at.train_on("mine/log.txt", &["--out", "mine"]));
    assert!(at.read("mine/log.txt") == log);
}

/// Whatever reads weights takes the same ones, or none.
#[test]
fn best_weights_that_are_gone_are_missed_by_every_command() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run", "--valid-every", "2"]));
    fs::rename(at.path("run/best"), at.path("elsewhere")).unwrap();
    let from = ["train", "--from", "run", "--data", "log", "--steps", "1", "--threads", "1", "--out", "next"];
    for args in [&from[..], &["generate", "--model", "run", "--bytes", "3"], &["score", "log", "--model", "run"]] {
        let error = at.error(args);
        assert!(error.starts_with("error: the best weights of run are missing: resume the run, "), "{args:?}: {error}");
        assert!(!at.path("next").exists());
    }
    let error = at.error(&["train", "--from", "run/step-00000003", "--data", "log"]);
    assert!(error.ends_with("run/step-00000003 is a checkpoint: name the directory of its run"), "{error}");
    at.stdout(&["train", "--resume", "--out", "run", "--threads", "1", "--quiet"]);
    at.stdout(&from);
}

#[test]
fn a_model_with_a_short_memory_is_gone_on_from_without_a_word_of_segments() {
    let at = Workplace::new();
    at.log("log", 200);
    let short = at.train_on("log", &["--out", "run"]).into_iter().map(|word| if word == "64" { "16" } else { word });
    at.stdout(&short.collect::<Vec<_>>());
    at.stdout(&["train", "--from", "run", "--data", "log", "--steps", "1", "--threads", "1", "--out", "next"]);
    let recipe = &at.json(&["inspect", "next", "--json"])["run"]["recipe"];
    assert_eq!(
        (recipe["segments"]["len"].as_u64(), recipe["valid"]["seq_len"].as_u64()),
        (Some(16), Some(16)),
        "{recipe}"
    );
}

#[test]
fn several_starts_at_once_have_a_number_each() {
    let at = Workplace::new();
    at.log("log", 200);
    let args = at.train_on("log", &[]);
    let programs: Vec<_> = (0..4).map(|_| at.start(&args)).collect();
    for program in programs {
        let output = program.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(names(&at, "runs"), ["001", "002", "003", "004"]);
    assert!(names(&at, "runs").iter().all(|name| at.path(format!("runs/{name}/README.md")).is_file()));
}

/// A finished run whose newest checkpoint knows neither of its best weights nor of its scores.
#[test]
fn a_resume_that_fails_takes_nothing_away() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run", "--recipe", "paper"]));
    let kept = || {
        let best = fs::read(at.path("run/best/weights.safetensors")).unwrap();
        (best, at.read("run/best/best.json"), at.read("run/metrics.jsonl"))
    };
    let before = kept();
    assert!(before.2.contains(r#""event":"test""#), "{}", before.2);
    let resume = ["train", "--resume", "--out", "run", "--quiet", "--threads", "1"];
    let data = at.path("run/data.json");
    let rights = fs::metadata(&data).unwrap().permissions();
    let mut read_only = rights.clone();
    read_only.set_readonly(true);
    fs::set_permissions(&data, read_only).unwrap();
    for more in [&[][..], &["--steps", "5"]] {
        let error = at.error(&[&resume[..], more].concat());
        assert!(error.contains("run/data.json: the file that has the name is read-only"), "{error}");
        assert!(kept() == before, "{more:?}");
    }
    fs::set_permissions(&data, rights).unwrap();
    #[cfg(unix)]
    {
        let output = at.shell("ulimit -f 1; exec \"$@\"", &resume).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("best/weights.safetensors"), "{said}");
        assert!(kept() == before, "{said}");
    }
    let (_, said) = at.both(&["generate", "--model", "run", "--bytes", "3"]);
    assert_eq!(said, "");
    at.stdout(&resume);
    let after = kept();
    assert_eq!(after.2.lines().count(), before.2.lines().count(), "{}", after.2);
    assert!(after.0 == before.0);
    // Once there is a step to come, what lies beyond the checkpoint is gone.
    at.stdout(&[&resume[..], &["--steps", "5"]].concat());
    assert_eq!(kept().2.matches(r#""event":"test""#).count(), 1, "{}", kept().2);
}

/// Names with a line feed, and what a terminal would obey.
#[cfg(unix)]
#[test]
fn no_name_ends_a_line_or_breaks_a_page_or_a_picture() {
    let at = Workplace::new();
    let (data, run) = ("na\x1b[2Jme\nerror: all is lost", "ru\x1bn\n<7>");
    at.log(data, 200);
    let said_of = |args: &[&str]| {
        let output = at.run(args);
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap()
    };
    for args in [&["score", "no\nwhere"][..], &["train", "--data", "a\nerror: all is lost"], &["inspect", "no\nwhere"]]
    {
        let said = said_of(args);
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said:?}");
    }
    let train: Vec<_> = at.train_on(data, &["--out", run]).into_iter().filter(|word| *word != "--quiet").collect();
    let said = said_of(&train);
    assert!(!said.contains("\nerror: ") && !said.contains("\n<7>"), "{said}");
    assert!(said.contains("saved ru\u{FFFD}n\u{FFFD}<7>/step-00000003\n"), "{said}");
    let page = at.read(&format!("{run}/README.md"));
    assert!(page.contains("- data: ") && page.chars().all(|c| !c.is_control() || c == '\n'), "{page:?}");
    assert!(page.lines().all(|line| !line.starts_with("error: ")), "{page}");

    at.write("text", b"a\0b\x1b[2J\r\xef\xbf\xbf\xef\xbf\xbe <c>\n\x7f");
    at.stdout(&["plot", run, "--svg", "plot.svg"]);
    for out in ["attend.svg", "attend.html"] {
        at.stdout(&["attend", "--model", run, "--file", "text", "--out", out]);
    }
    for picture in [&format!("{run}/loss.svg")[..], "plot.svg", "attend.svg", "attend.html"] {
        let text = at.read(picture);
        let is_bad = |c: char| c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{FFFE}' | '\u{FFFF}');
        assert!(!text.contains(is_bad), "{picture}: {text:?}");
        assert!(text.contains("ru\u{FFFD}n") && !text.contains("<7>"), "{picture}: {text}");
    }
}

/// Whatever is written is written whole, or what was there stays; errors name the file that was asked for.
#[test]
fn what_cannot_be_written_leaves_what_was_there() {
    let at = Workplace::new();
    at.log("log", 200);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    let commands: [(&[&str], &str); 5] = [
        (&["plot", "run", "--svg"], "a.svg"),
        (&["attend", "--model", "run", "--text", "abc", "--out"], "a.html"),
        (&["export", "--model", "run", "--to"], "a.onnx"),
        (&["export", "--model", "run", "--to"], "a.safetensors"),
        (&["score", "log", "--model", "run", "--total", "--to-state"], "a.state"),
    ];
    for (command, name) in commands {
        let nowhere = format!("nowhere/{name}");
        let error = at.error(&[command, &[&nowhere]].concat());
        assert!(error.contains(&nowhere) && error.contains("there is no directory nowhere"), "{error}");
        assert!(!error.contains(".tmp"), "{error}");
        // A file may have 512 bytes, and no more.
        #[cfg(unix)]
        {
            at.write(name, b"the old one");
            let line = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {} {name}", command.join(" "));
            let output = std::process::Command::new("sh")
                .args(["-c", &line, env!("CARGO_BIN_EXE_sharnn")])
                .current_dir(at.path("."))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && last_line(&said).contains(name), "{said}");
            assert!(!said.contains(".tmp"), "{said}");
            assert_eq!(at.read(name), "the old one", "{said}");
            assert!(names(&at, ".").iter().all(|name| !name.starts_with(".tmp")), "{:?}", names(&at, "."));
        }
    }
}
