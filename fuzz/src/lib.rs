//! What the fuzz targets share: their seeds, a small model and a small run, and what is asked of every reader.
//!
//! A reader of anything returns a value or an error. It does not panic, takes no more memory than a small multiple of what it
//! reads, and its messages are short and hold nothing that a terminal would obey.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use allocation_counter::measure;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sharnn::burn::backend::{Autodiff, Flex};
use sharnn::train::{Event, Interrupt, Limits, Phase, SaveOptions, Schedule, WeightType, save_weights_as};
use sharnn::{
    Attend, NGramConfig, NGramSite, Recipe, SegmentLengths, ShaRnn, ShaRnnConfig, Splits, TrainOptions, Trainer,
};

/// The backend that trains.
pub type B = Autodiff<Flex>;

/// What a reader may hold at one time: as `sharnn-train/tests/suite/hostile_files.rs` has it.
const TIMES_THE_INPUT: usize = 40;
const IN_ANY_CASE: usize = 256 << 10;
/// No message is longer, in bytes.
const LONGEST_MESSAGE: usize = 10_000;

/// Puts seeds beside what was found so far: into the corpus, which is the directory on the command line.
pub fn seed(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let Some(corpus) = arguments.map(PathBuf::from).find(|path| path.is_dir()) else { return };
    for (i, seed) in seeds.into_iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i}")), seed).expect("the corpus can be written to");
    }
}

/// Calls a reader of `len` bytes.
pub fn bounded<T>(len: usize, what: &str, reader: impl FnOnce() -> T) -> T {
    within(TIMES_THE_INPUT * len + IN_ANY_CASE, len, what, reader)
}

/// Calls a reader of `len` bytes that may hold so many at a time.
pub fn within<T>(most: usize, len: usize, what: &str, reader: impl FnOnce() -> T) -> T {
    let mut result = None;
    let used = measure(|| result = Some(reader())).bytes_max as usize;
    assert!(used <= most, "{what} held {used} bytes to read {len}, more than {most}");
    result.expect("the reader returned")
}

/// Looks at the messages of an error and of its causes.
pub fn harmless<T, E: Error>(result: Result<T, E>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        let message = error.to_string();
        // The one with a program in it, of five lines.
        let lines = if message.contains("unpickling runs code") { 5 } else { 1 };
        assert!(message.lines().count() <= lines, "a message of many lines: {message:?}");
        assert!(message.len() < LONGEST_MESSAGE, "a message of {} bytes", message.len());
        check_text(&message);
        cause = error.source();
    }
    None
}

/// That a terminal shows a text and obeys nothing in it.
pub fn check_text(text: &str) {
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "a terminal would obey {text:?}");
}

/// A directory of this process alone, under `TMPDIR`.
pub fn place() -> &'static Path {
    static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let place = std::env::temp_dir().join(format!("sharnn-fuzz-{}", std::process::id()));
        fs::create_dir_all(&place).expect("TMPDIR can be written to");
        place
    });
    &PLACE
}

/// A model of a few kilobytes.
pub fn config() -> ShaRnnConfig {
    let ngrams = NGramConfig { orders: vec![2, 4], rows: 7, width: 2, at: NGramSite::Both };
    ShaRnnConfig { d_model: 4, d_ff: 8, n_layers: 2, vocab_size: 20, mem_len: 6, ..ShaRnnConfig::xs() }
        .with_ngrams(ngrams)
}

pub fn model(config: &ShaRnnConfig) -> ShaRnn<Flex> {
    config.init_seeded(1, &Default::default())
}

/// Files of weights of all kinds.
pub fn weights_files() -> Vec<Vec<u8>> {
    let path = place().join("good.safetensors");
    let plain = SaveOptions::default();
    [
        (config(), plain),
        (config().with_tied(false), plain),
        (config(), SaveOptions { dtype: WeightType::Bf16, tied_twice: true, ..plain }),
        (config().with_attend(Attend::All), SaveOptions { dtype: WeightType::F16, collapse: true, ..plain }),
        (ShaRnnConfig { ngrams: None, ..config() }, plain),
        (config(), SaveOptions { dtype: WeightType::Int8, ..plain }),
    ]
    .map(|(config, options)| {
        save_weights_as(&model(&config), &path, &options).expect("it can be written");
        fs::read(&path).expect("it was written")
    })
    .into()
}

/// A safetensors file of this header, whatever it is, and of as many zeros as its tensors claim.
pub fn with_header(header: &[u8]) -> Vec<u8> {
    const MOST: u64 = 1 << 16;
    let json: Value = serde_json::from_slice(header).unwrap_or_default();
    let ends = json.as_object().into_iter().flatten().filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    let data = ends.max().filter(|&end| end <= MOST).unwrap_or(0);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + data as usize, 0);
    file
}

/// The header of a safetensors file, if it has one.
pub fn header(file: &[u8]) -> Option<&[u8]> {
    let (len, rest) = file.split_first_chunk()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

/// Text that a small model can be trained on: a file beside the run.
pub fn splits() -> Splits {
    static TEXT: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = place().join("corpus.txt");
        let text: Vec<u8> = (0..600u32).map(|i| (i * i % 19) as u8).collect();
        fs::write(&path, text).expect("it can be written");
        path
    });
    sharnn::data::enwik8::open_any(&*TEXT).expect("it is long enough")
}

