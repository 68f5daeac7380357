//! A stream's state as bytes: there and back, and whatever else may be in its place.

use std::collections::HashMap;

use allocation_counter::measure;
use burn::backend::Flex;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use sharnn_core::{
    Attend, DecodeStreams, ModelStreams, NGramConfig, NGramSite, ShaRnnConfig, StateError, StreamShape, StreamState,
    Streams, WeightFormat,
};

fn config() -> ShaRnnConfig {
    ShaRnnConfig { vocab_size: 5, d_model: 3, d_ff: 3, n_layers: 2, mem_len: 4, ..ShaRnnConfig::xs() }
}

fn streams(config: &ShaRnnConfig) -> DecodeStreams {
    config.init_seeded::<Flex>(1, &Default::default()).engine(WeightFormat::F32).streams(1)
}

/// A state with a full ring that has rolled over.
fn state() -> StreamState {
    let mut streams = streams(&config());
    streams.read(&[&[1, 4, 2, 0, 3, 3]], &mut |_, _, _| {});
    streams.state(0)
}

fn refused(bytes: &[u8]) -> StateError {
    StreamState::from_bytes(bytes, state().shape()).unwrap_err()
}

/// The reason of a `Format` error.
fn reason(bytes: &[u8]) -> String {
    match refused(bytes) {
        StateError::Format { bytes: len, reason } => {
            assert_eq!(len, bytes.len());
            reason
        }
        error => panic!("{error:?}"),
    }
}

/// A state's tensors and metadata, to be changed and put together again with the right digest.
struct Forged {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    text: String,
}

