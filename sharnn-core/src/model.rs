//! The SHA-RNN language model: embedding, blocks, tied decoder.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend as BurnBackend};

use crate::init::Initializer;
use crate::ngrams::{NGramRows, NGrams};
use crate::ops::{DecoderLossInputs, drop};
use crate::pass::Pass;
use crate::{Attend, Backend, Block, DropoutSite, Precision, ShaRnnConfig, ShaRnnState};

/// The embedding table.
#[derive(Module, Debug)]
pub struct Embedding<B: BurnBackend> {
    /// `[vocab_size, d_model]`
    pub weight: Param<Tensor<B, 2>>,
}

/// The decoder: `logits = h Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Decoder<B: BurnBackend> {
    /// `[vocab_size, d_model]`; `None` where the embedding's weight serves.
    pub weight: Option<Param<Tensor<B, 2>>>,
    /// `[vocab_size]`
    pub bias: Param<Tensor<B, 1>>,
}

/// A single-headed attention recurrent network (Merity 2019).
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use burn::tensor::{Int, Tensor};
/// use sharnn_core::ShaRnnConfig;
///
/// let device = Default::default();
/// let model = ShaRnnConfig::xs().init_seeded::<Flex>(1, &device);
/// let tokens = Tensor::<Flex, 2, Int>::from_data([[72, 101, 108, 108, 111]], &device);
/// let (logits, state) = model.forward(tokens, model.empty_state());
/// assert_eq!(logits.dims(), [1, 5, 256]);
/// assert_eq!(state.memory_rows(), 5);
/// # }
/// ```
#[derive(Module, Debug)]
pub struct ShaRnn<B: BurnBackend> {
    /// The embedding.
    pub encoder: Embedding<B>,
    /// The blocks, first to last.
    pub blocks: Vec<Block<B>>,
    /// The decoder.
    pub decoder: Decoder<B>,
    /// The memory of n-grams, where there is one.
    pub ngrams: Option<NGrams<B>>,
    /// Rows of memory kept; see [`ShaRnnConfig::mem_len`]. No parameter depends on it.
    pub mem_len: usize,
    /// Probability of dropping an element of the embedding output.
    pub dropout_input: f64,
    /// Probability of dropping an element of the last block's output.
    pub dropout_output: f64,
}

/// The loss of a segment, and what it leaves.
#[derive(Clone, Debug)]
pub struct SegmentLoss<B: BurnBackend> {
    /// `[1]`
    pub loss: Tensor<B, 1>,
    /// The state after the segment, as [`ShaRnn::loss`] has it.
    pub state: ShaRnnState<B>,
    /// The rows of n-grams, where the model has a memory of them.
    pub rows: Option<NGramRows<B>>,
}

/// A segment before the first block, `h` `[seq_len, batch_size, d_model]`, and the tokens before the next one.
pub(crate) struct Embedded<B: BurnBackend> {
    pub(crate) h: Tensor<B, 3>,
    pub(crate) rows: Option<NGramRows<B>>,
    pub(crate) recent: Option<Tensor<B, 2, Int>>,
}

/// A segment before the decoder, `h` `[seq_len, batch_size, d_model]`.
struct Segment<B: BurnBackend> {
    h: Tensor<B, 3>,
    state: ShaRnnState<B>,
    rows: Option<NGramRows<B>>,
}

impl<B: BurnBackend> ShaRnn<B> {
    pub(crate) fn new(config: &ShaRnnConfig, seed: u64, device: &B::Device) -> Self {
        let (d, vocab_size) = (config.d_model, config.vocab_size);
        let mut init = Initializer::new(seed, d, device);
        Self {
            encoder: Embedding { weight: init.weight([vocab_size, d]) },
            blocks: (0..config.n_layers).map(|block| Block::new(config, config.attends(block), &mut init)).collect(),
            decoder: Decoder {
                weight: (!config.tied).then(|| init.weight([vocab_size, d])),
                bias: init.zeros([vocab_size]),
            },
            ngrams: config.ngrams.as_ref().map(|config| NGrams::new(config, d, &mut init)),
            mem_len: config.mem_len,
            dropout_input: config.dropout_input,
            dropout_output: config.dropout_output,
        }
    }

    /// Number of distinct tokens.
    pub fn vocab_size(&self) -> usize {
        self.encoder.weight.dims()[0]
    }