/// What the program keeps of the data: the whole of that text.
pub const DATA: &str = r#"{"path":"corpus.txt","train_bytes":null,"scored_bytes":null}"#;

/// A run of three steps, with a checkpoint of each of the last two and best weights.
pub fn options(run_dir: &Path) -> TrainOptions {
    TrainOptions { log_every: 1, checkpoint_every: 2, checkpoint_interval: None, ..TrainOptions::new(run_dir) }
}

pub fn silent(_: Event<'_>) {}

/// The files of such a run, by their path in its directory.
pub static RUN: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(|| {
    let dir = place().join("good");
    let mut recipe = Recipe::paper().with_batch_size(2);
    recipe.segments = SegmentLengths::Fixed { len: 5 };
    recipe.phases = vec![Phase { lr: 1e-2, warmup_steps: 1, schedule: Schedule::Cosine, epochs: 3, steps: Some(9) }];
    recipe.valid_every_steps = Some(2);
    (recipe.valid.lanes, recipe.valid.seq_len) = (2, 6);
    (recipe.test.lanes, recipe.test.seq_len) = (1, 6);
    let config = ShaRnnConfig { vocab_size: 256, ..config() };
    let trainer = Trainer::<B>::open(config, recipe, splits(), options(&dir), &Default::default());
    let limits = Limits { max_steps: Some(3), ..Limits::default() };
    trainer.expect("a new run").run(&limits, &mut silent, &Interrupt::default()).expect("three steps");
    let mut files = BTreeMap::from([("data.json".into(), DATA.into())]);
    for within in ["", "best", "step-00000002", "step-00000003"] {
        for entry in fs::read_dir(dir.join(within)).expect("the run wrote it") {
            let path = entry.expect("it is there").path();
            if path.is_file() {
                let name = path.strip_prefix(&dir).expect("it is in it").to_path_buf();
                files.insert(name, fs::read(path).expect("it can be read"));
            }
        }
    }
    files
});

/// Names of the files of a run that a target replaces, in an order that stays.
pub const RUN_FILES: [&str; 9] = [
    "step-00000003/checkpoint.json",
    "best/best.json",
    "metrics.jsonl",
    "step-00000003/weights.safetensors",
    "step-00000003/moments.safetensors",
    "step-00000003/state.safetensors",
    "best/weights.safetensors",
    "step-00000003/checkpoint.json.sha256",
    "lock",
];

/// Writes the run anew, with one file replaced, and signed as if the run itself had written it. Returns the bytes of all files.
pub fn write_run(dir: &Path, name: &str, contents: &[u8]) -> usize {
    let mut files = RUN.clone();
    let path = PathBuf::from(name);
    files.insert(path.clone(), contents.to_vec());
    let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    let manifest = path.with_file_name(if path.starts_with("best") { "best.json" } else { "checkpoint.json" });
    if path.extension().is_some_and(|it| it == "safetensors") {
        let digest = json!({"bytes": contents.len(), "sha256": sha256(contents)});
        let mut json: Value = serde_json::from_slice(&files[&manifest]).expect("the run wrote it");
        match path.starts_with("best") {
            true => json["weights"] = digest,
            false => json["files"][path.file_name().expect("a file").to_str().expect("of ours")] = digest,
        }
        files.insert(manifest.clone(), serde_json::to_vec(&json).expect("it was JSON"));
    }
    if files.contains_key(&manifest) && !name.ends_with(".sha256") {
        let sum = format!("{}  {}\n", sha256(&files[&manifest]), manifest.file_name().expect("a file").display());
        files.insert(manifest.with_extension("json.sha256"), sum.into_bytes());
    }
    let _ = fs::remove_dir_all(dir);
    for (path, bytes) in &files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("in the run")).expect("it can be made");
        fs::write(path, bytes).expect("it can be written");
    }
    files.values().map(Vec::len).sum()
}

/// What a call prints to standard output and standard error. A panic is printed where it would be without.
pub fn printed(call: impl FnOnce()) -> Vec<u8> {
    static KEPT: LazyLock<[i32; 2]> = LazyLock::new(|| {
        // SAFETY: Both are open as long as the process.
        let kept = [1, 2].map(|fd| unsafe { libc::dup(fd) });
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            put_back(&kept);
            hook(panic);
        }));
        kept
    });
    let kept = *KEPT;
    let path = place().join("printed");
    // The program holds on to what these were at its first line: the one file, at whose end everything goes.
    let mut file = File::options().create(true).read(true).append(true).open(path).expect("a file of our own");
    file.set_len(0).expect("it can be emptied");
    put_back(&[file.as_raw_fd(); 2]);
    call();
    put_back(&kept);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("it can be read");
    bytes
}

fn put_back(fds: &[i32; 2]) {
    for (fd, from) in [1, 2].into_iter().zip(fds) {
        // SAFETY: Whoever writes to these finds an open file at any moment.
        unsafe { libc::dup2(*from, fd) };
    }
}
