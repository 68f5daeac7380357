#![doc = include_str!("../README.md")]

mod adaptive;
#[cfg(feature = "engine")]
mod engine;
mod generator;
mod sampling;
mod scorer;
mod shape;
mod state;
mod state_bytes;

use std::fmt::Debug;

#[cfg(feature = "engine")]
pub use engine::{DecodeEngine, DecodeStreams, FileError, ModelSizes, WeightFormat};
pub use generator::{BatchGenerator, GenerateError, Generator};
pub use sampling::{Sampler, Sampling, SamplingError};
pub use scorer::{BatchScorer, Scorer, Tally};
pub use shape::StreamShape;
pub use sharnn_mixing::{ByteDistribution, Mixer, MixerConfig, MixerError};
pub use state::{BlockValues, StreamState, StreamValues};
pub use state_bytes::StateError;

/// The modulus of the hash of n-grams, a prime; no table has more rows.
pub const NGRAM_MODULUS: usize = 524_287;

/// What the hash of the tokens before is multiplied by.
pub const NGRAM_MULTIPLIER: usize = 4_093;

/// What a stream begins after where it was given nothing else: training never predicts the first byte of a lane, and a
/// text begins at a new line.
const START: &[u8] = b"\n";

/// Streams of a model, side by side: each reads tokens of its own and predicts the one after the last that it read.
///
/// | | weights | reads | a token sees |
/// |---|---|---|---|
/// | `DecodeStreams` | packed, on the CPU: f32, bf16 or int8 | a token at a time | the newest `mem_len` tokens, itself among them |
/// | `ModelStreams` of sharnn-core | the model's, on any backend | as many tokens at once as it gets | what it sees in segments of the length that is stated |
///
/// What a token sees follows from [`StreamShape::segment_len`] alone, never from how a text is divided over calls nor from
/// other streams: `DecodeStreams` give the same bits, `ModelStreams` the same values up to rounding. Where two sides must
/// agree to the last bit, as in compression, use the first.
///
/// [`Scorer`] and [`Generator`] take one stream, [`BatchScorer`] and [`BatchGenerator`] many; [`StreamState`] carries a
/// stream from one to another, or to a file.
pub trait Streams: Send + Debug {
    /// Number of streams.
    fn n_streams(&self) -> usize;

    /// The model's sizes, and the length of the segments.
    fn shape(&self) -> &StreamShape;

    /// Reads a text for each stream; of a text that is empty the stream stays as it is. `each` gets, for every token that is
    /// read, the stream, the token's offset in its text and the logits of the token after it, `[vocab_size]`; a stream's
    /// tokens come in order, and between those of others.
    ///
    /// # Panics
    /// If there are not as many texts as streams, or a token is not in the vocabulary.
    fn read(&mut self, texts: &[&[u8]], each: &mut dyn FnMut(usize, usize, &[f32]));

    /// The logits after a stream's last token, `[vocab_size]`; `None` before its first.
    ///
    /// # Panics
    /// If there is no such stream.
    fn logits(&self, stream: usize) -> Option<&[f32]>;

    /// Starts a stream anew.
    ///
    /// # Panics
    /// If there is no such stream.
    fn reset(&mut self, stream: usize);

    /// A stream's state.
    ///
    /// # Panics
    /// If there is no such stream.
    fn state(&self, stream: usize) -> StreamState;

    /// Lets a stream go on from a state. From one of streams that are computed in the same way, on the same kind of machine,
    /// it goes on bit for bit; of `ModelStreams` where texts are divided over calls in the same way too.
    ///
    /// # Errors
    /// If the state is of another model, or in the middle of a segment of another length. The stream is as before then.
    ///
    /// # Panics
    /// If there is no such stream.
    fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError>;
}

impl<S: Streams + ?Sized> Streams for Box<S> {
    fn n_streams(&self) -> usize {
        (**self).n_streams()
    }

    fn shape(&self) -> &StreamShape {
        (**self).shape()
    }

