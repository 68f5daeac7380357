//! Fields of the model and of the recipe as the options that set them: what a message is to name.

use std::error::Error;

use anyhow::anyhow;

use crate::ConfigError;
use crate::core::{GenerateError, SamplingError, StateError};
use crate::data::DataError;
use crate::train::{CheckpointError, EvalError, GroupError, RecipeError, TrainError, WeightsError, json_error};

/// The option that sets a field, which is named as errors name it: `phases[0].lr` of the recipe, `model.mem_len`.
pub fn option(field: &str) -> String {
    let path = path(field);
    let known = match path.strip_prefix("recipe.").unwrap_or(&path) {
        "model.mem_len" => "--mem-len",
        "model.attend" => "--attend",
        "model.dropout_input" | "model.dropout_hidden" | "model.dropout_output" => "--dropout",
        "batch_size" => "--batch",
        "segments.multiple" => "--segment-multiple",
        "segments" | "segments.len" | "segments.base" | "segments.max" | "valid.seq_len" | "test.seq_len"
        | "seq_len" => "--seq-len",
        "valid.lanes" | "test.lanes" => "--eval-batch",
        "precision" | "valid.precision" | "test.precision" => "--precision",
        "seed" => "--seed",
        "valid_every_steps" => "--valid-every",
        "options.log_every" => "--log-every",
        "options.checkpoint_every" => "--checkpoint-every",
        "options.recompute" => "--recompute",
        "options.score_start" => "--from",
        "options.max_steps" => "--steps",
        "options.max_epochs" => "--epochs",
        "dynamic.lr" => "--dynamic-eval",
        "dynamic.decay" => "--dynamic-decay",
        "temperature" => "--temperature",
        "top_k" => "--top-k",
        "top_p" => "--top-p",
        field if field.starts_with("model.attend.") => "--attend",
        field => match field.strip_prefix("phases.").and_then(|field| field.split_once('.')) {
            Some((_, "lr")) => "--lr",
            Some((_, "warmup_steps")) => "--warmup",
            Some((_, "schedule")) => "--schedule",
            Some((_, "epochs")) => "--epochs",
            Some((_, "steps")) => "--steps",
            _ => return format!("--set {path}"),
        },
    };
    known.into()
}

/// A field's path as `--set` takes it.
pub fn path(field: &str) -> String {
    let dotted = field.replace('[', ".").replace(']', "");
    let has_root = ["model.", "recipe.", "options."].iter().any(|root| dotted.starts_with(root));
    if has_root { dotted } else { format!("recipe.{dotted}") }
}

/// The value of a field as it is typed after the option that sets it, where it is one of JSON.
pub fn typed(field: &str, value: &str) -> String {
    let path = path(field);
    let list = || value.chars().filter(|c| c.is_ascii_digit() || *c == ',').collect::<String>();
    match (path.strip_prefix("model.attend"), value.trim_matches('"')) {
        (Some("" | ".blocks"), "second-last") => "one".into(),
        (Some("" | ".blocks"), name @ ("none" | "all")) => name.into(),
        (Some("" | ".blocks"), _) if list().is_empty() => "none".into(),
        (Some("" | ".blocks"), _) => list(),
        (Some(_), _) => format!("a list with {value}"),
        (None, _) if option(field).starts_with("--set ") => value.into(),
        (None, "null") => "none".into(),
        (None, text) => text.into(),
    }
}

/// A value that cannot be used, under the name by which it was typed: that of its option, or of `--set`.
pub fn refused(field: &str, value: &str, hint: &str, set: &[String]) -> anyhow::Error {
    let path = path(field);
    let typed = set.iter().rev().find(|set| set.split_once('=').is_some_and(|(typed, _)| typed == path));
    match typed {
        Some(typed) => anyhow!("--set {typed} cannot be used: {hint}"),
        None => anyhow!("{} {} cannot be used: {hint}", option(field), self::typed(field, value)),
    }
}

/// Why a split cannot be scored, where the options of `eval` say more than those of `train`.
pub fn of_eval(error: EvalError) -> anyhow::Error {
    match error {
        EvalError::SegmentTooLong { seq_len, mem_len } => anyhow!(
            "--seq-len {seq_len} cannot be used: the memory is {mem_len} bytes long; give --seq-len {mem_len} or less, or another --mem-len (0 for none)"
        ),
        EvalError::Lanes(error) => anyhow!("{error} (--lanes)"),
        error => error.into(),
    }
}

