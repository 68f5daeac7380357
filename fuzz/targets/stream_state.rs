//! The state of a stream: bytes as they are, and with the digest that belongs to them.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sharnn::core::{Mixer, MixerConfig};
use sharnn::train::{load_state_of, weights_digest};
use sharnn::{Generator, Sampling, Scorer, StreamState, Streams, WeightFormat, load_state};
use sharnn_fuzz::{bounded, config, harmless, header, model, place, seed};

const SMALL: MixerConfig = MixerConfig { memory: 1 << 20 };
const DIGEST: &str = " sha256=";

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let model = model(&config());
    let weights = weights_digest(&model);
    let engine = model.engine(WeightFormat::F32);
    for bytes in [Some(bytes.to_vec()), signed(bytes)].into_iter().flatten() {
        let path = place().join("hostile.state");
        fs::write(&path, &bytes).unwrap();
        for segment_len in [1, 5] {
            let shape = model.stream_shape(segment_len);
            bounded(bytes.len(), "from_bytes", || harmless(StreamState::from_bytes(&bytes, &shape)));
            bounded(bytes.len(), "load_state_of", || harmless(load_state_of(&path, &shape, &weights)));
        }
        let mut streams = engine.streams(1);
        let shape = streams.shape().clone();
        if let Some(state) = bounded(bytes.len(), "load_state", || harmless(load_state(&path, &shape))) {
            assert_eq!(StreamState::from_bytes(&state.to_bytes(), &shape), Ok(state.clone()));
            if let Some(Ok((memory, 1))) = state.adaptive().map(Mixer::saved_config)
                && memory == SMALL
            {
                let mixer = Mixer::new(memory, 1);
                let mut scorer = Scorer::adaptive(engine.streams(1), mixer).unwrap();
                if harmless(scorer.set_state(&state)).is_some() {
                    let _ = scorer.score(&[1, 2, 1, 2]);
                    let bytes = scorer.state().to_bytes();
                    harmless(scorer.set_state(&StreamState::from_bytes(&bytes, &shape).unwrap())).unwrap();
                }
            }
            if harmless(streams.set_state(0, &state)).is_some() {
                let mut generator = Generator::new(streams, Sampling::default()).unwrap();
                let _ = generator.feed(&[1, 2]);
                let _ = generator.next_byte();
            }
        }
    }
});

/// The same with the digest that a writer would have given it, where it is so far a state.
fn signed(bytes: &[u8]) -> Option<Vec<u8>> {
    let json = header(bytes)?;
    let data = &bytes[8 + json.len()..];
    let mut value: Value = serde_json::from_slice(json).ok()?;
    let metadata = value.get_mut("__metadata__")?.as_object_mut()?;
    let text = metadata.get("sharnn-stream-state")?.as_str()?.rsplit_once(DIGEST)?.0.to_string();
    // Of the text, then of the tensors in their order, which the file lays out by name.
    let mut sha = Sha256::new();
    sha.update(&text);
    for i in 0.. {
        let of = |part: &str| value.get(format!("blocks.{i}.{part}"));
        if of("h").is_none() && i >= 2 {
            break;
        }
        ["h", "c", "memory"].iter().filter_map(|part| of(part)).for_each(|it| update(&mut sha, it, data));
    }
    ["logits", "adaptive"].iter().filter_map(|name| value.get(name)).for_each(|it| update(&mut sha, it, data));
    value["__metadata__"]["sharnn-stream-state"] = format!("{text}{DIGEST}{:x}", sha.finalize()).into();
    let json = serde_json::to_vec(&value).ok()?;
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    file.extend_from_slice(data);
    Some(file)
}

fn update(sha: &mut Sha256, tensor: &Value, data: &[u8]) {
    let at = |i: usize| tensor["data_offsets"][i].as_u64().and_then(|at| usize::try_from(at).ok());
    if let Some(values) = at(0).zip(at(1)).and_then(|(start, end)| data.get(start..end)) {
        sha.update(values);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let model = model(&config());
    let engine = model.engine(WeightFormat::F32);
    let mut scorer = Scorer::adaptive(engine.streams(1), Mixer::new(SMALL, 1)).unwrap();
    scorer.score(&[1, 2, 3, 1, 2, 3]).unwrap();
    let adaptive = scorer.state().to_bytes();
    let plain = [0, 1, 9].map(|n| {
        let mut streams = engine.streams(1);
        (0..n).for_each(|token| drop(streams.feed(&[token as u8]).to_vec()));
        let state = streams.state(0);
        if n == 1 { state.of_weights(weights_digest(&model)).to_bytes() } else { state.to_bytes() }
    });
    plain.into_iter().chain([adaptive]).collect()
}
