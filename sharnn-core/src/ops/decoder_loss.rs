//! The decoder's linear map and the softmax cross-entropy in one operation: mean negative log-likelihood in nats.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation::log_softmax};

use super::{Backend, LinearGrads, Precision};

/// Inputs of the operation.
#[derive(Clone, Debug)]
pub struct DecoderLossInputs<B: Backend> {
    /// `[rows, d_model]`
    pub h: Tensor<B, 2>,
    /// `[vocab_size, d_model]`
    pub weight: Tensor<B, 2>,
    /// `[vocab_size]`
    pub bias: Tensor<B, 1>,
    /// `[rows]`
    pub targets: Tensor<B, 1, Int>,
}

/// What the forward pass leaves for the backward.
#[derive(Clone, Debug)]
pub struct DecoderLossSaved<B: Backend> {
    /// `[rows, d_model]`
    pub h: Tensor<B, 2>,
    /// `[vocab_size, d_model]`
    pub weight: Tensor<B, 2>,
    /// Log-probabilities, `[rows, vocab_size]`.
    pub log_probs: Tensor<B, 2>,
    /// `[rows]`
    pub targets: Tensor<B, 1, Int>,
    /// The precision that was used.
    pub precision: Precision,
}

/// The body of [`Backend::decoder_loss_forward`]: `logits = h Wᵀ + b`, `loss = -mean log softmax(logits)[target]`.
pub fn forward<B: Backend>(inputs: DecoderLossInputs<B>, precision: Precision) -> (Tensor<B, 1>, DecoderLossSaved<B>) {
    let DecoderLossInputs { h, weight, bias, targets } = inputs;
    let logits = super::linear::forward(h.clone(), weight.clone(), bias, precision);
    let log_probs = log_softmax(logits, 1);
    let loss = log_probs.clone().gather(1, targets.clone().unsqueeze_dim(1)).mean().neg();
    (loss, DecoderLossSaved { h, weight, log_probs, targets, precision })
}

/// The body of [`Backend::decoder_loss_backward`].
///
/// `dlogits = (softmax - onehot(target)) g / rows`, then the linear map's gradients.
pub fn backward<B: Backend>(saved: DecoderLossSaved<B>, grad: Tensor<B, 1>, wanted: [bool; 3]) -> LinearGrads<B> {
    let DecoderLossSaved { h, weight, log_probs, targets, precision } = saved;
    let [rows, _] = log_probs.dims();
    let minus_one = Tensor::full([rows, 1], -1.0, (&log_probs.device(), log_probs.dtype()));
    let dlogits = log_probs.exp().scatter(1, targets.unsqueeze_dim(1), minus_one, IndexingUpdateOp::Add)
        * (grad / rows as f64).unsqueeze();
    super::linear::backward(h, weight, dlogits, wanted, precision)
}
