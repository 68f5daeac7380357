//! Attention over one stored memory.
//!
//! Keys and values are the same rows `K = [memory ; current]`, scaled by static vectors. Those vectors fold into the
//! query and into the output (`q ⊙ σ(k_gate)` and `r ⊙ out`), so the operation reads the memory as it is:
//!
//! ```text
//! weights = softmax(q Kᵀ + causal mask)        out = drop(weights) drop(K)
//! ```
//!
//! The query comes with the scale `1/sqrt(d_head)` folded in. Query `i` sees all of the memory and the current rows up
//! to its own. A gradient for the memory is computed only where it is wanted; in training it never is.

use burn::tensor::{Bool, Tensor, activation::softmax};

use super::{Backend, Dropout, LaneAxis, Precision};

/// Inputs of the attention operation.
#[derive(Clone, Debug)]
pub struct AttentionInputs<B: Backend> {
    /// Queries with key gate and scale folded in, `[batch_size, seq_len, d_model]`.
    pub query: Tensor<B, 3>,
    /// Rows kept from earlier segments, `[batch_size, mem_len, d_model]`; `None` when there are none.
    pub memory: Option<Tensor<B, 3>>,
    /// Rows of the current segment, `[batch_size, seq_len, d_model]`.
    pub current: Tensor<B, 3>,
    /// Number of heads; it divides `d_model`.
    pub n_heads: usize,
    /// Dropout of the values, memory rows included.
    pub value_dropout: Option<Dropout>,
    /// Dropout of the attention weights.
    pub weight_dropout: Option<Dropout>,
}

/// What the forward pass leaves for the backward.
#[derive(Clone, Debug)]
pub struct AttentionSaved<B: Backend> {
    /// The inputs.
    pub inputs: AttentionInputs<B>,
    /// The weights, or what they can be computed from again.
    pub kept: AttentionKept<B>,
    /// The precision that was used.
    pub precision: Precision,
}

/// How the attention weights come to the backward.
#[derive(Clone, Debug)]
pub enum AttentionKept<B: Backend> {
    /// As they are before their dropout, `[batch_size, n_heads, seq_len, mem_len + seq_len]`.
    Weights(Tensor<B, 4>),
    /// The logarithm of the softmax's denominator, `[batch_size, n_heads, seq_len]`: memory that is linear in the length.
    LogSumExp(Tensor<B, 3>),
    /// Not at all: all is computed again.
    Nothing,
}

/// Gradients of the attention operation.
#[derive(Debug)]
pub struct AttentionGrads<B: Backend> {
    /// `[batch_size, seq_len, d_model]`
    pub query: Tensor<B, 3>,
    /// `[batch_size, mem_len, d_model]`, where it was wanted and there is a memory.
    pub memory: Option<Tensor<B, 3>>,
    /// `[batch_size, seq_len, d_model]`
    pub current: Tensor<B, 3>,
}

/// True where a query must not look: query `i` of `seq_len` stands at key `key_len - seq_len + i`.
///
/// # Shapes
/// - result: `[seq_len, key_len]`
fn causal_mask<B: Backend>(seq_len: usize, key_len: usize, device: &B::Device) -> Tensor<B, 2, Bool> {
    Tensor::tril_mask([seq_len, key_len], (key_len - seq_len) as i64, device)
}

/// `[batch_size, rows, d_model]` -> `[batch_size, n_heads, rows, d_head]`.
pub(super) fn split_heads<B: Backend>(x: Tensor<B, 3>, n_heads: usize) -> Tensor<B, 4> {
    let [batch_size, rows, d] = x.dims();
    x.reshape([batch_size, rows, n_heads, d / n_heads]).swap_dims(1, 2)
}

/// `[batch_size, n_heads, rows, d_head]` -> `[batch_size, rows, d_model]`.
pub(super) fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch_size, n_heads, rows, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch_size, rows, n_heads * d_head])
}

impl<B: Backend> AttentionInputs<B> {
    /// `[memory ; current]`, `[batch_size, mem_len + seq_len, d_model]`.
    pub(super) fn rows(&self) -> Tensor<B, 3> {
        match &self.memory {
            Some(memory) => Tensor::cat(vec![memory.clone(), self.current.clone()], 1),
            None => self.current.clone(),
        }
    }

    /// Scores, minus infinity where a query must not look, `[batch_size, n_heads, seq_len, mem_len + seq_len]`.
    fn scores(&self, precision: Precision) -> Tensor<B, 4> {
        let rows = self.rows();
        let [batch_size, key_len, _] = rows.dims();
        let [_, seq_len, _] = self.query.dims();
        let hidden = causal_mask::<B>(seq_len, key_len, &rows.device()).unsqueeze::<4>().expand([
            batch_size,
            self.n_heads,
            seq_len,
            key_len,
        ]);
        let keys = split_heads(rows, self.n_heads);
        let scores = precision.matmul(split_heads(self.query.clone(), self.n_heads), keys.transpose());
        scores.mask_fill(hidden, f32::NEG_INFINITY)
    }

