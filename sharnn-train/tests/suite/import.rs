//! Models of files whose configuration is not known: published ones, ours, and other vocabularies than bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{Attend, Pass, ShaRnn, ShaRnnConfig};
use sharnn_data::enwik8;
use sharnn_train::{
    EvalConfig, HostTensor, ImportOptions, SaveOptions, UNKNOWN_BYTE_BIAS, Vocabulary, VocabularyError, WeightType,
    WeightsError, collect_params, evaluate, import_weights, load_tensors, load_weights, read_config, save_tensors,
    save_weights, save_weights_as,
};
use tempfile::TempDir;

use crate::support::{Fixture, fixtures, swap};

type Tensors = BTreeMap<String, HostTensor>;

fn write(path: &Path, tensors: &Tensors) {
    let list: Vec<_> = tensors.iter().map(|(name, x)| (name.clone(), x.shape.clone(), x.data.clone())).collect();
    save_tensors(path, &list, &BTreeMap::new()).unwrap();
}

fn import(path: &Path, options: &ImportOptions) -> Result<ShaRnn<Flex>, WeightsError> {
    import_weights(path, options, &Default::default())
}

fn with(vocabulary: Vocabulary) -> ImportOptions {
    ImportOptions { vocabulary: Some(vocabulary), ..ImportOptions::default() }
}

/// A directory with one file.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }
}

/// The state_dict of a whole published model, with all its parameters.
fn state_dict(fixture: &Fixture) -> Tensors {
    let names = fixture.names().into_iter().filter_map(|name| name.strip_prefix("param.").map(String::from));
    names
        .map(|name| {
            let (shape, data) = fixture.values(&format!("param.{name}"));
            (name, HostTensor { shape, data })
        })
        .collect()
}

fn check_logits(fixture: &Fixture, model: &ShaRnn<Flex>) {
    let tokens = fixture.ids("seg1.input").swap_dims(0, 1);
    let (logits, _) = model.forward(tokens, model.empty_state());
    fixture.check("seg1.logits", swap(logits));
}

#[test]
fn published_models_are_imported_from_their_tensors_alone() {
    let dir = Dir::new();
    for fixture in fixtures("sha_") {
        let mem_len = fixture.usize("num_max_positions");
        let options = ImportOptions { mem_len: Some(mem_len), ..with(Vocabulary::Bytes) };
        for prefix in ["", "module.", "module.model."] {
            let tensors = state_dict(&fixture).into_iter().map(|(name, x)| (format!("{prefix}{name}"), x)).collect();
            write(&dir.path(), &tensors);
            let config = read_config(&dir.path(), &options).unwrap();
            assert_eq!(config, fixture.config(), "{}", fixture.name);
            let model = import(&dir.path(), &options).unwrap();
            assert_eq!(model.config(), config);
            check_logits(&fixture, &model);
        }
        // Some writers leave a tied copy out.
        if fixture.bool("tied") {
            let mut tensors = state_dict(&fixture);
            tensors.remove("decoder.weight");
            write(&dir.path(), &tensors);
            assert!(read_config(&dir.path(), &options).unwrap().tied);
            check_logits(&fixture, &import(&dir.path(), &options).unwrap());
        }
        let published = read_config(&dir.path(), &with(Vocabulary::Bytes)).unwrap();
        assert_eq!((published.n_heads, published.mem_len), (1, 5000));
    }
}

