//! What a run is refused or stopped for, under the names of the options that were typed, and the command that goes on.

use std::ffi::OsString;
use std::path::Path;

use anyhow::anyhow;

use super::super::data::{DataChoice, other_data};
use super::super::options::{option, path, refused, typed};
use super::Args;
use crate::data::shell::{quoted, quoted_path};
use crate::data::{DataError, Split};
use crate::train::{BEST_DIR, CheckpointError, GroupError, Stop, TrainError};
use crate::{Recipe, SegmentLengths, Splits};

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
                let is = |lanes, split: &Split| (n_lanes, len) == (lanes, split.len());
                let option = match () {
                    () if is(recipe.batch_size, &splits.train) => "batch_size",
                    () if is(recipe.valid.lanes, &splits.valid) => "valid.lanes",
                    () => "test.lanes",
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
                let typed = std::env::args_os().skip(1).collect();
                anyhow!("{}", Refused { run_dir, typed, data, recipe }.differs([&field, &saved, &given]))
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
                let typed = std::env::args_os().skip(1).collect();
                anyhow!(
                    "{}. Resume it with the data that it was started with{own}; a new run goes on with this from its weights: {}",
                    other_data(run_dir, &given, split, &difference),
                    Refused { run_dir, typed, data, recipe }.command()
                )
            }
            error => error.into(),
        }
    }
}

/// A call that goes on with a run, and asks for something that it cannot have.
struct Refused<'a> {
    run_dir: &'a Path,
    /// The words of the command line.
    typed: Vec<OsString>,
    data: &'a DataChoice,
    /// The recipe that was asked for.
    recipe: &'a Recipe,
}

/// Whether a word of the command line is an option, or an option with its value.
fn is(word: &str, option: &str) -> bool {
    word == option || word.strip_prefix(option).is_some_and(|rest| rest.starts_with('='))
}

