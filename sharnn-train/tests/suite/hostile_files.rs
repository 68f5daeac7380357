//! Files and run directories that are damaged at random: success or a typed error, no panic, and no more memory than a small
//! multiple of what is on the disk. `PROPTEST_CASES` sets how many there are of each kind, some hundreds by default.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use allocation_counter::measure;
use burn::backend::Flex;
use burn::tensor::Tensor;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sharnn_core::{Attend, NGramConfig, NGramSite, ShaRnnConfig, WeightFormat};
use sharnn_train::{
    CONFIG_KEY, CheckpointError, ImportOptions, Metrics, SaveOptions, TrainError, Trainer, Vocabulary, WeightType,
    WeightsError, import_weights, latest_manifest, load_best, load_metadata, load_tensors, load_weights, read_config,
    save_tensors, save_weights_as,
};

use crate::common::{B, options, splits, twelve_steps};

/// What readers may hold at one time: some times the file, and what an error or a small model takes in any case.
const TIMES_THE_FILE: u64 = 40;
const IN_ANY_CASE: u64 = 256 << 10;
/// Clears a terminal's screen, in two ways.
const OBEYED: &str = "\u{1b}[2J\u{9b}2J";

fn cases(default: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { default };
    ProptestConfig { cases, ..config }
}

fn bounded(len: u64, what: &str, call: impl FnOnce()) {
    // A panic must not pass through the measurement.
    let mut result = Ok(());
    let used = measure(|| result = catch_unwind(AssertUnwindSafe(call))).bytes_max;
    if let Err(panic) = result {
        resume_unwind(panic);
    }
    let limit = TIMES_THE_FILE * len + IN_ANY_CASE;
    assert!(used <= limit, "{what} held {used} bytes for a file of {len}, more than {limit}");
}

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, vocab_size: 20, ..ShaRnnConfig::xs() }
}

/// Good files of all kinds.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("good.safetensors");
    let plain = SaveOptions::default();
    [
        (config(), plain),
        (config().with_tied(false), plain),
        (config(), SaveOptions { dtype: WeightType::Bf16, tied_twice: true, ..plain }),
        (config().with_attend(Attend::All), SaveOptions { dtype: WeightType::F16, collapse: true, ..plain }),
        (config().with_ngrams(NGramConfig { orders: vec![2, 4], rows: 7, width: 2, at: NGramSite::Both }), plain),
        (config(), SaveOptions { dtype: WeightType::Int8, ..plain }),
    ]
    .map(|(config, options)| {
        let model = config.init_seeded::<Flex>(1, &Default::default());
        save_weights_as(&model, &path, &options).unwrap();
        fs::read(&path).unwrap()
    })
    .into()
});

/// Everything that reads a file of tensors.
fn read_all(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.safetensors");
    fs::write(&path, bytes).unwrap();
    let len = bytes.len() as u64;
    bounded(len, "load_tensors", || check_message(load_tensors(&path)));
    bounded(len, "load_metadata", || check_message(load_metadata(&path)));
    let model = config().init_seeded::<Flex>(2, &Default::default());
    bounded(len, "load_weights", || check_message(load_weights(model, &path)));
    let custom = Vocabulary::Custom((0..20).collect());
    for vocabulary in [None, Some(Vocabulary::Bytes), Some(Vocabulary::PublishedEnwik8), Some(custom)] {
        let options = ImportOptions { vocabulary, ..ImportOptions::default() };
        bounded(len, "read_config", || check_message(read_config(&path, &options)));
        let mut imported = None;
        bounded(len, "import_weights", || {
            let model = import_weights::<Flex>(&path, &options, &Default::default());
            imported = model.as_ref().ok().cloned();
            check_message(model);
        });
        // With a memory of any length.
        if let Some(model) = imported {
            model.engine(WeightFormat::F32).streams(1).feed(&[0u8]);
        }
    }
}

