//! The program `sharnn`, run as a user runs it.

mod adaptive;
mod codec;
mod data;
#[cfg(unix)]
mod life;
mod places;
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
    for command in ["`sharnn generate --model run`", "`sharnn train --resume --out run`"] {
        assert!(page.contains(command), "{page}");
    }

    // The same bytes, cut in the same way, by the same weights.
    let scored = at.json_lines(&["eval", "--model", "run", "--json"]);
    assert_eq!(scored.iter().map(|line| line["split"].as_str().unwrap()).collect::<Vec<_>>(), ["valid", "test"]);
    assert!((scored[0]["bpc"].as_f64().unwrap() - valid).abs() < 1e-9, "{scored:?}");
    let one =
        at.json_lines(&["eval", "--model", "run", "--json", "--split", "test", "--weights", "f32", "--lanes", "2"]);
    assert_eq!((one.len(), one[0]["seq_len"].as_u64(), one[0]["how"].as_str()), (1, Some(1), Some("f32")));
    let dynamic = at.json_lines(&["eval", "--model", "run", "--json", "--split", "valid", "--dynamic-eval", "1e-3"]);
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
    // The same seed writes the same text, and it is as long as it was asked for.
    let write =
        |seed: &str| at.run(&["generate", "--model", "run", "--prompt", "A", "--bytes", "50", "--seed", seed]).stdout;
    assert_eq!((write("1").len(), write("1") == write("1"), write("1") == write("2")), (50, true, false));
    at.stdout(&["attend", "--model", "run", "--text", "[[naïve]]", "--out", "a.html"]);
    assert!(at.read("a.html").contains(">ï</span>"));
    at.stdout(&["attend", "--model", "run", "--text", "[[naïve]]", "--out", "a.svg"]);
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
    // Nobody writes over a run, or goes on with one, by mistake.
    let again = at.run(&at.train(&["--quiet"]));
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.code() == Some(1) && stderr.contains("there is a run in run already"), "{stderr}");
    let deaf = at.without_stderr(&["eval", "--model", "run"]);
    assert_eq!(deaf.status.code(), Some(0), "nobody listens to what goes to standard error");
}

#[test]
fn a_run_that_stopped_goes_on_to_its_end_without_being_told() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet", "--recipe", "paper"]));
    let ends = r#"{"steps": 3, "epochs": null, "seconds": null}"#;
    assert_eq!(
        serde_json::from_str::<Value>(&at.read("run/ends.json")).unwrap(),
        serde_json::from_str::<Value>(ends).unwrap()
    );
    // As if it had been stopped at the third of five steps, before any validation.
    at.write("run/ends.json", ends.replace('3', "5").as_bytes());
    std::fs::remove_dir_all(at.path("run/best")).unwrap();
    let (out, err) = at.both(&["generate", "--model", "run", "--prompt", "A", "--bytes", "5"]);
    assert_eq!((out.len(), &err[..]), (5, "run has no best weights yet: using those after step 3\n"));
    let resume = ["train", "--resume", "--out", "run", "--threads", "1"];
    let (out, err) = at.both(&resume);
    assert!(out.starts_with(b"trained 5 steps; ") && !err.contains("has come to the end"), "{err}");
    let (out, err) = at.both(&resume);
    assert!(out.starts_with(b"trained 5 steps; ") && err.contains("has come to the end that it was given"), "{err}");
    at.write("run/ends.json", b"{");
    let damaged = at.run(&resume);
    let stderr = String::from_utf8_lossy(&damaged.stderr).into_owned();
    assert!(damaged.status.code() == Some(1) && stderr.contains("ends.json is damaged: delete it"), "{stderr}");

    // What changes no step that was made is taken; for the rest there is the command that does it.
    at.write("run/ends.json", br#"{"steps": 7, "epochs": null, "seconds": null}"#);
    let scored = at.both(
        &[&resume[..], &["--eval-batch", "2", "--valid-every", "2", "--log-every", "3", "--valid-bytes", "500"]]
            .concat(),
    );
    assert!(scored.0.starts_with(b"trained 7 steps; "), "{}", scored.1);
    let refused = at.run(&[&resume[..], &["--lr", "5e-4"]].concat());
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    let way_on = "with --lr 0.002, not 0.0005, and its steps so far depend on that; a new run goes on from its weights: \
                  sharnn train --from run --threads 1 --lr 5e-4";
    assert!(refused.status.code() == Some(1) && stderr.contains(way_on), "{stderr}");

    // A rate that has fallen to zero is no rate to go on with.
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    let (_, err) = at.both(&resume);
    assert!(err.contains("has come to the end of its recipe: a longer one is a new run"), "{err}");
}