impl Forged {
    fn new(state: &StreamState) -> Self {
        let bytes = state.to_bytes();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = metadata.metadata().as_ref().unwrap()["sharnn-stream-state"].clone();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let names = [
            "blocks.0.h",
            "blocks.0.c",
            "blocks.0.memory",
            "blocks.1.h",
            "blocks.1.c",
            "blocks.1.memory",
            "logits",
            "recent",
        ];
        let names = names.iter().filter(|name| parsed.names().contains(name));
        let tensor = |name: &&str| {
            let view = parsed.tensor(name).unwrap();
            (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        Self { tensors: names.map(tensor).collect(), text: text.split(" sha256=").next().unwrap().to_string() }
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn with(mut self, field: &str, value: &str) -> Self {
        let parts = self.text.split(' ').map(|part| match part.split_once('=') {
            Some((name, _)) if name == field => format!("{name}={value}"),
            _ => part.to_string(),
        });
        self.text = parts.collect::<Vec<_>>().join(" ");
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut sha = Sha256::new();
        sha.update(&self.text);
        self.tensors.iter().for_each(|tensor| sha.update(&tensor.3));
        let digest: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.bytes_with(&format!("{} sha256={digest}", self.text))
    }

    fn bytes_with(&self, text: &str) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, dtype, shape, data)| {
            let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
            (name, view)
        });
        let metadata = HashMap::from([("sharnn-stream-state".to_string(), text.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}

#[test]
fn bytes_give_the_state_back() {
    let state = state();
    let bytes = state.to_bytes();
    assert_eq!(StreamState::from_bytes(&bytes, state.shape()).unwrap(), state);
    assert_eq!(bytes, state.clone().to_bytes());
    assert!(bytes.len() <= state.shape().most_bytes());
    assert_eq!(Forged::new(&state).bytes(), bytes, "what the other tests change is what is written");

    let start = StreamState::start(state.shape());
    assert_eq!(StreamState::from_bytes(&start.to_bytes(), state.shape()).unwrap(), start);
}

#[test]
fn the_middle_of_a_segment_is_kept_and_other_segments_are_refused_there() {
    for mem_len in [0, 6] {
        let model = config().with_mem_len(mem_len).with_attend(Attend::All).init_seeded::<Flex>(1, &Default::default());
        let mut streams = ModelStreams::new(&model, 1, 5).unwrap();
        streams.read(&[&[1, 2, 3, 4, 0, 1, 2]], &mut |_, _, _| {});
        let state = streams.state(0);
        let bytes = state.to_bytes();
        assert!(bytes.len() <= state.shape().most_bytes());
        assert_eq!(StreamState::from_bytes(&bytes, streams.shape()).unwrap(), state);
        let other = StreamShape { segment_len: 1, ..streams.shape().clone() };
        let error = StreamState::from_bytes(&bytes, &other).unwrap_err();
        assert!(matches!(error, StateError::Segment { position: 2, expected: 1, found: 5 }), "{error:?}");
        let ended = state.end_segment();
        assert_eq!(StreamState::from_bytes(&ended.to_bytes(), &other).unwrap(), ended);
    }
}

#[test]
fn truncated_bytes() {
    let bytes = state().to_bytes();
    for len in 0..bytes.len() {
        assert!(matches!(refused(&bytes[..len]), StateError::Format { .. }), "{len} bytes");
    }
    assert!(matches!(refused(&[&bytes[..], &[0]].concat()), StateError::Format { .. }));
}

#[test]
fn a_flipped_bit_anywhere() {
    let bytes = state().to_bytes();
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = refused(&flipped);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert!(bit / 8 < header || matches!(error, StateError::Damaged { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn more_bytes_than_any_state_has() {
    let most = state().shape().most_bytes();
    assert!(matches!(refused(&vec![b'{'; most + 1]), StateError::TooLong { most: found } if found == most));
    assert!(matches!(refused(&vec![b'{'; most]), StateError::Format { .. }));
}

#[test]
fn a_header_that_claims_to_be_huge() {
    for size in [u64::MAX, 1 << 40, 100_000_000, 1000] {
        let bytes = [&size.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(refused(&bytes), StateError::Format { bytes: 10, .. }), "{size}");
    }
    // A shape whose size overflows.
    let header = br#"{"blocks.0.h":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,0]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    assert!(matches!(refused(&bytes), StateError::Format { .. }));
}

#[test]
fn other_safetensors_files() {
    let nothing: [(&str, TensorView); 0] = [];
    assert_eq!(
        reason(&safetensors::serialize(nothing, None).unwrap()),
        "there is no sharnn-stream-state in the metadata"
    );
    let forged = Forged::new(&state());
    assert_eq!(reason(&forged.bytes_with("version=1")), "there is no digest in sharnn-stream-state");
    assert_eq!(reason(&forged.bytes_with(" sha256=")), "there is no version in sharnn-stream-state");
    assert_eq!(reason(&Forged::new(&state()).with("version", "2").bytes()), "it is of version \"2\", expected 1");
}

#[test]
fn another_models_state() {
    for (other, field) in [
        (config().with_vocab_size(6), "vocab_size"),
        (ShaRnnConfig { d_model: 2, ..config() }, "d_model"),
        (config().with_mem_len(3), "mem_len"),
        (config().with_attend(Attend::None), "attends"),
        (ShaRnnConfig { n_layers: 3, ..config() }, "attends"),
    ] {
        let bytes = streams(&other).state(0).to_bytes();
        let error = refused(&bytes);
        assert!(matches!(&error, StateError::Shape { field: found, .. } if *found == field), "{error}");
    }
    let message = refused(&streams(&ShaRnnConfig { d_model: 2, ..config() }).state(0).to_bytes()).to_string();
    assert_eq!(
        message,
        "the stream state is of a model with d_model = 2, expected 3: go on with the model that it is of"
    );
}

/// Bytes that somebody made with care, digest and all.
#[test]
fn tensors_that_are_missing_too_many_or_of_other_shapes() {
    let forge = |change: &dyn Fn(&mut Forged)| {
        let mut forged = Forged::new(&state());
        change(&mut forged);
        reason(&forged.bytes())
    };
    assert_eq!(
        forge(&|forged| forged.tensors.retain(|tensor| tensor.0 != "blocks.1.c")),
        "tensor blocks.1.c is missing"
    );
    assert_eq!(
        forge(&|forged| forged.tensors.push(("more".into(), Dtype::F32, vec![1], vec![0; 4]))),
        "there are 7 tensors, expected 6"
    );
    assert_eq!(
        forge(&|forged| forged.tensor("blocks.0.h").2 = vec![3, 1]),
        "tensor blocks.0.h has shape [3, 1], expected [3]"
    );
    assert_eq!(
        forge(&|forged| forged.tensor("blocks.0.h").1 = Dtype::I32),
        "tensor blocks.0.h holds I32, expected F32"
    );
    assert_eq!(
        forge(&|forged| {
            let logits = forged.tensor("logits");
            (logits.2, logits.3) = (vec![4], vec![0; 16]);
        }),
        "tensor logits has shape [4], expected [5]"
    );
    assert_eq!(
        forge(&|forged| {
            let memory = forged.tensor("blocks.0.memory");
            (memory.2, memory.3) = (vec![5, 3], vec![0; 60]);
        }),
        "tensor blocks.0.memory has shape [5, 3], expected 3 columns and at most 4 rows"
    );
    assert_eq!(
        forge(&|forged| forged.tensor("blocks.0.memory").2 = vec![3, 4]),
        "tensor blocks.0.memory has shape [3, 4], expected 3 columns and at most 4 rows"
    );
}

#[test]
fn memories_of_different_lengths() {
    let mut streams = streams(&config().with_attend(Attend::All));
    streams.read(&[&[1, 2]], &mut |_, _, _| {});
    let mut forged = Forged::new(&streams.state(0));
    let memory = forged.tensor("blocks.1.memory");
    (memory.2, memory.3) = (vec![1, 3], vec![0; 12]);
    let error = StreamState::from_bytes(&forged.bytes(), streams.shape()).unwrap_err();
    let expected = "tensor blocks.1.memory has shape [1, 3], expected 3 columns and 2 rows";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn numbers_that_cannot_be() {
    let forge = |field: &str, value: &str| reason(&Forged::new(&state()).with(field, value).bytes());
    assert_eq!(forge("position", "-1"), "position is \"-1\", expected a number");
    assert_eq!(forge("position", "99999999999999999999"), "position is \"99999999999999999999\", expected a number");
    assert_eq!(forge("position", "1"), "it is 1 tokens into a segment of 1");
    assert_eq!(forge("oldest", "4"), "the oldest of 4 rows of memory cannot lie at 4");
    // A ring that is not full begins at its beginning.
    let mut forged = Forged::new(&state()).with("oldest", "1");
    let memory = forged.tensor("blocks.0.memory");
    (memory.2, memory.3) = (vec![2, 3], vec![0; 24]);
    assert_eq!(reason(&forged.bytes()), "the oldest of 2 rows of memory cannot lie at 1");
}

/// Clears a terminal's screen, in two ways; and a text that would fill it.
#[test]
fn a_message_quotes_nothing_that_a_terminal_would_obey() {
    let obeyed = "\u{1b}[2J\u{9b}2J";
    let header = format!(r#"{{"x":{{"dtype":"{obeyed}","shape":[],"data_offsets":[0,0]}}}}"#);
    let header = header.replace('\u{1b}', "\\u001b");
    let mut unknown_dtype = (header.len() as u64).to_le_bytes().to_vec();
    unknown_dtype.extend(header.bytes());
    let other_digest = {
        let bytes = Forged::new(&state()).bytes();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = metadata.metadata().as_ref().unwrap()["sharnn-stream-state"].clone();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let text = format!("{} sha256={}", text.split(" sha256=").next().unwrap(), obeyed.repeat(50));
        safetensors::serialize(parsed.tensors(), Some(HashMap::from([("sharnn-stream-state".to_string(), text)])))
    };
    let cases = [
        Forged::new(&state()).with("vocab_size", obeyed).bytes(),
        Forged::new(&state()).with("vocab_size", &"x".repeat(900)).bytes(),
        Forged::new(&state()).with("version", obeyed).bytes(),
        Forged::new(&state()).with("position", obeyed).bytes(),
        unknown_dtype,
        other_digest.unwrap(),
    ];
    for bytes in cases {
        let message = refused(&bytes).to_string();
        assert!(!message.chars().any(char::is_control), "{message:?}");
        assert!(message.len() < 800, "{} bytes: {message}", message.len());
    }
}

#[test]
fn values_that_are_not_finite() {
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut forged = Forged::new(&state());
        forged.tensor("blocks.1.c").3[4..8].copy_from_slice(&value.to_le_bytes());
        let error = refused(&forged.bytes());
        let expected = StateError::NotFinite { tensor: "blocks.1.c".into(), index: 1, value: text.into() };
        assert_eq!(error, expected);
    }
}

/// What is done to a good state.
#[derive(Clone, Debug)]
enum Forgery {
    /// A field of the metadata gets another value.
    Field(Index, String),
    Text(String),
    /// A tensor gets another shape, and as many bytes as that has.
    Shape(Index, Vec<usize>),
    Values(Index, Vec<u8>),
    Type(Index),
    Remove(Index),
    Rename(Index, String),
    /// After all is signed: bytes of the file, from a place on.
    Splice(Index, usize, Vec<u8>),
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let number =
        prop_oneof![(0u64..9), any::<u64>(), (0u32..64).prop_map(|shift| 1 << shift)].prop_map(|n| n.to_string());
    prop_oneof![
        4 => (any::<Index>(), prop_oneof![4 => number, 1 => "\\PC{0,12}"]).prop_map(|(at, value)| Forgery::Field(at, value)),
        1 => "\\PC{0,40}".prop_map(Forgery::Text),
        3 => (any::<Index>(), vec(0usize..9, 0..4)).prop_map(|(at, shape)| Forgery::Shape(at, shape)),
        2 => (any::<Index>(), vec(any::<u8>(), 4..20)).prop_map(|(at, bytes)| Forgery::Values(at, bytes)),
        1 => any::<Index>().prop_map(Forgery::Type),
        1 => any::<Index>().prop_map(Forgery::Remove),
        1 => (any::<Index>(), "\\PC{0,20}").prop_map(|(at, name)| Forgery::Rename(at, name)),
        4 => (any::<Index>(), 0usize..12, vec(any::<u8>(), 0..12)).prop_map(|(at, cut, put)| Forgery::Splice(at, cut, put)),
    ]
}

fn forge(forgeries: &[Forgery]) -> Vec<u8> {
    const FIELDS: [&str; 8] =
        ["version", "vocab_size", "d_model", "mem_len", "attends", "segment_len", "position", "oldest"];
    let mut forged = Forged::new(&state());
    for forgery in forgeries {
        if let Forgery::Field(at, value) = forgery {
            forged = forged.with(FIELDS[at.index(FIELDS.len())], value);
        }
        let n = forged.tensors.len();
        let tensors = &mut forged.tensors;
        match forgery {
            Forgery::Text(text) => forged.text.clone_from(text),
            Forgery::Shape(at, shape) if n > 0 => {
                let tensor = &mut tensors[at.index(n)];
                tensor.3.resize(4 * shape.iter().product::<usize>(), 0);
                tensor.2.clone_from(shape);
                tensor.1 = Dtype::F32;
            }
            Forgery::Values(at, bytes) if n > 0 => {
                let tensor = &mut tensors[at.index(n)];
                tensor.3.iter_mut().zip(bytes).for_each(|(byte, other)| *byte = *other);
            }
            Forgery::Type(at) if n > 0 => tensors[at.index(n)].1 = Dtype::I32,
            Forgery::Remove(at) if n > 0 => drop(tensors.remove(at.index(n))),
            // Of two of one name no file can be made.
            Forgery::Rename(at, name) if n > 0 && tensors.iter().all(|tensor| tensor.0 != *name) => {
                tensors[at.index(n)].0.clone_from(name);
            }
            _ => {}
        }
    }
    let mut bytes = forged.bytes();
    for forgery in forgeries {
        if let Forgery::Splice(at, cut, put) = forgery {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..bytes.len().min(at + cut), put.iter().copied());
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// `PROPTEST_CASES` sets how many are tried.
    #[test]
    fn whatever_is_forged_is_a_state_to_go_on_from_or_refused(forgeries in vec(forgery(), 1..4)) {
        let bytes = forge(&forgeries);
        let mut streams = streams(&config());
        let most = streams.shape().most_bytes() as u64;
        let mut read = None;
        let used = measure(|| read = Some(StreamState::from_bytes(&bytes, streams.shape()))).bytes_max;
        prop_assert!(used <= 32 * most, "{used} bytes for a state of at most {most}");
        if let Some(Ok(state)) = read {
            streams.set_state(0, &state).unwrap();
            streams.read(&[&[1, 2, 3, 4, 0, 1]], &mut |_, _, _| {});
        }
    }
}

/// Newest tokens that are too many, none of the vocabulary, of another type, or missing.
#[test]
fn newest_tokens_that_cannot_be_are_refused() {
    let ngrams = NGramConfig { orders: vec![2, 4], rows: 7, width: 2, at: NGramSite::Both };
    let mut streams = streams(&config().with_ngrams(ngrams));
    streams.read(&[&[1, 4, 2, 0, 3]], &mut |_, _, _| {});
    let state = streams.state(0);
    assert_eq!(StreamState::from_bytes(&state.to_bytes(), state.shape()).unwrap(), state);
    let forged = |dtype: Dtype, tokens: &[i32]| {
        let mut forged = Forged::new(&state);
        let data = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        *forged.tensor("recent") = ("recent".into(), dtype, vec![tokens.len()], data);
        StreamState::from_bytes(&forged.bytes(), state.shape())
    };
    assert_eq!(forged(Dtype::I32, &[2, 0, 3]).unwrap(), state);
    assert!(forged(Dtype::I32, &[]).is_ok());
    for (dtype, tokens, part) in [
        (Dtype::I32, &[1, 2, 3, 4][..], "4 tokens, expected at most 3"),
        (Dtype::I32, &[5], "outside the vocabulary"),
        (Dtype::I32, &[-1], "outside the vocabulary"),
        (Dtype::F32, &[1], "expected tokens as I32"),
    ] {
        let error = forged(dtype, tokens).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut missing = Forged::new(&state);
    missing.tensors.retain(|tensor| tensor.0 != "recent");
    let error = StreamState::from_bytes(&missing.bytes(), state.shape()).unwrap_err().to_string();
    assert!(error.contains("tensor recent is missing"), "{error}");
}