/// The same model, however PyTorch and safetensors wrote it: wrapped as a whole or in parts, the tied weight under either name, with a
/// word of that in the metadata, as `save_model` writes, or without.
#[test]
fn wrapped_models_and_shared_tensors_are_imported_whatever_their_names() {
    let dir = Dir::new();
    let tied: Vec<_> = fixtures("sha_").into_iter().filter(|fixture| fixture.bool("tied")).collect();
    assert!(!tied.is_empty());
    for fixture in tied {
        let mem_len = fixture.usize("num_max_positions");
        let options = ImportOptions { mem_len: Some(mem_len), ..with(Vocabulary::Bytes) };
        let whole = |prefix: &'static str| move |name: &str| format!("{prefix}{name}");
        let part = |name: &str| name.replace("blocks.0.", "blocks.0._orig_mod.").replace("encoder.", "module.encoder.");
        let wrappers: [&dyn Fn(&str) -> String; 5] =
            [&whole(""), &whole("module."), &whole("_orig_mod."), &whole("module._orig_mod.model."), &part];
        for wrapped in wrappers {
            for (kept, left_out) in [("encoder.weight", "decoder.weight"), ("decoder.weight", "encoder.weight")] {
                for says_so in [true, false] {
                    let mut tensors = state_dict(&fixture);
                    let weight = tensors["encoder.weight"].clone();
                    tensors.remove(left_out);
                    tensors.insert(kept.into(), weight);
                    let list: Vec<_> = tensors.into_iter().map(|(name, x)| (wrapped(&name), x.shape, x.data)).collect();
                    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
                    if says_so {
                        metadata.insert(wrapped(left_out), wrapped(kept));
                    }
                    save_tensors(&dir.path(), &list, &metadata).unwrap();
                    let model = import(&dir.path(), &options).unwrap();
                    assert_eq!(model.config(), fixture.config(), "{}", fixture.name);
                    check_logits(&fixture, &model);
                }
            }
        }
    }
    // Of a model that ties nothing both have to be there.
    let untied = ShaRnnConfig { d_model: 8, d_ff: 16, tied: false, ..ShaRnnConfig::xs() };
    let model = untied.init_seeded::<Flex>(1, &Default::default());
    save_weights(&model, &dir.path()).unwrap();
    let mut tensors = load_tensors(&dir.path()).unwrap();
    tensors.remove("encoder.weight");
    write(&dir.path(), &tensors);
    let error = load_weights(model, &dir.path()).unwrap_err().to_string();
    assert!(error.contains("encoder.weight [256, 8] is missing"), "{error}");
}

/// In the published model `vs` holds r after the collapse, and `vq` is gone.
#[test]
fn published_collapsed_models_are_imported() {
    let dir = Dir::new();
    for fixture in fixtures("sha_") {
        let mut tensors = state_dict(&fixture);
        for block in fixture.config().attend.blocks(fixture.usize("nlayers")) {
            let name = |suffix: &str| format!("blocks.{block}.attn.{suffix}");
            let [weight, bias] = ["vq.l1.weight", "vq.l1.bias"].map(|part| tensors.remove(&name(part)).unwrap().data);
            let gates = tensors.get_mut(&name("vs")).unwrap();
            let d = gates.data.len();
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let z: Vec<f64> = gates.data.iter().map(|&x| sigmoid(x.into())).collect();
            let map = |row: usize| {
                let products = weight[row * d..][..d].iter().zip(&z).map(|(&w, z)| f64::from(w) * z);
                f64::from(bias[row]) + products.sum::<f64>()
            };
            gates.data = (0..d).map(|i| (sigmoid(map(d + i)) * map(i).tanh()) as f32).collect();
        }
        write(&dir.path(), &tensors);
        let options = ImportOptions { mem_len: Some(fixture.usize("num_max_positions")), ..with(Vocabulary::Bytes) };
        let model = import(&dir.path(), &options).unwrap();
        assert!(model.blocks.iter().flat_map(|b| &b.attending).all(|a| a.attention.value_gate.linear.is_none()));
        check_logits(&fixture, &model);
    }
}

/// The published module's own collapse, before and after.
#[test]
fn the_published_collapse_is_the_one_of_a_file() {
    for fixture in fixtures("mod_attention_vqcollapse") {
        let (shape, after) = fixture.values("vs_after");
        let d = after.len();
        assert_eq!(shape, [1, 1, d]);
        let config = ShaRnnConfig { d_model: d, d_ff: d, n_layers: 2, ..ShaRnnConfig::xs() };
        let dir = Dir::new();
        save_weights(&config.init_seeded::<Flex>(1, &Default::default()), &dir.path()).unwrap();
        let mut tensors = load_tensors(&dir.path()).unwrap();
        for name in fixture.names().iter().filter_map(|name| name.strip_prefix("param_before.")) {
            let (shape, data) = fixture.values(&format!("param_before.{name}"));
            tensors.insert(format!("blocks.0.attn.{name}"), HostTensor { shape, data });
        }
        write(&dir.path(), &tensors);
        let whole = import(&dir.path(), &ImportOptions::default()).unwrap();
        for name in ["weight", "bias"] {
            tensors.remove(&format!("blocks.0.attn.vq.l1.{name}"));
        }
        tensors.insert("blocks.0.attn.vs".into(), HostTensor { shape, data: after });
        write(&dir.path(), &tensors);
        let collapsed = import(&dir.path(), &ImportOptions::default()).unwrap();
        let r = |model: ShaRnn<Flex>| {
            model.blocks[0].attending.as_ref().unwrap().attention.value_gate.forward(Default::default())
        };
        fixture.check("vs_after", r(whole));
        fixture.check("vs_after", r(collapsed));
    }
}

fn ours() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 24, n_layers: 4, ..ShaRnnConfig::xs() }
}

