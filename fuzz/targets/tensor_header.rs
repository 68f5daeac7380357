//! The header of a file of weights: names and their prefixes, aliases, shapes, the configuration in the metadata. The data behind it
//! are zeros, as many as it claims.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sharnn::burn::backend::Flex;
use sharnn::train::{ImportOptions, Vocabulary, load_metadata, load_tensors, read_config};
use sharnn::{WeightFormat, import_weights, load_weights};
use sharnn_fuzz::{bounded, config, harmless, header, model, place, seed, weights_files, with_header};

fuzz_target!(init: seed(seeds()), |json: &[u8]| {
    let path = place().join("hostile.safetensors");
    let bytes = with_header(json);
    fs::write(&path, &bytes).unwrap();
    let len = bytes.len();
    bounded(len, "load_tensors", || harmless(load_tensors(&path)));
    bounded(len, "load_metadata", || harmless(load_metadata(&path)));
    let model = model(&config());
    bounded(len, "load_weights", || harmless(load_weights(model, &path)));
    for vocabulary in [None, Some(Vocabulary::Bytes), Some(Vocabulary::Custom((0..20).collect()))] {
        for n_heads in [None, Some(2)] {
            let options = ImportOptions { vocabulary: vocabulary.clone(), n_heads, mem_len: None };
            bounded(len, "read_config", || harmless(read_config(&path, &options)));
            if let Some(model) = harmless(import_weights::<Flex>(&path, &options, &Default::default())) {
                let mut streams = model.engine(WeightFormat::F32).streams(1);
[0u8, 1].iter().for_each(|&byte| drop(streams.feed(&[byte]).to_vec()));
            }
        }
    }
});

/// Headers of good files, also as they are where a model was wrapped, and where tied tensors are there once.
fn seeds() -> Vec<Vec<u8>> {
    let headers = weights_files().into_iter().map(|file| header(&file).unwrap().to_vec());
    let mut seeds: Vec<Vec<u8>> = headers.collect();
    let text = String::from_utf8(seeds[0].clone()).unwrap();
    let bare = &text[text.find("},").unwrap() + 2..];
    for (of, by) in [("\"blocks.", "\"module.blocks."), ("\"blocks.", "\"_orig_mod.model.blocks.")] {
        let wrapped = bare.replace(of, by);
        seeds.push(format!("{{{}", wrapped.replace("\"encoder.", "\"module.encoder.")).into_bytes());
    }
    let aliased = r#"{"__metadata__":{"format":"pt","encoder.weight":"decoder.weight"},"#;
    seeds.push(format!("{aliased}{}", bare.replace("encoder.weight", "decoder.weight")).into_bytes());
    seeds
}
