//! Decoding on the CPU, one token at a time: the model's weights packed for [`sharnn_kernels::DecodeModel`].

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData, backend::Backend as BurnBackend};
use sharnn_kernels::{AttentionWeights, BlockWeights, DecodeModel, NormWeights, Streams};

pub use sharnn_kernels::WeightFormat;

use crate::{Backend, Block, BlockState, LayerNorm, Linear, LstmState, Precision, ShaRnn, ShaRnnState};

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
}

/// Streams of a [`DecodeEngine`], side by side. All room is allocated when they are made, and none when they are fed.
pub struct DecodeStreams {
    model: Arc<DecodeModel>,
    streams: Streams,
    tokens: Vec<usize>,
}

/// The values of a tensor, in f32.
fn values<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("was converted to f32")
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
        let value_gate = values(attention.value_gate.forward(Precision::F32));
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
        Self { model: Arc::new(packed) }
    }

    /// `n` streams at their start.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn streams(&self, n: usize) -> DecodeStreams {
        DecodeStreams {
            model: self.model.clone(),
            streams: Streams::new(&self.model, n),
            tokens: Vec::with_capacity(n),
        }
    }

    /// Streams that go on from a state of the model, as many as it has lanes: a prompt goes through [`ShaRnn::forward`]
    /// first. Of each memory the newest `mem_len` rows are kept.
    ///
    /// # Panics
    /// If the state is empty, or another model's.
    pub fn streams_from<B: Backend>(&self, state: &ShaRnnState<B>) -> DecodeStreams {
        let n = state.batch_size().expect("the state is empty: use `streams`, which says how many there are");
        let mut streams = self.streams(n);
        streams.load(state);
        streams
    }

    /// Number of distinct tokens.
    pub fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    /// How weights are kept.
    pub fn format(&self) -> WeightFormat {
        self.model.format()
    }

    /// Bytes of packed weights, all of which are read for every token.
    pub fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }
}

impl DecodeStreams {
    /// Number of streams.
    pub fn n_streams(&self) -> usize {
        self.streams.len()
    }

    /// Feeds each stream its next token and returns the logits of the token after it.
    ///
    /// # Shapes
    /// - `tokens`: one a stream, `u8`, `u16` or `usize`
    /// - logits: `[n_streams, vocab_size]`
    ///
    /// # Panics
    /// If there are not as many tokens as streams, or a token is not in the vocabulary.
    pub fn feed<T: Copy + Into<usize>>(&mut self, tokens: &[T]) -> &[f32] {
        self.tokens.clear();
        // More than there is room for are refused below.
        self.tokens.extend(tokens.iter().map(|&token| token.into()));
        self.model.step(&mut self.streams, &self.tokens)
    }

    /// The logits after the last token; zeros before the first.
    pub fn logits(&self) -> &[f32] {
        self.streams.logits()
    }

    /// Starts a stream anew.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn reset(&mut self, stream: usize) {
        self.streams.reset(stream);
    }

    /// Goes on from a state of the model with a lane for each stream. Of each memory the newest `mem_len` rows are kept.
    /// The logits stay those of before.
    ///
    /// # Panics
    /// If the state has another number of lanes or blocks, or is of another width.
    pub fn load<B: Backend>(&mut self, state: &ShaRnnState<B>) {
        let (n, d, n_layers) = (self.n_streams(), self.model.d_model(), self.model.n_layers());
        assert_eq!(
            state.blocks.len(),
            n_layers,
            "the state is of {} blocks, the model of {n_layers}",
            state.blocks.len()
        );
        for (block, BlockState { lstm, memory }) in state.blocks.iter().enumerate() {
            let lstm = lstm.as_ref().map(|LstmState { h, c }| {
                assert_eq!((h.dims(), c.dims()), ([n, d], [n, d]), "the state is not of {n} streams, {d} wide");
                (values(h.clone()), values(c.clone()))
            });
            let memory = memory.as_ref().map(|memory| {
                let [lanes, rows, width] = memory.dims();
                assert_eq!([lanes, width], [n, d], "the memory is not of {n} streams, {d} wide");
                (values(memory.clone()), rows * d)
            });
            for stream in 0..n {
                let (h, c) = self.streams.lstm_mut(block, stream);
                match &lstm {
                    Some((h_new, c_new)) => {
                        h.copy_from_slice(&h_new[stream * d..][..d]);
                        c.copy_from_slice(&c_new[stream * d..][..d]);
                    }
                    None => {
                        h.fill(0.0);
                        c.fill(0.0);
                    }
                }
                let rows = memory.as_ref().map_or(&[][..], |(rows, len)| &rows[stream * len..][..*len]);
                self.streams.set_memory(block, stream, rows);
            }
        }
    }

    /// One stream's state, for [`ShaRnn::forward`] to go on from in one lane.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn state<B: Backend>(&self, stream: usize, device: &B::Device) -> ShaRnnState<B> {
        let d = self.model.d_model();
        let row = |x: &[f32]| Tensor::from_data(TensorData::new(x.to_vec(), [1, d]), device);
        let block = |block: usize| {
            let (h, c) = self.streams.lstm(block, stream);
            let rows = self.streams.memory(block, stream).concat();
            let shape = [1, rows.len() / d, d];
            BlockState {
                lstm: Some(LstmState { h: row(h), c: row(c) }),
                memory: (!rows.is_empty()).then(|| Tensor::from_data(TensorData::new(rows, shape), device)),
            }
        };
        ShaRnnState { blocks: (0..self.model.n_layers()).map(block).collect() }
    }
}