#[test]
fn a_file_of_ours_explains_itself() {
    let dir = Dir::new();
    for config in [
        ours().with_heads(2).with_mem_len(77).with_dropout(0.25),
        ours().with_attend(Attend::None),
        ours().with_attend(Attend::Blocks(vec![0, 3])).with_tied(false),
    ] {
        let model = config.init_seeded::<Flex>(1, &Default::default());
        for tied_twice in [false, true] {
            for collapse in [false, true] {
                let options = SaveOptions { tied_twice, collapse, ..SaveOptions::default() };
                save_weights_as(&model, &dir.path(), &options).unwrap();
                assert_eq!(read_config(&dir.path(), &ImportOptions::default()).unwrap(), config);
                let imported = import(&dir.path(), &ImportOptions::default()).unwrap();
                let expected = if collapse { model.clone().collapse() } else { model.clone() };
                assert_eq!(collect_params(&imported), collect_params(&expected));
                assert_eq!(imported.config(), config);
            }
        }
    }
    let options = ImportOptions { mem_len: Some(5), ..ImportOptions::default() };
    assert_eq!(read_config(&dir.path(), &options).unwrap().mem_len, 5);
    let options = ImportOptions { n_heads: Some(2), ..ImportOptions::default() };
    let error = read_config(&dir.path(), &options).unwrap_err();
    assert!(error.to_string().contains("saved with n_heads = 1, but the options have 2"), "{error}");
}

/// The smallest format: every weight rounded to 8 bits of precision.
#[test]
fn a_bf16_file_scores_within_its_rounding() {
    let dir = Dir::new();
    let model = ours().init_seeded::<Flex>(1, &Default::default());
    let config = EvalConfig { lanes: 2, seq_len: 64, ..EvalConfig::default() };
    let score = |model: &ShaRnn<Flex>| {
        evaluate(model, &enwik8::SAMPLE[..2000], &config, &Default::default(), &Default::default(), |_, _| {})
            .unwrap()
            .bpc()
    };
    save_weights_as(&model, &dir.path(), &SaveOptions { dtype: WeightType::Bf16, ..SaveOptions::default() }).unwrap();
    let imported = import(&dir.path(), &ImportOptions::default()).unwrap();
    let (exact, rounded) = (score(&model), score(&imported));
    assert!(exact != rounded && (exact - rounded).abs() < 2f64.powi(-8) * exact, "{exact} and {rounded}");
}

#[test]
fn options_that_the_tensors_contradict_are_refused() {
    let dir = Dir::new();
    let model = ours().init_seeded::<Flex>(1, &Default::default());
    save_weights(&model, &dir.path()).unwrap();
    write(&dir.path(), &load_tensors(&dir.path()).unwrap());
    let error = import(&dir.path(), &ImportOptions { n_heads: Some(3), ..ImportOptions::default() }).unwrap_err();
    assert!(matches!(&error, WeightsError::Unusable { source, .. } if source.field == "n_heads"), "{error}");
    assert_eq!(
        import(&dir.path(), &ImportOptions { n_heads: Some(4), ..ImportOptions::default() }).unwrap().config().n_heads,
        4
    );
}

