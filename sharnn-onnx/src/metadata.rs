//! What a file says about its model, for a runtime that knows nothing else.

use std::collections::BTreeMap;

use sharnn_core::{Attend, Backend, ShaRnn, ShaRnnConfig};

use crate::{OnnxError, OnnxExport};

/// Version of the graph's interface and of these keys.
const FORMAT: &str = "1";

/// What our own keys begin with.
const PREFIX: &str = "sharnn.";

/// The keys of a file: the caller's and ours.
pub(crate) fn metadata<B: Backend>(
    model: &ShaRnn<B>,
    export: &OnnxExport,
) -> Result<BTreeMap<String, String>, OnnxError> {
    if let Some(key) = export.metadata.keys().find(|key| key.starts_with(PREFIX)) {
        return Err(OnnxError::ReservedKey { key: key.clone() });
    }
    let attending = attending(model);
    let largest = match (export.single_step, model.mem_len) {
        (true, _) => "1".to_string(),
        (false, mem_len) if mem_len > 0 && !attending.is_empty() => mem_len.to_string(),
        _ => "unlimited".into(),
    };
    let vocabulary = if model.vocab_size() == 256 { "bytes" } else { "ids" };
    let config = serde_json::to_string(&config(model)).expect("a configuration is JSON");
    let ours = [
        ("format", FORMAT.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("config", config),
        ("attending", serde_json::to_string(&attending).expect("a list is JSON")),
        ("vocabulary", vocabulary.to_string()),
        ("largest_segment", largest),
    ];
    let ours = ours.map(|(key, value)| (format!("{PREFIX}{key}"), value));
    Ok(export.metadata.clone().into_iter().chain(ours).collect())
}

fn attending<B: Backend>(model: &ShaRnn<B>) -> Vec<usize> {
    let attends = |(index, block): (usize, &sharnn_core::Block<B>)| block.attending.is_some().then_some(index);
    model.blocks.iter().enumerate().filter_map(attends).collect()
}

/// The configuration that makes a model like this one.
fn config<B: Backend>(model: &ShaRnn<B>) -> ShaRnnConfig {
    let [vocab_size, d_model] = model.encoder.weight.dims();
    let n_layers = model.blocks.len();
    let blocks = attending(model);
    let attend = [Attend::None, Attend::SecondLast, Attend::All]
        .into_iter()
        .find(|attend| (0..n_layers).all(|block| attend.contains(block, n_layers) == blocks.contains(&block)));
    let first = &model.blocks[0];
    ShaRnnConfig {
        vocab_size,
        d_model,
        d_ff: first.boom.linear.weight.dims()[0],
        n_layers,
        n_heads: model.blocks.iter().find_map(|block| block.attending.as_ref()).map_or(1, |a| a.attention.n_heads),
        attend: attend.unwrap_or(Attend::Blocks(blocks)),
        mem_len: model.mem_len,
        dropout_input: model.dropout_input,
        dropout_hidden: first.dropout,
        dropout_output: model.dropout_output,
        tied: model.decoder.weight.is_none(),
    }
}