    /// The configuration that the model was made with, as far as a model tells it: that of one without an attending block
    /// has 1 head.
    pub fn config(&self) -> ShaRnnConfig {
        let [vocab_size, d_model] = self.encoder.weight.dims();
        let attentions = || self.blocks.iter().map(|block| block.attending.as_ref().map(|part| &part.attention));
        let attending = attentions().enumerate().filter_map(|(index, attention)| attention.map(|_| index));
        ShaRnnConfig {
            vocab_size,
            d_model,
            d_ff: self.blocks[0].boom.linear.weight.dims()[0],
            n_layers: self.blocks.len(),
            n_heads: attentions().flatten().next().map_or(1, |attention| attention.n_heads),
            attend: Attend::of(attending, self.blocks.len()),
            mem_len: self.mem_len,
            dropout_input: self.dropout_input,
            dropout_hidden: self.blocks[0].dropout,
            dropout_output: self.dropout_output,
            tied: self.decoder.weight.is_none(),
            ngrams: self.ngrams.as_ref().map(NGrams::config),
        }
    }

    /// Sets the rows of memory kept from now on; evaluation may use another length than training did.
    pub fn with_mem_len(mut self, mem_len: usize) -> Self {
        self.mem_len = mem_len;
        self
    }

    /// The state at the start of a stream.
    pub fn empty_state(&self) -> ShaRnnState<B> {
        ShaRnnState::empty(self.blocks.len())
    }
}

impl<B: Backend> ShaRnn<B> {
    /// Predicts the next token after each token of a segment, in f32 and without dropout.
    ///
    /// # Shapes
    /// - `tokens`: `[batch_size, seq_len]`
    /// - logits: `[batch_size, seq_len, vocab_size]`
    ///
    /// # Panics
    /// As [`hidden`](Self::hidden).
    pub fn forward(&self, tokens: Tensor<B, 2, Int>, state: ShaRnnState<B>) -> (Tensor<B, 3>, ShaRnnState<B>) {
        let pass = Pass::default();
        let (h, state) = self.hidden(tokens, state, &pass);
        (self.decode(h, &pass), state)
    }

    /// The mean negative log-likelihood of `targets` in nats, and the state after the segment. The state is detached from
    /// the graph but for what `loss` itself needs; call [`ShaRnnState::detach`] before the next segment.
    ///
    /// # Shapes
    /// - `tokens` and `targets`: `[batch_size, seq_len]`
    /// - loss: `[1]`
    ///
    /// # Panics
    /// As [`hidden`](Self::hidden), and if `targets` is not shaped as `tokens`.
    pub fn loss(
        &self,
        tokens: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
        state: ShaRnnState<B>,
        pass: &Pass,
    ) -> (Tensor<B, 1>, ShaRnnState<B>) {
        let SegmentLoss { loss, state, .. } = self.segment_loss(tokens, targets, state, pass);
        (loss, state)
    }

    /// [`loss`](Self::loss), and the rows of n-grams that it depends on, where the model has such a memory.
    ///
    /// # Panics
    /// As [`loss`](Self::loss).
    pub fn segment_loss(
        &self,
        tokens: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
        state: ShaRnnState<B>,
        pass: &Pass,
    ) -> SegmentLoss<B> {
        assert_eq!(
            tokens.dims(),
            targets.dims(),
            "tokens have shape {:?} and targets {:?}: they must be the same",
            tokens.dims(),
            targets.dims()
        );
        let Segment { h, state, rows } = self.hidden_time_major(tokens.swap_dims(0, 1), state, pass);
        let [seq_len, batch_size, d] = h.dims();
        let n = seq_len * batch_size;
        let targets = targets.swap_dims(0, 1).reshape([n]);
        let (weight, bias) = self.decoder_params();
        let inputs = DecoderLossInputs { h: h.reshape([n, d]), weight, bias, targets };
        SegmentLoss { loss: B::decoder_loss(inputs, pass.precision), state, rows }
    }

