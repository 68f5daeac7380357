//! Where a run may be: not where it would write over what it reads, or over anybody's files.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::super::data::{self, DataChoice};
use super::super::outputs::is_same_file;
use super::super::runs::{self, DESCRIBING, OF_START};
use super::ends::{self, Ends};
use super::origin::{self, Origin};

/// Refuses a directory in which an input stands where the run puts something of its own. The inputs' names are those of their options.
pub fn refuse_inputs<'a>(out: &Path, inputs: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<()> {
    let dir = runs::resolved(out);
    for (option, input) in inputs {
        let place = runs::resolved(input);
        let first = place.strip_prefix(&dir).ok().and_then(|within| within.components().next());
        let is_own = first.is_some_and(|first| runs::is_own(first.as_os_str()));
        let is_same = || OF_START.iter().chain(&DESCRIBING).any(|own| is_same_file(&out.join(own), input));
        ensure!(
            !is_own && !is_same(),
            "--out {} cannot be used: {option} {} is read, and the run would write over it: name another --out",
            out.display(),
            input.display()
        );
    }
    Ok(())
}

/// Refuses a directory that is no run, and has a file that the run would write over. What a start leaves that was killed is none.
pub fn refuse_others_files(out: &Path) -> Result<()> {
    // A run is refused as one.
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    if runs::has_checkpoint(out) {
        return Ok(());
    }
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names.iter().filter(|name| runs::is_own(name)) {
        if !is_left_by_a_start(out, &name.to_string_lossy()) {
            let (name, out) = (Path::new(name).display(), out.display());
            bail!("there is a {name} in {out}, which is no run, and a new run would write over it: name another --out");
        }
    }
    Ok(())
}

/// Whether a start that was killed may have left it, or the trainer says better what it is.
fn is_left_by_a_start(out: &Path, name: &str) -> bool {
    let path = out.join(name);
    let Ok(there) = fs::symlink_metadata(&path) else { return true };
    match name {
        // It names best weights and measurements.
        "best" | "metrics.jsonl" => true,
        _ if there.is_dir() => name.starts_with("step-") || name.starts_with(".tmp-"),
        _ if !there.is_file() => false,
        "lock" => there.len() == 0,
        "group" => fs::read(&path).is_ok_and(|text| text.starts_with(b"process ")),
        data::FILE => runs::kept::<DataChoice>(out, name, "").is_ok(),
        ends::FILE => runs::kept::<Ends>(out, name, "").is_ok(),
        origin::FILE => runs::kept::<Origin>(out, name, "").is_ok(),
        _ => name.starts_with(".tmp-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_writes_over_is_looked_for_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("out/best")).unwrap();
        for name in ["log", "out/README.md", "out/log", "out/best/a.txt"] {
            fs::write(at(name), b"text").unwrap();
        }
        let refused = |out: &str, input: &str| refuse_inputs(&at(out), [("--data", &*at(input))]).is_err();
        for input in ["out/README.md", "out/../out/README.md", "out/from.json", "out/best/a.txt", "out/step-7"] {
            assert!(refused("out", input), "{input}");
        }
        // Not there yet, as what is to be downloaded.
        assert!(refused("new", "new/ends.json"));
        for input in ["log", "out/log", "README.md", "out/step-one"] {
            assert!(!refused("out", input), "{input}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("out/README.md"), at("link")).unwrap();
            std::os::unix::fs::symlink(at("log"), at("out/loss.svg")).unwrap();
            assert!(refused("out", "link") && refused("out", "log"));
        }
    }

    #[test]
    fn files_of_others_are_told_from_what_a_start_left() {
        let says = |name: &str, text: &str| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), text).unwrap();
            refuse_others_files(dir.path()).err().map(|error| error.to_string())
        };
        for (name, text) in [
            ("README.md", ""),
            ("loss.svg", "<svg/>"),
            ("sample.txt", "x"),
            ("lock", "mine"),
            ("group", "mine"),
            ("data.json", "[1, 2]"),
            ("ends.json", "{\"a\": 1}"),
            ("from.json", "text"),
            ("step-00000001", "mine"),
        ] {
            let said = says(name, text).expect(name);
            assert!(
                said.starts_with(&format!("there is a {name} in ")) && said.ends_with("name another --out"),
                "{said}"
            );
        }
        for (name, text) in [
            ("notes", "mine"),
            ("lock", ""),
            ("group", "process 7 at 8 ns\n"),
            ("metrics.jsonl", ""),
            ("data.json", r#"{"path": null, "train_bytes": null, "scored_bytes": 5}"#),
            ("ends.json", r#"{"steps": 3, "epochs": null, "seconds": null}"#),
            ("from.json", r#"{"model": "bundled"}"#),
        ] {
            assert_eq!(says(name, text), None, "{name}");
        }
        assert!(refuse_others_files(Path::new("nowhere")).is_ok());
    }
}
