//! A stream's state as bytes: a safetensors file with a digest, so that no damage goes unseen.
//!
//! ```text
//! blocks.0.h  blocks.0.c  [d_model]     of every block
//! blocks.2.memory         [rows, d_model], oldest first, of blocks that attend
//! logits                  [vocab_size], after the first token
//! recent                  [tokens] of I32, where the model has a memory of n-grams: the newest ones, oldest first
//! adaptive                [bytes] of U8, where a mixer read the stream: what it knows
//! sharnn-stream-state     "version=1 vocab_size=256 ... [weights=<digest>] sha256=<of what stands before it, then of all values>"
//! ```

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView, View};
use sha2::{Digest, Sha256};
use sharnn_mixing::MixerError;

use crate::state::fields;
use crate::{BlockValues, StreamShape, StreamState, StreamValues};

/// Key of the metadata's only entry: with one alone, equal states are equal bytes.
const KEY: &str = "sharnn-stream-state";
const VERSION: &str = "1";
const DIGEST: &str = " sha256=";
/// The newest tokens.
const RECENT: &str = "recent";
/// What a mixer knows.
const ADAPTIVE: &str = "adaptive";
/// Its longest, of the most memory.
const MOST_ADAPTIVE: usize = *sharnn_mixing::MixerConfig::MEMORY.end();
/// Stands before it, where the weights are known.
const WEIGHTS: &str = " weights=";

/// Why a stream cannot go on from a state.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// There are more bytes than any state of these streams has.
    #[error(
        "more than {most} bytes are no state of these streams: it is another model's, or something else: use the file that this model's streams were saved to"
    )]
    TooLong {
        /// The most that it may be.
        most: usize,
    },
    /// The bytes are not those of a state.
    #[error(
        "{bytes} bytes are not a whole stream state: {reason}; they are truncated, damaged or of another format: use an earlier copy, or start the stream anew"
    )]
    Format {
        /// How many bytes there are.
        bytes: usize,
        /// What is wrong with them.
        reason: String,
    },
    /// A value was changed after the state was saved.
    #[error(
        "the stream state's values have the SHA-256 {found}, expected {expected}: it is damaged: use an earlier copy, or start the stream anew"
    )]
    Damaged {
        /// The digest that it was saved with.
        expected: String,
        /// That of what is there.
        found: String,
    },
    /// The state is of another model.
    #[error(
        "the stream state is of a model with {field} = {found}, expected {expected}: go on with the model that it is of"
    )]
    Shape {
        /// What differs.
        field: &'static str,
        /// That of the streams.
        expected: String,
        /// That of the state.
        found: String,
    },
    /// The state is in the middle of a segment of another length.
    #[error(
        "the stream state is {position} tokens into a segment of {found}, the streams have segments of {expected}: go on in segments of {found}, or end the segment before the state is kept"
    )]
    Segment {
        /// Tokens of the segment that has begun.
        position: usize,
        /// Tokens of a segment of the streams.
        expected: usize,
        /// Tokens of a segment of the state.
        found: usize,
    },
    /// What the mixer knew cannot be taken.
    #[error("the stream state holds {0}")]
    Adaptive(#[from] MixerError),
    /// A value is infinite or not a number.
    #[error(
        "tensor {tensor} of the stream state holds {value} at position {index}, expected finite values: the model diverged: start the stream anew"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Position of the first such value, row-major from 0.
        index: usize,
        /// The value, as text.
        value: String,
    },
}

/// A tensor's values as bytes.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Bytes {
    fn new(values: &[f32], shape: Vec<usize>) -> Self {
        Self { dtype: Dtype::F32, shape, data: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }
}

impl View for &Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (&self.data).into()
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

