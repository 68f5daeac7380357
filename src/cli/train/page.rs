//! What a run's directory says of itself to whoever opens it: a page, the loss curve, a sample of text.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::super::plot::{Curve, Over, draw};
use super::super::report::Reached;
use super::super::runs::{PAGE, PICTURE, SAMPLE};
use super::super::{adapt, outputs};
use super::origin::Origin;
use crate::Splits;
use crate::data::shell::quoted_path;
use crate::train::{Manifest, latest_manifest, printable_line};

/// What a run that has come to its end leaves beside its scores.
pub struct Outcome {
    /// Text from the best weights.
    pub sample: Vec<u8>,
    /// Validation and test, mixed with what was read, where that was measured.
    pub adaptive: Option<[f64; 2]>,
}

/// Writes the page and what belongs to it. A run that stopped before its first record has no picture yet, and one that goes on
/// has no sample.
pub fn write(run_dir: &Path, splits: &Splits, outcome: Option<&Outcome>) -> Result<()> {
    let put = |name: &str, contents: &[u8]| outputs::write(&run_dir.join(name), contents);
    let picture = match Curve::read(run_dir, Over::Steps) {
        Ok(curve) => {
            draw(&run_dir.join(PICTURE), &[curve], Over::Steps, None)
                .with_context(|| format!("cannot draw {}", run_dir.join(PICTURE).display()))?;
            true
        }
        Err(_) => false,
    };
    if let Some(Outcome { sample, .. }) = outcome {
        put(SAMPLE, sample)?;
    }
    if let Some((_, manifest)) = latest_manifest(run_dir)? {
        put(PAGE, page(run_dir, &manifest, splits, picture, outcome)?.as_bytes())?;
    }
    Ok(())
}

fn page(
    run_dir: &Path,
    manifest: &Manifest,
    splits: &Splits,
    picture: bool,
    outcome: Option<&Outcome>,
) -> Result<String> {
    let sample = outcome.is_some();
    let Manifest { config, recipe, position, seconds, backend, .. } = manifest;
    let mut page = String::from("# A SHA-RNN training run\n\n");
    writeln!(page, "- trained: {} steps, {} bytes, {seconds:.0} seconds on {backend}", position.step, position.bytes)?;
    if let Some(Origin { model }) = Origin::kept(run_dir)? {
        writeln!(page, "- started from: {}", printable_line(&model))?;
    }
    for line in Reached::of(run_dir).lines() {
        writeln!(page, "- {line}")?;
    }
    if let Some(Outcome { adaptive: Some([valid, test]), .. }) = outcome {
        writeln!(
            page,
            "- {} (mixed with what was read): validation {valid:.4}, test {test:.4} bits per byte",
            adapt::NAME
        )?;
    }
    writeln!(page, "- data: {} ({} bytes of training)", printable_line(&splits.name), splits.train.len())?;
    writeln!(page, "- model: {} parameters\n", config.num_params())?;
    if picture {
        writeln!(page, "![training and validation loss over steps]({PICTURE})\n")?;
    }
    writeln!(page, "| | |\n|---|---|")?;
    let dir = quoted_path(run_dir);
    if manifest.best.is_some() || sample {
        writeln!(page, "| `best/` | weights of the best validation: `sharnn generate --model {dir}` |")?;
    }
    writeln!(page, "| `step-*/` | checkpoints: `sharnn train --resume --out {dir}` goes on from the newest |")?;
    writeln!(page, "| `metrics.jsonl` | everything that was measured, a line each |")?;
    writeln!(page, "| `data.json`, `ends.json` | which bytes it reads, and when it is to end |")?;
    if sample {
        writeln!(page, "| `{SAMPLE}` | text from the best weights |")?;
    }
    let (config, recipe) = (serde_json::to_string_pretty(config)?, serde_json::to_string_pretty(recipe)?);
    writeln!(page, "\n## Model\n\n```json\n{config}\n```\n\n## Recipe\n\n```json\n{recipe}\n```")?;
    Ok(page)
}
