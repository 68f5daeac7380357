//! Looking at what a model attends to.

use burn::tensor::{Bool, Int, Tensor};

use crate::{Attending, Backend, Block, BlockState, Pass, Precision, ShaRnn, ShaRnnState};

/// A segment that was read, and where its attention heads looked.
#[derive(Clone, Debug)]
pub struct Looked<B: Backend> {
    /// Logits of the next token, `[batch_size, seq_len, vocab_size]`.
    pub logits: Tensor<B, 3>,
    /// One entry a block; `None` for those that do not attend. Weights `[batch_size, n_heads, seq_len, rows + seq_len]` of each
    /// query over the `rows` of memory that it could see, oldest first, and then the segment itself; they sum to 1.
    pub weights: Vec<Option<Tensor<B, 4>>>,
    /// The state after the segment.
    pub state: ShaRnnState<B>,
}

impl<B: Backend> ShaRnn<B> {
    /// Reads a segment as [`forward`](Self::forward) does, and keeps the weights of attention: slower, and for looking at
    /// alone.
    ///
    /// # Shapes
    /// - `tokens`: `[batch_size, seq_len]`
    ///
    /// # Panics
    /// As [`hidden`](Self::hidden).
    pub fn look(&self, tokens: Tensor<B, 2, Int>, state: ShaRnnState<B>) -> Looked<B> {
        let [_, seq_len] = tokens.dims();
        let (logits, after) = self.forward(tokens.clone(), state.clone());
        let mut state = state.truncate_memory(self.mem_len.saturating_sub(seq_len));
        let recent = state.recent.take();
        let mut h = self.embed(tokens.swap_dims(0, 1), recent, Precision::F32).h.swap_dims(0, 1);
        let mut weights = Vec::with_capacity(self.blocks.len());
        for (index, (block, state)) in self.blocks.iter().zip(state.blocks).enumerate() {
            weights.push(block.attention_weights(h.clone(), &state));
            h = block.forward(h, state, self.mem_len, index, &Pass::default()).0;
        }
        Looked { logits, weights, state: after }
    }
}

impl<B: Backend> Block<B> {
    /// The weights of attention over the memory of `state` and the segment; `None` where the block does not attend.
    fn attention_weights(&self, h: Tensor<B, 3>, state: &BlockState<B>) -> Option<Tensor<B, 4>> {
        let Attending { norm_mid, norm_mem, attention } = self.attending.as_ref()?;
        let [_, seq_len, _] = h.dims();
        let pass = Pass::default();
        let (h, _) = self.lstm.forward(self.norm_start.forward(h), state.lstm.clone(), pass.precision);
        let current = norm_mem.forward(h.clone());
        let keys = match &state.memory {
            Some(memory) => Tensor::cat(vec![memory.clone(), current], 1),
            None => current,
        };
        let rows = keys.dims()[1] - seq_len;
        let hidden = Tensor::<B, 2, Bool>::tril_mask([seq_len, rows + seq_len], rows as i64, &h.device());
        let query = norm_mid.forward(h);
        Some(attention.forward_with_weights(query, keys.clone(), keys, hidden, pass.precision).1)
    }
}