impl StreamState {
    /// The state as a safetensors file. Equal states give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let d = self.shape.d_model;
        let mut tensors = Vec::new();
        for (i, (block, &attends)) in self.values.blocks.iter().zip(&self.shape.attends).enumerate() {
            tensors.push((format!("blocks.{i}.h"), Bytes::new(&block.h, vec![d])));
            tensors.push((format!("blocks.{i}.c"), Bytes::new(&block.c, vec![d])));
            if attends {
                let rows = block.memory.len() / d;
                tensors.push((format!("blocks.{i}.memory"), Bytes::new(&block.memory, vec![rows, d])));
            }
        }
        if let Some(logits) = &self.values.logits {
            tensors.push(("logits".into(), Bytes::new(logits, vec![logits.len()])));
        }
        if self.shape.context > 0 {
            let data = self.values.recent.iter().flat_map(|&token| (token as i32).to_le_bytes()).collect();
            tensors.push((RECENT.into(), Bytes { dtype: Dtype::I32, shape: vec![self.values.recent.len()], data }));
        }
        if let Some(bytes) = &self.adaptive {
            let bytes = Bytes { dtype: Dtype::U8, shape: vec![bytes.len()], data: bytes.clone() };
            tensors.push((ADAPTIVE.into(), bytes));
        }
        let mut text = format!("version={VERSION}");
        for (field, value) in fields(&self.shape).into_iter().filter(|(field, value)| !is_left_out(field, value)) {
            text += &format!(" {field}={value}");
        }
        let Self { shape: StreamShape { segment_len, .. }, values: StreamValues { position, oldest, .. }, .. } = self;
        text += &format!(" segment_len={segment_len} position={position} oldest={oldest}");
        if let Some(weights) = &self.weights {
            text += &format!("{WEIGHTS}{}", hex(weights));
        }
        let digest = digest(&text, tensors.iter().map(|(_, tensor)| &tensor.data[..]));
        text += &format!("{DIGEST}{digest}");
        let views = tensors.iter().map(|(name, tensor)| (name, tensor));
        let metadata = HashMap::from([(KEY.to_string(), text)]);
        safetensors::serialize(views, Some(metadata)).expect("values fill their shapes, and the header is small")
    }

    /// How many bytes the state of such streams may have whose file begins with these, of which [`StreamShape::most_bytes`] are enough: so
    /// many, and those that a mixer's part says that it has.
    pub fn most_bytes(beginning: &[u8], shape: &StreamShape) -> usize {
        let header = || -> Option<Metadata> {
            let (&len, rest) = beginning.split_first_chunk()?;
            let len = usize::try_from(u64::from_le_bytes(len)).ok().filter(|&len| len <= shape.most_header())?;
            serde_json::from_slice(rest.get(..len)?).ok()
        };
        let of_mixer = header().and_then(|header| {
            let (begin, end) = header.info(ADAPTIVE)?.data_offsets;
            end.checked_sub(begin)
        });
        shape.most_bytes().saturating_add(of_mixer.unwrap_or(0).min(MOST_ADAPTIVE))
    }

    /// The state of such streams that [`to_bytes`](Self::to_bytes) made bytes of. No more memory is taken than a few times
    /// [`most_bytes`](Self::most_bytes): of a header longer than a state's nothing is parsed. What a mixer knew is not looked at until
    /// one goes on from it.
    ///
    /// # Errors
    /// Bytes that are no state, a damaged one, one that is not finite or that streams of this shape cannot go on from.
    pub fn from_bytes(bytes: &[u8], shape: &StreamShape) -> Result<Self, StateError> {
        let most = Self::most_bytes(bytes, shape);
        if bytes.len() > most {
            return Err(StateError::TooLong { most });
        }
        Parser::new(bytes, shape.most_header())?.state(shape)
    }
}

