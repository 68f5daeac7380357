//! Models from files that nobody described: configuration, vocabulary, types, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData, bf16};
use sharnn_core::{Attend, ShaRnn, ShaRnnConfig};
use sharnn_train::{
    HostTensor, ImportOptions, Vocabulary, WeightsDtype, WeightsError, WeightsExport, WeightsFile, collect_params,
    import_weights, load_metadata, load_tensors, read_config, save_tensors, save_weights,
};

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 20, n_layers: 3, mem_len: 5000, ..ShaRnnConfig::xs() }
}

fn model(config: &ShaRnnConfig, seed: u64) -> ShaRnn<Flex> {
    config.init_seeded(seed, &Default::default())
}

fn import(path: &Path, options: &ImportOptions) -> Result<ShaRnn<Flex>, WeightsError> {
    import_weights(path, options, &Default::default())
}

/// Log-probabilities after each of these tokens, `[tokens, vocab_size]`.
fn log_probs(model: &ShaRnn<Flex>, tokens: &[u8]) -> Vec<Vec<f32>> {
    let ids: Vec<i32> = tokens.iter().map(|&token| token.into()).collect();
    let tokens = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), &Default::default());
    let logits = log_softmax(model.forward(tokens, model.empty_state()).0, 2);
    let vocab_size = model.vocab_size();
    logits.into_data().to_vec::<f32>().unwrap().chunks(vocab_size).map(<[f32]>::to_vec).collect()
}

/// A file, and its directory.
struct Saved {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Saved {
    fn new(write: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write(&path);
        Self { _dir: dir, path }
    }

    fn of(model: &ShaRnn<Flex>) -> Self {
        Self::new(|path| save_weights(model, path).unwrap())
    }

    fn changed(&self, change: impl FnOnce(&mut BTreeMap<String, HostTensor>), metadata: &[(&str, &str)]) -> &Self {
        let mut tensors = load_tensors(&self.path).unwrap();
        change(&mut tensors);
        let tensors: Vec<_> = tensors.into_iter().map(|(name, t)| (name, t.shape, t.data)).collect();
        let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        save_tensors(&self.path, &tensors, &metadata).unwrap();
        self
    }
}

#[test]
fn a_file_without_a_description_gives_the_model_that_was_saved() {
    for config in [
        config(),
        config().with_attend(Attend::All),
        config().with_attend(Attend::None),
        config().with_attend(Attend::Blocks(vec![0, 1])),
        config().with_tied(false),
    ] {
        let saved = Saved::of(&model(&config, 1));
        assert_eq!(read_config(&saved.path, &ImportOptions::default()).unwrap(), config);
        let loaded = import(&saved.path, &ImportOptions::default()).unwrap();
        assert_eq!(collect_params(&loaded), collect_params(&model(&config, 1)));
        let collapsed = Saved::of(&model(&config, 1).collapse());
        let loaded = import(&collapsed.path, &ImportOptions::default()).unwrap();
        assert_eq!(collect_params(&loaded), collect_params(&model(&config, 1).collapse()));
    }
}

#[test]
fn what_tensors_do_not_say_comes_from_options_then_metadata_then_the_paper() {
    let given = config().with_heads(2).with_mem_len(77).with_dropout(0.25);
    let bare = Saved::of(&model(&given, 1));
    let read = |saved: &Saved, options: ImportOptions| {
        let config = read_config(&saved.path, &options).unwrap();
        (config.n_heads, config.mem_len, config.dropout_hidden)
    };
    assert_eq!(read(&bare, ImportOptions::default()), (1, 5000, 0.0));
    let told = Saved::new(|path| WeightsExport::default().save(&model(&given, 1), path).unwrap());
    assert_eq!(read(&told, ImportOptions::default()), (2, 77, 0.25));
    let options = ImportOptions { n_heads: Some(4), mem_len: Some(9), ..ImportOptions::default() };
    assert_eq!([read(&bare, options.clone()).0, read(&told, options.clone()).0], [4, 4]);
    assert_eq!([read(&bare, options.clone()).1, read(&told, options).1], [9, 9]);
    let three = ImportOptions { n_heads: Some(3), ..ImportOptions::default() };
    let error = import(&bare.path, &three).unwrap_err().to_string();
    assert!(error.contains("n_heads = 3 cannot be used"), "{error}");
}

#[test]
fn a_state_dict_as_pytorch_has_it_loads() {
    let config = config();
    let saved = Saved::new(|path| {
        WeightsExport { tied_copy: true, ..WeightsExport::default() }.save(&model(&config, 1), path).unwrap();
    });
    assert!(load_tensors(&saved.path).unwrap().contains_key("decoder.weight"));
    // Wrapped for many GPUs, and with what the published model carries along.
    saved.changed(
        |tensors| {
            tensors.insert("blocks.0.lnout.weight".into(), HostTensor { shape: vec![8], data: vec![1.0; 8] });
            *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (format!("module.{name}"), t)).collect();
        },
        &[],
    );
    let loaded = import(&saved.path, &ImportOptions::default()).unwrap();
    assert_eq!(collect_params(&loaded), collect_params(&model(&config, 1)));
    assert!(loaded.decoder.weight.is_none(), "an equal copy is a tied decoder");
}

