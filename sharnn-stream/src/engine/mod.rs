//! Decoding on the CPU, one token at a time: a model's weights packed for [`sharnn_kernels::DecodeModel`].

mod file;
mod pack;

use std::sync::Arc;

use sha2::{Digest, Sha256};
use sharnn_kernels::DecodeModel;

pub use file::FileError;
pub use pack::ModelSizes;
pub use sharnn_kernels::WeightFormat;

use crate::{BlockValues, StateError, StreamShape, StreamState, StreamValues, Streams};

/// A model that reads and predicts one token at a time on the CPU, many times as fast as the forward pass of training does.
///
/// It holds a copy of the weights of its own, of which clones share one. What a stream remembers is in [`DecodeStreams`].
/// Logits are those of a forward pass for segments of one token, up to rounding and to the weights' format. There is no dropout.
#[derive(Clone)]
pub struct DecodeEngine {
    model: Arc<DecodeModel>,
    shape: StreamShape,
}

/// Streams of a [`DecodeEngine`], side by side. All room is allocated when they are made, and none when they are fed.
///
/// A token sees the newest `mem_len` tokens of its stream, itself among them: segments are one token long. A stream's logits
/// are the same, bit for bit, for every number of threads and of other streams, and however its text is divided over calls.
#[derive(Clone)]
pub struct DecodeStreams {
    model: Arc<DecodeModel>,
    shape: StreamShape,
    streams: sharnn_kernels::Streams,
    /// Those of a step, one a stream.
    tokens: Vec<Option<usize>>,
    /// Which streams have read something.
    begun: Vec<bool>,
}

impl std::fmt::Debug for DecodeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (format, weight_bytes) = (self.format(), self.weight_bytes());
        f.debug_struct("DecodeEngine").field("format", &format).field("weight_bytes", &weight_bytes).finish()
    }
}

impl std::fmt::Debug for DecodeStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodeStreams").field("n_streams", &self.n_streams()).finish_non_exhaustive()
    }
}

impl DecodeEngine {
    /// Of a packed model, whose sizes the shape says; its segments are of one token.
    pub fn new(model: DecodeModel, shape: StreamShape) -> Self {
        Self { model: Arc::new(model), shape: StreamShape { segment_len: 1, ..shape } }
    }

    /// `n` streams at their start.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn streams(&self, n: usize) -> DecodeStreams {
        DecodeStreams {
            model: self.model.clone(),
            shape: self.shape.clone(),
            streams: sharnn_kernels::Streams::new(&self.model, n),
            tokens: vec![None; n],
            begun: vec![false; n],
        }
    }

    /// What a stream of it carries.
    pub fn shape(&self) -> &StreamShape {
        &self.shape
    }

    /// Number of distinct tokens.
    pub fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    /// How weights are kept.
    pub fn format(&self) -> WeightFormat {
        self.model.format()
    }

    /// SHA-256 of everything that decides the logits of a stream. Engines of format [`Exact`](WeightFormat::Exact) with the same digest
    /// give the same logits, whatever the machine.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        self.model.digest(&mut |bytes| digest.update(bytes));
        digest.finalize().into()
    }

    /// Bytes of packed weights, all of which are read for every token.
    pub fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }
}

impl DecodeStreams {
    /// Feeds each stream its next token and returns the logits of the token after it: [`Streams::read`] for a token each,
    /// which need not be a byte.
    ///
    /// # Shapes
    /// - `tokens`: one a stream, `u8`, `u16` or `usize`
    /// - logits: `[n_streams, vocab_size]`
    ///
    /// # Panics
    /// If there are not as many tokens as streams, or a token is not in the vocabulary.
    pub fn feed<T: Copy + Into<usize>>(&mut self, tokens: &[T]) -> &[f32] {
        let n = self.n_streams();
        assert_eq!(tokens.len(), n, "{} tokens for {n} streams", tokens.len());
        for (next, &token) in self.tokens.iter_mut().zip(tokens) {
            *next = Some(token.into());
        }
        self.begun.fill(true);
        self.model.step(&mut self.streams, &self.tokens)
    }

    /// Where a stream's newest token looked: the weights of the last block that attends, for each head those over the rows of memory, oldest
    /// first, the newest token's own last. `None` where no block attends or no memory is kept, and before the first token;
    /// after [`set_state`](Streams::set_state) it is right from the next token on.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn look(&self, stream: usize) -> Option<Vec<Vec<f32>>> {
        self.model.look(&self.streams, stream)
    }
}

impl Streams for DecodeStreams {
    fn n_streams(&self) -> usize {
        self.streams.len()
    }

    fn shape(&self) -> &StreamShape {
        &self.shape
    }

    fn read(&mut self, texts: &[&[u8]], each: &mut dyn FnMut(usize, usize, &[f32])) {
        let (n, vocab_size) = (self.n_streams(), self.shape.vocab_size);
        assert_eq!(texts.len(), n, "{} texts for {n} streams", texts.len());
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        for offset in 0..longest {
            for (next, text) in self.tokens.iter_mut().zip(texts) {
                *next = text.get(offset).map(|&token| token.into());
            }
            let logits = self.model.step(&mut self.streams, &self.tokens);
            for (stream, logits) in logits.chunks_exact(vocab_size).enumerate() {
                if self.tokens[stream].is_some() {
                    self.begun[stream] = true;
                    each(stream, offset, logits);
                }
            }
        }
    }

    fn logits(&self, stream: usize) -> Option<&[f32]> {
        let (n, vocab_size) = (self.n_streams(), self.shape.vocab_size);
        assert!(stream < n, "stream {stream} of {n}");
        self.begun[stream].then(|| &self.streams.logits()[stream * vocab_size..][..vocab_size])
    }

    fn reset(&mut self, stream: usize) {
        self.streams.reset(stream);
        self.begun[stream] = false;
    }

    fn state(&self, stream: usize) -> StreamState {
        let block = |block: usize| {
            let (h, c) = self.streams.lstm(block, stream);
            BlockValues { h: h.to_vec(), c: c.to_vec(), memory: self.streams.memory(block, stream).concat() }
        };
        let values = StreamValues {
            position: 0,
            oldest: self.streams.oldest(stream),
            blocks: (0..self.shape.n_layers()).map(block).collect(),
            recent: self.streams.recent(stream).collect(),
            logits: self.logits(stream).map(<[f32]>::to_vec),
        };
        StreamState::new(self.shape.clone(), values)
    }

    fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError> {
        state.fits(&self.shape)?;
        let StreamValues { oldest, blocks, recent, logits, .. } = state.values();
        for (index, BlockValues { h, c, memory }) in blocks.iter().enumerate() {
            let (to_h, to_c) = self.streams.lstm_mut(index, stream);
            to_h.copy_from_slice(h);
            to_c.copy_from_slice(c);
            if self.shape.attends[index] {
                self.streams.set_memory(index, stream, memory, *oldest);
            }
        }
        self.streams.set_recent(stream, recent);
        if let Some(logits) = logits {
            self.streams.logits_mut(stream).copy_from_slice(logits);
        }
        self.begun[stream] = logits.is_some();
        Ok(())
    }
}