/// The bytes of a state, of which nothing is believed yet.
struct Parser<'a> {
    len: usize,
    tensors: SafeTensors<'a>,
    /// The metadata without its digest.
    text: String,
    digest: String,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8], most_header: usize) -> Result<Self, StateError> {
        let refuse = |reason: String| StateError::Format { bytes: bytes.len(), reason };
        let header = bytes.first_chunk().map_or(0, |&len| u64::from_le_bytes(len));
        if header > most_header as u64 {
            return Err(refuse(format!("its header has {header} bytes, expected at most {most_header}")));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| refuse(shown(&error.to_string())))?;
        let text = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let text = text.ok_or_else(|| refuse(format!("there is no {KEY} in the metadata")))?;
        let parts = text.rsplit_once(DIGEST);
        let (text, digest) = parts.ok_or_else(|| refuse(format!("there is no digest in {KEY}")))?;
        let (text, digest) = (text.to_string(), digest.to_string());
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| refuse(shown(&error.to_string())))?;
        Ok(Self { len: bytes.len(), tensors, text, digest })
    }

    fn refuse<T>(&self, reason: String) -> Result<T, StateError> {
        Err(StateError::Format { bytes: self.len, reason })
    }

    fn field(&self, name: &str) -> Result<&str, StateError> {
        let value = self.text.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        match value {
            Some(value) => Ok(value),
            None => self.refuse(format!("there is no {name} in {KEY}")),
        }
    }

    fn number(&self, name: &str) -> Result<usize, StateError> {
        let value = self.field(name)?;
        match value.parse() {
            Ok(value) => Ok(value),
            Err(_) => self.refuse(format!("{name} is {value:?}, expected a number")),
        }
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'a>, StateError> {
        match self.tensors.tensor(name) {
            Ok(view) if view.dtype() == Dtype::F32 => Ok(view),
            Ok(view) => self.refuse(format!("tensor {name} holds {}, expected F32", view.dtype())),
            Err(_) => self.refuse(format!("tensor {name} is missing")),
        }
    }

    /// The tensor of this name, which has to be `[len]`.
    fn vector(&self, name: &str, len: usize) -> Result<TensorView<'a>, StateError> {
        let view = self.tensor(name)?;
        match view.shape() {
            [found] if *found == len => Ok(view),
            found => self.refuse(format!("tensor {name} has shape {found:?}, expected {:?}", [len])),
        }
    }

    /// The tensor of the newest tokens, and they.
    fn recent(&self, streams: &StreamShape) -> Result<(TensorView<'a>, Vec<usize>), StateError> {
        let view = match self.tensors.tensor(RECENT) {
            Ok(view) if view.dtype() == Dtype::I32 && view.shape().len() == 1 => view,
            Ok(view) => {
                let (shape, dtype) = (view.shape(), view.dtype());
                return self.refuse(format!("tensor {RECENT} holds {shape:?} {dtype}, expected tokens as I32"));
            }
            Err(_) => return self.refuse(format!("tensor {RECENT} is missing")),
        };
        let tokens: Vec<i32> = view.data().as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect();
        if tokens.len() > streams.context {
            let (len, most) = (tokens.len(), streams.context);
            return self.refuse(format!("tensor {RECENT} holds {len} tokens, expected at most {most}"));
        }
        let known = |&token: &i32| usize::try_from(token).ok().filter(|&token| token < streams.vocab_size);
        match tokens.iter().map(known).collect::<Option<Vec<_>>>() {
            Some(known) => Ok((view, known)),
            None => self.refuse(format!("tensor {RECENT} holds tokens outside the vocabulary")),
        }
    }

    fn state(&self, streams: &StreamShape) -> Result<StreamState, StateError> {
        let version = self.field("version")?;
        if version != VERSION {
            return self.refuse(format!("it is of version {version:?}, expected {VERSION}"));
        }
        for (field, expected) in fields(streams) {
            let found = match self.field(field) {
                Err(_) if is_left_out(field, NONE) => NONE,
                found => found?,
            };
            if found != expected {
                return Err(StateError::Shape { field, expected, found: shown(found) });
            }
        }
        let numbers = ["segment_len", "position", "oldest"].map(|name| self.number(name));
        let [segment_len, position, oldest] = numbers;
        let (segment_len, position, oldest) = (segment_len?, position?, oldest?);
        if position > 0 && position >= segment_len {
            return self.refuse(format!("it is {position} tokens into a segment of {segment_len}"));
        }
        let mut state = StreamState::start(&StreamShape { segment_len, ..streams.clone() });
        (state.values.position, state.values.oldest) = (position, oldest);
        state.fits(streams)?;
        if let Some((_, weights)) = self.text.split_once(WEIGHTS) {
            state.weights = match from_hex(weights) {
                None => return self.refuse(format!("weights is {weights:?}, expected 64 hexadecimal digits")),
                digest => digest,
            };
        }

        let mut views = Vec::new();
        let d = streams.d_model;
        let most = if streams.mem_len == 0 { position } else { streams.mem_len };
        let mut rows = None;
        for (i, &attends) in streams.attends.iter().enumerate() {
            for name in ["h", "c"] {
                let name = format!("blocks.{i}.{name}");
                views.push((self.vector(&name, d)?, name));
            }
            if attends {
                let name = format!("blocks.{i}.memory");
                let view = self.tensor(&name)?;
                match view.shape() {
                    &[found, width] if width == d && found <= most && rows.is_none_or(|rows| rows == found) => {
                        rows = Some(found);
                    }
                    found => {
                        return self.refuse(format!(
                            "tensor {name} has shape {found:?}, expected {d} columns and {}",
                            rows.map_or(format!("at most {most} rows"), |rows| format!("{rows} rows"))
                        ));
                    }
                }
                views.push((view, name));
            }
        }
        let rows = rows.unwrap_or(0);
        if oldest > 0 && (rows != streams.mem_len || oldest >= rows) {
            return self.refuse(format!("the oldest of {rows} rows of memory cannot lie at {oldest}"));
        }
        if self.tensors.names().contains(&"logits") {
            views.push((self.vector("logits", streams.vocab_size)?, "logits".into()));
        }
        // Not among the views, which are of f32; their digests are last.
        let recent = if streams.context > 0 { Some(self.recent(streams)?) } else { None };
        let adaptive = match self.tensors.tensor(ADAPTIVE) {
            Ok(view) if view.dtype() == Dtype::U8 && view.shape().len() == 1 => Some(view),
            Ok(view) => {
                return self.refuse(format!(
                    "tensor {ADAPTIVE} holds {:?} {}, expected bytes",
                    view.shape(),
                    view.dtype()
                ));
            }
            Err(_) => None,
        };
        let others = recent.iter().map(|(view, _)| view).chain(&adaptive);
        let expected = views.len() + others.clone().count();
        if expected != self.tensors.len() {
            return self.refuse(format!("there are {} tensors, expected {expected}", self.tensors.len()));
        }
        let data = views.iter().map(|(view, _)| view).chain(others).map(TensorView::data);
        let found = digest(&self.text, data);
        if found != self.digest {
            return Err(StateError::Damaged { expected: shown(&self.digest), found });
        }

        let mut values = views.iter().map(|(view, name)| values(view, name));
        let mut next = || values.next().expect("a view for each tensor that is expected");
        for (block, &attends) in state.values.blocks.iter_mut().zip(&streams.attends) {
            *block = BlockValues { h: next()?, c: next()?, memory: if attends { next()? } else { Vec::new() } };
        }
        state.values.logits = values.next().transpose()?;
        state.values.recent = recent.map_or(Vec::new(), |(_, tokens)| tokens);
        state.adaptive = adaptive.map(|view| view.data().to_vec());
        Ok(state)
    }
}

/// The value of a field that is not written where it is that: states of models without a memory of n-grams say nothing of one.
const NONE: &str = "0";

fn is_left_out(field: &str, value: &str) -> bool {
    field == "context" && value == NONE
}

/// What the bytes hold, for a message: no control characters, and not the whole of a long text.
fn shown(text: &str) -> String {
    const LONGEST: usize = 160;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The values of a tensor of f32, all of them finite.
fn values(view: &TensorView, name: &str) -> Result<Vec<f32>, StateError> {
    let values: Vec<f32> = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => Err(StateError::NotFinite { tensor: name.into(), index, value: values[index].to_string() }),
    }
}

/// The SHA-256 of a text and of values, in hexadecimal digits.
fn digest<'a>(text: &str, values: impl Iterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    sha.update(text);
    values.for_each(|values| sha.update(values));
    hex(&sha.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The 32 bytes that 64 hexadecimal digits stand for.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}