/// What is said of an error whose own text has a field's name: that of the option, or of what a file's model has.
pub fn told(error: &(dyn Error + 'static)) -> Option<String> {
    let unusable = |field: &str, value: &dyn ToString, hint: &str| {
        let value = value.to_string();
        Some(format!("{} {} cannot be used: {hint}", option(field), typed(field, &value)))
    };
    if let Some(error) = error.downcast_ref() {
        return match error {
            TrainError::Recipe(error) => told(error),
            TrainError::Data(error) => told(error),
            TrainError::Weights(error) => told(error),
            TrainError::Checkpoint(error) => told(error),
            TrainError::Group(error) => told(error),
            _ => None,
        };
    }
    if let Some(RecipeError { field, value, hint }) = error.downcast_ref() {
        return unusable(field, value, hint);
    }
    if let Some(SamplingError { field, value, hint }) = error.downcast_ref() {
        return unusable(field, value, hint);
    }
    if let Some(error) = error.downcast_ref() {
        return Some(json_error(error));
    }
    // What was typed was checked before: it is that of a file.
    if let Some(ConfigError { field, value, hint }) = error.downcast_ref() {
        return Some(format!("{} cannot be used: {hint}", part(field, value)));
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            EvalError::Zero { field } => unusable(field, &0, "use at least 1"),
            EvalError::Rate { field, value, expected } => unusable(field, value, &format!("use {expected}")),
            EvalError::Lanes(error) => told(error),
            _ => None,
        };
    }
    if let Some(DataError::SegmentLengths { field, found, expected }) = error.downcast_ref() {
        return unusable(&format!("segments.{field}"), found, &format!("it {expected}"));
    }
    if let Some(GenerateError::Sampling(error)) = error.downcast_ref() {
        return told(error);
    }
    if let Some(StateError::Shape { field, expected, found }) = error.downcast_ref() {
        let [found, expected] = [found, expected].map(|value| part(field, value));
        return Some(format!(
            "the stream state is of a model with {found}, expected {expected}: go on with the model that it is of"
        ));
    }
    if let Some(WeightsError::Config { file, field, saved, what, found }) = error.downcast_ref() {
        let [saved, found] = [saved, found].map(|value| part(field, value));
        return Some(format!("{file} says that its model has {saved}, but {what} {found}: load it as what it is"));
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            CheckpointError::Differs { checkpoint, field, saved, given } => Some(format!(
                "{} was trained with {} {}, not {}: resume it with what it was started with, or name another --out",
                checkpoint.display(),
                option(field),
                typed(field, saved),
                typed(field, given)
            )),
            CheckpointError::Weights(error) => told(error),
            _ => None,
        };
    }
    if let Some(GroupError::Differs { rank, size, field, found, expected }) = error.downcast_ref() {
        return Some(format!(
            "process {rank} of {size} has {} {found} where process 0 has {expected}: all must run the same program with the same \
             options on the same data",
            of_process(field)
        ));
    }
    None
}

/// What a process was started with, by the field in which the processes of a group compare it.
fn of_process(field: &str) -> String {
    match field.split_once('.') {
        Some(("config", field)) => option(&format!("model.{field}")),
        Some(("recipe", _)) => option(field),
        Some(("corpus", field)) => format!("--data with {}", field.replace(['.', '_'], " ")),
        _ => match field {
            "program" | "backend" | "instructions" => field.into(),
            "has_checkpoint" => "a checkpoint in --out".into(),
            field => option(&format!("options.{field}")),
        },
    }
}

