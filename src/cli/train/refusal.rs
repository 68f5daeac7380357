//! What a run is refused or stopped for, under the names of the options that were typed, and the command that goes on.

use std::ffi::OsString;
use std::path::Path;

use anyhow::anyhow;

use super::super::data::{DataChoice, other_data};
use super::super::options::{option, refused};
use super::Args;
use crate::data::DataError;
use crate::data::shell::{quoted, quoted_path};
use crate::train::{BEST_DIR, CheckpointError, GroupError, Stop, TrainError};
use crate::{Recipe, Splits};

impl Args {
    /// An error of the trainer.
    pub fn told(
        &self,
        error: TrainError,
        run_dir: &Path,
        recipe: &Recipe,
        splits: &Splits,
        data: &DataChoice,
    ) -> anyhow::Error {
        match error {
            TrainError::Recipe(error) => refused(&error.field, &error.value, &error.hint, &self.set),
            TrainError::Data(DataError::Lanes { len, n_lanes, .. }) => {
                let option = if (n_lanes, len) == (recipe.batch_size, splits.train.len()) {
                    "batch_size"
                } else {
                    "valid.lanes"
                };
                refused(option, &n_lanes.to_string(), &error.to_string(), &self.set)
            }
            TrainError::Group(GroupError::Batch { batch_size, size }) => {
                let hint = format!("{size} processes share it: use a multiple of {size}, or fewer processes");
                refused("batch_size", &batch_size.to_string(), &hint, &self.set)
            }
            TrainError::Precision { precision, backend } => anyhow!(
                "--precision {} cannot be used: {backend} does not compute in it on this device; use --precision f32, or another --backend",
                precision.name()
            ),
            TrainError::Checkpoint(CheckpointError::Differs { field, saved, given, .. }) => {
                anyhow!("{}", differs(run_dir, [&field, &saved, &given], std::env::args_os().skip(1), data))
            }
            TrainError::Checkpoint(CheckpointError::Occupied { path }) => {
                let what =
                    if path.ends_with(BEST_DIR) { "best weights" } else { "measurements of a run (metrics.jsonl)" };
                anyhow!(
                    "there are {what} in {}, and no checkpoint to go on from: a new run would replace them, name another --out",
                    run_dir.display()
                )
            }
            TrainError::Checkpoint(CheckpointError::OtherCorpus { saved, given, split, difference, .. }) => {
                let own = saved.map_or(String::new(), |saved| format!(" ({saved})"));
                anyhow!(
                    "{}. Resume it with the data that it was started with{own}; a new run goes on with this from its weights: {}",
                    other_data(run_dir, &given, split, &difference),
                    command(run_dir, std::env::args_os().skip(1), data)
                )
            }
            error => error.into(),
        }
    }
}

/// What to say where the run was started with something else, and the way out.
fn differs(
    run_dir: &Path,
    [field, saved, given]: [&str; 3],
    typed: impl Iterator<Item = OsString>,
    data: &DataChoice,
) -> String {
    let run = run_dir.display();
    let other_sizes =
        field.starts_with("model.") && option(field).starts_with("--set") || field.starts_with("model.attend");
    let what = format!("{run} was trained with {} {saved}, not {given}", option(field));
    match other_sizes {
        true => format!("{what}: a model of other sizes is a new run, leave out --resume and name another --out"),
        false => format!(
            "{what}, and its steps so far depend on that; a new run goes on from its weights: {}",
            command(run_dir, typed, data)
        ),
    }
}

/// The command that was typed, as one that starts a new run from the weights of this one on the same data.
fn command(run_dir: &Path, typed: impl Iterator<Item = OsString>, data: &DataChoice) -> String {
    let mut words = vec!["--from".to_string(), quoted_path(run_dir)];
    let mut typed = typed.peekable();
    let is_program = typed.next_if(|word| word == "train").is_some();
    let mut of_data = data.options();
    while let Some(word) = typed.next() {
        let text = word.to_string_lossy().into_owned();
        let named =
            |option: &str| text == option || text.strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
        if text == "--resume" {
            continue;
        }
        // Sizes and the rest of the model are those of the run.
        if named("--out") || named("--preset") {
            if !text.contains('=') {
                typed.next();
            }
            continue;
        }
        of_data.retain(|(names, _)| !names.iter().any(|name| named(name)));
        words.push(quoted(&word));
    }
    for (names, value) in of_data {
        words.push(names[0].into());
        words.extend(value.as_deref().map(quoted));
    }
    let program = if is_program { "sharnn train " } else { "" };
    format!("{program}{}", words.join(" "))
}