/// What a file holds does not fill the screen, and moves no cursor.
fn check_message<T, E: Error>(result: Result<T, E>) {
    let Err(error) = result else { return };
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        let message = error.to_string();
        assert!(message.len() < 10_000, "a message of {} bytes", message.len());
        assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "a terminal would obey {message:?}");
        cause = error.source();
    }
}

/// Numbers that a size, an offset or a count may be mistaken for.
fn hostile_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..40,
        any::<u64>(),
        (0u32..64).prop_map(|shift| 1 << shift),
        (0u32..64).prop_map(|shift| (1u64 << shift).wrapping_neg()),
    ]
}

fn hostile_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        hostile_number().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![any::<f64>(), Just(1e308), Just(-0.0), Just(1e-308)].prop_map(|x| json!(x)),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        "\\PC{0,20}".prop_map(Value::from),
        Just(json!(OBEYED)),
        Just(json!("x".repeat(5000))),
        vec(hostile_number(), 0..6).prop_map(|list| json!(list)),
        Just(json!(vec![1; 2000])),
        Just(json!({})),
        Just(json!({"blocks": [0, 1]})),
        Just(json!({"blocks": (0..2000).collect::<Vec<_>>()})),
        prop_oneof![Just("F64"), Just("F16"), Just("BF16"), Just("I64"), Just("F4"), Just("F8_E4M3"), Just("BOOL")]
            .prop_map(Value::from),
    ]
}

/// What is done to a good file.
#[derive(Clone, Debug)]
enum Damage {
    FlipBits(Vec<(Index, u8)>),
    Truncate(Index),
    Append(Vec<u8>),
    HeaderLength(u64),
    /// Bytes of the header, which then has another length.
    Splice(Index, usize, Vec<u8>),
    /// One value in the header.
    Replace(Index, Value),
    Remove(Index),
    /// The second tensor gets the name of the first.
    Duplicate(Index, Index),
    /// The second tensor gets the place of the first.
    Overlap(Index, Index),
    /// A tensor of this shape and place.
    Insert(String, Vec<u64>, u64, u64),
    /// One value in the configuration of the metadata.
    Config(Index, Value),
    ConfigText(String),
}

fn damage() -> impl Strategy<Value = Damage> {
    let name = prop_oneof![
        "\\PC{0,30}",
        Just(OBEYED.to_string()),
        Just("decoder.weight".to_string()),
        Just("blocks.18446744073709551615.lnout.weight".to_string()),
        Just("blocks.7.attn.vs".to_string()),
        Just("__metadata__".to_string()),
    ];
    prop_oneof![
        2 => vec((any::<Index>(), 0u8..8), 1..6).prop_map(Damage::FlipBits),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => vec(any::<u8>(), 1..20).prop_map(Damage::Append),
        1 => hostile_number().prop_map(Damage::HeaderLength),
        2 => (any::<Index>(), 0usize..12, vec(any::<u8>(), 0..12)).prop_map(|(at, cut, put)| Damage::Splice(at, cut, put)),
        4 => (any::<Index>(), hostile_value()).prop_map(|(at, value)| Damage::Replace(at, value)),
        1 => any::<Index>().prop_map(Damage::Remove),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Damage::Duplicate(a, b)),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Damage::Overlap(a, b)),
        2 => (name, vec(hostile_number(), 0..5), hostile_number(), hostile_number())
            .prop_map(|(name, shape, start, end)| Damage::Insert(name, shape, start, end)),
        2 => (any::<Index>(), hostile_value()).prop_map(|(at, value)| Damage::Config(at, value)),
        1 => "\\PC{0,40}".prop_map(Damage::ConfigText),
    ]
}

