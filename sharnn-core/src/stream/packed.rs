//! Decoding on the CPU, one token at a time: the model's weights packed for [`sharnn_kernels::DecodeModel`].

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend as BurnBackend};
use sha2::{Digest, Sha256};
use sharnn_kernels::{AttentionWeights, BlockWeights, DecodeModel, NGramWeights, NormWeights};

pub use sharnn_kernels::WeightFormat;

use super::state::BlockValues;
use super::{StateError, StreamShape, StreamState, Streams, values};
use crate::{Backend, Block, LayerNorm, Linear, NGRAM_MODULUS, NGRAM_MULTIPLIER, ShaRnn};

/// A model that reads and predicts one token at a time on the CPU, many times as fast as [`ShaRnn::forward`] does.
///
/// It holds a copy of the weights of its own, of which clones share one. What a stream remembers is in [`DecodeStreams`].
/// Logits are those of `forward` for segments of one token, up to rounding and to the weights' format. There is no dropout.
///
/// ```
/// use burn::backend::Flex;
/// use sharnn_core::{DecodeEngine, ShaRnnConfig, WeightFormat};
///
/// let model = ShaRnnConfig::xs().with_mem_len(100).init_seeded::<Flex>(1, &Default::default());
/// let engine = DecodeEngine::new(&model, WeightFormat::Bf16);
/// let mut streams = engine.streams(1);
/// for byte in *b"Hello" {
///     let logits = streams.feed(&[byte]);
///     assert_eq!(logits.len(), 256);
/// }
/// ```
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

fn param<B: BurnBackend, const D: usize>(param: &Param<Tensor<B, D>>) -> Vec<f32> {
    values(param.val())
}

/// The values of a layer's weight and bias.
struct Affine {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Affine {
    fn norm<B: BurnBackend>(of: &LayerNorm<B>) -> Self {
        Self { weight: param(&of.weight), bias: param(&of.bias) }
    }

    fn linear<B: BurnBackend>(of: &Linear<B>) -> Self {
        Self { weight: param(&of.weight), bias: param(&of.bias) }
    }

    fn view(&self) -> NormWeights<'_> {
        NormWeights { weight: &self.weight, bias: &self.bias }
    }
}

/// Packs a block; its values in f32 live no longer than that.
fn push<B: Backend>(model: &mut DecodeModel, block: &Block<B>) {
    let attending = block.attending.as_ref().map(|attending| {
        let attention = &attending.attention;
        let norms = [&attending.norm_mid, &attending.norm_mem, &attention.query_norm].map(Affine::norm);
        let gates = [param(&attention.q_gate), param(&attention.k_gate)];
        let gate = &attention.value_gate;
        let value_gate = match &gate.linear {
            None => param(&gate.gate),
            Some(linear) => {
                let Affine { mut weight, bias } = Affine::linear(linear);
                if model.format().is_whole() {
                    weight = sharnn_kernels::int8::rounded(&weight, linear.weight.dims());
                }
                sharnn_kernels::value_gate(&param(&gate.gate), &weight, &bias)
            }
        };
        (norms, Affine::linear(&attention.query), gates, value_gate, attention.n_heads)
    });
    let attention = attending.as_ref().map(|([mid, mem, query_norm], query, [q_gate, k_gate], value_gate, n_heads)| {
        AttentionWeights {
            norm_mid: mid.view(),
            norm_mem: mem.view(),
            query: &query.weight,
            query_bias: &query.bias,
            query_norm: query_norm.view(),
            q_gate,
            k_gate,
            value_gate,
            n_heads: *n_heads,
        }
    });
    let [start, ff, xff] = [&block.norm_start, &block.norm_ff, &block.norm_xff].map(Affine::norm);
    let boom = Affine::linear(&block.boom.linear);
    let lstm = &block.lstm;
    model.push(BlockWeights {
        norm_start: start.view(),
        weight_ih: &param(&lstm.weight_ih),
        weight_hh: &param(&lstm.weight_hh),
        bias_ih: &param(&lstm.bias_ih),
        bias_hh: &param(&lstm.bias_hh),
        attention,
        norm_ff: ff.view(),
        norm_xff: xff.view(),
        boom: &boom.weight,
        boom_bias: &boom.bias,
    });
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
    /// Packs the weights of a model on any backend. Value gates are collapsed; `mem_len` is the model's.
    pub fn new<B: Backend>(model: &ShaRnn<B>, format: WeightFormat) -> Self {
        let [_, d] = model.encoder.weight.dims();
        let decoder = model.decoder.weight.as_ref().map(param);
        let bias = param(&model.decoder.bias);
        let embedding = param(&model.encoder.weight);
        let mut packed = DecodeModel::new(d, model.mem_len, embedding, decoder.as_deref(), &bias, format);
        for block in &model.blocks {
            push(&mut packed, block);
        }
        if let Some(ngrams) = &model.ngrams {
            let [input, output] = [&ngrams.input, &ngrams.output].map(|map| map.as_ref().map(param));
            packed = packed.with_ngrams(NGramWeights {
                orders: &ngrams.orders,
                rows: ngrams.rows,
                table: &param(&ngrams.table),
                input: input.as_deref(),
                output: output.as_deref(),
                multiplier: NGRAM_MULTIPLIER,
                modulus: NGRAM_MODULUS,
            });
        }
        Self { model: Arc::new(packed), shape: StreamShape::of(model, 1) }
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
        StreamState {
            shape: self.shape.clone(),
            position: 0,
            oldest: self.streams.oldest(stream),
            blocks: (0..self.shape.n_layers()).map(block).collect(),
            recent: self.streams.recent(stream).collect(),
            logits: self.logits(stream).map(<[f32]>::to_vec),
            weights: None,
            adaptive: None,
        }
    }

    fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError> {
        state.fits(&self.shape)?;
        for (index, BlockValues { h, c, memory }) in state.blocks.iter().enumerate() {
            let (to_h, to_c) = self.streams.lstm_mut(index, stream);
            to_h.copy_from_slice(h);
            to_c.copy_from_slice(c);
            if self.shape.attends[index] {
                self.streams.set_memory(index, stream, memory, state.oldest);
            }
        }
        self.streams.set_recent(stream, &state.recent);
        if let Some(logits) = &state.logits {
            self.streams.logits_mut(stream).copy_from_slice(logits);
        }
        self.begun[stream] = state.logits.is_some();
        Ok(())
    }
}
