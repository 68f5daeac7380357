//! Predictions that are mixed with what was read, in the commands that can.

use serde_json::Value;

use crate::program::Workplace;

/// A log repeats itself: what was read makes it cheap, in whatever command, and is kept with the stream.
#[test]
fn what_repeats_becomes_cheap_where_predictions_are_mixed_with_what_was_read() {
    let at = Workplace::new();
    at.log("log", 400);
    at.log("more", 60);
    at.stdout(&at.train_on("log", &["--out", "run"]));
    let total = |more: &[&str]| {
        let lines = at.json_lines(&[&["score", "log", "--model", "run", "--total", "--json"], more].concat());
        lines[0]["bits_per_byte"].as_f64().unwrap()
    };
    let (own, adaptive) = (total(&["--no-adapt"]), total(&[]));
    assert!(adaptive < 0.5 * own, "{adaptive} of {own}");
    assert_eq!(adaptive, total(&["--adapt", "--adapt-memory", "16"]));
    let (text, said) = at.both(&["score", "log", "--model", "run", "--total"]);
    assert!(String::from_utf8(text).unwrap().ends_with(" bits per byte, adaptive\n") && said.is_empty());

    // The whole file in one lane: the bytes of its splits.
    let scores = |more: &[&str]| at.json_lines(&[&["eval", "--model", "run", "--json"], more].concat());
    let (own, adaptive) = (scores(&[]), scores(&["--adapt"]));
    for (own, adaptive) in own.iter().zip(&adaptive) {
        assert!(adaptive["bpc"].as_f64() < own["bpc"].as_f64().map(|bpc| 0.8 * bpc), "{adaptive} {own}");
        assert_eq!((adaptive["how"].as_str(), adaptive["lanes"].as_u64()), (Some("adaptive"), Some(1)));
    }

    // What was read is part of the state: each line of another file is judged after it, and after nothing else.
    at.stdout(&["score", "log", "--model", "run", "--total", "--to-state", "state", "--adapt-memory", "2"]);
    let alone =
        |more: &[&str]| at.json_lines(&[&["score", "more", "--model", "run", "--alone", "--json"], more].concat());
    let sum = |lines: &[Value]| lines.iter().map(|line| line["bits"].as_f64().unwrap()).sum::<f64>();
    let (own, after) = (alone(&[]), alone(&["--adapt", "--from-state", "state"]));
    assert!(sum(&after) < 0.5 * sum(&own) && after.iter().all(|line| line["adaptive"] == true));
    at.write("more", at.read("more").repeat(2).as_bytes());
    let twice = alone(&["--adapt", "--from-state", "state"]);
    assert_eq!(
        twice[0]["bits"], twice[60]["bits"],
        "a line is judged after what the stream had read, and no other line"
    );
    let generate = |more: &[&str]| {
        at.run(
            &[&["generate", "--model", "run", "--temperature", "0", "--bytes", "30", "-p", "2031-05-"], more].concat(),
        )
        .stdout
    };
    assert_ne!(generate(&["--from-state", "state"]), generate(&["--from-state", "state", "--adapt"]));
    let mixed = generate(&["--from-state", "state", "--adapt"]);
    assert!(mixed.windows(5).any(|bytes| bytes == b" job "), "{}", String::from_utf8_lossy(&mixed));

    // What does not go together is told.
    let error = at.error(&["score", "log", "--model", "run", "--from-state", "state", "--adapt-memory", "16"]);
    assert!(error.contains("--adapt-memory 16 cannot be used: state has a memory of 2 MiB"), "{error}");
    let (_, said) = at.both(&[
        "score",
        "more",
        "--model",
        "run",
        "--total",
        "--no-adapt",
        "--from-state",
        "state",
        "--to-state",
        "own",
    ]);
    assert!(said.contains("the adaptive statistics in state are left aside"), "{said}");
    let (_, said) = at.both(&["score", "more", "--model", "run", "--total", "--from-state", "own"]);
    assert!(said.contains("own has no adaptive statistics: they begin here"), "{said}");
    for (args, expected) in [
        (&["score", "more", "--alone", "--adapt"][..], "--alone takes --adapt and --from-state together"),
        (&["score", "more", "--adapt-memory", "0"], "--adapt-memory 0 cannot be used: use 1 to 1024"),
        (&["generate", "--adapt-memory", "4"], "--adapt-memory cannot be used without --adapt"),
        (&["eval", "--model", "run", "--adapt", "--seq-len", "8"], "--seq-len cannot be used with --adapt"),
        (
            &["score", "more", "--model", "run", "--alone", "--adapt", "--from-state", "own"],
            "own has nothing to judge lines after",
        ),
    ] {
        let error = at.error(args);
        assert!(error.contains(expected), "{error}");
    }
    at.stdout(&["attend", "--model", "run", "--text", "node1 node1 node1 node1", "--out", "own.html"]);
    let adaptive =
        at.stdout(&["attend", "--model", "run", "--text", "node1 node1 node1 node1", "--out", "a.html", "--adapt"]);
    assert!(
        adaptive.contains("bits per byte, adaptive, over") && at.read("a.html") != at.read("own.html"),
        "{adaptive}"
    );
}

/// A short run says both scores and which is which, and the second one is that of `eval --adapt`.
#[test]
fn a_short_run_is_scored_mixed_with_what_was_read_too() {
    let at = Workplace::new();
    let reached = at.json(&at.train(&["--json"]));
    let of_eval = at.stdout(&["eval", "--model", "run", "--adapt", "--weights", "f32", "--json", "--threads", "1"]);
    let of_eval: Vec<Value> = of_eval.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (field, line) in ["valid_bpc_adaptive", "test_bpc_adaptive"].into_iter().zip(&of_eval) {
        assert_eq!(
            (line["how"].as_str(), reached[field].as_f64()),
            (Some("adaptive"), line["bpc"].as_f64()),
            "{field}"
        );
    }
    let page = at.read("run/README.md");
    assert!(page.contains("adaptive (mixed with what was read): validation "), "{page}");
    let table = at.stdout(&["train", "--resume", "--out", "run", "--threads", "1"]);
    let header = table.lines().find(|line| line.starts_with("bits per byte")).unwrap();
    let columns: Vec<&str> = header.split_whitespace().collect();
    assert_eq!(columns[3..6], ["SHA-RNN", "adaptive", "zstd"], "{header}");
    assert!(table.contains("as by eval --adapt"), "{table}");
    // What takes longer is not measured: neither the scores nor a word of them.
    at.log("log", 400);
    let wide = at.train_on("log", &["--out", "wide", "--set", "model.mem_len=100000", "--json"]);
    assert!(at.json(&wide)["valid_bpc_adaptive"].is_null());
}
