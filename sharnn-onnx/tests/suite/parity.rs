//! What the graph computes against the model's own forward, state by state.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData, f16};
use sharnn_core::{Attend, NGRAM_MODULUS, NGramConfig, NGramSite, ShaRnn, ShaRnnConfig};
use sharnn_onnx::{OnnxExport, OnnxWeights};
use sharnn_train::{import_weights, save_tensors};

use crate::support::{Graph, Lanes, config, forward, largest_difference, model, ngrams, state_tensors};

/// Rounding of f32 in another order of sums.
const TOLERANCE: f32 = 1e-4;

/// A graph and the model that it has to follow.
///
/// Where `SHARNN_ONNX_FILES` names a directory, the file and what the model makes of each stream are written to it:
/// `scripts/onnx-parity.py` holds another runtime to them.
struct Exported {
    name: &'static str,
    graph: Graph,
    model: ShaRnn<Flex>,
}

fn files() -> Option<PathBuf> {
    std::env::var_os("SHARNN_ONNX_FILES").map(PathBuf::from)
}

impl Exported {
    fn new(name: &'static str, model: ShaRnn<Flex>, export: &OnnxExport) -> Self {
        let bytes = export.encode(&model).unwrap();
        if let Some(dir) = files() {
            fs::write(dir.join(format!("{name}.onnx")), &bytes).unwrap();
        }
        Self { name, graph: Graph::read(&bytes), model }
    }

    /// Holds the graph to the model over segments that carry their state.
    fn assert_same(&self, lanes: &Lanes, lengths: &[usize]) {
        let mut state = self.model.empty_state();
        let mut carried = state_tensors(&self.model, &state, lanes.batch());
        let mut start = 0;
        let mut recorded = Vec::new();
        for (segment, &len) in lengths.iter().enumerate() {
            let steps = start..start + len;
            let (want, next) = forward(&self.model, state, lanes, steps.clone());
            let got = self.graph.run(&carried, lanes, steps.clone()).unwrap();
            let difference = largest_difference(&got, &want);
            let case = || format!("{}, batch {}, segment {segment} of {lengths:?}", self.name, lanes.batch());
            assert!(difference <= TOLERANCE, "{}: {difference}", case());

            let (shape, ids) = lanes.segment(steps);
            recorded.push((format!("{segment}/tokens"), shape, ids.into_iter().map(|id| id as f32).collect()));
            recorded.extend(want.into_iter().map(|(name, (shape, x))| (format!("{segment}/{name}"), shape, x)));
            (carried, state, start) = (got, next, start + len);
        }
        if let Some(dir) = files() {
            let (name, batch, segments) = (self.name, lanes.batch(), lengths.len());
            let file = dir.join(format!("{name}.{batch}-lanes-{segments}-segments-{start}.safetensors"));
            let metadata = [("model".to_string(), format!("{}.onnx", self.name))].into();
            save_tensors(&file, &recorded, &metadata).unwrap();
        }
    }

    /// Segments of one token and of odd lengths, within the memory and far beyond it, up to all of it.
    fn assert_same_in_segments(&self) {
        for batch in [1, 3] {
            for lengths in [&[1, 7, 5][..], &[5, 1, 10], &[11, 9, 13, 1, 16, 16, 3]] {
                self.assert_same(&Lanes::new(batch, lengths.iter().sum()), lengths);
            }
        }
    }

    fn assert_same_step_by_step(&self) {
        for batch in [1, 3] {
            self.assert_same(&Lanes::new(batch, 20), &[1; 20]);
        }
    }
}

fn segments() -> OnnxExport {
    OnnxExport::default()
}

fn single_step() -> OnnxExport {
    OnnxExport { single_step: true, ..Default::default() }
}

#[test]
fn one_attending_block() {
    Exported::new("one_attending_block", model(&config(Attend::SecondLast, 16)), &segments()).assert_same_in_segments();
}

#[test]
fn every_block_attends() {
    Exported::new("every_block_attends", model(&config(Attend::All, 16)), &segments()).assert_same_in_segments();
}

