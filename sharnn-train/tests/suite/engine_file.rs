//! Engines from weights files, without a model in between: the same as of the model that the file is read into.

use std::fs;

use burn::backend::Flex;
use sharnn_core::{Attend, DecodeEngine, NGramConfig, NGramSite, ShaRnn, ShaRnnConfig, WeightFormat};
use sharnn_train::{ImportOptions, SaveOptions, WeightType, import_weights, save_weights_as};

const FORMATS: [WeightFormat; 4] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Exact];

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 16, d_ff: 40, n_layers: 3, n_heads: 2, mem_len: 5, ..ShaRnnConfig::xs() }
}

fn written(model: &ShaRnn<Flex>, options: &SaveOptions) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save_weights_as(model, &path, options).unwrap();
    let bytes = fs::read(&path).unwrap();
    (dir, bytes)
}

#[test]
fn an_engine_of_a_file_is_that_of_its_model() {
    let ngrams = |at| Some(NGramConfig { orders: vec![2, 3], rows: 32, width: 4, at });
    let configs = [
        config(),
        ShaRnnConfig { tied: false, attend: Attend::All, ngrams: ngrams(NGramSite::Both), ..config() },
        ShaRnnConfig { attend: Attend::None, ngrams: ngrams(NGramSite::Embedding), ..config() },
        ShaRnnConfig { attend: Attend::Blocks(vec![2]), ngrams: ngrams(NGramSite::Decoder), ..config() },
    ];
    for config in configs {
        let model = config.init_seeded::<Flex>(3, &Default::default());
        for dtype in [WeightType::F32, WeightType::Bf16, WeightType::F16, WeightType::Int8] {
            for (collapse, tied_twice) in [(false, false), (true, true)] {
                let (dir, bytes) = written(&model, &SaveOptions { dtype, tied_twice, collapse });
                let path = dir.path().join("model.safetensors");
                let read = import_weights::<Flex>(&path, &ImportOptions::default(), &Default::default()).unwrap();
                for format in FORMATS {
                    let engine = DecodeEngine::from_weights(&bytes, format, None).unwrap();
                    assert_eq!(engine.digest(), read.engine(format).digest(), "{dtype:?} {format:?} {config:?}");
                    let [own, of_model] =
                        [engine, read.engine(format)].map(|engine| engine.streams(1).feed(b"a").to_vec());
                    assert_eq!(own, of_model);
                }
            }
        }
    }
}

#[test]
fn another_memory_may_be_asked_for() {
    let (_dir, bytes) = written(&config().init_seeded(3, &Default::default()), &SaveOptions::default());
    let engine = DecodeEngine::from_weights(&bytes, WeightFormat::F32, Some(9)).unwrap();
    let other = config().with_mem_len(9).init_seeded::<Flex>(3, &Default::default());
    assert_eq!(engine.digest(), other.engine(WeightFormat::F32).digest());
}

#[test]
fn what_is_no_weights_file_is_refused() {
    let (_dir, bytes) = written(&config().init_seeded(3, &Default::default()), &SaveOptions::default());
    let error = |bytes: &[u8]| {
        let error = DecodeEngine::from_weights(bytes, WeightFormat::Exact, None).unwrap_err().to_string();
        assert!(error.starts_with("these bytes are no weights of a model: "), "{error}");
        error
    };
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        error(&bytes[..len]);
    }
    // The same length in other words.
    let changed = |from: &str, to: &str| {
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).expect("it is there");
        let mut bytes = bytes.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        error(&bytes)
    };
    assert!(changed("sharnn.config", "another.thing").contains("there is no sharnn.config"));
    assert!(changed("d_model\\\":16", "d_model\\\":32").contains("has shape [256, 16], expected [256, 32]"));
    assert!(changed("n_heads\\\":2", "n_heads\\\":3").contains("3 heads"));
    assert!(changed("n_layers\\\":3", "n_layers\\\":4").contains("tensor blocks.3."));
    assert!(changed("lnff.weight", "other.thing").contains("lnff.weight is missing"));
    let mut infinite = bytes.clone();
    let last = infinite.len() - 4;
    infinite[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(error(&infinite).contains("no finite number"));
}
