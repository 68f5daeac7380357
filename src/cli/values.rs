//! What the values of options stand for: presets, recipes, and other names; and fields that are set by their paths.

use crate::train::{Phase, Schedule, json_error};
use crate::{Attend, NGramConfig, Precision, Recipe, ShaRnnConfig};
use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

/// The model of a preset, or the one for a first run.
pub fn preset(name: Option<&str>) -> Result<ShaRnnConfig> {
    let Some(name) = name else { return Ok(ShaRnnConfig { n_layers: 2, ..ShaRnnConfig::xs() }) };
    Ok(match name {
        "xs" => ShaRnnConfig::xs(),
        "s" => ShaRnnConfig::s(),
        "m" => ShaRnnConfig::m(),
        "l" => ShaRnnConfig::enwik8().with_dropout(0.0),
        "paper" => ShaRnnConfig::enwik8(),
        _ => bail!("there is no preset {name:?}: use one of xs, s, m, l, paper"),
    })
}

/// The recipe of that name for the model of a preset, and what it changes of the model. The paper's has short segments and a short
/// warm-up in one phase where the model is not the paper's.
pub fn recipe(name: &str, preset: Option<&str>, config: ShaRnnConfig) -> Result<(ShaRnnConfig, Recipe)> {
    let short = |base: usize, warmup_steps: u64| {
        let phase = Phase { warmup_steps, ..Phase::constant(2e-3, 32) };
        Recipe { phases: vec![phase], ..Recipe::paper().with_segments_around(base) }
    };
    Ok(match (name, preset) {
        // It falls where there is an end.
        ("budget", _) => {
            let config = config.with_mem_len(128).with_dropout(0.0).with_ngrams(NGramConfig::default());
            (config, Recipe::budget(None))
        }
        ("paper", Some("paper")) => (config, Recipe::paper()),
        ("paper", None) => (config.with_mem_len(512), short(64, 50)),
        ("paper", Some("xs" | "s")) => (config, short(256, 100)),
        ("paper", Some("m")) => (config, short(256, 200)),
        ("paper", _) => (config, short(256, 400)),
        _ => bail!("there is no recipe {name:?}: use budget or paper"),
    })
}

/// Lanes to score so many bytes in: no more than `most`, fewer where each would be shorter than some segments.
pub fn lanes(most: usize, bytes: usize, seq_len: usize) -> usize {
    most.min(bytes / 4 / seq_len).max(1)
}

pub fn attend(which: &str) -> Result<Attend> {
    let list = || which.split(',').map(|block| block.trim().parse()).collect::<Result<Vec<usize>, _>>();
    Ok(match which {
        "none" => Attend::None,
        "one" => Attend::SecondLast,
        "all" => Attend::All,
        _ => match list() {
            Ok(blocks) => Attend::Blocks(blocks),
            Err(_) => bail!("--attend {which:?} cannot be used: use none, one, all, or a list of blocks as 0,2"),
        },
    })
}

pub fn schedule(kind: &str) -> Result<Schedule> {
    Ok(match kind {
        "constant" => Schedule::Constant,
        "linear" => Schedule::Linear,
        "cosine" => Schedule::Cosine,
        "late" => Schedule::Late,
        _ => bail!("--schedule {kind:?} cannot be used: use constant, linear, cosine or late"),
    })
}

/// The model and the recipe with fields set by `field=value`. Where they do not make one, that is said of the field that is at fault.
pub fn set_fields(config: ShaRnnConfig, recipe: Recipe, fields: &[String]) -> Result<(ShaRnnConfig, Recipe)> {
    if fields.is_empty() {
        return Ok((config, recipe));
    }
    let before = json!({ "model": config, "recipe": recipe });
    let all = |fields: &[&String]| -> Result<Result<_, serde_json::Error>> {
        let mut all = before.clone();
        fields.iter().try_for_each(|set| set_field(&mut all, set))?;
        Ok(serde_json::from_value(all).map(|All { model, recipe }| (model, recipe)))
    };
    let every: Vec<_> = fields.iter().collect();
    let error = match all(&every)? {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    let refused = |set: &str, error| anyhow!("--set {set} cannot be used: {}", json_error(&error));
    // Some make sense together only: the one without which all others do is at fault.
    for (left_out, set) in fields.iter().enumerate() {
        let others: Vec<_> = every.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, set)| *set).collect();
        if let Ok(Ok(_)) = all(&others) {
            return Err(refused(set, error));
        }
    }
    for set in fields {
        if let Ok(Err(error)) = all(&[set]) {
            return Err(refused(set, error));
        }
    }
    Err(refused(&fields.join(" --set "), error))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct All {
    model: ShaRnnConfig,
    recipe: Recipe,
}

