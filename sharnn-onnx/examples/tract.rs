//! Writes text from an exported single-step graph with tract, a runtime for ONNX in Rust: nothing of `sharnn` is used.
//!
//! ```text
//! cargo run --release -p sharnn-onnx --example tract -- model.onnx "The history of " > text.txt
//! ```
//!
//! A third argument is the temperature: less prefers likely bytes, 0 always takes the likeliest.

use std::io::{Write, stdout};

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;

/// Bytes to write.
const BYTES: usize = 500;

/// Draws a byte.
fn draw(logits: &[f32], temperature: f32, rng: &mut ChaCha8Rng) -> u8 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if temperature == 0.0 {
        return logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u8;
    }
    let weights: Vec<f32> = logits.iter().map(|logit| ((logit - largest) / temperature).exp()).collect();
    let mut left = rng.random::<f32>() * weights.iter().sum::<f32>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    drawn.unwrap_or(weights.len() - 1) as u8
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("give the file of a single-step graph, and a prompt")?;
    let prompt = args.next().filter(|prompt| !prompt.is_empty()).unwrap_or("\n".into());
    let temperature = args.next().map_or(Ok(0.7), |text| text.parse()).context("the temperature is a number")?;
    ensure!(temperature >= 0.0, "a temperature of {temperature} cannot be used: 0 or more");

    let model = tract_onnx::onnx().model_for_path(&path).with_context(|| format!("cannot read {path}"))?;
    let name = |outlet: &OutletId| model.node(outlet.node).name.clone();
    let inputs: Vec<String> = model.input_outlets()?.iter().map(name).collect();
    let outputs: Vec<String> = model.output_outlets()?.iter().map(name).collect();
    let logits = outputs.iter().position(|output| output == "logits");
    let logits = logits.with_context(|| format!("{path} is no export of sharnn: it has no output \"logits\""))?;
    let model = model.into_optimized()?;

    // One lane of zeros; memories start without rows, and there are no tokens before the first.
    let mut state = Vec::new();
    for (index, input) in inputs.iter().enumerate().skip(1) {
        let shape = &model.input_fact(index)?.shape;
        let d = shape[shape.rank() - 1].to_usize()?;
        let start = match shape.rank() {
            _ if input == "recent" => Tensor::from_shape(&[1, d], &vec![-1_i64; d])?,
            2 => Tensor::zero::<f32>(&[1, d])?,
            _ => Tensor::zero::<f32>(&[1, 0, d])?,
        };
        let next = outputs.iter().position(|output| *output == format!("next.{input}"));
        state.push((start.into_tvalue(), next.context("a state that does not go on")?));
    }
    let model = model.into_runnable()?;

    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut next = Vec::from(prompt);
    for written in 0..=BYTES {
        let mut drawn = 0;
        for byte in next.drain(..) {
            let mut values = tvec![tensor2(&[[i64::from(byte)]]).into_tvalue()];
            values.extend(state.iter().map(|(value, _)| value.clone()));
            let values = model.run(values)?;
            for (value, next) in &mut state {
                *value = values[*next].clone();
            }
            drawn = draw(values[logits].view().as_slice::<f32>()?, temperature, &mut rng);
        }
        if written < BYTES {
            stdout().write_all(&[drawn])?;
            next.push(drawn);
        }
    }
    Ok(())
}