impl Damage {
    fn to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::FlipBits(bits) if !bytes.is_empty() => {
                for (at, bit) in bits {
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << bit;
                }
            }
            Self::Truncate(len) => bytes.truncate(len.index(bytes.len() + 1)),
            Self::Append(more) => bytes.extend(more),
            Self::HeaderLength(len) if bytes.len() >= 8 => bytes[..8].copy_from_slice(&len.to_le_bytes()),
            _ => {
                // An earlier damage may have left no header.
                let len = bytes.get(..8).map_or(0, |len| u64::from_le_bytes(len.try_into().unwrap()) as usize);
                if let Some(header) = len.checked_add(8).and_then(|end| bytes.get(8..end)) {
                    let header = self.to_header(header.to_vec());
                    let data = bytes.split_off(8 + len);
                    bytes = (header.len() as u64).to_le_bytes().to_vec();
                    bytes.extend(header.into_iter().chain(data));
                }
            }
        }
        bytes
    }

    fn to_header(&self, mut header: Vec<u8>) -> Vec<u8> {
        if let Self::Splice(at, cut, put) = self {
            let at = at.index(header.len() + 1);
            let end = (at + cut).min(header.len());
            header.splice(at..end, put.iter().copied());
            return header;
        }
        let Ok(mut json) = serde_json::from_slice::<Value>(&header) else { return header };
        let Some(object) = json.as_object() else { return header };
        let names: Vec<String> = object.keys().filter(|name| *name != "__metadata__").cloned().collect();
        match self {
            Self::Replace(at, value) => replace_one(&mut json, at, value),
            Self::Remove(at) if !names.is_empty() => drop(json.as_object_mut().unwrap().remove(at.get(&names))),
            Self::Duplicate(a, b) if !names.is_empty() => {
                let quoted = |at: &Index| format!("{:?}:", at.get(&names));
                let text = serde_json::to_string(&json).unwrap();
                return text.replacen(&quoted(b), &quoted(a), 1).into_bytes();
            }
            Self::Overlap(a, b) if !names.is_empty() => json[b.get(&names)] = json[a.get(&names)].clone(),
            Self::Insert(name, shape, start, end) => {
                json[name] = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
            }
            Self::Config(at, value) => {
                let saved = json["__metadata__"][CONFIG_KEY].as_str().unwrap_or("null");
                let mut config = serde_json::from_str(saved).unwrap_or_default();
                replace_one(&mut config, at, value);
                json["__metadata__"] = json!({CONFIG_KEY: config.to_string()});
            }
            Self::ConfigText(text) => json["__metadata__"] = json!({CONFIG_KEY: text}),
            _ => {}
        }
        serde_json::to_vec(&json).unwrap()
    }
}

/// Replaces one of the values in `json`, whatever contains others among them.
fn replace_one(json: &mut Value, at: &Index, value: &Value) {
    fn pointers(json: &Value, here: String, found: &mut Vec<String>) {
        match json {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                pointers(value, format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{here}/{i}"), found));
            }
            _ => {}
        }
        found.push(here);
    }
    let mut found = Vec::new();
    pointers(json, String::new(), &mut found);
    *json.pointer_mut(&found[at.index(found.len())]).unwrap() = value.clone();
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes in vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    #[test]
    fn any_header_is_one_or_an_error(header in "\\PC{0,200}", json in hostile_value(), data in vec(any::<u8>(), 0..40)) {
        for header in [header, json.to_string()] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes().chain(data.iter().copied()));
            read_all(&bytes);
        }
    }

    #[test]
    fn a_damaged_file_of_weights_is_read_or_refused(file in any::<Index>(), damages in vec(damage(), 1..4)) {
        let good = file.get(&FILES).clone();
        read_all(&damages.iter().fold(good, |bytes, damage| damage.to(bytes)));
    }
}