#[test]
fn a_run_that_goes_on_with_other_evaluation_data_goes_on_and_is_scored_on_it() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet", "--recipe", "paper"]));
    let resume = |more: &[&str]| {
        at.json(&[&["train", "--resume", "--out", "run", "--threads", "1", "--json"], more].concat())["valid_bytes"]
            .as_u64()
    };
    // The run is over, and comes to no other checkpoint by itself.
    assert_eq!(resume(&["--valid-bytes", "300"]), Some(300));
    assert_eq!(resume(&[]), Some(300));
    let scored = at.json_lines(&["eval", "--model", "run", "--json"]);
    assert!(scored.iter().all(|line| line["bytes"].as_u64() < Some(300)), "{scored:?}");
    // Where the start comes to nothing, the run is as it was.
    at.error(&["train", "--resume", "--out", "run", "--threads", "1", "--valid-bytes", "2"]);
    assert_eq!(resume(&["--steps", "4"]), Some(300));
}

#[test]
fn lines_are_scored_in_one_stream_or_each_alone() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.write("log", b"one\ntwo\n\nlast");
    let score = |more: &[&str]| at.json_lines(&[&["score", "log", "--model", "run", "--json"], more].concat());
    let stream = score(&[]);
    assert_eq!(stream.iter().map(|line| line["bytes"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 4, 1, 4]);
    assert_eq!(
        stream.iter().map(|line| line["text"].as_str().unwrap()).collect::<Vec<_>>(),
        ["one", "two", "", "last"]
    );
    let total = &score(&["--total"])[0];
    let sum: f64 = stream.iter().map(|line| line["bits"].as_f64().unwrap()).sum();
    assert_eq!((total["lines"].as_u64(), total["bytes"].as_u64()), (Some(4), Some(13)));
    assert!((total["bits"].as_f64().unwrap() - sum).abs() < 1e-9);

    // Mixed with what was read it is another score, and says so.
    let own = score(&["--no-adapt"]);
    assert!(stream.iter().all(|line| line["adaptive"] == true) && own.iter().all(|line| line["adaptive"] == false));

    // The first line of the stream stands alone; later ones do not.
    let alone = score(&["--alone"]);
    let bits = |lines: &[Value], i: usize| lines[i]["bits"].as_f64().unwrap();
    assert!(alone.len() == 4 && alone.iter().all(|line| line["adaptive"] == false));
    assert!((bits(&alone, 0) - bits(&own, 0)).abs() < 1e-4);
    assert!((bits(&alone, 1) - bits(&own, 1)).abs() > 1e-6);
    let top = score(&["--top", "2"]);
    assert!(top.len() == 2 && top[0]["bits_per_byte"].as_f64() >= top[1]["bits_per_byte"].as_f64());

    // What was scored is printed, though the state can't be kept.
    let lost = at.run(&["score", "log", "--model", "run", "--top", "1", "--to-state", "nowhere/state"]);
    assert_eq!((lost.status.code(), lost.stdout.is_empty()), (Some(1), false));

    // Cut in two and gone on with, it is the same stream.
    at.write("first", b"one\ntw");
    at.write("second", b"o\n\nlast");
    at.stdout(&["score", "first", "--model", "run", "--to-state", "state"]);
    let second = at.json_lines(&["score", "second", "--model", "run", "--json", "--from-state", "state"]);
    assert_eq!(bits(&second, 2), bits(&stream, 3));
}

