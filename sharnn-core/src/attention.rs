//! Single-head attention with static gates (Merity 2019, section 3.1). Only the query has a matrix:
//!
//! ```text
//! q = σ(q_gate) ⊙ LN(W_q x + b_q)      k = σ(k_gate) ⊙ K      v = r ⊙ K
//! out = softmax(q kᵀ / sqrt(d_model / n_heads) + causal mask) v
//! ```
//!
//! There is no output matrix. More heads than one split the vectors, as usual.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, backend::Backend as BurnBackend};

use crate::activation::sigmoid;
use crate::init::Initializer;
use crate::ops::AttentionInputs;
use crate::{Backend, Dropout, LayerNorm, Linear, Precision, ValueGate};

/// Attention whose keys and values are one stored memory, scaled by vectors.
#[derive(Module, Debug)]
pub struct SingleHeadAttention<B: BurnBackend> {
    /// The query's map, `d_model` to `d_model`.
    pub query: Linear<B>,
    /// Norm of the mapped query.
    pub query_norm: LayerNorm<B>,
    /// `[d_model]`
    pub q_gate: Param<Tensor<B, 1>>,
    /// `[d_model]`
    pub k_gate: Param<Tensor<B, 1>>,
    /// The value gate.
    pub value_gate: ValueGate<B>,
    /// Number of heads.
    pub n_heads: usize,
}

/// The dropouts inside attention.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttentionDropouts {
    pub(crate) query: Option<Dropout>,
    pub(crate) value: Option<Dropout>,
    pub(crate) weights: Option<Dropout>,
}

impl<B: BurnBackend> SingleHeadAttention<B> {
    pub(crate) fn new(d: usize, n_heads: usize, init: &mut Initializer<B>) -> Self {
        Self {
            query: Linear::new(d, d, init),
            query_norm: LayerNorm::new(d, init),
            q_gate: init.zeros([d]),
            k_gate: init.zeros([d]),
            value_gate: ValueGate::new(d, init),
            n_heads,
        }
    }
}

impl<B: Backend> SingleHeadAttention<B> {
    /// Attends from `x` to `memory` and to the rows `current` of the same segment; query `i` sees all of the memory and
    /// the current rows up to its own.
    ///
    /// # Shapes
    /// - `x` and `current`: `[batch_size, seq_len, d_model]`
    /// - `memory`: `[batch_size, mem_len, d_model]`
    /// - result: `[batch_size, seq_len, d_model]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        memory: Option<Tensor<B, 3>>,
        current: Tensor<B, 3>,
        precision: Precision,
    ) -> Tensor<B, 3> {
        let x = x.swap_dims(0, 1);
        self.forward_time_major(x, memory, current, AttentionDropouts::default(), precision).swap_dims(0, 1)
    }

    /// `x` and the result in the inner layout, `[seq_len, batch_size, d_model]`; memory and current rows batch-first.
    pub(crate) fn forward_time_major(
        &self,
        x: Tensor<B, 3>,
        memory: Option<Tensor<B, 3>>,
        current: Tensor<B, 3>,
        dropouts: AttentionDropouts,
        precision: Precision,
    ) -> Tensor<B, 3> {
        let query = crate::ops::drop(self.gated_query(x, precision), dropouts.query);
        // Key gate and scale are vectors over the shared channel: they may as well multiply the query.
        let [_, _, d] = query.dims();
        let scale = sigmoid(self.k_gate.val()) / ((d / self.n_heads) as f64).sqrt();
        let inputs = AttentionInputs {
            query: (query * scale.unsqueeze()).swap_dims(0, 1),
            memory,
            current,
            n_heads: self.n_heads,
            value_dropout: dropouts.value,
            weight_dropout: dropouts.weights,
        };
        let out = B::memory_attention(inputs, precision).swap_dims(0, 1);
        out * self.value_gate.forward(precision).unsqueeze()
    }

    /// The plain form with separate keys and values, a free mask and the weights in the result; for tests and for looking
    /// at what a model attends to.
    ///
    /// # Shapes
    /// - `query`: `[batch_size, seq_len, d_model]`; `key` and `value`: `[batch_size, key_len, d_model]`
    /// - `hidden`: `[seq_len, key_len]`, true where a query must not look
    /// - result: `[batch_size, seq_len, d_model]` and the weights `[batch_size, n_heads, seq_len, key_len]`
    pub fn forward_with_weights(
        &self,
        query: Tensor<B, 3>,
        key: Tensor<B, 3>,
        value: Tensor<B, 3>,
        hidden: Tensor<B, 2, Bool>,
        precision: Precision,
    ) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let [batch_size, seq_len, d] = query.dims();
        let [_, key_len, _] = key.dims();
        let (n_heads, d_head) = (self.n_heads, d / self.n_heads);
        let heads = |x: Tensor<B, 3>, rows: usize| x.reshape([batch_size, rows, n_heads, d_head]).swap_dims(1, 2);
        let q = heads(self.gated_query(query, precision), seq_len);
        let k = heads(key * sigmoid(self.k_gate.val()).unsqueeze(), key_len);
        let v = heads(value * self.value_gate.forward(precision).unsqueeze(), key_len);
        let scores = precision.round(q).matmul(precision.round(k).transpose()) / (d_head as f64).sqrt();
        let hidden = hidden.unsqueeze::<4>().expand([batch_size, n_heads, seq_len, key_len]);
        let weights = softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3);
        let mix = precision.round(weights.clone()).matmul(precision.round(v));
        (mix.swap_dims(1, 2).reshape([batch_size, seq_len, d]), weights)
    }

    fn gated_query(&self, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
        let normed = self.query_norm.forward(self.query.forward(x, precision));
        normed * sigmoid(self.q_gate.val()).unsqueeze()
    }

    /// Collapses the value gate; see [`ValueGate::collapse`].
    pub fn collapse(self) -> Self {
        Self { value_gate: self.value_gate.collapse(), ..self }
    }
}