#[test]
fn no_block_attends() {
    Exported::new("no_block_attends", model(&config(Attend::None, 16)), &segments()).assert_same_in_segments();
}

#[test]
fn two_heads() {
    Exported::new("two_heads", model(&config(Attend::Blocks(vec![0, 2]), 16).with_heads(2)), &segments())
        .assert_same_in_segments();
}

#[test]
fn an_untied_decoder() {
    Exported::new("an_untied_decoder", model(&config(Attend::SecondLast, 16).with_tied(false)), &segments())
        .assert_same_in_segments();
}

#[test]
fn no_memory() {
    Exported::new("no_memory", model(&config(Attend::All, 0)), &segments()).assert_same_in_segments();
}

#[test]
fn a_boom_of_one_chunk() {
    let config = ShaRnnConfig { d_ff: 18, ..config(Attend::SecondLast, 16) };
    Exported::new("one_chunk", model(&config), &segments()).assert_same_in_segments();
}

#[test]
fn a_collapsed_model() {
    Exported::new("collapsed", model(&config(Attend::All, 16)).collapse(), &segments()).assert_same_in_segments();
}

/// Segments shorter than what the rows depend on, and longer.
#[test]
fn n_grams_in_segments() {
    for (name, site, config) in [
        ("ngrams_both", NGramSite::Both, config(Attend::SecondLast, 16)),
        ("ngrams_embedding", NGramSite::Embedding, config(Attend::All, 16).with_heads(2).with_tied(false)),
        ("ngrams_decoder", NGramSite::Decoder, config(Attend::None, 16)),
        ("ngrams_no_memory", NGramSite::Both, config(Attend::All, 0)),
    ] {
        let exported = Exported::new(name, model(&config.with_ngrams(ngrams(site))), &segments());
        exported.assert_same_in_segments();
        exported.assert_same(&Lanes::new(2, 14), &[2, 3, 1, 1, 7]);
    }
}

#[test]
fn n_grams_byte_by_byte() {
    for (name, site, config) in [
        ("ngrams_step_both", NGramSite::Both, config(Attend::SecondLast, 6)),
        ("ngrams_step_embedding", NGramSite::Embedding, config(Attend::All, 0).with_tied(false)),
        ("ngrams_step_decoder", NGramSite::Decoder, config(Attend::All, 6).with_heads(3)),
    ] {
        Exported::new(name, model(&config.with_ngrams(ngrams(site))), &single_step()).assert_same_step_by_step();
    }
}

/// One table or many, of one row or of as many as the hash has values, which then are the rows: none may be rounded.
#[test]
fn n_grams_of_every_size() {
    for (names, orders, rows) in [
        (["ngrams_of_one_row", "ngrams_step_of_one_row"], vec![2], 1),
        (["ngrams_of_all_orders", "ngrams_step_of_all_orders"], (2..=16).collect(), 1000),
        (["ngrams_of_order_16", "ngrams_step_of_order_16"], vec![16], NGRAM_MODULUS),
    ] {
        let ngrams = NGramConfig { orders, rows, width: 1, at: NGramSite::Both };
        let model = model(&config(Attend::SecondLast, 16).with_ngrams(ngrams));
        Exported::new(names[0], model.clone(), &segments()).assert_same_in_segments();
        Exported::new(names[1], model, &single_step()).assert_same(&Lanes::new(2, 40), &[1; 40]);
    }
}

#[test]
fn a_memory_longer_than_the_model_keeps_is_cut() {
    // As after a change of mem_len: the state is of another model.
    let [long, short] = [24, 8].map(|mem_len| model(&config(Attend::All, mem_len)));
    let graph = Graph::read(&segments().encode(&short).unwrap());
    let lanes = Lanes::new(2, 23);
    let (carried, state) = forward(&long, long.empty_state(), &lanes, 0..20);
    let (want, _) = forward(&short, state, &lanes, 20..23);
    let difference = largest_difference(&graph.run(&carried, &lanes, 20..23).unwrap(), &want);
    assert!(difference <= TOLERANCE, "{difference}");
}