    fn read(&mut self, texts: &[&[u8]], each: &mut dyn FnMut(usize, usize, &[f32])) {
        (**self).read(texts, each);
    }

    fn logits(&self, stream: usize) -> Option<&[f32]> {
        (**self).logits(stream)
    }

    fn reset(&mut self, stream: usize) {
        (**self).reset(stream);
    }

    fn state(&self, stream: usize) -> StreamState {
        (**self).state(stream)
    }

    fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError> {
        (**self).set_state(stream, state)
    }
}

/// Why streams cannot be read, or say nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The model's tokens are not bytes.
    #[error("the model has a vocabulary of {vocab_size}, and only 256 tokens are bytes: use a model of at most 256")]
    NotBytes {
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A byte (or the newline that a stream begins after) is outside the model's vocabulary.
    #[error(
        "byte {byte} at offset {offset} for stream {stream} is outside the model's vocabulary of {vocab_size}: use a model of 256 (a stream begins after a newline, byte 10, unless it is fed something first)"
    )]
    OutsideVocabulary {
        /// The stream.
        stream: usize,
        /// The byte.
        byte: u8,
        /// Its offset in the stream's text.
        offset: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The model's logits are not numbers.
    #[error("the logit of byte {byte} is {logit} in stream {stream}, expected finite ones: the model has diverged")]
    NotFinite {
        /// The stream.
        stream: usize,
        /// The byte.
        byte: usize,
        /// Its logit, as text.
        logit: String,
    },
    /// Segments cannot be of this length.
    #[error(
        "segments of {segment_len} tokens cannot be used: use 1 to {mem_len}, the length of the memory; where that is 0, at least 1"
    )]
    SegmentLen {
        /// Tokens of a segment.
        segment_len: usize,
        /// Rows of memory that the model keeps.
        mem_len: usize,
    },
}

impl StreamError {
    /// Refuses logits that are not finite.
    fn of_logits(stream: usize, logits: &[f32]) -> Result<(), Self> {
        match logits.iter().position(|logit| !logit.is_finite()) {
            None => Ok(()),
            Some(byte) => Err(Self::NotFinite { stream, byte, logit: logits[byte].to_string() }),
        }
    }
}

/// Refuses a model whose tokens are not bytes.
fn check_tokens(streams: &impl Streams) -> Result<(), StreamError> {
    match streams.shape().vocab_size {
        vocab_size @ 257.. => Err(StreamError::NotBytes { vocab_size }),
        _ => Ok(()),
    }
}

/// The texts of all streams, all of whose bytes are tokens.
fn checked<'a, T: AsRef<[u8]>>(streams: &impl Streams, texts: &'a [T]) -> Result<Vec<&'a [u8]>, StreamError> {
    let (n, vocab_size) = (streams.n_streams(), streams.shape().vocab_size);
    assert_eq!(texts.len(), n, "{} texts for {n} streams", texts.len());
    let texts: Vec<&[u8]> = texts.iter().map(AsRef::as_ref).collect();
    for (stream, text) in texts.iter().enumerate() {
        if let Some(offset) = text.iter().position(|&byte| usize::from(byte) >= vocab_size) {
            return Err(StreamError::OutsideVocabulary { stream, byte: text[offset], offset, vocab_size });
        }
    }
    Ok(texts)
}

/// Lets those of the streams that `starts` names, and that have read nothing yet, begin after a newline.
fn begin(streams: &mut impl Streams, starts: impl Fn(usize) -> bool) -> Result<(), StreamError> {
    let begins = |stream: usize| starts(stream) && streams.logits(stream).is_none();
    let texts: Vec<_> = (0..streams.n_streams()).map(|stream| if begins(stream) { START } else { b"" }).collect();
    if texts.iter().any(|text| !text.is_empty()) {
        let texts = checked(streams, &texts)?;
        streams.read(&texts, &mut |_, _, _| {});
    }
    Ok(())
}