#[test]
fn a_run_goes_on_from_whatever_is_a_model() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.stdout(&["export", "--model", "run", "--to", "weights.safetensors"]);
    let data: String = (0..400).map(|i| format!("{i} other words\n")).collect();
    at.write("other", data.as_bytes());
    let from = |model: &'static str, out: &'static str, more: &[&'static str]| {
        let options = "--data other --steps 2 --batch 4 --seq-len 16 --log-every 1 --precision f32 --threads 1 --json";
        let options = options.split_whitespace().chain(more.iter().copied());
        ["train", "--from", model, "--out", out].into_iter().chain(options).collect::<Vec<_>>()
    };
    for (model, out) in [("run", "a"), ("weights.safetensors", "b"), ("bundled", "c")] {
        let trained = at.json(&from(model, out, &[]));
        let [before, after] = ["valid_bpc_before", "valid_bpc"].map(|key| trained[key].as_f64().unwrap());
        // The best weights are those of the start until a step is better.
        assert!(after <= before && trained["from"].as_str().unwrap().contains(model), "{trained}");
        let page = at.read(&format!("{out}/README.md"));
        assert!(page.contains(&format!("- validation before the first step: {before:.4} bits per byte")), "{page}");
        assert!(page.contains("- started from: ") && page.contains(model), "{page}");
        let [own, of_start] = [out, if model == "bundled" { "bundled" } else { "run" }]
            .map(|of| at.json(&["inspect", of, "--json"])["model"].clone());
        assert_eq!(own, of_start);
        // What was scored before is what `eval` scores.
        let eval = ["eval", "--model", model, "--data", "other", "--split", "valid", "--json", "--precision", "f32"];
        let recipe = at.json(&["inspect", out, "--json"])["run"]["recipe"]["valid"].clone();
        let [lanes, seq_len] = ["lanes", "seq_len"].map(|key| recipe[key].to_string());
        let eval = at.json(&[&eval[..], &["--lanes", &lanes, "--seq-len", &seq_len]].concat());
        assert!((eval["bpc"].as_f64().unwrap() - before).abs() < 1e-6, "{eval}: {before}");
    }
    // Nothing is lost where nothing gets better.
    let worse = at.json(&from("run", "d", &["--lr", "1e6"]));
    assert_eq!(
        (worse["best_step"].as_u64(), worse["valid_bpc"].as_f64()),
        (Some(0), worse["valid_bpc_before"].as_f64())
    );
    assert!(at.stdout(&["inspect"]).starts_with("bundled\n"), "the model of every other command");
}

#[test]
fn a_run_that_diverges_says_so() {
    let at = Workplace::new();
    let output = at.run(&at.train(&["--quiet", "--lr", "1e6"]));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(last_line(&stderr).starts_with("error: the run diverged: at its best it scored "), "{stderr}");
    assert!(at.path("run/README.md").is_file() && !at.path("run/sample.txt").exists());
}

/// Bytes that it has never seen cost more than those of a model that knows nothing, and no lower rate would help.
#[test]
fn a_run_that_knows_its_data_by_heart_has_not_diverged() {
    let at = Workplace::new();
    at.write("text", &[b"ab".repeat(4500), (0..1000_u32).map(|i| b'0' + (i * i % 61) as u8).collect()].concat());
    let train = at.train_on("text", &["--out", "run", "--lr", "0.02", "--recipe", "paper", "--json"]);
    let train: Vec<_> = train.into_iter().map(|word| if word == "3" { "150" } else { word }).collect();
    let reached = at.json(&train);
    assert!(reached["valid_bpc"].as_f64().unwrap() > 9.0, "{reached}");
}