#[test]
fn byte_by_byte() {
    for (name, config) in [
        ("step_one", config(Attend::SecondLast, 6)),
        ("step_all_three_heads", config(Attend::All, 6).with_heads(3)),
        ("step_none", config(Attend::None, 6)),
        ("step_no_memory_untied", config(Attend::All, 0).with_tied(false)),
        ("step_memory_of_one", config(Attend::All, 1)),
    ] {
        Exported::new(name, model(&config), &single_step()).assert_same_step_by_step();
    }
}

#[test]
fn a_prompt_in_segments_then_byte_by_byte() {
    let model = model(&config(Attend::All, 16).with_ngrams(ngrams(NGramSite::Both)));
    let [segments, steps] = [segments(), single_step()].map(|export| Graph::read(&export.encode(&model).unwrap()));
    let lanes = Lanes::new(1, 30);
    let (_, mut state) = forward(&model, model.empty_state(), &lanes, 0..11);
    let mut carried = segments.run(&state_tensors(&model, &model.empty_state(), 1), &lanes, 0..11).unwrap();
    for step in 11..30 {
        let (want, next) = forward(&model, state, &lanes, step..step + 1);
        carried = steps.run(&carried, &lanes, step..step + 1).unwrap();
        let difference = largest_difference(&carried, &want);
        assert!(difference <= TOLERANCE, "step {step}: {difference}");
        state = next;
    }
}

/// A memory of none, one, some and many rows, before it is full and after.
#[test]
fn memories_of_every_length() {
    for (names, mem_len, lengths) in [
        (["memory_0", "step_memory_0"], 0, &[3, 1, 40][..]),
        (["memory_1", "step_memory_1"], 1, &[1, 1, 1]),
        (["memory_8", "step_memory_8"], 8, &[8, 3, 8, 1, 8]),
        (["memory_512", "step_memory_512"], 512, &[300, 1, 512, 100]),
    ] {
        let model = model(&config(Attend::SecondLast, mem_len));
        for batch in [1, 2] {
            let lanes = Lanes::new(batch, lengths.iter().sum());
            Exported::new(names[0], model.clone(), &segments()).assert_same(&lanes, lengths);
            Exported::new(names[1], model.clone(), &single_step()).assert_same(&Lanes::new(batch, 20), &[1; 20]);
        }
    }
}

/// The repository's bundled model on English: weights that were trained, which a runtime that quantises them has to keep.
#[test]
fn the_bundled_model_on_text() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/enwik8.safetensors");
    // This crate may be there alone.
    if file.is_file() {
        let model = import_weights(&file, &Default::default(), &Default::default()).unwrap();
        let text = sharnn_data::enwik8::sample().valid[..2 * 256].iter().map(|&byte| byte.into()).collect();
        Exported::new("bundled", model, &segments()).assert_same(&Lanes(vec![text]), &[128; 4]);
    }
}

/// The best weights of the run that `SHARNN_ONNX_RUN` names on the validation part of `SHARNN_ENWIK8`; without them, fresh
/// weights of size XS on a file of this crate. In segments of 256, or of the memory where that is shorter.
#[test]
fn bytes_of_text() {
    let model = match std::env::var_os("SHARNN_ONNX_RUN") {
        Some(run) => sharnn_train::load_best(run.as_ref(), &Default::default()).unwrap().0,
        None => ShaRnnConfig::xs().with_mem_len(256).init_seeded::<Flex>(1, &Default::default()),
    };
    let mut text = vec![0; 3 * 256];
    match std::env::var_os("SHARNN_ENWIK8") {
        Some(path) => {
            let mut file = fs::File::open(path).unwrap();
            file.seek(SeekFrom::Start(90_000_000)).unwrap();
            file.read_exact(&mut text).unwrap();
        }
        None => text.copy_from_slice(&include_bytes!("../../src/network.rs")[..3 * 256]),
    }
    let lanes = Lanes(vec![text.into_iter().map(i64::from).collect()]);
    let segment = model.config().mem_len.min(256);
    let lengths = vec![segment; 3 * 256 / segment];
    Exported::new("text", model.clone(), &segments()).assert_same(&lanes, &lengths);
    Exported::new("text_steps", model.clone(), &single_step()).assert_same(&lanes, &[1; 300]);
    let export = OnnxExport { weights: OnnxWeights::F16, ..Default::default() };
    let exported = Exported::new("text_f16", model.clone(), &export);
    Exported { model: rounded(model), ..exported }.assert_same(&lanes, &lengths);
}