/// What to say of a run that was over before this call.
pub fn at_its_end(stop: Stop, recipe: &Recipe, run_dir: &Path) -> String {
    let falls = recipe.phases.iter().any(|phase| phase.schedule != crate::train::Schedule::Constant);
    match stop {
        Stop::Steps | Stop::Epochs | Stop::Time if !falls => {
            "the run has come to the end that it was given: --steps, --epochs or --minutes train it longer".into()
        }
        Stop::Time => "the run has come to the end that it was given: --minutes trains it longer".into(),
        _ => format!(
            "the run has come to the end of its recipe: a longer one is a new run, which can go on from its weights: --from {}",
            quoted_path(run_dir)
        ),
    }
}

/// What to say of a run that did harm: a model that knows nothing needs `log2(vocab_size)` bits, and this one a bit more than that.
/// The training loss, where one is known, must say so too: of a model that knows its training data by heart, or of bytes that were never
/// trained on, the validation may be as bad. `entropy` is that of the bytes by themselves.
pub fn diverged(bpc: f64, train_bpc: Option<f64>, entropy: impl FnOnce() -> f64, vocab_size: usize) -> Option<String> {
    let is_harm = |bpc: f64| bpc > (vocab_size as f64).log2() + 1.0;
    (is_harm(bpc) && train_bpc.is_none_or(is_harm)).then(|| {
        let bpc = if bpc < 1e6 { format!("{bpc:.3}") } else { format!("{bpc:.2e}") };
        format!(
            "the run diverged: at its best it scored {bpc} bits per byte, where the bytes by themselves have an entropy of {:.3}; \
             try a lower --lr, a longer --warmup, or --precision f32",
            entropy()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split_whitespace().map(OsString::from)
    }

    #[test]
    fn a_change_of_what_was_computed_names_the_command_that_makes_it() {
        let dir = Path::new("runs/my run");
        let lr = ["recipe.phases[0].lr", "0.002", "0.0005"];
        let data = DataChoice::of("/a.txt", None, Some(500_000));
        let said = differs(dir, lr, words("train --resume --lr 5e-4 --out runs/my --preset=xs"), &data);
        let expected = "runs/my run was trained with --lr 0.002, not 0.0005, and its steps so far depend on that; a new run goes on from its \
                        weights: sharnn train --from 'runs/my run' --lr 5e-4 --data /a.txt";
        assert_eq!(said, expected);
        let said = differs(dir, ["model.dropout_input", "0", "0.1"], words("--dropout .1 --data b --resume"), &data);
        assert!(
            said.contains("with --dropout 0, not 0.1") && said.ends_with("--from 'runs/my run' --dropout .1 --data b"),
            "{said}"
        );
        let said = differs(dir, ["model.d_model", "16", "32"], words("train --resume"), &data);
        assert!(said.contains("--set model.d_model 16, not 32: a model of other sizes is a new run"), "{said}");
        // As much of it as the run reads, unless the line says otherwise.
        for (scored, typed, options) in [
            (Some(300), "train --resume --lr 5e-4", "--lr 5e-4 --data /a.txt --train-bytes 5000 --valid-bytes 300"),
            (None, "train --resume --lr 5e-4", "--lr 5e-4 --data /a.txt --train-bytes 5000 --full-eval"),
            (None, "train --valid-bytes=9 --train-bytes 7 --resume", "--valid-bytes=9 --train-bytes 7 --data /a.txt"),
            (Some(300), "train --resume --full-eval", "--full-eval --data /a.txt --train-bytes 5000"),
            (Some(300), "train --resume --download", "--download --train-bytes 5000 --valid-bytes 300"),
        ] {
            let said = differs(dir, lr, words(typed), &DataChoice::of("/a.txt", Some(5000), scored));
            assert!(said.ends_with(&format!(": sharnn train --from 'runs/my run' {options}")), "{said}");
        }
    }

    #[test]
    fn a_run_that_is_worse_than_knowing_nothing_has_diverged() {
        let bad = Some(9.2);
        assert_eq!(diverged(8.3, bad, || panic!("all bytes are read"), 256), None);
        assert!(diverged(9.5, bad, || 5.0, 256).unwrap().contains("9.500 bits per byte"));
        assert!(diverged(7.5e11, None, || 5.0, 256).unwrap().contains("7.50e11 bits per byte"));
        assert!(diverged(f64::INFINITY, bad, || 5.0, 256).is_some());
        assert_eq!(diverged(12.0, Some(0.3), || 5.0, 256), None, "it knows its training data by heart");
    }
}