#[test]
fn a_file_of_something_else_is_told_apart() {
    let dir = Dir::new();
    let tensor = |shape: &[usize]| HostTensor { shape: shape.to_vec(), data: vec![0.5; shape.iter().product()] };
    let import_these = |tensors: &[(&str, &[usize])]| {
        write(&dir.path(), &tensors.iter().map(|&(name, shape)| (name.to_string(), tensor(shape))).collect());
        import(&dir.path(), &ImportOptions::default()).unwrap_err()
    };
    for (tensors, named) in [
        (&[][..], "encoder.weight of 2 dimensions"),
        (&[("transformer.wte.weight", &[4, 4][..])], "encoder.weight of 2"),
        (&[("encoder.weight", &[16])], "encoder.weight of 2"),
        (&[("encoder.weight", &[256, 4])], "blocks.0.ff.linear1.weight of 2"),
    ] {
        let error = import_these(tensors);
        assert!(matches!(&error, WeightsError::NotAModel { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    // As far as the names go, the rest is listed.
    let error = import_these(&[("encoder.weight", &[256, 4]), ("blocks.0.ff.linear1.weight", &[8, 4]), ("x", &[1])]);
    let WeightsError::Mismatch { mismatch, .. } = &error else { panic!("{error}") };
    assert_eq!((mismatch.unexpected, mismatch.misshapen), (1, 0), "{error}");
    assert!(mismatch.missing > 10, "{error}");
    // Blocks are counted without gaps.
    let error = import_these(&[
        ("encoder.weight", &[256, 4]),
        ("blocks.0.ff.linear1.weight", &[8, 4]),
        ("blocks.9.lnff.bias", &[4]),
    ]);
    assert!(
        error.to_string().contains("blocks.9.lnff.bias [4] is unknown") || error.to_string().contains("more"),
        "{error}"
    );
}

/// A model with fresh weights that are large enough to matter.
fn lively(vocab_size: usize) -> ShaRnn<Flex> {
    let model = ours().with_vocab_size(vocab_size).init_seeded::<Flex>(5, &Default::default());
    let mut model = model;
    model.encoder.weight = model.encoder.weight.map(|w| w.mul_scalar(30.0));
    model.decoder.bias = model
        .decoder
        .bias
        .map(|b| b + Tensor::arange(0..vocab_size as i64, &Default::default()).float().mul_scalar(0.01));
    model
}

fn ids(ids: &[usize]) -> Tensor<Flex, 2, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let len = ids.len();
    Tensor::from_data(TensorData::new(ids, [1, len]), &Default::default())
}

/// The logits at every place.
fn rows(logits: Tensor<Flex, 3>) -> Vec<Vec<f32>> {
    let [_, n, vocab] = logits.dims();
    let flat: Vec<f32> = logits.into_data().to_vec().unwrap();
    (0..n).map(|i| flat[i * vocab..][..vocab].to_vec()).collect()
}

/// In f64, so that what is compared is the models and not the rounding.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

#[test]
fn a_model_expanded_to_bytes_predicts_what_it_did() {
    let dir = Dir::new();
    let published = Vocabulary::PublishedEnwik8;
    let symbols = published.symbols().unwrap();
    for untie in [false, true] {
        let mut model = lively(205);
        if untie {
            model.decoder.weight = Some(model.encoder.weight.clone().map(|w| w.mul_scalar(0.5)));
        }
        save_weights(&model, &dir.path()).unwrap();
        let expanded = import(&dir.path(), &with(published.clone())).unwrap();
        assert_eq!(expanded.config(), model.config().with_vocab_size(256));

        let text: Vec<u8> = enwik8::SAMPLE.iter().copied().filter(|byte| symbols.contains(byte)).take(65).collect();
        let as_symbols: Vec<usize> =
            text.iter().map(|byte| symbols.iter().position(|symbol| symbol == byte).unwrap()).collect();
        let as_bytes: Vec<usize> = text.iter().map(|&byte| byte.into()).collect();
        let forward = |model: &ShaRnn<Flex>, tokens: &[usize]| {
            let (logits, _) = model.forward(ids(&tokens[..64]), model.empty_state());
            let rows = rows(logits);
            let log_probs = rows.iter().map(|row| log_softmax(row)).collect::<Vec<_>>();
            (rows, log_probs)
        };
        let (logits, log_probs) = forward(&model, &as_symbols);
        let (byte_logits, byte_log_probs) = forward(&expanded, &as_bytes);
        let spread = logits.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
        assert!(spread > 1.0, "logits up to {spread}: too flat to tell");
        for i in 0..64 {
            for (symbol, &byte) in symbols.iter().enumerate() {
                let (symbol, byte) = (symbol, usize::from(byte));
                assert_eq!(logits[i][symbol], byte_logits[i][byte], "place {i}, byte {byte}");
                let difference = (log_probs[i][symbol] - byte_log_probs[i][byte]).abs();
                assert!(difference <= 1e-6, "place {i}, byte {byte}: {difference}");
            }
            for byte in (0..256).filter(|&byte| !symbols.contains(&(byte as u8))) {
                assert_eq!(byte_logits[i][byte], UNKNOWN_BYTE_BIAS);
            }
        }
        let loss = |model: &ShaRnn<Flex>, tokens: &[usize]| {
            let (loss, _) = model.loss(ids(&tokens[..64]), ids(&tokens[1..]), model.empty_state(), &Pass::default());
            loss.into_scalar()
        };
        let [of_symbols, of_bytes] = [loss(&model, &as_symbols), loss(&expanded, &as_bytes)];
        assert!((of_symbols - of_bytes).abs() <= 1e-6, "{of_symbols} and {of_bytes}");

        // Written as a model of bytes it stays one, in the smallest type too.
        save_weights_as(&expanded, &dir.path(), &SaveOptions { dtype: WeightType::F16, ..SaveOptions::default() })
            .unwrap();
        let again = import(&dir.path(), &ImportOptions::default()).unwrap();
        assert_eq!(again.decoder.bias.val().into_data().to_vec::<f32>().unwrap()[0], UNKNOWN_BYTE_BIAS);
    }
}

#[test]
fn no_vocabulary_is_chosen_silently() {
    let dir = Dir::new();
    save_weights(&lively(205), &dir.path()).unwrap();
    for error in [
        import(&dir.path(), &ImportOptions::default()).unwrap_err(),
        read_config(&dir.path(), &ImportOptions::default()).unwrap_err(),
    ] {
        let WeightsError::Vocabulary { source: VocabularyError::Unnamed { symbols: 205 }, .. } = &error else {
            panic!("{error}");
        };
        for option in ["--vocabulary enwik8", "--vocabulary LIST.json", "205"] {
            assert!(error.to_string().contains(option), "{error}");
        }
    }
    assert_eq!(import(&dir.path(), &with(Vocabulary::Bytes)).unwrap().vocab_size(), 205);
    let error = import(&dir.path(), &with(Vocabulary::Custom(vec![1, 2, 3]))).unwrap_err();
    assert!(error.to_string().contains("there are 205, and the list of bytes that was given has 3"), "{error}");
    let mut twice: Vec<u8> = (0..205).collect();
    twice[200] = 7;
    let error = import(&dir.path(), &with(Vocabulary::Custom(twice))).unwrap_err();
    assert!(error.to_string().contains("symbols 7 and 200 are both byte 7"), "{error}");
    save_weights(&lively(256), &dir.path()).unwrap();
    let error = import(&dir.path(), &with(Vocabulary::PublishedEnwik8)).unwrap_err();
    assert!(error.to_string().contains("there are 256, and that of the published enwik8 models has 205"), "{error}");
}

#[test]
fn a_vocabulary_is_read_from_a_list_of_bytes() {
    let dir = Dir::new();
    let path = dir.0.path().join("symbols.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Vocabulary::read(&path)
    };
    assert_eq!(read(" [32, 101,\n 10]\n").unwrap(), Vocabulary::Custom(vec![32, 101, 10]));
    for text in ["", "{}", "[1, 2", "[1, 256]", "[-1]", "[1.5]", "[\"a\"]", "null", &" ".repeat(20_000), "\u{0}"] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, VocabularyError::List { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains("symbols.json is not a JSON array"), "{error}");
    }
    assert!(matches!(read("[3, 4, 3]").unwrap_err(), VocabularyError::Twice { byte: 3, first: 0, second: 2 }));
    assert!(matches!(Vocabulary::read(dir.0.path()).unwrap_err(), VocabularyError::Io { .. }));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(Vocabulary::read(&path).unwrap_err(), VocabularyError::Io { .. }));
}

#[test]
fn the_published_symbols_are_enwik8s_bytes_by_frequency() {
    let published = Vocabulary::PublishedEnwik8;
    let symbols = published.symbols().unwrap();
    let mut sorted = symbols.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 205);
    // The bundled beginning has no byte of its own, and its common bytes are those of the whole.
    let sample = Vocabulary::by_frequency(enwik8::SAMPLE);
    let sample = sample.symbols().unwrap();
    assert!(sample.iter().all(|byte| symbols.contains(byte)));
    assert_eq!(sample[..3], symbols[..3]);
    for byte in &sample[..60] {
        assert!(symbols[..75].contains(byte), "{byte}");
    }
    assert_eq!(symbols[20], b'\n', "the 21st symbol is <eos>");
    // enwik8 is UTF-8: the bytes that never occur in it are not there.
    assert!(symbols.iter().all(|byte| !matches!(byte, 0xc0 | 0xc1 | 0xf5..)));

    // With the real file at hand: the whole order.
    if let Some(path) = std::env::var_os("SHARNN_ENWIK8") {
        let splits = enwik8::open(path).unwrap();
        assert_eq!(splits.train.sha256(), enwik8::TRAIN_SHA256);
        assert_eq!(Vocabulary::by_frequency(&splits.train).symbols(), Some(symbols));
        let mut counts = [0; 256];
        splits.train.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        let ties: Vec<_> =
            symbols.windows(2).filter(|pair| counts[usize::from(pair[0])] == counts[usize::from(pair[1])]).collect();
        assert_eq!(ties, [b"<>"]);
    }
}

#[test]
fn ties_of_frequency_stay_in_the_order_of_the_text() {
    assert_eq!(Vocabulary::by_frequency(b"zabzzba!"), Vocabulary::Custom(b"zab!".to_vec()));
    assert_eq!(Vocabulary::by_frequency(b""), Vocabulary::Custom(vec![]));
}
