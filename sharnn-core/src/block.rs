//! One SHA-RNN block: LSTM, attention where the block attends, Boom.
//!
//! ```text
//! h = LN_start(h)
//! h = drop(LSTM(h))                                  no residual around the LSTM
//! K = [memory ; LN_mem(h)],  q = LN_mid(h)           in blocks that attend
//! h = q + drop(Attention(q, K))
//! h = LN_ff(h) + drop(Boom(LN_xff(h)))               both norms read the same h
//! ```

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend as BurnBackend};

use crate::attention::AttentionDropouts;
use crate::init::Initializer;
use crate::ops::{ResidualInputs, drop};
use crate::pass::Pass;
use crate::state::last_rows;
use crate::{Backend, BlockState, Boom, DropoutSite, LayerNorm, Lstm, ShaRnnConfig, SingleHeadAttention};

/// What an attending block has beside the others.
#[derive(Module, Debug)]
pub struct Attending<B: BurnBackend> {
    /// Norm of the queries' input, which also is the residual.
    pub norm_mid: LayerNorm<B>,
    /// Norm of the rows that enter the memory.
    pub norm_mem: LayerNorm<B>,
    /// The attention.
    pub attention: SingleHeadAttention<B>,
}

/// One block.
#[derive(Module, Debug)]
pub struct Block<B: BurnBackend> {
    /// Norm of the LSTM's input.
    pub norm_start: LayerNorm<B>,
    /// The LSTM.
    pub lstm: Lstm<B>,
    /// Attention and its norms; `None` in blocks that do not attend.
    pub attending: Option<Attending<B>>,
    /// Norm of the Boom's residual.
    pub norm_ff: LayerNorm<B>,
    /// Norm of the Boom's input.
    pub norm_xff: LayerNorm<B>,
    /// The feed-forward.
    pub boom: Boom<B>,
    /// Probability of dropping an element anywhere in the block.
    pub dropout: f64,
}

impl<B: BurnBackend> Block<B> {
    pub(crate) fn new(config: &ShaRnnConfig, attends: bool, init: &mut Initializer<B>) -> Self {
        let d = config.d_model;
        Self {
            norm_start: LayerNorm::new(d, init),
            lstm: Lstm::new(d, init),
            attending: attends.then(|| Attending {
                norm_mid: LayerNorm::new(d, init),
                norm_mem: LayerNorm::new(d, init),
                attention: SingleHeadAttention::new(d, config.n_heads, init),
            }),
            norm_ff: LayerNorm::new(d, init),
            norm_xff: LayerNorm::new(d, init),
            boom: Boom::new(d, config.d_ff, init),
            dropout: config.dropout_hidden,
        }
    }
}

impl<B: Backend> Block<B> {
    /// Runs a segment. The memory of `state` is used as it is; the new one is the last `mem_len` rows of
    /// `[memory ; LN_mem(h)]`, still attached to the graph (the model detaches it). `index` names the block's dropouts.
    ///
    /// # Shapes
    /// - `h` and the result: `[batch_size, seq_len, d_model]`
    pub fn forward(
        &self,
        h: Tensor<B, 3>,
        state: BlockState<B>,
        mem_len: usize,
        index: usize,
        pass: &Pass,
    ) -> (Tensor<B, 3>, BlockState<B>) {
        let (h, state) = self.forward_time_major(h.swap_dims(0, 1), state, mem_len, index, pass);
        (h.swap_dims(0, 1), state)
    }

    /// [`forward`](Self::forward) in the inner layout, `[seq_len, batch_size, d_model]`.
    pub(crate) fn forward_time_major(
        &self,
        h: Tensor<B, 3>,
        state: BlockState<B>,
        mem_len: usize,
        index: usize,
        pass: &Pass,
    ) -> (Tensor<B, 3>, BlockState<B>) {
        let dropout = |site| pass.at(self.dropout, index, site);
        let BlockState { lstm, memory } = state;

        let h = self.norm_start.forward(h);
        let (h, lstm) = self.lstm.forward_time_major(h, lstm, pass);
        let mut h = drop(h, dropout(DropoutSite::Lstm));

        let mut new_memory = None;
        if let Some(Attending { norm_mid, norm_mem, attention }) = &self.attending {
            let current = norm_mem.forward(h.clone()).swap_dims(0, 1);
            let query = norm_mid.forward(h);
            let dropouts = AttentionDropouts {
                query: dropout(DropoutSite::Query),
                value: dropout(DropoutSite::Value),
                weights: dropout(DropoutSite::Weights),
            };
            let attended =
                attention.forward_time_major(query.clone(), memory.clone(), current.clone(), dropouts, pass.precision);
            h = query + drop(attended, dropout(DropoutSite::Attention));
            new_memory = extend_memory(memory, current, mem_len);
        }

        let boomed =
            self.boom.forward_time_major(self.norm_xff.forward(h.clone()), dropout(DropoutSite::BoomInner), pass);
        let h = B::norm_residual(ResidualInputs {
            h,
            weight: self.norm_ff.weight.val(),
            bias: self.norm_ff.bias.val(),
            x: boomed,
            dropout: dropout(DropoutSite::BoomOutput),
        });
        (h, BlockState { lstm: Some(lstm), memory: new_memory })
    }

    /// Collapses the value gate of an attending block; see [`ValueGate::collapse`](crate::ValueGate::collapse).
    pub fn collapse(mut self) -> Self {
        if let Some(attending) = self.attending.take() {
            let attention = attending.attention.collapse();
            self.attending = Some(Attending { attention, ..attending });
        }
        self
    }
}

/// The last `mem_len` rows of `[memory ; current]`; `None` where nothing is kept.
fn extend_memory<B: Backend>(
    memory: Option<Tensor<B, 3>>,
    current: Tensor<B, 3>,
    mem_len: usize,
) -> Option<Tensor<B, 3>> {
    let [_, seq_len, _] = current.dims();
    let older = memory.and_then(|memory| last_rows(memory, mem_len.saturating_sub(seq_len)));
    let current = last_rows(current, mem_len)?;
    Some(match older {
        Some(older) => Tensor::cat(vec![older, current], 1),
        None => current,
    })
}
