//! The generic bodies under the names of [`Backend`](super::Backend)'s operations: what every backend does unless it has its
//! own. For a backend that overrides an operation for some types only, and to measure against.
//!
//! Where an operation has no plain form here, it is the first result of its form for training. A backward reads what the
//! forward here has saved.

pub use super::adagrad::rows as adagrad_rows;
pub use super::attention::{backward as memory_attention_backward, forward as memory_attention_forward};
pub use super::boom::{backward as boom_backward, forward as boom_forward};
pub use super::decoder_loss::{backward as decoder_loss_backward, forward as decoder_loss_forward};
pub use super::dropout::apply as dropout;
pub use super::lamb::{squared_norm, update as lamb};
pub use super::layer_norm::{backward as layer_norm_rows_backward, forward as layer_norm_rows};
pub use super::linear::{backward as affine_backward, forward as affine};
pub use super::lstm::{backward as lstm_backward, forward as lstm_forward, infer as lstm};
pub use super::orthogonal::orthogonalize;
pub use super::residual::{backward as norm_residual_backward, forward as norm_residual};
