//! The program `sharnn`, run as a user runs it.

mod program;

use serde_json::Value;

use program::{Workplace, last_line};

#[test]
fn a_run_is_trained_scored_and_looked_at() {
    let at = Workplace::new();
    let trained = at.json(&at.train(&["--json"]));
    assert_eq!((trained["run"].as_str(), trained["steps"].as_u64()), (Some("run"), Some(3)));
    for file in ["README.md", "loss.svg", "sample.txt", "metrics.jsonl", "data.json", "best/weights.safetensors"] {
        assert!(at.path("run").join(file).is_file(), "{file}");
    }
    let page = at.read("run/README.md");
    let valid = trained["valid_bpc"].as_f64().unwrap();
    assert!(page.contains(&format!("- validation: {valid:.4} bits per byte")), "{page}");
    assert!(page.contains("](loss.svg)") && page.contains("\"d_model\": 16"), "{page}");

    // The same bytes, cut in the same way, by the same weights.
    let scored = at.json_lines(&["eval", "run", "--json"]);
    assert_eq!(scored.iter().map(|line| line["split"].as_str().unwrap()).collect::<Vec<_>>(), ["valid", "test"]);
    assert!((scored[0]["bpc"].as_f64().unwrap() - valid).abs() < 1e-9, "{scored:?}");
    let one = at.json_lines(&["eval", "run", "--json", "--split", "test", "--weights", "f32", "--lanes", "2"]);
    assert_eq!((one.len(), one[0]["seq_len"].as_u64(), one[0]["how"].as_str()), (1, Some(1), Some("f32")));
    let dynamic = at.json_lines(&["eval", "run", "--json", "--split", "valid", "--dynamic-eval", "1e-3"]);
    assert_eq!((dynamic[0]["how"].as_str(), dynamic[0]["lanes"].as_u64()), (Some("dynamic"), Some(1)));

    let report = at.json(&["inspect", "run", "--json"]);
    assert_eq!(report["run"]["reached"]["valid"]["bpc"].as_f64(), Some(valid));
    let parts: u64 =
        report["parameters_by_part"].as_array().unwrap().iter().map(|part| part[1].as_u64().unwrap()).sum();
    assert_eq!(Some(parts), report["parameters"].as_u64());
    let text = at.stdout(&["inspect", "run"]);
    assert!(text.contains("attention in block 2") && text.contains("3 steps, 192 bytes"), "{text}");

    at.stdout(&["plot", "run", "run", "--svg", "two.svg", "--over", "seconds"]);
    let picture = at.read("two.svg");
    assert!(picture.starts_with("<svg") && picture.contains("seconds") && picture.contains("validation"));
    at.stdout(&["attend", "run", "--text", "[[naïve]]", "--out", "a.html"]);
    assert!(at.read("a.html").contains(">ï</span>"));
    at.stdout(&["attend", "run", "--text", "[[naïve]]", "--out", "a.svg"]);
    assert!(at.read("a.svg").starts_with("<svg"));
}

#[test]
fn a_run_goes_on_and_says_so_in_few_words_where_asked() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet", "--recipe", "paper"]));
    let mut on = at.train(&["--quiet", "--recipe", "paper", "--resume"]);
    *on.iter_mut().find(|option| **option == "3").unwrap() = "5";
    let output = at.run(&on);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("trained 5 steps; "));
}

#[test]
fn what_cannot_be_done_is_told_in_one_line() {
    let at = Workplace::new();
    at.write("text", b"some text");
    at.write("torn.safetensors", b"\x10\0\0\0");
    for (args, code, said) in [
        (&["eval", "nowhere"][..], 1, "nowhere"),
        (&["eval", "torn.safetensors"], 1, "torn.safetensors"),
        (&["inspect", "nowhere"], 1, "nowhere"),
        (&["inspect", "."], 1, "no checkpoint in ."),
        (&["eval", "latest"], 1, "there is no run under runs/"),
        (&["plot", "nowhere"], 1, "there is no metrics.jsonl in nowhere"),
        (&["attend", "nowhere", "--text", "a", "--out", "a.png"], 1, ".html or .svg"),
        (&["train", "--data", "nowhere"], 1, "nowhere"),
        (&["train", "--steps", "0"], 1, "--steps 0 cannot be used"),
        (&["train", "--resume", "--out", "nowhere"], 1, "there is no run in nowhere"),
        (&["bench", "--mode", "decode", "--batch", "2"], 1, "--batch 2 cannot be used"),
        (&["train", "--stepps", "1"], 2, "--stepps"),
        (&["eval", "nowhere", "--backend", "abacus"], 2, "abacus"),
    ] {
        let output = at.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
        if code == 1 {
            assert!(last_line(&stderr).starts_with("error: "), "{args:?}: {stderr}");
        }
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
fn speed_is_measured_as_a_table_or_as_json() {
    let at = Workplace::new();
    let small = [
        "--size",
        "XS",
        "--batch",
        "1",
        "--seq-len",
        "8",
        "--memory",
        "8",
        "--mem-len",
        "64",
        "--runs",
        "1",
        "--warmup",
        "0",
    ];
    let table = at.stdout(&[&["bench"], &small[..]].concat());
    for row in ["train     f32", "forward   f32", "decode    bf16", "decode    int8"] {
        assert!(table.contains(row), "{table}");
    }
    let line: Value = at.json(&[&["bench", "--json", "--mode", "train"], &small[..]].concat());
    assert_eq!((line["mode"].as_str(), line["batch"].as_u64()), (Some("train"), Some(1)));
    assert!(line["tokens_per_s"].as_f64().unwrap() > 0.0);
}