#[test]
fn smaller_types_round_and_say_what_they_are() {
    let config = config();
    for (dtype, bytes, error) in
        [(WeightsDtype::F32, 4, 0.0), (WeightsDtype::F16, 2, 2f32.powi(-11)), (WeightsDtype::Bf16, 2, 2f32.powi(-8))]
    {
        let licence = BTreeMap::from([("licence".to_string(), "MIT".to_string())]);
        let export = WeightsExport { dtype, metadata: licence, ..WeightsExport::default() };
        let saved = Saved::new(|path| export.save(&model(&config, 1), path).unwrap());
        let size = std::fs::metadata(&saved.path).unwrap().len() as usize;
        let values = config.num_params() * bytes;
        assert!((values..values + 10_000).contains(&size), "{size} bytes for {values}");
        let metadata = load_metadata(&saved.path).unwrap();
        assert_eq!((metadata["licence"].as_str(), metadata["format"].as_str()), ("MIT", "pt"));
        let loaded = import(&saved.path, &ImportOptions::default()).unwrap();
        for (loaded, saved) in collect_params(&loaded).iter().zip(collect_params(&model(&config, 1))) {
            for (a, b) in loaded.data.iter().zip(&saved.data) {
                // Where f16 has no normal numbers left, it rounds to the next 2^-24.
                assert!((a - b).abs() <= error * b.abs() + if error > 0.0 { 3e-8 } else { 0.0 }, "{a} {b}");
            }
        }
    }
    assert_eq!(bf16::from_f32(-100.0).to_f32(), -100.0);
}

