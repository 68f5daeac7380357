//! A file of tensors, and of weights: bytes as they are.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sharnn::burn::backend::Flex;
use sharnn::core::DecodeEngine;
use sharnn::train::{ImportOptions, Vocabulary, load_metadata, load_tensors, read_config};
use sharnn::{WeightFormat, import_weights, load_weights};
use sharnn_fuzz::{bounded, config, harmless, model, place, seed, weights_files};

fuzz_target!(init: seed(weights_files()), |bytes: &[u8]| {
    let path = place().join("hostile.safetensors");
    fs::write(&path, bytes).unwrap();
    let len = bytes.len();
    bounded(len, "load_tensors", || harmless(load_tensors(&path)));
    bounded(len, "load_metadata", || harmless(load_metadata(&path)));
    for (format, _) in WeightFormat::ALL {
        bounded(len, "from_weights", || harmless(DecodeEngine::from_weights(bytes, format, Some(8))));
    }
    let model = model(&config());
    bounded(len, "load_weights", || harmless(load_weights(model, &path)));
    for vocabulary in [None, Some(Vocabulary::Custom((0..20).collect()))] {
        let options = ImportOptions { vocabulary, ..ImportOptions::default() };
        bounded(len, "read_config", || harmless(read_config(&path, &options)));
        if let Some(model) = harmless(import_weights::<Flex>(&path, &options, &Default::default())) {
            for (format, _) in WeightFormat::ALL {
                let mut streams = model.engine(format).streams(1);
[0u8, 1].iter().for_each(|&byte| drop(streams.feed(&[byte]).to_vec()));
            }
        }
    }
});
