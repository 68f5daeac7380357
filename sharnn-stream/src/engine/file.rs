//! Engines from weights files: safetensors as `sharnn export` writes them.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use sharnn_kernels::WeightFormat;

use super::DecodeEngine;
use super::pack::ModelSizes;
use crate::StreamShape;

/// Where a file's metadata have the model's configuration, as JSON.
const CONFIG_KEY: &str = "sharnn.config";
/// What follows a tensor's name in that of what its whole numbers are worth.
const SCALE: &str = "_scale";
/// Sizes that no configuration may exceed.
const MOST: usize = 1 << 20;

/// Why no engine could be made of a weights file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no weights of a model: {reason}; use a file that `sharnn export` wrote")]
pub struct FileError {
    reason: String,
}

/// What an engine needs of a configuration.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    mem_len: usize,
    tied: bool,
    #[serde(default)]
    ngrams: Option<NGrams>,
}

#[derive(Deserialize)]
struct NGrams {
    orders: Vec<usize>,
    rows: usize,
    width: usize,
    at: Site,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Site {
    Embedding,
    Decoder,
    Both,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, FileError> {
    Err(FileError { reason: reason.into() })
}

impl Config {
    fn check(&self) -> Result<(), FileError> {
        let Self { vocab_size, d_model, d_ff, n_layers, n_heads, mem_len, .. } = *self;
        let sizes = [vocab_size, d_model, d_ff, n_layers, n_heads];
        if sizes.iter().any(|&size| size == 0 || size > MOST) || mem_len > MOST {
            return refuse(format!("sizes are 1 to {MOST}"));
        }
        if d_ff < d_model || !d_model.is_multiple_of(n_heads) {
            return refuse(format!("{d_model} wide, it cannot have a Boom of {d_ff} and {n_heads} heads"));
        }
        if let Some(NGrams { orders, rows, width, .. }) = &self.ngrams {
            let rise = orders.is_sorted_by(|a, b| a < b) && orders.iter().all(|order| (1..=16).contains(order));
            if orders.is_empty() || !rise || !(1..=crate::NGRAM_MODULUS).contains(rows) || !(1..=MOST).contains(width) {
                return refuse("its memory of n-grams cannot be");
            }
        }
        Ok(())
    }

    /// Name and size of what has to be there.
    fn expected(&self, attends: &[bool]) -> Vec<(String, Vec<usize>)> {
        let (d, d_ff) = (self.d_model, self.d_ff);
        let mut tensors =
            vec![("encoder.weight".into(), vec![self.vocab_size, d]), ("decoder.bias".into(), vec![self.vocab_size])];
        if !self.tied {
            tensors.push(("decoder.weight".into(), vec![self.vocab_size, d]));
        }
        for (i, attends) in attends.iter().enumerate() {
            let mut add = |name: &str, shape: &[usize]| tensors.push((format!("blocks.{i}.{name}"), shape.to_vec()));
            let mut norms = vec!["lnstart", "lnff", "lnxff"];
            if *attends {
                norms.extend(["lnmid", "lnmem", "attn.qln"]);
                add("attn.q.weight", &[d, d]);
                add("attn.q.bias", &[d]);
                for gate in ["qs", "ks", "vs"] {
                    add(&format!("attn.{gate}"), &[1, 1, d]);
                }
            }
            for norm in norms {
                add(&format!("{norm}.weight"), &[d]);
                add(&format!("{norm}.bias"), &[d]);
            }
            for which in ["ih", "hh"] {
                add(&format!("rnn.weight_{which}_l0"), &[4 * d, d]);
                add(&format!("rnn.bias_{which}_l0"), &[4 * d]);
            }
            add("ff.linear1.weight", &[d_ff, d]);
            add("ff.linear1.bias", &[d_ff]);
        }
        if let Some(NGrams { orders, rows, width, at }) = &self.ngrams {
            tensors.push(("ngrams.table".into(), vec![orders.len() * rows, *width]));
            for (name, without) in [("input", Site::Decoder), ("output", Site::Embedding)] {
                if *at != without {
                    tensors.push((format!("ngrams.{name}"), vec![d, orders.len() * width]));
                }
            }
        }
        tensors
    }
}

impl DecodeEngine {
    /// Of a weights file in memory, as `sharnn export` writes it in any of its types: safetensors under the published model's names, with the
    /// configuration in the metadata. `mem_len`, where it is given, takes the place of the model's own.
    ///
    /// # Errors
    /// If it is no such file, or not a whole one, or a value is not finite. No more memory is taken than a few times the file's size.
    pub fn from_weights(bytes: &[u8], format: WeightFormat, mem_len: Option<usize>) -> Result<Self, FileError> {
        let file = SafeTensors::deserialize(bytes).or_else(|error| refuse(shown(&error.to_string())))?;
        let (_, header) = SafeTensors::read_metadata(bytes).or_else(|error| refuse(shown(&error.to_string())))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let Some(config) = metadata.get(CONFIG_KEY) else { return refuse(format!("there is no {CONFIG_KEY} in it")) };
        let config: Config = serde_json::from_str(config).or_else(|error| refuse(shown(&error.to_string())))?;
        config.check()?;
        // Before a name is made for each of them: a file may claim any number of blocks.
        if config.n_layers > file.len() {
            return refuse(format!("it has {} tensors for {} blocks", file.len(), config.n_layers));
        }
        let tensors: HashMap<String, TensorView> = file.tensors().into_iter().collect();
        let attends: Vec<_> =
            (0..config.n_layers).map(|i| tensors.contains_key(&format!("blocks.{i}.attn.q.weight"))).collect();
        for (name, expected) in config.expected(&attends) {
            match tensors.get(&name).map(TensorView::shape) {
                Some(found) if found == expected => {}
                Some(found) => return refuse(format!("tensor {name} has shape {found:?}, expected {expected:?}")),
                None => return refuse(format!("tensor {name} is missing")),
            }
        }
        let context = config.ngrams.as_ref().map_or(0, |ngrams| ngrams.orders.last().copied().unwrap_or(1) - 1);
        let sizes = ModelSizes {
            shape: StreamShape {
                vocab_size: config.vocab_size,
                d_model: config.d_model,
                mem_len: mem_len.unwrap_or(config.mem_len).min(MOST),
                attends,
                context,
                segment_len: 1,
            },
            n_heads: config.n_heads,
            ngrams: config.ngrams.map(|ngrams| (ngrams.orders, ngrams.rows)),
        };
        Self::pack(&sizes, format, |name| match tensors.get(name) {
            // There twice, where a file is meant for PyTorch.
            Some(_) if name == "decoder.weight" && config.tied => Ok(None),
            Some(view) => values(name, view, tensors.get(&format!("{name}{SCALE}"))).map(Some),
            None => Ok(None),
        })
    }
}

/// The values of a tensor in f32, all of them finite.
fn values(name: &str, view: &TensorView, scales: Option<&TensorView>) -> Result<Vec<f32>, FileError> {
    let mut values = numbers(name, view)?;
    if view.dtype() == Dtype::I8 {
        let Some(scales) = scales else { return refuse(format!("tensor {name} has no {name}{SCALE}")) };
        let scales = numbers(name, scales)?;
        let rows = view.shape().first().copied().unwrap_or(1);
        if scales.is_empty() || !rows.is_multiple_of(scales.len()) {
            return refuse(format!("tensor {name} has {} scales for {rows} rows", scales.len()));
        }
        let together = (values.len() / scales.len()).max(1);
        for (values, scale) in values.chunks_mut(together).zip(scales) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => refuse(format!("tensor {name} holds what is no finite number")),
    }
}

fn numbers(name: &str, view: &TensorView) -> Result<Vec<f32>, FileError> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::I8 => data.iter().map(|&byte| f32::from(byte.cast_signed())).collect(),
        found => return refuse(format!("tensor {name} holds {found}, expected F32, BF16, F16 or I8")),
    })
}

/// What the bytes hold, for a message.
fn shown(text: &str) -> String {
    text.chars().take(160).flat_map(char::escape_debug).collect()
}