/// What a small file cannot show: each has some hundred kilobytes of header, of whatever takes most memory to parse.
#[test]
fn a_long_header_takes_no_more_than_its_share() {
    let of = |header: Value, data: usize| {
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes().chain(std::iter::repeat_n(0, data)));
        bytes
    };
    read_all(&of(json!({"x": {"dtype": "F32", "shape": vec![1; 100_000], "data_offsets": [0, 4]}}), 4));
    read_all(&of(json!({"x": vec![1; 100_000]}), 0));
    let empty = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    let named = |name: &dyn Fn(usize) -> String| -> Value {
        (0..5000).map(|i| (name(i), empty.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    read_all(&of(named(&|i| i.to_string()), 0));
    // A block each, of which nearly all is missing.
    let mut blocks = named(&|i| format!("blocks.{i}.attn.vs"));
    blocks["encoder.weight"] = json!({"dtype": "F32", "shape": [256, 1], "data_offsets": [0, 1024]});
    blocks["blocks.0.ff.linear1.weight"] = json!({"dtype": "F32", "shape": [1, 1], "data_offsets": [1024, 1028]});
    for name in blocks.as_object().unwrap().keys().cloned().collect::<Vec<_>>() {
        if name.ends_with("vs") {
            blocks[name]["data_offsets"] = json!([1028, 1028]);
        }
    }
    read_all(&of(blocks.clone(), 1028));
    let attend = Attend::Blocks((0..20_000).collect());
    let saved = ShaRnnConfig { n_layers: 1 << 60, d_model: 1 << 60, d_ff: 1 << 61, attend, ..config() };
    blocks["__metadata__"] = json!({CONFIG_KEY: serde_json::to_string(&saved).unwrap()});
    read_all(&of(blocks, 1028));
}

/// Found by chance before it was a test: the message quoted the list.
#[test]
fn a_long_list_of_blocks_is_not_quoted_whole() {
    let list: Vec<_> = (0..2000).collect();
    for config in [config(), ShaRnnConfig { n_layers: 2000, ..config() }] {
        let saved = config.with_attend(Attend::Blocks(list.clone()));
        let damage = Damage::ConfigText(serde_json::to_string(&saved).unwrap());
        read_all(&damage.to(FILES[0].clone()));
    }
}

/// The files of a run of twelve steps, by their path in its directory.
static RUN: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(|| {
    let dir = twelve_steps();
    let mut files = BTreeMap::new();
    for within in ["", "best", "step-00000010", "step-00000012"] {
        for entry in fs::read_dir(dir.path().join(within)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(path.strip_prefix(dir.path()).unwrap().to_path_buf(), fs::read(path).unwrap());
            }
        }
    }
    files
});

/// Unknown names, in whatever a run keeps.
#[test]
fn a_message_quotes_nothing_that_a_terminal_would_obey() {
    let unknown = |file: &str| {
        let mut json: Value = serde_json::from_slice(&RUN[Path::new(file)]).unwrap();
        json[OBEYED] = json!(1);
        RunDamage::Text(json.to_string())
    };
    let tensor = |file: &str| {
        let mut tensors: Vec<_> = load_tensors_of(&RUN[Path::new(file)]);
        tensors.push((OBEYED.into(), vec![1; 5000], vec![0.0]));
        tensors
    };
    let (best, newest) = ("best/best.json", "step-00000012/checkpoint.json");
    let line = RunDamage::Text(json!({"event": OBEYED}).to_string() + "\n");
    let path = {
        let mut json: Value = serde_json::from_slice(&RUN[Path::new(newest)]).unwrap();
        (json["corpus"]["path"], json["corpus"]["train"]["bytes"]) = (json!(OBEYED.repeat(5000)), json!(1));
        RunDamage::Text(json.to_string())
    };
    let sum = RunDamage::Text(OBEYED.repeat(5000));
    let cases = [
        (best, unknown(best)),
        (newest, unknown(newest)),
        (newest, path),
        ("metrics.jsonl", line),
        ("step-00000012/checkpoint.json.sha256", sum),
        ("step-00000012/moments.safetensors", RunDamage::Tensors(tensor("step-00000012/moments.safetensors"))),
        ("step-00000012/state.safetensors", RunDamage::Tensors(tensor("step-00000012/state.safetensors"))),
    ];
    for (file, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_damaged(dir.path(), Path::new(file), &damage, !file.ends_with("sha256"));
        let read = [
            Metrics::read(dir.path()).err().map(|error| error.to_string()),
            load_best::<Flex>(dir.path(), &Default::default()).err().map(|error| error.to_string()),
            Trainer::<B>::resume(splits(), options(dir.path()), &Default::default()).err().map(|it| it.to_string()),
        ];
        let messages: Vec<_> = read.into_iter().flatten().collect();
        assert!(!messages.is_empty(), "{file} was read");
        for message in messages {
            assert!(message.len() < 2000, "{file}: a message of {} bytes", message.len());
            assert!(!message.chars().any(char::is_control), "{file}: {message:?}");
        }
    }
    let list = tempfile::NamedTempFile::new().unwrap();
    fs::write(list.path(), json!([OBEYED]).to_string()).unwrap();
    check_message(Vocabulary::read(list.path()));
}

/// The tensors of a file, as they are written.
fn load_tensors_of(bytes: &[u8]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let tensors = load_tensors(file.path()).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.data)).collect()
}