    /// What the decoder reads: the last block's output with what n-grams add, after the output dropout.
    ///
    /// # Shapes
    /// - `tokens`: `[batch_size, seq_len]`
    /// - result: `[batch_size, seq_len, d_model]`
    ///
    /// # Panics
    /// If the segment is empty or longer than a `mem_len` that is not 0, or if the state is of another batch size or
    /// number of blocks. Tokens outside the vocabulary are the backend's to refuse.
    pub fn hidden(
        &self,
        tokens: Tensor<B, 2, Int>,
        state: ShaRnnState<B>,
        pass: &Pass,
    ) -> (Tensor<B, 3>, ShaRnnState<B>) {
        let Segment { h, state, .. } = self.hidden_time_major(tokens.swap_dims(0, 1), state, pass);
        (h.swap_dims(0, 1), state)
    }

    /// [`hidden`](Self::hidden) in the inner layout: `tokens` `[seq_len, batch_size]`, result
    /// `[seq_len, batch_size, d_model]`.
    fn hidden_time_major(&self, tokens: Tensor<B, 2, Int>, state: ShaRnnState<B>, pass: &Pass) -> Segment<B> {
        let [seq_len, batch_size] = tokens.dims();
        assert!(seq_len > 0 && batch_size > 0, "tokens have shape [{batch_size}, {seq_len}]: there must be some");
        assert!(
            self.mem_len == 0 || seq_len <= self.mem_len || !self.attends(),
            "the segment is {seq_len} tokens long, more than mem_len = {}: use shorter segments, or mem_len 0",
            self.mem_len
        );
        assert_eq!(
            state.blocks.len(),
            self.blocks.len(),
            "the state is of {} blocks, the model of {}",
            state.blocks.len(),
            self.blocks.len()
        );
        // The memory is cut so that with this segment it is mem_len rows long.
        let mut state = state.truncate_memory(self.mem_len.saturating_sub(seq_len));

        let Embedded { h, rows, recent } = self.embed(tokens, state.recent.take(), pass.precision);
        let mut h = drop(h, pass.at(self.dropout_input, 0, DropoutSite::Input));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (index, (block, state)) in self.blocks.iter().zip(state.blocks).enumerate() {
            let (out, state) = block.forward_time_major(h, state, self.mem_len, index, pass);
            h = out;
            blocks.push(state);
        }
        if let Some((ngrams, rows)) = self.ngrams.as_ref().zip(rows.as_ref()) {
            h = ngrams.add_output(h, rows, pass.precision);
        }
        let h = drop(h, pass.at(self.dropout_output, 0, DropoutSite::Output));
        Segment { h, state: ShaRnnState { blocks, recent }, rows }
    }

    /// What the first block reads, before its dropout.
    ///
    /// # Shapes
    /// - `tokens`: `[seq_len, batch_size]`, `recent`: `[batch_size, context]`
    pub(crate) fn embed(
        &self,
        tokens: Tensor<B, 2, Int>,
        recent: Option<Tensor<B, 2, Int>>,
        precision: Precision,
    ) -> Embedded<B> {
        let h = burn::tensor::module::embedding(self.encoder.weight.val(), tokens.clone());
        match &self.ngrams {
            None => Embedded { h, rows: None, recent: None },
            Some(ngrams) => {
                let (rows, recent) = ngrams.gather(tokens, recent);
                Embedded { h: ngrams.add_input(h, &rows, precision), rows: Some(rows), recent: Some(recent) }
            }
        }
    }

    /// Logits of hidden vectors.
    ///
    /// # Shapes
    /// - `h`: `[batch_size, seq_len, d_model]`
    /// - result: `[batch_size, seq_len, vocab_size]`
    pub fn decode(&self, h: Tensor<B, 3>, pass: &Pass) -> Tensor<B, 3> {
        let [batch_size, seq_len, d] = h.dims();
        let (weight, bias) = self.decoder_params();
        B::affine(h.reshape([batch_size * seq_len, d]), weight, bias, pass.precision).reshape([
            batch_size,
            seq_len,
            self.vocab_size(),
        ])
    }

    /// Whether any block attends.
    pub fn attends(&self) -> bool {
        self.blocks.iter().any(|block| block.attending.is_some())
    }

    /// Collapses every value gate to its vector: fewer parameters, the same outputs. For after training.
    pub fn collapse(mut self) -> Self {
        self.blocks = self.blocks.into_iter().map(Block::collapse).collect();
        self
    }

    fn decoder_params(&self) -> (Tensor<B, 2>, Tensor<B, 1>) {
        let weight = self.decoder.weight.as_ref().unwrap_or(&self.encoder.weight);
        (weight.val(), self.decoder.bias.val())
    }
}