/// Every byte's place in the hash.
#[test]
fn n_grams_of_bytes() {
    let config = ShaRnnConfig { vocab_size: 256, ..config(Attend::SecondLast, 16) };
    let ngrams = NGramConfig { orders: (2..=6).collect(), rows: 4096, width: 8, at: NGramSite::Both };
    let model = model(&config.with_ngrams(ngrams));
    let bytes = |lane: i64| (0..256).map(|step| (step * (2 * lane + 7) + step / 64) % 256).collect();
    let lanes = Lanes((0..2).map(bytes).collect());
    Exported::new("ngrams_bytes", model.clone(), &segments()).assert_same(&lanes, &[16; 16]);
    Exported::new("ngrams_step_bytes", model, &single_step()).assert_same(&lanes, &[1; 256]);
}

/// Rounds the matrices that a file keeps in f16.
fn rounded(mut model: ShaRnn<Flex>) -> ShaRnn<Flex> {
    let round = |x: Tensor<Flex, 2>| {
        let shape = x.dims();
        let values: Vec<f32> = x.into_data().into_vec().unwrap();
        let values: Vec<f32> = values.into_iter().map(|value| f16::from_f32(value).to_f32()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    };
    model.encoder.weight = model.encoder.weight.map(round);
    model.decoder.weight = model.decoder.weight.map(|weight| weight.map(round));
    if let Some(ngrams) = &mut model.ngrams {
        ngrams.table = ngrams.table.clone().map(round);
        ngrams.input = ngrams.input.take().map(|weight| weight.map(round));
        ngrams.output = ngrams.output.take().map(|weight| weight.map(round));
    }
    for block in &mut model.blocks {
        block.lstm.weight_ih = block.lstm.weight_ih.clone().map(round);
        block.lstm.weight_hh = block.lstm.weight_hh.clone().map(round);
        block.boom.linear.weight = block.boom.linear.weight.clone().map(round);
        if let Some(attending) = &mut block.attending {
            attending.attention.query.weight = attending.attention.query.weight.clone().map(round);
        }
    }
    model
}

#[test]
fn f16_weights_are_those_of_a_rounded_model() {
    for (names, config) in [
        (["f16_one", "f16_one_step"], config(Attend::SecondLast, 16)),
        (["f16_all", "f16_all_step"], config(Attend::All, 16).with_heads(2).with_tied(false)),
        (["f16_ngrams", "f16_ngrams_step"], config(Attend::SecondLast, 16).with_ngrams(ngrams(NGramSite::Both))),
    ] {
        let exact = model(&config);
        let export = OnnxExport { weights: OnnxWeights::F16, ..Default::default() };
        let [segments, steps] = [(names[0], false), (names[1], true)].map(|(name, single_step)| {
            let exported = Exported::new(name, exact.clone(), &OnnxExport { single_step, ..export.clone() });
            Exported { model: rounded(exact.clone()), ..exported }
        });
        segments.assert_same_in_segments();
        steps.assert_same_step_by_step();
    }
}

#[test]
fn a_segment_longer_than_the_memory_is_refused() {
    let model = model(&config(Attend::SecondLast, 8));
    let graph = Graph::read(&segments().encode(&model).unwrap());
    let (state, lanes) = (state_tensors(&model, &model.empty_state(), 1), Lanes::new(1, 9));
    graph.run(&state, &lanes, 0..8).unwrap();
    graph.run(&state, &lanes, 0..9).unwrap_err();
}