/// Found by chance before it was a test: the blocks that attend were listed, as many as the manifest claimed, and a
/// resumed run looked for them one by one.
#[test]
fn a_model_of_any_size_is_compared_with_its_file_before_it_is_made() {
    let [best, newest] = ["best/best.json", "step-00000012/checkpoint.json"].map(Path::new);
    let claim = |file: &Path, field: &str, value: &Value| {
        let mut json: Value = serde_json::from_slice(&RUN[file]).unwrap();
        json["config"][field] = value.clone();
        RunDamage::Text(json.to_string())
    };
    for (field, value) in [
        ("n_layers", json!(1u64 << 60)),
        ("n_layers", json!(40)),
        ("mem_len", json!(1u64 << 60)),
        ("d_ff", json!(1u64 << 60)),
        ("vocab_size", json!(u64::MAX)),
        ("attend", json!("all")),
        ("attend", json!({"blocks": [1, 2]})),
        ("ngrams", json!({"orders": [2, 3], "rows": 524_287, "width": 4096})),
        ("ngrams", json!({"orders": [2, 16], "rows": 1u64 << 60, "width": 1u64 << 60})),
    ] {
        let refused = |error: &CheckpointError| match error {
            CheckpointError::Weights(WeightsError::Mismatch { .. } | WeightsError::Unusable { .. }) => {}
            error => panic!("{field} = {value}: {error}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let len = write_damaged(dir.path(), best, &claim(best, field, &value), true);
        bounded(len, "load_best", || {
            refused(&load_best::<Flex>(dir.path(), &Default::default()).err().unwrap());
        });
        let dir = tempfile::tempdir().unwrap();
        let len = write_damaged(dir.path(), newest, &claim(newest, field, &value), true);
        bounded(len, "resume", || {
            let resumed = Trainer::<B>::resume(splits(), options(dir.path()), &Default::default());
            match resumed.err().unwrap() {
                TrainError::Checkpoint(error) => refused(&error),
                TrainError::Recipe(error) if error.field.starts_with(&format!("model.{field}")) => {}
                error => panic!("{field} = {value}: {error}"),
            }
        });
    }
}

/// A run that goes on counts from there.
#[test]
fn counts_that_no_run_reaches_are_refused() {
    let newest = Path::new("step-00000012/checkpoint.json");
    for pointer in [
        "/position/step",
        "/position/epoch",
        "/position/phase_epoch",
        "/position/bytes",
        "/position/skipped_in_a_row",
        "/segments/epoch",
        "/window/steps",
        "/smoothed/steps",
    ] {
        let mut json: Value = serde_json::from_slice(&RUN[newest]).unwrap();
        *json.pointer_mut(pointer).unwrap() = json!(u64::MAX);
        let dir = tempfile::tempdir().unwrap();
        write_damaged(dir.path(), newest, &RunDamage::Text(json.to_string()), true);
        let error = latest_manifest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("counts of steps, epochs and bytes up to"), "{pointer}: {error}");
    }
}

/// What is done to one file of a run.
#[derive(Clone, Debug)]
enum RunDamage {
    Bytes(Damage),
    /// Each in one line of a file of JSON.
    Json(Vec<(Index, Index, Value)>),
    Missing,
    Text(String),
    Tensors(Vec<(String, Vec<usize>, Vec<f32>)>),
}

fn run_damage() -> impl Strategy<Value = RunDamage> {
    prop_oneof![
        2 => damage().prop_map(RunDamage::Bytes),
        6 => vec((any::<Index>(), any::<Index>(), hostile_value()), 1..3).prop_map(RunDamage::Json),
        1 => Just(RunDamage::Missing),
        1 => "\\PC{0,40}".prop_map(RunDamage::Text),
    ]
}

impl RunDamage {
    fn to(&self, name: &str, good: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(damage) => Some(damage.to(good.to_vec())),
            Self::Missing => None,
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Tensors(tensors) => {
                let file = tempfile::NamedTempFile::new().unwrap();
                save_tensors(file.path(), tensors, &BTreeMap::new()).unwrap();
                Some(fs::read(file.path()).unwrap())
            }
            Self::Json(replacements) if name == "metrics.jsonl" => {
                let mut lines: Vec<Value> =
                    good.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
                for (line, at, value) in replacements {
                    let line = line.index(lines.len());
                    replace_one(&mut lines[line], at, value);
                }
                Some(lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes())
            }
            Self::Json(replacements) => {
                let Ok(mut json) = serde_json::from_slice::<Value>(good) else { return Some(good.to_vec()) };
                replacements.iter().for_each(|(_, at, value)| replace_one(&mut json, at, value));
                Some(serde_json::to_vec_pretty(&json).unwrap())
            }
        }
    }
}