fn set_field(all: &mut Value, set: &str) -> Result<()> {
    let Some((path, value)) = set.split_once('=') else {
        bail!("--set {set:?} cannot be used: write FIELD=VALUE, as model.d_ff=512")
    };
    // A word that is no JSON is a string.
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = all.pointer_mut(&parent.split('.').map(|name| format!("/{name}")).collect::<String>());
    let place = match parent {
        Some(Value::Object(fields)) => Some(fields.entry(field).or_insert(Value::Null)),
        Some(Value::Array(fields)) => field.parse().ok().and_then(|i: usize| fields.get_mut(i)),
        _ => None,
    };
    let Some(place) = place else { bail!("--set {set:?} cannot be used: there is no field {path:?}") };
    *place = value;
    Ok(())
}

/// The precision of that name; `None` for `auto`.
pub fn precision(name: &str) -> Result<Option<Precision>> {
    let known = Precision::ALL.into_iter().find(|(_, known)| *known == name);
    match known {
        Some((precision, _)) => Ok(Some(precision)),
        None if name == "auto" => Ok(None),
        None => bail!("--precision {name:?} cannot be used: use auto, f32 or bf16"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of all fields, those that hold others among them.
    fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
        let mut add = |name: &str, value: &Value| {
            let path = if path.is_empty() { name.into() } else { format!("{path}.{name}") };
            paths(value, &path, found);
            found.push(path);
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| add(name, value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| add(&i.to_string(), value)),
            _ => {}
        }
    }

    #[test]
    fn a_field_that_cannot_be_set_is_named_alone_and_without_a_type() {
        let xs = || ShaRnnConfig::xs().with_ngrams(NGramConfig::default());
        let refused =
            |sets: &[String]| set_fields(xs(), Recipe::budget(None), sets).err().map(|error| format!("{error:#}"));
        let mut fields = Vec::new();
        for recipe in [Recipe::budget(None), Recipe::paper()] {
            paths(&json!({ "model": xs(), "recipe": recipe }), "", &mut fields);
        }
        let mut n = 0;
        for field in fields {
            for value in [
                "null",
                "3",
                "-1",
                "1.5",
                "nan",
                "[]",
                "[3]",
                "{}",
                "true",
                r#"{"a":1}"#,
                r#"{"kind":"fixed","len":"x"}"#,
            ] {
                let set = format!("{field}={value}");
                let Some(said) = refused(std::slice::from_ref(&set)) else { continue };
                n += 1;
                assert!(said.starts_with("--set "), "{said}");
                for internal in
                    ["usize", "f64", "u64", "u8", "struct ", "enum ", "variant ", "tuple ", "Config", "Segment"]
                {
                    assert!(!said.contains(internal) || set.contains(internal), "{set}: {said}");
                }
            }
        }
        assert!(n > 200, "{n} refused");
        let sets = |sets: &[&str]| refused(&sets.iter().map(|set| set.to_string()).collect::<Vec<_>>());
        let said = sets(&["model.d_ff=256", "recipe.seed=-1", "model.n_layers=2"]).unwrap();
        assert_eq!(
            said,
            "--set recipe.seed=-1 cannot be used: invalid value: integer `-1`, expected a whole number of at least 0"
        );
        let said = sets(&["recipe.seed=-1", "model.n_layers=x"]).unwrap();
        assert!(said.starts_with("--set recipe.seed=-1 cannot be used: "), "{said}");
        // Either alone is none, and both are one.
        let fixed = ["recipe.segments={\"kind\":\"fixed\"}", "recipe.segments.len=32"];
        assert_eq!(sets(&fixed), None);
        let said = sets(&[fixed[0], fixed[1], "recipe.seed=x"]).unwrap();
        assert!(said.starts_with("--set recipe.seed=x cannot be used: "), "{said}");
    }
}