    /// The mask of the values, `[batch_size, mem_len + seq_len, d_model]`.
    fn value_mask(&self, dims: [usize; 3]) -> Option<Tensor<B, 3>> {
        self.value_dropout.map(|dropout| dropout.mask(dims, LaneAxis::First, &self.current))
    }

    /// The mask of the weights, `[batch_size, n_heads, seq_len, mem_len + seq_len]`.
    fn weight_mask(&self, dims: [usize; 4]) -> Option<Tensor<B, 4>> {
        let [batch_size, n_heads, seq_len, key_len] = dims;
        self.weight_dropout.map(|dropout| {
            let flat = [batch_size, n_heads * seq_len, key_len];
            dropout.mask(flat, LaneAxis::First, &self.current).reshape(dims)
        })
    }
}

/// The body of [`Backend::memory_attention_forward`].
pub fn forward<B: Backend>(inputs: AttentionInputs<B>, precision: Precision) -> (Tensor<B, 3>, AttentionSaved<B>) {
    let rows = inputs.rows();
    let [batch_size, key_len, d] = rows.dims();
    let n_heads = inputs.n_heads;
    let weights = softmax(inputs.scores(precision), 3);
    let dropped = match inputs.weight_mask(weights.dims()) {
        Some(mask) => weights.clone() * mask,
        None => weights.clone(),
    };
    let values = match inputs.value_mask([batch_size, key_len, d]) {
        Some(mask) => rows * mask,
        None => rows,
    };
    let out = merge_heads(precision.matmul(dropped, split_heads(values, n_heads)));
    (out, AttentionSaved { inputs, kept: AttentionKept::Weights(weights), precision })
}

/// The body of [`Backend::memory_attention_backward`].
///
/// With cotangent `g`, weights `P`, masks `M_w`, `M_v` and values `V = K ⊙ M_v`:
/// `dP = (g Vᵀ) ⊙ M_w`, `dS = P ⊙ (dP - Σ P ⊙ dP)`, `dq = dS K`, `dK = dSᵀ q + ((P ⊙ M_w)ᵀ g) ⊙ M_v`.
/// Rows of the memory take part in `dK` only where `memory_wanted`.
pub fn backward<B: Backend>(saved: AttentionSaved<B>, grad: Tensor<B, 3>, memory_wanted: bool) -> AttentionGrads<B> {
    let AttentionSaved { inputs, kept, precision } = saved;
    let weights = match kept {
        AttentionKept::Weights(weights) => weights,
        AttentionKept::LogSumExp(log_sum_exp) => (inputs.scores(precision) - log_sum_exp.unsqueeze_dim(3)).exp(),
        AttentionKept::Nothing => softmax(inputs.scores(precision), 3),
    };
    let rows = inputs.rows();
    let [batch_size, key_len, d] = rows.dims();
    let [_, seq_len, _] = inputs.query.dims();
    let (n_heads, mem_len) = (inputs.n_heads, key_len - seq_len);
    let weight_mask = inputs.weight_mask(weights.dims());
    let value_mask = inputs.value_mask([batch_size, key_len, d]);
    let grad = split_heads(grad, n_heads);

    let values = match &value_mask {
        Some(mask) => rows.clone() * mask.clone(),
        None => rows.clone(),
    };
    let mut dweights = precision.matmul(grad.clone(), split_heads(values, n_heads).transpose());
    let mut dropped = weights.clone();
    if let Some(mask) = weight_mask {
        dweights = dweights * mask.clone();
        dropped = dropped * mask;
    }
    let dscores = weights.clone() * (dweights.clone() - (weights * dweights).sum_dim(3));
    let dquery = precision.matmul(dscores.clone(), split_heads(rows, n_heads));

    let (first, count) = if memory_wanted { (0, key_len) } else { (mem_len, seq_len) };
    let query = split_heads(inputs.query, n_heads);
    let from_keys = precision.matmul(dscores.narrow(3, first, count).transpose(), query);
    let from_values = precision.matmul(dropped.narrow(3, first, count).transpose(), grad);
    let mut from_values = merge_heads(from_values);
    if let Some(mask) = value_mask {
        from_values = from_values * mask.narrow(1, first, count);
    }
    let drows = merge_heads(from_keys) + from_values;
    let (memory, current) = match memory_wanted && mem_len > 0 {
        true => (Some(drows.clone().narrow(1, 0, mem_len)), drows.narrow(1, mem_len, seq_len)),
        false => (None, drows),
    };
    AttentionGrads { query: merge_heads(dquery), memory, current }
}