/// A part of a model, by the field of its configuration.
fn part(field: &str, value: &str) -> String {
    match field {
        "n_layers" if value == "1" => "one block".into(),
        "n_heads" if value == "1" => "one head".into(),
        "vocab_size" => format!("{value} symbols"),
        "d_model" => format!("a width of {value}"),
        "d_ff" => format!("a Boom of {value}"),
        "n_layers" => format!("{value} blocks"),
        "n_heads" => format!("{value} heads"),
        "mem_len" => format!("a memory of {value}"),
        "attend" => format!("attention in blocks {value}"),
        // A digit for each block.
        "attends" => {
            let blocks: Vec<_> =
                value.bytes().enumerate().filter(|(_, digit)| *digit == b'1').map(|(i, _)| i).collect();
            format!("attention in blocks {blocks:?}")
        }
        field => format!("a {} of {value}", field.replace('_', " ")),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use burn::backend::{Autodiff, Flex};

    use crate::train::{DynamicEval, EvalConfig, Interrupt, LambConfig, MuonConfig, evaluate_dynamic};
    use crate::{Attend, Recipe, Sampling, SegmentLengths, ShaRnnConfig};

    use super::*;

    const FOLDERS: [&str; 6] =
        ["src", "sharnn-core/src", "sharnn-data/src", "sharnn-kernels/src", "sharnn-onnx/src", "sharnn-train/src"];

    /// Every file of Rust under a folder.
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// The texts of a file's errors, with what is put into them in braces.
    fn texts(source: &str) -> Vec<String> {
        // Not this line itself.
        let attributes = source.split(concat!("#[", "error(")).skip(1);
        let text = |rest: &str| {
            let literal = rest.trim_start().strip_prefix('"')?;
            let (mut text, mut chars) = (String::new(), literal.chars());
            loop {
                match chars.next()? {
                    '"' => return Some(text),
                    // The end of a line is none of the text, nor is what the next one begins with.
                    '\\' if chars.next()? == '\n' => {
                        chars = chars.as_str().trim_start().chars();
                    }
                    '\\' => {}
                    c => text.push(c),
                }
            }
        };
        attributes.filter_map(text).collect()
    }

    /// What of a text is the same for all values.
    fn constant(text: &str) -> Vec<&str> {
        text.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest)).collect()
    }

    /// The first word that only who reads the source knows.
    fn internal(text: &str) -> Option<&str> {
        let part = |c: char| c.is_alphanumeric() || "_.[]()".contains(c);
        let words = text.split(|c| !part(c)).map(|word| word.trim_end_matches('.'));
        // A variable of the environment is typed as it is.
        let is_variable = |word: &str| word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        // PyTorch's word for what a file is to hold.
        words.filter(|word| *word != "state_dict" && !is_variable(word)).find(|word| {
            ["recipe.", "phases[", "model."].iter().any(|root| word.starts_with(root))
                || word.contains('_')
                || word.ends_with("()")
        })
    }

    /// Those that can be made and those that can't.
    #[test]
    fn no_error_of_any_crate_names_what_is_internal() {
        assert_eq!(internal("phases[0].lr = NaN cannot be used"), Some("phases[0].lr"));
        assert_eq!(internal("use recipe.test.lanes"), Some("recipe.test.lanes"));
        assert_eq!(internal("or call end_segment() on it"), Some("end_segment()"));
        assert_eq!(internal("name it in LD_LIBRARY_PATH"), None);
        let (mut files, mut n) = (Vec::new(), 0);
        for folder in FOLDERS {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        }
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            // Lines of Python, for what PyTorch wrote.
            for text in texts(&source).into_iter().filter(|text| !text.contains("torch.load")) {
                n += 1;
                assert_eq!(internal(&constant(&text).join("X")), None, "{}: {text}", file.display());
            }
        }
        assert!(n > 80, "{n} messages");
    }

    /// An error that has a name of a field in its text, as a command says it.
    fn said(error: impl Error + Send + Sync + 'static) -> String {
        super::super::in_one_line(&anyhow::Error::from(error).context("it failed"))
    }

    /// One of each kind that holds the name of a field, with what is said of it, an option's name first.
    fn with_fields() -> Vec<(String, String, &'static str)> {
        let mut all = Vec::new();
        let mut add = |text: String, said: String, expected| all.push((text, said, expected));
        macro_rules! add {
            ($error:expr, $expected:expr) => {
                add($error.to_string(), said($error), $expected)
            };
        }
        let hint = || "use less".to_string();
        let config = |field, value: &str| ConfigError { field, value: value.into(), hint: hint() };
        let recipe = |field: &str| RecipeError { field: field.into(), value: "0".into(), hint: hint() };
        add!(recipe("phases[0].lr"), "--lr 0 cannot be used: use less");
        add!(recipe("model.mem_len"), "--mem-len 0 cannot be used: use less");
        add!(TrainError::from(recipe("options.log_every")), "--log-every 0 cannot be used: use less");
        add!(config("d_ff", "1"), "a Boom of 1 cannot be used: use less");
        let unusable = |source| WeightsError::Unusable { file: "a".into(), source };
        add!(unusable(config("mem_len", "9")), "the model of a: a memory of 9 cannot be used: use less");
        add!(
            TrainError::from(CheckpointError::from(unusable(config("dropout_input", "1")))),
            "the model of a: a dropout input of 1 cannot be used: use less"
        );
        let (sizes, tensors) =
            ("its tensors have", "a says that its model has a width of 16, but its tensors have a width of 8: load");
        let differing = |field, saved: &str, found: &str| WeightsError::Config {
            file: "a".into(),
            field,
            saved: saved.into(),
            what: sizes,
            found: found.into(),
        };
        add!(differing("d_model", "16", "8"), tensors);
        add!(CheckpointError::from(differing("d_model", "16", "8")), tensors);
        add!(
            differing("attend", "[0]", "[2]"),
            "a says that its model has attention in blocks [0], but its tensors have"
        );
        add!(Sampling { top_k: Some(0), ..Sampling::default() }.validate().unwrap_err(), "--top-k 0 cannot be used: ");
        add!(
            GenerateError::from(Sampling { temperature: -1.0, ..Sampling::default() }.validate().unwrap_err()),
            "--temperature -1 cannot be used: "
        );
        add!(
            SegmentLengths::around(16).with_multiple(0).validate().unwrap_err(),
            "--segment-multiple 0 cannot be used: it must"
        );
        let shape = |field, expected: &str, found: &str| StateError::Shape {
            field,
            expected: expected.into(),
            found: found.into(),
        };
        add!(shape("d_model", "16", "8"), "the stream state is of a model with a width of 8, expected a width of 16");
        add!(
            shape("attends", "0010", "1001"),
            "the stream state is of a model with attention in blocks [0, 3], expected"
        );
        add!(
            TrainError::from(CheckpointError::Differs {
                checkpoint: "a".into(),
                field: "recipe.phases[0].lr".into(),
                saved: "1".into(),
                given: "2".into()
            }),
            "a was trained with --lr 1, not 2: resume it with what it was started with"
        );
        for (field, expected) in [
            ("recipe.phases[1].lr", "process 1 of 2 has --lr 2 where process 0 has 1: all must"),
            ("recipe.lamb.beta1", "process 1 of 2 has --set recipe.lamb.beta1 2 where process 0 has 1: all must"),
            ("config.mem_len", "process 1 of 2 has --mem-len 2 where process 0 has 1: all must"),
            ("config.d_model", "process 1 of 2 has --set model.d_model 2 where process 0 has 1: all must"),
            ("corpus.train.bytes", "process 1 of 2 has --data with train bytes 2 where process 0 has 1: all must"),
            ("instructions", "process 1 of 2 has instructions 2 where process 0 has 1: all must"),
            ("has_checkpoint", "process 1 of 2 has a checkpoint in --out 2 where process 0 has 1: all must"),
            ("log_every", "process 1 of 2 has --log-every 2 where process 0 has 1: all must"),
            ("checkpoint_every", "process 1 of 2 has --checkpoint-every 2 where process 0 has 1: all must"),
            ("recompute", "process 1 of 2 has --recompute 2 where process 0 has 1: all must"),
            ("score_start", "process 1 of 2 has --from 2 where process 0 has 1: all must"),
            ("max_steps", "process 1 of 2 has --steps 2 where process 0 has 1: all must"),
            ("max_epochs", "process 1 of 2 has --epochs 2 where process 0 has 1: all must"),
        ] {
            let (found, one) = ("2".to_string(), "1".to_string());
            let differs = || GroupError::Differs {
                rank: 1,
                size: 2,
                field: field.into(),
                found: found.clone(),
                expected: one.clone(),
            };
            add!(TrainError::from(differs()), expected);
        }
        let model = ShaRnnConfig { d_model: 8, d_ff: 16, mem_len: 8, ..ShaRnnConfig::xs() };
        for (seq_len, lr, decay, eps, prior_segments, expected) in [
            (0, 0.1, 0.1, 0.1, 1, "--seq-len 0 cannot be used: use at least 1"),
            (4, -1.0, 0.1, 0.1, 1, "--dynamic-eval -1 cannot be used: use a finite number"),
            (4, 0.1, -1.0, 0.1, 1, "--dynamic-decay -1 cannot be used: use a finite number"),
        ] {
            let error = || {
                evaluate_dynamic(
                    model.init_seeded::<Autodiff<Flex>>(1, &Default::default()),
                    b"some text",
                    b"some text",
                    &EvalConfig { lanes: 1, seq_len, ..EvalConfig::default() },
                    &DynamicEval { lr, decay, eps, prior_segments },
                    &Default::default(),
                    &Interrupt::default(),
                    |_, _| {},
                )
                .unwrap_err()
            };
            add!(error(), expected);
        }
        all
    }

    /// The errors are real ones, and there is one of every text that a field's name is put into.
    #[test]
    fn an_error_that_holds_a_field_is_said_with_its_option() {
        let errors = with_fields();
        for (_, said, expected) in &errors {
            let rest = said.strip_prefix("it failed: ").and_then(|said| said.strip_prefix(expected));
            assert!(rest.is_some(), "{expected:?}: {said}");
            // `--set` is followed by a path.
            let words = said.replace("--set recipe.", "").replace("--set model.", "").replace("d_model", "");
            assert_eq!(internal(&words), None, "{said}");
        }
        let (mut files, mut n) = (Vec::new(), 0);
        for folder in FOLDERS {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        }
        for text in files.iter().flat_map(|file| texts(&fs::read_to_string(file).unwrap())) {
            if text.contains("{field}") {
                n += 1;
                let is_of = |error: &String| constant(&text).into_iter().all(|part| error.contains(part));
                assert!(errors.iter().any(|(error, ..)| is_of(error)), "none of the errors says {text:?}");
            }
        }
        assert!(n >= 9, "{n} texts");
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_by_its_option() {
        let config = || ShaRnnConfig::xs().with_mem_len(64);
        let recipe = || Recipe { segments: SegmentLengths::Fixed { len: 32 }, ..Recipe::budget(Some(9)) };
        type Change = fn(&mut ShaRnnConfig, &mut Recipe);
        let cases: [(Change, &str); 22] = [
            (|_, r| r.batch_size = 0, "--batch 0"),
            (|_, r| r.segments = SegmentLengths::Fixed { len: 0 }, "--seq-len 0"),
            (|_, r| r.segments = SegmentLengths::Fixed { len: 65 }, "--seq-len 65"),
            (|_, r| r.segments = SegmentLengths::around(16).with_multiple(0), "--segment-multiple 0"),
            (|_, r| r.phases[0].lr = f64::NAN, "--lr NaN"),
            (|_, r| r.phases[0].epochs = 0, "--epochs 0"),
            (|_, r| r.phases[0].steps = Some(0), "--steps 0"),
            (|_, r| r.valid_every_steps = Some(0), "--valid-every 0"),
            (|_, r| r.valid = EvalConfig { lanes: 0, ..r.valid.clone() }, "--eval-batch 0"),
            (|_, r| r.test = EvalConfig { lanes: 0, ..r.test.clone() }, "--eval-batch 0"),
            (|_, r| r.test.seq_len = 0, "--seq-len 0"),
            (|_, r| r.valid.seq_len = 99, "--seq-len 99"),
            (|_, r| r.phases.clear(), "--set recipe.phases []"),
            (|_, r| r.max_skipped_in_a_row = 0, "--set recipe.max_skipped_in_a_row 0"),
            (|_, r| r.lamb = LambConfig { max_trust: Some(-1.0), ..r.lamb.clone() }, "--set recipe.lamb.max_trust -1"),
            (|_, r| r.muon = Some(MuonConfig { rate: 0.0, ..MuonConfig::default() }), "--set recipe.muon.rate 0"),
            (|c, _| c.mem_len = usize::MAX, "--mem-len 18446744073709551615"),
            (|c, _| c.dropout_hidden = 1.0, "--dropout 1"),
            (|c, _| c.attend = Attend::Blocks(vec![9]), "--attend 9"),
            (|c, _| c.n_heads = 3, "--set model.n_heads 3"),
            (|c, _| c.d_ff = 1, "--set model.d_ff 1"),
            (|c, _| c.n_layers = 1, "--attend one"),
        ];
        for (change, named) in cases {
            let (mut config, mut recipe) = (config(), recipe());
            change(&mut config, &mut recipe);
            let error = recipe.validate_for(&config).unwrap_err();
            let said = refused(&error.field, &error.value, &error.hint, &[]).to_string();
            let rest = said.strip_prefix(named).and_then(|rest| rest.strip_prefix(" cannot be used: "));
            let rest = rest.unwrap_or_else(|| panic!("{named}: {said}"));
            assert_eq!(internal(rest), None, "{said}");
        }
        for (value, expected) in [
            ("\"second-last\"", "one"),
            ("\"none\"", "none"),
            ("\"all\"", "all"),
            ("{\"blocks\":[0,2]}", "0,2"),
            ("{\"blocks\":[]}", "none"),
        ] {
            assert_eq!(typed("model.attend", value), expected);
        }
        assert_eq!(option("model.attend.blocks[0]"), "--attend");
        assert_eq!([typed("precision", "\"bf16\""), typed("valid_every_steps", "null")], ["bf16", "none"]);
        let typed = ["recipe.phases.0.lr=nan".to_string()];
        assert_eq!(
            refused("phases[0].lr", "NaN", "no", &typed).to_string(),
            "--set recipe.phases.0.lr=nan cannot be used: no"
        );
        let error = of_eval(EvalError::SegmentTooLong { seq_len: 65, mem_len: 64 }).to_string();
        assert!(error.starts_with("--seq-len 65 cannot be used: ") && internal(&error).is_none(), "{error}");
    }
}
