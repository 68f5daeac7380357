//! What the values of options stand for: presets, recipes, and other names; and fields that are set by their paths.

use crate::train::{Phase, Schedule};
use crate::{Attend, Precision, Recipe, ShaRnnConfig};
use anyhow::{Context, Result, bail};
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
        ("budget", _) => (config.with_mem_len(512).with_dropout(0.0), Recipe::budget(None)),
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

/// The model and the recipe with fields set by `field=value`.
pub fn set_fields(config: ShaRnnConfig, recipe: Recipe, fields: &[String]) -> Result<(ShaRnnConfig, Recipe)> {
    if fields.is_empty() {
        return Ok((config, recipe));
    }
    let mut all = json!({ "model": config, "recipe": recipe });
    for set in fields {
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
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct All {
        model: ShaRnnConfig,
        recipe: Recipe,
    }
    let All { model, recipe } =
        serde_json::from_value(all).with_context(|| format!("--set {} cannot be used", fields.join(" --set ")))?;
    Ok((model, recipe))
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
