//! What a file says of itself.

use std::collections::BTreeMap;

use sharnn_core::{Attend, NGramSite, ShaRnnConfig};
use sharnn_onnx::{OnnxExport, OnnxWeights};
use tract_onnx::pb::{
    ModelProto, ValueInfoProto, tensor_shape_proto::dimension::Value as Dim, type_proto::Value as Kind,
};
use tract_onnx::prelude::Framework;

use crate::support::{config, model, ngrams};

fn parsed(export: &OnnxExport, config: &ShaRnnConfig) -> ModelProto {
    let bytes = export.encode(&model(config)).unwrap();
    tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]).unwrap()
}

fn metadata(file: &ModelProto) -> BTreeMap<&str, &str> {
    file.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect()
}

/// As in `tokens [batch, seq]`.
fn described(values: &[ValueInfoProto]) -> Vec<String> {
    let describe = |info: &ValueInfoProto| {
        assert!(!info.doc_string.is_empty(), "{} is not described", info.name);
        let Some(Kind::TensorType(tensor)) = info.r#type.as_ref().unwrap().value.as_ref() else {
            panic!("{} is no tensor", info.name)
        };
        let dim = |dim: &Dim| match dim {
            Dim::DimValue(size) => size.to_string(),
            Dim::DimParam(name) => name.clone(),
        };
        let shape = tensor.shape.as_ref().unwrap();
        let dims: Vec<_> = shape.dim.iter().map(|of| dim(of.value.as_ref().unwrap())).collect();
        format!("{} [{}]", info.name, dims.join(", "))
    };
    values.iter().map(describe).collect()
}

#[test]
fn inputs_and_outputs_are_named_and_sized() {
    let file = parsed(&OnnxExport::default(), &config(Attend::SecondLast, 16));
    let graph = file.graph.unwrap();
    let state = ["h.0", "c.0", "h.1", "c.1"].map(|name| format!("{name} [batch, 18]"));
    let last = ["h.2", "c.2"].map(|name| format!("{name} [batch, 18]"));
    let memory = "memory.1 [batch, rows, 18]".to_string();
    let inputs = [&["tokens [batch, seq]".to_string()][..], &state, &[memory], &last].concat();
    assert_eq!(described(&graph.input), inputs);

    let next = |of: &[String]| of.iter().map(|of| format!("next.{of}")).collect::<Vec<_>>();
    let memory = "next.memory.1 [batch, next_rows, 18]".to_string();
    let logits = "logits [batch, seq, 50]".to_string();
    let outputs = [next(&state), vec![memory], next(&last), vec![logits]].concat();
    assert_eq!(described(&graph.output), outputs);
}

#[test]
fn a_single_step_is_one_token_long_and_has_no_mask() {
    let file = parsed(&OnnxExport { single_step: true, ..Default::default() }, &config(Attend::All, 16));
    let graph = file.graph.as_ref().unwrap();
    assert_eq!(described(&graph.input)[0], "tokens [batch, 1]");
    assert!(described(&graph.output).contains(&"logits [batch, 1, 50]".to_string()));
    assert!(graph.node.iter().all(|node| !["Where", "Range", "Greater"].contains(&node.op_type.as_str())));
    assert_eq!(metadata(&file)["sharnn.largest_segment"], "1");
}

#[test]
fn without_a_memory_there_is_no_input_for_one() {
    let file = parsed(&OnnxExport::default(), &config(Attend::All, 0));
    assert!(file.graph.as_ref().unwrap().input.iter().all(|input| !input.name.starts_with("memory")));
    assert_eq!(metadata(&file)["sharnn.largest_segment"], "unlimited");
    assert_eq!(metadata(&file)["sharnn.attending"], "[0,1,2]");
}

#[test]
fn n_grams_have_a_state_of_integers() {
    for single_step in [false, true] {
        let export = OnnxExport { single_step, ..Default::default() };
        let graph =
            parsed(&export, &config(Attend::SecondLast, 16).with_ngrams(ngrams(NGramSite::Both))).graph.unwrap();
        for (values, name) in [(&graph.input, "recent"), (&graph.output, "next.recent")] {
            assert!(described(values).contains(&format!("{name} [batch, 5]")), "{:?}", described(values));
            let value = values.iter().find(|value| value.name == name).unwrap();
            let Some(Kind::TensorType(tensor)) = &value.r#type.as_ref().unwrap().value else { panic!("{name}") };
            assert_eq!(tensor.elem_type, 7);
        }
    }
}