#[test]
fn a_prompt_may_come_from_a_file_or_a_state() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    let generate = |more: &[&str], stdin: &[u8]| {
        at.with_stdin(&[&["generate", "--model", "run", "-n", "20"], more].concat(), stdin)
    };
    // With a NUL, which no argument holds, and longer than a buffer.
    let prompt = [&b"one\0two\n".repeat(8_300)[..], b"and so"].concat();
    at.write("prompt", &prompt);
    let of_file = generate(&["--prompt-file", "prompt"], b"");
    assert_eq!((of_file.len(), &of_file), (20, &generate(&["--prompt-file", "-"], &prompt)));
    // What `score` read before is part of the prompt.
    at.write("first", b"one\ntw");
    at.write("second", b"o\nand so");
    at.stdout(&["score", "first", "--model", "run", "--total", "--to-state", "state"]);
    // A scored stream begins after a newline, a prompt as it is.
    let whole = generate(&["--prompt-file", "-"], b"\none\ntwo\nand so");
    assert_eq!(generate(&["--from-state", "state", "--prompt-file", "second"], b""), whole);
    assert_eq!(generate(&["-p", "and so"], b""), generate(&["--prompt-file", "-", "--no-echo"], b"and so"));
}

/// Of a run whose steps are fewer than those between two records there is still a picture.
#[test]
fn a_run_of_few_records_is_drawn() {
    fn every<'a>(at: &Workplace, steps: &'a str) -> Vec<&'a str> {
        let mut options = at.train(&["--quiet"]);
        *options.iter_mut().skip_while(|option| **option != "--log-every").nth(1).unwrap() = steps;
        options
    }
    let at = Workplace::new();
    at.stdout(&every(&at, "1000"));
    for over in ["steps", "bytes", "seconds"] {
        at.stdout(&["plot", "run", "--svg", "none.svg", "--over", over]);
        assert_eq!(at.read("none.svg").matches("<circle").count(), 2, "the validation, and the legend");
    }
    at.write("run/metrics.jsonl", b"");
    assert_eq!(
        at.error(&["plot", "run", "--svg", "empty.svg"]),
        "error: the run in run has measured nothing yet: its first record comes after --log-every steps, or with a validation"
    );
    assert!(!at.path("empty.svg").exists());
    let at = Workplace::new();
    at.stdout(&every(&at, "3"));
    at.stdout(&["plot", "run", "--svg", "one.svg"]);
    assert_eq!(at.read("one.svg").matches("<circle").count(), 3, "the record too");
}

#[test]
fn measurements_without_bounds_are_refused() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    let mut losses = [1e308, -1e308].into_iter();
    let forged = at.read("run/metrics.jsonl").lines().fold(String::new(), |forged, line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if let Some(loss) = (record["event"] == "train").then(|| losses.next()).flatten() {
            record["train_bpc"] = loss.into();
        }
        forged + &record.to_string() + "\n"
    });
    at.write("run/metrics.jsonl", forged.as_bytes());
    let error = at.error(&["plot", "run", "--svg", "curve.svg"]);
    assert!(error.contains("its measurements cannot be drawn: they reach from -"), "{error}");
    assert!(!at.path("curve.svg").exists());
}

