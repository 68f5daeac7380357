//! What a file says about its model, for a runtime that knows nothing else.

use std::collections::BTreeMap;

use sharnn_core::{Backend, ShaRnn};

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
    let config = model.config();
    let attending = config.attend.blocks(config.n_layers);
    let largest = match (export.single_step, model.mem_len) {
        (true, _) => "1".to_string(),
        (false, mem_len) if mem_len > 0 && !attending.is_empty() => mem_len.to_string(),
        _ => "unlimited".into(),
    };
    let vocabulary = if model.vocab_size() == 256 { "bytes" } else { "ids" };
    let config = serde_json::to_string(&config).expect("a configuration is JSON");
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