/// Writes the run with one file damaged; signed as if the run itself had written it, so that it is not for its checksum
/// that it is refused.
fn write_damaged(dir: &Path, damaged: &Path, damage: &RunDamage, signed: bool) -> u64 {
    let mut files = RUN.clone();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    match damage.to(name, &files[damaged]) {
        Some(bytes) => files.insert(damaged.into(), bytes),
        None => files.remove(damaged),
    };
    let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    if signed
        && let Some(manifest) = ["checkpoint.json", "best.json"]
            .map(|name| damaged.with_file_name(name))
            .iter()
            .find(|path| files.contains_key(*path))
    {
        if name.ends_with(".safetensors")
            && let Some(bytes) = files.get(damaged)
        {
            let digest = json!({"bytes": bytes.len(), "sha256": sha256(bytes)});
            let mut json: Value = serde_json::from_slice(&files[manifest]).unwrap();
            match manifest.ends_with("best.json") {
                true => json["weights"] = digest,
                false => json["files"][name] = digest,
            }
            files.insert(manifest.clone(), serde_json::to_vec(&json).unwrap());
        }
        let sum = format!("{}  {}\n", sha256(&files[manifest]), manifest.file_name().unwrap().display());
        files.insert(manifest.with_extension("json.sha256"), sum.into_bytes());
    }
    for (path, bytes) in &files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    files.values().map(|bytes| bytes.len() as u64).sum()
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_damaged_run_is_read_or_refused(at in any::<Index>(), damage in run_damage(), signed in prop::bool::weighted(0.8)) {
        // As often a file of JSON as all others together.
        let json: Vec<_> = RUN.keys().filter(|path| path.extension().is_some_and(|it| it == "json" || it == "jsonl")).collect();
        let any: Vec<_> = RUN.keys().collect();
        let damaged = if matches!(damage, RunDamage::Json(_)) { *at.get(&json) } else { *at.get(&any) };
        let dir = tempfile::tempdir().unwrap();
        let len = write_damaged(dir.path(), damaged, &damage, signed);
        bounded(len, "Metrics::read", || check_message(Metrics::read(dir.path())));
        bounded(len, "latest_manifest", || check_message(latest_manifest(dir.path())));
        bounded(len, "load_best", || check_message(load_best::<Flex>(dir.path(), &Default::default())));
        // Until the next backward pass Burn keeps every leaf that ever was, of all models, in one table: what that takes when
        // it grows is not the reader's.
        Tensor::<B, 1>::ones([1], &Default::default()).require_grad().backward();
        bounded(len, "resume", || {
            check_message(Trainer::<B>::resume(splits(), options(dir.path()), &Default::default()));
        });
    }
}
