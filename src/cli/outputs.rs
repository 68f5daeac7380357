//! Files that commands write: whole or not at all, and never in the place of what they read.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::runs;
use crate::data::whole_file;

/// Writes a file, which is there whole or not at all.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let written: io::Result<()> = whole_file::write(path, |out| out.write_all(contents.as_ref()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses an output in the place of what a run keeps in its directory, but for a file of the name `but`; and `-`, which would be
/// standard output elsewhere.
pub fn refuse_place(option: &str, output: &Path, but: Option<&str>) -> Result<()> {
    if output == Path::new("-") {
        bail!("{option} - cannot be used: name a file");
    }
    let Some(run) = runs::owner(output) else { return Ok(()) };
    if but.is_some_and(|but| runs::resolved(output).file_name() == Some(but.as_ref())) {
        return Ok(());
    }
    let (output, run) = (output.display(), run.display());
    bail!("{option} {output} cannot be used: the run in {run} keeps a file of its own there; name another file")
}

/// Refuses an output that would replace an input: the same file, under whatever name, or one of a run's weights. `-` is standard
/// input. `option` and the inputs' names are those of the command line.
pub fn refuse_inputs<'a>(
    option: &str,
    output: &Path,
    inputs: impl IntoIterator<Item = (&'a str, &'a Path)>,
) -> Result<()> {
    // What is not there, or is a device, replaces nothing.
    let Some(there) = fs::metadata(output).ok().filter(Metadata::is_file) else { return Ok(()) };
    for (name, input) in inputs {
        let same = match input == Path::new("-") {
            true => standard_input().is_some_and(|input| is_same(&input, &there)),
            false => is_same_file(input, output),
        };
        if same || holds(input, output) {
            let output = output.display();
            bail!("{option} {output} cannot be used: it is read as {name}, and would be replaced; name another file");
        }
    }
    Ok(())
}

/// Whether two paths lead to one file.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    fs::metadata(a).ok().zip(fs::metadata(b).ok()).is_some_and(|(a, b)| is_same(&a, &b)) || is_same_path(a, b)
}

#[cfg(unix)]
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Elsewhere paths are compared.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    false
}

fn is_same_path(a: &Path, b: &Path) -> bool {
    fs::canonicalize(a).ok().zip(fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b)
}

#[cfg(unix)]
fn standard_input() -> Option<Metadata> {
    use std::os::fd::AsFd;
    let copy = io::stdin().as_fd().try_clone_to_owned().ok()?;
    fs::File::from(copy).metadata().ok()
}

#[cfg(not(unix))]
fn standard_input() -> Option<Metadata> {
    None
}

/// Whether a file is one of the weights in a run's directory.
fn holds(run: &Path, file: &Path) -> bool {
    let within = |run: &Path, file: &Path| {
        let first = file.strip_prefix(run).ok()?.components().next()?.as_os_str().to_str()?;
        Some(first == "best" || first.starts_with("step-"))
    };
    run.is_dir()
        && fs::canonicalize(run)
            .ok()
            .zip(fs::canonicalize(file).ok())
            .and_then(|(run, file)| within(&run, &file))
            .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_an_input_is_refused_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["log", "other", "run/best/weights.safetensors", "run/loss.svg"] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), b"x").unwrap();
        }
        let refused = |output: &str, input: &str| refuse_inputs("--to", &at(output), [("FILE", &*at(input))]).is_err();
        assert!(refused("log", "log") && refused("run/../log", "log"));
        assert!(!refused("other", "log") && !refused("new", "new"));
        assert!(refused("run/best/weights.safetensors", "run") && !refused("run/loss.svg", "run"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("log"), at("link")).unwrap();
            fs::hard_link(at("log"), at("hard")).unwrap();
            assert!(refused("link", "log") && refused("log", "link") && refused("hard", "log"));
        }
        let error = refuse_inputs("--to-state", &at("log"), [("FILE", &*at("log"))]).unwrap_err().to_string();
        assert!(error.contains("it is read as FILE, and would be replaced; name another file"), "{error}");
    }
}
