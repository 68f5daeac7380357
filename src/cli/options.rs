//! Fields of the model and of the recipe as the options that set them: what a message is to name.

use anyhow::anyhow;

use crate::train::EvalError;

/// The option that sets a field, which is named as errors name it: `phases[0].lr` of the recipe, `model.mem_len`.
pub fn option(field: &str) -> String {
    let path = path(field);
    let known = match path.strip_prefix("recipe.").unwrap_or(&path) {
        "model.mem_len" => "--mem-len",
        "model.attend" => "--attend",
        "model.dropout_input" | "model.dropout_hidden" | "model.dropout_output" => "--dropout",
        "batch_size" => "--batch",
        "segments.multiple" => "--segment-multiple",
        "segments" | "segments.len" | "segments.base" | "segments.max" | "valid.seq_len" | "test.seq_len" => {
            "--seq-len"
        }
        "valid.lanes" | "test.lanes" => "--eval-batch",
        "precision" | "valid.precision" | "test.precision" => "--precision",
        "seed" => "--seed",
        "valid_every_steps" => "--valid-every",
        "options.log_every" => "--log-every",
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

/// A value that cannot be used, under the name by which it was typed: that of its option, or of `--set`.
pub fn refused(field: &str, value: &str, hint: &str, set: &[String]) -> anyhow::Error {
    let path = path(field);
    let typed = set.iter().rev().find(|set| set.split_once('=').is_some_and(|(typed, _)| typed == path));
    match typed {
        Some(typed) => anyhow!("--set {typed} cannot be used: {hint}"),
        None => anyhow!("{} {value} cannot be used: {hint}", option(field)),
    }
}

/// Why a split cannot be scored, under the names of the options of `eval`.
pub fn of_eval(error: EvalError) -> anyhow::Error {
    match error {
        EvalError::Zero { .. } => anyhow!("--seq-len 0 cannot be used: use at least 1"),
        EvalError::Rate { field, value, expected } => {
            let option = if field == "decay" { "--dynamic-decay" } else { "--dynamic-eval" };
            anyhow!("{option} {value} cannot be used: use {expected}")
        }
        EvalError::SegmentTooLong { seq_len, mem_len } => anyhow!(
            "--seq-len {seq_len} cannot be used: the memory is {mem_len} bytes long; give --seq-len {mem_len} or less, or another --mem-len (0 for none)"
        ),
        EvalError::Lanes(error) => anyhow!("{error} (--lanes)"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::train::{EvalConfig, LambConfig, MuonConfig};
    use crate::{Attend, Recipe, Sampling, SegmentLengths, ShaRnnConfig};

    use super::*;

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

    /// The texts of a file's errors, with an X for what is put into them.
    fn texts(source: &str) -> Vec<String> {
        let attributes = source.split("#[error(").skip(1);
        let text = |rest: &str| {
            let literal = rest.trim_start().strip_prefix('"')?;
            let (mut text, mut depth, mut chars) = (String::new(), 0, literal.chars());
            loop {
                match chars.next()? {
                    '"' => return Some(text),
                    '\\' => drop(chars.next()),
                    '{' => {
                        text.push('X');
                        depth += 1;
                    }
                    '}' => depth -= 1,
                    c if depth == 0 => text.push(c),
                    _ => {}
                }
            }
        };
        attributes.filter_map(text).collect()
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
        for folder in
            ["src", "sharnn-core/src", "sharnn-data/src", "sharnn-kernels/src", "sharnn-onnx/src", "sharnn-train/src"]
        {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        }
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            // Lines of Python, for what PyTorch wrote.
            for text in texts(&source).into_iter().filter(|text| !text.contains("torch.load")) {
                n += 1;
                assert_eq!(internal(&text), None, "{}: {text}", file.display());
            }
        }
        assert!(n > 80, "{n} messages");
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
            (|c, _| c.attend = Attend::Blocks(vec![9]), "--attend [9]"),
            (|c, _| c.n_heads = 3, "--set model.n_heads 3"),
            (|c, _| c.d_ff = 1, "--set model.d_ff 1"),
            (|c, _| c.n_layers = 1, "--attend second-last"),
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
        let typed = ["recipe.phases.0.lr=nan".to_string()];
        assert_eq!(
            refused("phases[0].lr", "NaN", "no", &typed).to_string(),
            "--set recipe.phases.0.lr=nan cannot be used: no"
        );
        for (sampling, field) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { top_k: Some(0), ..Sampling::default() }, "top_k"),
            (Sampling { top_p: Some(2.0), ..Sampling::default() }, "top_p"),
        ] {
            let error = sampling.validate().unwrap_err();
            assert_eq!((error.field, internal(error.hint)), (field, None));
        }
        for error in [
            EvalError::Zero { field: "seq_len" },
            EvalError::Rate { field: "lr", value: -1.0, expected: "a number above 0" },
            EvalError::Rate { field: "decay", value: -1.0, expected: "a number above 0" },
            EvalError::SegmentTooLong { seq_len: 65, mem_len: 64 },
        ] {
            let said = of_eval(error).to_string();
            assert!(said.starts_with("--") && internal(&said).is_none(), "{said}");
        }
    }
}