impl Refused<'_> {
    /// What to say where the run was started with something else, and the way out.
    fn differs(&self, [field, saved, given]: [&str; 3]) -> String {
        let run = self.run_dir.display();
        let own = option(field);
        let other_kind = field.starts_with("recipe.segments") && (saved == "null" || given == "null");
        let what = match other_kind {
            // The fields of one kind, of which the other has none.
            true if matches!(self.recipe.segments, SegmentLengths::Fixed { .. }) => {
                format!("{run} was trained with segments whose lengths vary")
            }
            true => format!("{run} was trained with segments of one length"),
            false => format!("{run} was trained with {own} {}", typed(field, saved)),
        };
        let is_typed = match other_kind {
            true => self.has("--fixed-segments") || self.sets(field),
            false => self.has(&own) || self.sets(field),
        };
        let given = typed(field, given);
        let names = self.names();
        if !is_typed && !names.is_empty() {
            let alone = if other_kind { "not with such as".into() } else { format!("not {given}, which is that of") };
            return format!(
                "{what}, {alone} {names}: leave {names} out, the run keeps what it was started with; or give all options of its start again"
            );
        }
        let what = match other_kind {
            true if self.has("--fixed-segments") => format!("{what}, not with --fixed-segments"),
            true => format!("{what}, not with --set {}", path("segments")),
            false => format!("{what}, not {given}"),
        };
        let other_sizes = field.starts_with("model.") && own.starts_with("--set") || field.starts_with("model.attend");
        match other_sizes {
            true => format!("{what}: a model of other sizes is a new run, leave out --resume and name another --out"),
            false => format!(
                "{what}, and its steps so far depend on that; a new run goes on from its weights: {}",
                self.command()
            ),
        }
    }

    fn words(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.typed.iter().map(|word| word.to_string_lossy())
    }

    fn has(&self, option: &str) -> bool {
        self.words().any(|word| is(&word, option))
    }

    /// Whether `--set` names this field, or one that holds it.
    fn sets(&self, field: &str) -> bool {
        let field = path(field);
        self.words().any(|word| {
            let set = word.strip_prefix("--set=").unwrap_or(&word).split_once('=').map(|(set, _)| set);
            set.is_some_and(|set| field.strip_prefix(set).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        })
    }

    /// The options that stand for many others, as they were typed.
    fn names(&self) -> String {
        let mut names = Vec::new();
        let mut words = self.words();
        while let Some(word) = words.next() {
            match &*word {
                "--preset" | "--recipe" => names.push(format!("{word} {}", words.next().unwrap_or_default())),
                word if is(word, "--preset") || is(word, "--recipe") => names.push(word.replacen('=', " ", 1)),
                _ => {}
            }
        }
        names.join(" ")
    }

    /// The command that was typed, as one that starts a new run from the weights of this one on the same data.
    fn command(&self) -> String {
        let mut words = vec!["--from".to_string(), quoted_path(self.run_dir)];
        let mut typed = self.typed.iter().peekable();
        let is_program = typed.next_if(|word| *word == "train").is_some();
        let mut of_data = self.data.options();
        while let Some(word) = typed.next() {
            let text = word.to_string_lossy().into_owned();
            if text == "--resume" {
                continue;
            }
            // Sizes and the rest of the model are those of the run.
            if is(&text, "--out") || is(&text, "--preset") {
                if !text.contains('=') {
                    typed.next();
                }
                continue;
            }
            of_data.retain(|(names, _)| !names.iter().any(|name| is(&text, name)));
            words.push(quoted(word));
        }
        // A new run has segments of one length unless its recipe says otherwise.
        if matches!(self.recipe.segments, SegmentLengths::Random { .. }) && !self.has("--recipe") {
            words.extend(["--recipe".into(), "paper".into()]);
            if !self.has("--seq-len") {
                words.extend(["--seq-len".into(), self.recipe.segments.max().to_string()]);
            }
        }
        for (names, value) in of_data {
            words.push(names[0].into());
            words.extend(value.as_deref().map(quoted));
        }
        let program = if is_program { "sharnn train " } else { "" };
        format!("{program}{}", words.join(" "))
    }
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

    /// What is said of a command line where a field differs.
    fn said(dir: &Path, differing: [&str; 3], line: &str, data: &DataChoice, recipe: &Recipe) -> String {
        let typed = line.split_whitespace().map(OsString::from).collect();
        Refused { run_dir: dir, typed, data, recipe }.differs(differing)
    }

    #[test]
    fn a_change_of_what_was_computed_names_the_command_that_makes_it() {
        let dir = Path::new("runs/my run");
        let lr = ["recipe.phases[0].lr", "0.002", "0.0005"];
        let data = DataChoice::of("/a.txt", None, Some(500_000));
        let budget = Recipe::budget(None);
        let differs = |differing, line, data: &DataChoice| said(dir, differing, line, data, &budget);
        let said = differs(lr, "train --resume --lr 5e-4 --out runs/my --preset=xs", &data);
        let expected = "runs/my run was trained with --lr 0.002, not 0.0005, and its steps so far depend on that; a new run goes on from its \
                        weights: sharnn train --from 'runs/my run' --lr 5e-4 --data /a.txt";
        assert_eq!(said, expected);
        let said = differs(["model.dropout_input", "0", "0.1"], "--dropout .1 --data b --resume", &data);
        assert!(
            said.contains("with --dropout 0, not 0.1") && said.ends_with("--from 'runs/my run' --dropout .1 --data b"),
            "{said}"
        );
        let said = differs(["model.d_model", "16", "32"], "train --resume --set model.d_model=32", &data);
        assert!(said.contains("--set model.d_model 16, not 32: a model of other sizes is a new run"), "{said}");
        let said = differs(["model.attend", "\"second-last\"", "\"all\""], "train --resume --attend all", &data);
        assert!(said.contains("with --attend one, not all: a model of other sizes is a new run"), "{said}");
        // As much of it as the run reads, unless the line says otherwise.
        for (scored, typed, options) in [
            (Some(300), "train --resume --lr 5e-4", "--lr 5e-4 --data /a.txt --train-bytes 5000 --valid-bytes 300"),
            (None, "train --resume --lr 5e-4", "--lr 5e-4 --data /a.txt --train-bytes 5000 --full-eval"),
            (None, "train --valid-bytes=9 --train-bytes 7 --resume", "--valid-bytes=9 --train-bytes 7 --data /a.txt"),
            (Some(300), "train --resume --full-eval", "--full-eval --data /a.txt --train-bytes 5000"),
            (Some(300), "train --resume --download", "--download --train-bytes 5000 --valid-bytes 300"),
        ] {
            let said = differs(lr, typed, &DataChoice::of("/a.txt", Some(5000), scored));
            assert!(said.ends_with(&format!(": sharnn train --from 'runs/my run' {options}")), "{said}");
        }
    }

    #[test]
    fn what_was_not_typed_is_not_blamed() {
        let (dir, data) = (Path::new("run"), DataChoice::of("a", None, Some(500_000)));
        let (paper, budget) = (Recipe::paper().with_segments_around(16), Recipe::budget(None));
        for (differing, line, recipe, expected) in [
            (
                ["model.d_ff", "40", "512"],
                "train --resume --recipe paper",
                &paper,
                "run was trained with --set model.d_ff 40, not 512, which is that of --recipe paper: leave --recipe paper out, ",
            ),
            (
                ["model.mem_len", "64", "5000"],
                "train --resume --preset=xs --recipe paper",
                &paper,
                "run was trained with --mem-len 64, not 5000, which is that of --preset xs --recipe paper: leave ",
            ),
            (
                ["recipe.segments.base", "16", "null"],
                "train --resume --recipe budget",
                &budget,
                "run was trained with segments whose lengths vary, not with such as --recipe budget: leave ",
            ),
            (
                ["model.mem_len", "64", "32"],
                "train --resume --recipe paper --mem-len 32",
                &paper,
                "run was trained with --mem-len 64, not 32, and its steps",
            ),
            (
                ["recipe.segments.base", "16", "null"],
                "train --resume --fixed-segments",
                &budget,
                "run was trained with segments whose lengths vary, not with --fixed-segments, and its steps",
            ),
            (
                ["recipe.segments.base", "null", "16"],
                "train --resume --set recipe.segments={}",
                &paper,
                "run was trained with segments of one length, not with --set recipe.segments, and its steps",
            ),
        ] {
            let said = said(dir, differing, line, &data, recipe);
            assert!(said.starts_with(expected), "{said}");
        }
        let multiple = ["recipe.segments.multiple", "1", "8"];
        let said = said(dir, multiple, "train --resume --segment-multiple 8 --out run", &data, &paper);
        assert!(
            said.ends_with(": sharnn train --from run --segment-multiple 8 --recipe paper --seq-len 16 --data a"),
            "{said}"
        );
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