/// What the other tests hold of a graph holds of one with n-grams too, and one without them has nothing of theirs.
#[test]
fn n_grams_add_to_a_graph_and_change_nothing_of_it() {
    for (site, added) in [
        (NGramSite::Both, &["ngrams.input", "ngrams.output"][..]),
        (NGramSite::Embedding, &["ngrams.input"]),
        (NGramSite::Decoder, &["ngrams.output"]),
    ] {
        for (weights, single_step) in [(OnnxWeights::F32, true), (OnnxWeights::F16, false)] {
            let export = OnnxExport { weights, single_step, ..Default::default() };
            let without = config(Attend::SecondLast, 16);
            let mut graph = parsed(&export, &without.clone().with_ngrams(ngrams(site))).graph.unwrap();
            let maps: Vec<_> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
            let maps: Vec<_> =
                maps.iter().filter(|name| name.starts_with("ngrams.") && !name.ends_with("table")).collect();
            assert_eq!(maps, added);
            let type_of_matrices = if weights == OnnxWeights::F32 { 1 } else { 10 };
            let table = graph.initializer.iter().find(|tensor| tensor.name == "ngrams.table").unwrap();
            assert_eq!((&table.dims[..], table.data_type), (&[3 * 97, 5][..], type_of_matrices));

            // What is added to goes on as it was.
            let plain = |name: &str| !name.starts_with("ngrams") && !name.ends_with("recent");
            let adds = graph.node.iter().filter(|node| node.name.ends_with("/added"));
            let adds: BTreeMap<_, _> = adds.map(|node| (node.name.clone(), node.input[0].clone())).collect();
            assert_eq!(adds.len(), added.len());
            for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
                if let Some(added_to) = adds.get(input) {
                    *input = added_to.clone();
                }
            }
            graph.node.retain(|node| plain(&node.name));
            graph.initializer.retain(|tensor| plain(&tensor.name));
            graph.input.retain(|input| plain(&input.name));
            graph.output.retain(|output| plain(&output.name));
            assert!(graph == parsed(&export, &without).graph.unwrap(), "{site:?} {export:?}");
        }
    }
}

#[test]
fn metadata_tells_the_model() {
    let own =
        [("license", "CC-BY-SA-3.0"), ("provenance", "made of noise")].map(|(a, b)| (a.to_string(), b.to_string()));
    let export = OnnxExport { metadata: own.into(), ..Default::default() };
    for config in [
        config(Attend::SecondLast, 16),
        config(Attend::All, 16).with_heads(2).with_dropout(0.25),
        config(Attend::None, 16).with_tied(false),
        config(Attend::Blocks(vec![0, 2]), 16),
        config(Attend::SecondLast, 16).with_ngrams(ngrams(NGramSite::Decoder)),
    ] {
        let file = parsed(&export, &config);
        let metadata = metadata(&file);
        assert_eq!(serde_json::from_str::<ShaRnnConfig>(metadata["sharnn.config"]).unwrap(), config);
        let attending: Vec<usize> = serde_json::from_str(metadata["sharnn.attending"]).unwrap();
        assert_eq!(attending, (0..3).filter(|&block| config.attends(block)).collect::<Vec<_>>());
        let largest = if config.attend == Attend::None { "unlimited" } else { "16" };
        assert_eq!(metadata["sharnn.largest_segment"], largest);
        assert_eq!(metadata["sharnn.format"], "1");
        assert_eq!(metadata["sharnn.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(metadata["sharnn.vocabulary"], "ids");
        assert_eq!(metadata["license"], "CC-BY-SA-3.0");
        assert_eq!(metadata["provenance"], "made of noise");
    }
    let bytes = ShaRnnConfig { vocab_size: 256, ..config(Attend::None, 0) };
    assert_eq!(metadata(&parsed(&export, &bytes))["sharnn.vocabulary"], "bytes");
}

#[test]
fn operators_are_standard_and_tensors_are_stored_once() {
    for (weights, type_of_matrices) in [(OnnxWeights::F32, 1), (OnnxWeights::F16, 10)] {
        let file = parsed(&OnnxExport { weights, ..Default::default() }, &config(Attend::SecondLast, 16));
        let opset: Vec<_> = file.opset_import.iter().map(|opset| (opset.domain.as_str(), opset.version)).collect();
        assert_eq!((file.ir_version, opset), (8, vec![("", 17)]));
        let graph = file.graph.unwrap();
        assert!(graph.node.iter().all(|node| node.domain.is_empty()));

        let mut names: Vec<_> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let tensors = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), tensors);
        // A tied decoder has no weight of its own; of the Boom's 45 rows the last 9 are of no use.
        let tensor = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name);
        assert!(tensor("decoder.weight").is_none());
        let of = |name: &str| tensor(name).map(|tensor| (tensor.dims.clone(), tensor.data_type)).unwrap();
        assert_eq!(of("encoder.weight"), (vec![50, 18], type_of_matrices));
        assert_eq!(of("blocks.0.lstm.weight_hh"), (vec![1, 72, 18], type_of_matrices));
        assert_eq!(of("blocks.2.boom.linear.weight"), (vec![18, 36], type_of_matrices));
        assert_eq!(of("blocks.1.attending.attention.query.weight"), (vec![18, 18], type_of_matrices));
        assert_eq!(of("blocks.0.norm_start.weight"), (vec![18], 1));
    }
}