#[test]
fn symbols_find_their_bytes_and_others_have_no_probability() {
    let symbols = Vocabulary::Enwik8.bytes().unwrap().to_vec();
    for config in [config().with_vocab_size(205), config().with_vocab_size(205).with_tied(false)] {
        let published = model(&config, 1);
        let saved = Saved::of(&published);
        let options = ImportOptions { vocabulary: Some(Vocabulary::Enwik8), ..ImportOptions::default() };
        assert_eq!(read_config(&saved.path, &options).unwrap().vocab_size, 256);
        let ours = import(&saved.path, &options).unwrap();
        // Symbol 20 is the end of a line.
        let as_symbols = [20u8, 0, 1, 204, 77];
        let as_bytes = as_symbols.map(|symbol| symbols[usize::from(symbol)]);
        assert_eq!(as_bytes[0], b'\n');
        for (theirs, ours) in log_probs(&published, &as_symbols).iter().zip(log_probs(&ours, &as_bytes)) {
            for (symbol, byte) in symbols.iter().enumerate() {
                assert!((theirs[symbol] - ours[usize::from(*byte)]).abs() < 1e-6);
            }
            let others = (0..=255u8).filter(|byte| !symbols.contains(byte));
            assert!(
                others.map(|byte| ours[usize::from(byte)]).all(|log_prob| log_prob < -90.0 && log_prob.is_finite())
            );
        }
        let kept = ImportOptions { vocabulary: Some(Vocabulary::Symbols), ..ImportOptions::default() };
        assert_eq!(collect_params(&import(&saved.path, &kept).unwrap()), collect_params(&published));
        for (options, said) in [
            (None, "205 symbols, and it is not known which bytes they are"),
            (Some(Vocabulary::Bytes(vec![1, 2])), "the vocabulary that was named has 2"),
        ] {
            let options = ImportOptions { vocabulary: options, ..ImportOptions::default() };
            let error = import(&saved.path, &options).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let saved = Saved::of(&model(&config(), 1));
    saved.changed(
        |tensors| {
            tensors.remove("blocks.1.lnmid.bias");
            tensors.remove("decoder.bias");
            tensors.get_mut("blocks.0.lnff.weight").unwrap().shape = vec![2, 4];
            for i in 0..20 {
                tensors.insert(format!("extra.{i:02}"), HostTensor { shape: vec![1], data: vec![0.0] });
            }
        },
        &[],
    );
    let error = import(&saved.path, &ImportOptions::default()).unwrap_err().to_string();
    for said in [
        "decoder.bias [256] is missing",
        "blocks.1.lnmid.bias [8] is missing",
        "blocks.0.lnff.weight has shape [2, 4], expected [8]",
        "extra.00 [1] is unknown",
        "and 11 more",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

/// A header may promise a model that is far larger than the file: no memory is taken for it.
#[test]
fn a_model_is_never_larger_than_its_file() {
    let wide = HostTensor { shape: vec![1, 3_000_000], data: vec![0.0; 3_000_000] };
    let saved = Saved::of(&model(&config(), 1));
    saved.changed(|tensors| drop(tensors.insert("encoder.weight".into(), wide.clone())), &[]);
    let options = ImportOptions { vocabulary: Some(Vocabulary::Symbols), ..ImportOptions::default() };
    let error = import(&saved.path, &options).unwrap_err();
    assert!(matches!(error, WeightsError::Several { .. }), "{error}");
    saved.changed(
        |tensors| drop(tensors.insert("blocks.4000000000.x".into(), HostTensor { shape: vec![1], data: vec![0.0] })),
        &[],
    );
    import(&saved.path, &options).unwrap_err();
}

#[test]
fn metadata_of_another_model_are_refused() {
    let other = serde_json::to_string(&ShaRnnConfig { d_ff: 40, ..config() }).unwrap();
    let saved = Saved::of(&model(&config(), 1));
    saved.changed(|_| {}, &[("sharnn.config", &other)]);
    let error = import(&saved.path, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("d_ff is 40, and its tensors say 20"), "{error}");
    saved.changed(|_| {}, &[("sharnn.config", "{}")]);
    let error = import(&saved.path, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("are no configuration"), "{error}");
}

#[test]
fn a_pickle_is_never_read() {
    for magic in [&b"PK\x03\x04archive/data.pkl"[..], b"\x80\x02}q\x00."] {
        let error = WeightsFile::from_bytes("model.pt", magic.to_vec()).config(&ImportOptions::default()).unwrap_err();
        assert!(matches!(error, WeightsError::Pickle { .. }), "{error}");
        assert!(error.to_string().contains("weights_only=True"), "{error}");
    }
}

#[test]
fn what_is_no_model_of_ours_is_said_to_be_none() {
    let saved = Saved::new(|path| {
        save_tensors(path, &[("wte".into(), vec![2, 2], vec![0.0; 4])], &BTreeMap::new()).unwrap();
    });
    let error = import(&saved.path, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("encoder.weight") && error.contains("another kind of model"), "{error}");
}

#[test]
fn values_that_a_type_cannot_hold_are_not_written() {
    let saved = Saved::of(&model(&config(), 1));
    let before = std::fs::read(&saved.path).unwrap();
    saved.changed(|tensors| tensors.get_mut("decoder.bias").unwrap().data[3] = 1e6, &[]);
    let large = import(&saved.path, &ImportOptions::default()).unwrap();
    std::fs::write(&saved.path, &before).unwrap();
    let export = WeightsExport { dtype: WeightsDtype::F16, ..WeightsExport::default() };
    let error = export.save(&large, &saved.path).unwrap_err();
    assert!(matches!(error, WeightsError::NotFinite { index: 3, .. }), "{error}");
    assert_eq!(std::fs::read(&saved.path).unwrap(), before, "what was there before stays");
}