/// A file system takes any bytes for a name.
#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_utf8_work_everywhere() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let at = Workplace::new();
    let [run, data] = [&b"run\xff"[..], b"da\xfeta"].map(OsStr::from_bytes);
    std::fs::write(at.path("text"), "some words, and more of them\n".repeat(300)).unwrap();
    std::fs::rename(at.path("text"), at.path(data)).unwrap();
    let tiny = at.train(&[]);
    let tiny: Vec<&OsStr> =
        tiny.iter().map(|option| OsStr::new(if *option == "run" { "unused" } else { option })).collect();
    let with = |more: &[&OsStr]| {
        let output = at.run_os(&[&tiny[..1], more, &tiny[3..]].concat());
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let [out, data_option, json, resume] = ["--out", "--data", "--json", "--resume"].map(OsStr::new);
    let said: Value = serde_json::from_slice(&with(&[out, run, data_option, data, json])).unwrap();
    assert_eq!(said["run"].as_str(), Some("run\\xff"));
    with(&[out, run, resume, json]);
    for args in [
        &["inspect", "RUN", "--json"][..],
        &["eval", "--model", "RUN", "--json"],
        &["score", "DATA", "--model", "RUN", "--total"],
        &["generate", "--model", "RUN", "-n", "3", "--prompt-file", "DATA"],
        &["plot", "RUN"],
        &["export", "--model", "RUN", "--to", "RUN.onnx"],
        &["export", "--model", "RUN", "--to", "RUN.safetensors"],
        &["attend", "--model", "RUN", "--text", "a", "--out", "RUN.html"],
    ] {
        let name = |word: &&str| match *word {
            "RUN" => run.to_os_string(),
            "DATA" => data.to_os_string(),
            word => match word.strip_prefix("RUN") {
                Some(rest) => [run, OsStr::new(rest)].into_iter().collect(),
                None => word.into(),
            },
        };
        let args: Vec<_> = args.iter().map(name).collect();
        let output = at.run_os(&args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_bundled_model_knows_english_from_noise() {
    let at = Workplace::new();
    at.write(
        "log",
        b"The city is the capital of the country.\nxq zzvk jjwq 0x7f kqpt wwvz\nIt was founded in the 12th century.\n",
    );
    let top = at.json_lines(&["score", "log", "--alone", "--top", "1", "--json"]);
    assert_eq!(top[0]["line"].as_u64(), Some(2), "{top:?}");
    let text = at.run(&["generate", "--prompt", "The ", "--bytes", "40", "--temperature", "0"]).stdout;
    assert!(text.len() == 40 && text.iter().all(u8::is_ascii), "{text:?}");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    let output = at.first_byte(&["generate", "--model", "run", "--bytes", "200000", "--temperature", "0"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
}

#[test]
fn a_model_leaves_for_other_programs_and_comes_back() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    at.stdout(&["export", "--model", "run", "--to", "whole.safetensors"]);
    at.stdout(&[
        "export",
        "--model",
        "run",
        "--to",
        "small.safetensors",
        "--dtype",
        "bf16",
        "--collapse",
        "--tied-twice",
    ]);
    let size = |name: &str| std::fs::metadata(at.path(name)).unwrap().len();
    assert!(size("small.safetensors") < size("whole.safetensors") * 2 / 3);
    at.stdout(&["import", "small.safetensors", "--to", "back.safetensors"]);
    let error = at.error(&["import", "small.safetensors", "--to", "heads.safetensors", "--n-heads", "3"]);
    assert!(error.contains("--n-heads 3 cannot be used"), "{error}");
    let bpc = |model: &str| {
        let lines = at.json_lines(&["score", "text", "--model", model, "--total", "--json"]);
        lines[0]["bits_per_byte"].as_f64().unwrap()
    };
    at.write("text", b"The [[cat]] sat on the [[mat]].");
    assert_eq!(bpc("run"), bpc("whole.safetensors"));
    assert_eq!(bpc("small.safetensors"), bpc("back.safetensors"));
    assert!((bpc("run") - bpc("back.safetensors")).abs() < 0.02);

    for options in [&["--dtype", "f16"][..], &["--single-step", "--meta", "licence=MIT"]] {
        at.stdout(&[&["export", "--model", "run", "--to", "model.onnx"], options].concat());
        assert!(std::fs::read(at.path("model.onnx")).unwrap().windows(9).any(|bytes| bytes == b"memory.2\x12"));
    }
}

#[test]
fn lanes_of_a_split_are_named_as_they_were_set() {
    let at = Workplace::new();
    let said = at.error(&at.train(&["--set", "recipe.test.lanes=99999999"]));
    assert!(said.starts_with("error: --set recipe.test.lanes=99999999 cannot be used: "), "{said}");
}

#[test]
fn settings_of_burn_that_cannot_be_read_are_refused_before_anything_is_made() {
    let at = Workplace::new();
    std::fs::create_dir(at.path("below")).unwrap();
    for settings in ["garbage = [", "autodiff = 3"] {
        at.write("burn.toml", settings.as_bytes());
        for args in [&at.train(&[])[..], &["eval", "--dynamic-eval", "1e-3"], &["bench", "--mode", "train"]] {
            let output = at.run_in("below", args);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
            assert!(said.contains("burn.toml cannot be used: it is no TOML with settings of Burn"), "{args:?}: {said}");
        }
        assert_eq!(std::fs::read_dir(at.path("below")).unwrap().count(), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_current_directory_that_is_gone_is_told_in_one_line() {
    let at = Workplace::new();
    at.log("log", 100);
    let [log, out] = ["log", "out"].map(|name| at.path(name).display().to_string());
    let train = at.train_on(&log, &["--out", &out]);
    let output = at.shell("mkdir gone && cd gone && rmdir ../gone && exec \"$@\"", &train).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: the current directory cannot be had") && said.lines().count() == 1, "{said}");
    assert!(!at.path("out").exists());
}

#[test]
fn damaged_files_of_a_run_are_told_of_without_names_of_types() {
    let at = Workplace::new();
    at.stdout(&at.train(&["--quiet"]));
    let mut files = Vec::new();
    for name in ["ends.json", "data.json", "from.json", "metrics.jsonl"] {
        for json in
            ["null", "3", "[]", "{}", "true", r#""a""#, r#"{"path":3}"#, r#"{"steps":-1}"#, r#"{"model":3}"#, "{"]
        {
            files.push((name, format!("{json}\n")));
        }
    }
    for (name, json) in files {
        let path = format!("run/{name}");
        let kept = std::fs::read(at.path(&path)).ok();
        at.write(&path, json.as_bytes());
        let command = if name == "metrics.jsonl" {
            &["plot", "run"][..]
        } else {
            &["train", "--resume", "--out", "run", "--quiet"]
        };
        let output = at.run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        for internal in ["usize", "f64", "u64", "struct ", "enum ", "variant ", "Ends", "Form", "DataChoice"] {
            assert!(!said.contains(internal), "{name} {json}: {said}");
        }
        match kept {
            Some(kept) => at.write(&path, &kept),
            None => drop(std::fs::remove_file(at.path(&path))),
        }
    }
    at.write("run/ends.json", b"null");
    let said = at.error(&["train", "--resume", "--out", "run"]);
    assert!(said.ends_with("invalid type: null, expected an object at line 1 column 4"), "{said}");
}

#[test]
fn what_cannot_be_done_is_told_in_one_line() {
    let at = Workplace::new();
    at.write("text", b"some text");
    at.write("torn.safetensors", b"\x10\0\0\0");
    // No run, though its name is a number.
    std::fs::create_dir(at.path("runs")).unwrap();
    at.write("runs/2026", b"");
    for (args, code, said) in [
        (&["eval", "--model", "nowhere"][..], 1, "nowhere"),
        (&["eval", "--model", "torn.safetensors"], 1, "torn.safetensors"),
        (&["inspect", "nowhere"], 1, "nowhere"),
        (&["inspect", "."], 1, "no checkpoint in ."),
        (&["eval", "--model", "latest"], 1, "there is no run under runs/"),
        (&["generate", "--mem-len", "100000000000"], 1, "--mem-len 100000000000 cannot be used"),
        (&["plot", "nowhere"], 1, "there is no metrics.jsonl in nowhere"),
        (&["attend", "--model", "nowhere", "--text", "a", "--out", "a.png"], 1, ".html or .svg"),
        (&["train", "--data", "nowhere"], 1, "nowhere"),
        (&["train", "--steps", "0"], 1, "--steps 0 cannot be used"),
        (&["train", "--minutes", "1e308"], 1, "--minutes"),
        (&["train", "--lr", "nan", "--set", "model.d_ff=256"], 1, "error: --lr NaN cannot be used"),
        (&["train", "--mem-len", "100000000000"], 1, "--mem-len 100000000000 cannot be used"),
        (&["train", "--batch", "999999"], 1, "--batch 999999 cannot be used"),
        (&["train", "--eval-batch", "999999"], 1, "--eval-batch 999999 cannot be used"),
        (&["train", "--seq-len", "64", "--mem-len", "32"], 1, "--seq-len 64 cannot be used"),
        (&["train", "--valid-bytes", "0"], 1, "--valid-bytes 0 cannot be used: use at least 2"),
        (&["train", "--train-bytes", "0"], 1, "--train-bytes 0 cannot be used: use at least 2"),
        (&["eval", "--valid-bytes", "0"], 1, "--valid-bytes 0 cannot be used: use at least 2"),
        (&["bench", "--dropout", "nan"], 1, "--dropout NaN cannot be used"),
        (&["bench", "--mem-len", "99999999"], 1, "--mem-len 99999999 cannot be used"),
        (&["bench", "--batch", "18446744073709551615", "--mode", "train"], 1, "--batch 18446744073709551615 cannot be"),
        (&["bench", "--batch", "1000000000"], 1, "--batch 1000000000 cannot be used"),
        (&["bench", "--batch", "1000000", "--seq-len", "5000"], 1, "--batch 1000000 cannot be used: a segment of"),
        (
            &["bench", "--mode", "lstm", "--seq-len", "1000000", "--batch", "1000000"],
            1,
            "--batch 1000000 cannot be used",
        ),
        (
            &["bench", "--mode", "lstm", "--runs", "18446744073709551615"],
            1,
            "--runs 18446744073709551615 cannot be used",
        ),
        (
            &["bench", "--memory", "18446744073709551615", "--mode", "forward"],
            1,
            "--memory 18446744073709551615 cannot be",
        ),
        (&["train", "--log-every", "0"], 1, "--log-every 0 cannot be used"),
        (&["train", "--from", "nowhere"], 1, "nowhere"),
        (&["train", "--from", "latest"], 1, "there is no run under runs/"),
        (&["train", "--from", "bundled", "--resume"], 2, "--from"),
        (&["eval", "--lanes", "999999"], 1, "use 1 to 26192 (--lanes)"),
        (&["eval", "--seq-len", "64", "--mem-len", "32"], 1, "--seq-len 64 cannot be used"),
        (&["eval", "--dynamic-eval", "1e-3", "--dynamic-decay=-1"], 1, "--dynamic-decay -1 cannot be used"),
        (&["eval", "--dynamic-eval=-1"], 1, "--dynamic-eval -1 cannot be used"),
        (&["generate", "--prompt-file", "nowhere"], 1, "nowhere"),
        (&["generate", "--prompt-file", "."], 1, "is a directory"),
        (&["generate", "--prompt", "a", "--prompt-file", "text"], 2, "--prompt-file"),
        (&["generate", "--from-state", "text"], 1, "text"),
        (&["generate", "--threads", "0"], 1, "--threads 0 cannot be used"),
        (&["train", "--preset", "quick"], 1, "there is no preset"),
        (&["train", "--resume", "--out", "nowhere"], 1, "there is no run in nowhere"),
        (&["bench", "--mode", "decode", "--seq-len", "2"], 1, "--seq-len 2 cannot be used"),
        (&["bench", "--mode", "lstm", "--dtype", "int8"], 1, "--dtype int8 and exact cannot be used"),
        (&["bench", "--mode", "lstm", "--dropout", "0.1"], 1, "--dropout 0.1 cannot be used"),
        (&["bench", "--mode", "lstm", "--size", "L"], 1, "--size cannot be used"),
        (&["bench", "--mode", "lstm", "--model", "bundled"], 1, "--model cannot be used"),
        (&["bench", "--model", "bundled", "--size", "S"], 2, "--size"),
        (&["bench", "--model", "nowhere"], 1, "nowhere"),
        (&["bench", "--mode", "ops", "--runs", "3"], 1, "--runs cannot be used"),
        (&["bench", "--mode", "ceilings", "--dtype", "f32"], 1, "--dtype cannot be used"),
        (&["score", "nowhere", "--model", "torn.safetensors"], 1, "nowhere"),
        (&["score", "text", "--top", "0"], 1, "--top 0 cannot be used"),
        (&["score", "text", "--model", "torn.safetensors"], 1, "torn.safetensors"),
        (&["generate", "--model", "nowhere"], 1, "nowhere"),
        (&["generate", "--model", "nowhere", "--top-k", "0"], 1, "--top-k 0 cannot be used"),
        (&["generate", "--model", "nowhere", "--temperature=-1"], 1, "--temperature -1 cannot be used"),
        (&["import", "torn.safetensors", "--to", "a.pt"], 1, ".safetensors"),
        (&["import", "torn.safetensors", "--to", "a.safetensors"], 1, "torn.safetensors"),
        (&["import", "text", "--to", "a.safetensors", "--vocabulary", "text"], 1, "--vocabulary"),
        (&["export", "--to", "a.pt"], 1, ".onnx or .safetensors"),
        (
            &["export", "--to", "a.onnx", "--collapse"],
            1,
            "--collapse cannot be used: it is for files that end in .safetensors",
        ),
        (&["export", "--to", "a.onnx", "--dtype", "bf16"], 1, "--dtype bf16 cannot be used"),
        (&["export", "--to", "a.safetensors", "--single-step"], 1, "it is for files that end in .onnx"),
        (&["export", "--to", "nowhere/a.onnx"], 1, "nowhere"),
        (&["export", "--to", "a.onnx", "--meta", "licence"], 2, "KEY=VALUE"),
        (&["train", "--stepps", "1"], 2, "--stepps"),
        (&["eval", "--model", "nowhere", "--backend", "abacus"], 2, "abacus"),
    ] {
        let output = at.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
        if code == 1 {
            assert!(last_line(&stderr).starts_with("error: "), "{args:?}: {stderr}");
        }
        for internal in ["panicked", "recipe.", "phases[", "batch_size", "mem_len", "seq_len", "options."] {
            assert!(!stderr.contains(internal), "{args:?}: {stderr}");
        }
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
    for row in ["train     f32", "forward   f32", "decode    bf16", "decode    int8", "decode    exact"] {
        assert!(table.contains(row), "{table}");
    }
    let line: Value = at.json(&[&["bench", "--json", "--mode", "train"], &small[..]].concat());
    assert_eq!((line["mode"].as_str(), line["batch"].as_u64()), (Some("train"), Some(1)));
    assert!(line["tokens_per_s"].as_f64().unwrap() > 0.0);
    // A head in each block of a list.
    let params = |attend| {
        let line: Value = at.json(&[&["bench", "--json", "--mode", "train", "--attend", attend], &small[..]].concat());
        line["params"].as_u64().unwrap()
    };
    let [none, one, two] = ["none", "1", "0,1"].map(params);
    assert!(none < one && two - one == one - none, "{none}, {one}, {two}");

    // The sizes of a model that is there, its n-grams too.
    let of_model = ["bench", "--json", "--model", "bundled-small", "--batch", "2", "--memory", "8", "--runs", "1"];
    let lines = at.stdout(&[&of_model[..], &["--warmup", "0"]].concat());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let modes: Vec<_> = lines.iter().map(|line| line["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["train", "forward", "decode", "decode", "decode", "decode"]);
    assert!(lines.iter().all(|line| line["size"] == "bundled-small" && line["params"] == 880_896), "{lines:?}");
    assert_eq!((&lines[0]["seq_len"], &lines[1]["seq_len"]), (&128.into(), &128.into()));

    let lstm = ["bench", "--mode", "lstm", "--batch", "3", "--seq-len", "2", "--runs", "1", "--warmup", "0"];
    let lines = at.stdout(&[&lstm[..], &["--json"]].concat());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sizes: Vec<_> =
        lines.iter().map(|line| (line["d"].as_u64().unwrap(), line["pass"].as_str().unwrap())).collect();
    let want = [1024, 768, 512, 256].map(|d| [(d, "forward"), (d, "forward+backward")]);
    assert_eq!(sizes, want.concat());
    assert!(lines.iter().all(|line| line["median_us"].as_f64().unwrap() > 0.0 && line["lanes"] == 3), "{lines:?}");
}
