//! How one forward pass is computed: precision, dropout, and what it keeps.

use crate::{Dropout, DropoutSite, DropoutStream, Precision};

/// Options of a forward pass. The default is f32 without dropout: evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pass {
    /// Precision of matrix products.
    pub precision: Precision,
    /// The step's random stream; `None` drops nothing, whatever the configuration's probabilities.
    pub dropout: Option<DropoutStream>,
    /// Whether the backward computes the gates of the LSTMs and the pre-activations of the Booms again, so that they need not
    /// be kept: less memory, for a quarter more multiplications. Gradients stay the same, on flex to the last bit.
    pub recompute: bool,
}

impl Pass {
    /// A training pass in f32 that drops elements by `stream`.
    pub fn training(stream: DropoutStream) -> Self {
        Self { dropout: Some(stream), ..Self::default() }
    }

    /// The dropout of one site of one block, where there is any.
    pub(crate) fn at(&self, prob: f64, block: usize, site: DropoutSite) -> Option<Dropout> {
        let stream = self.dropout.filter(|_| prob > 0.0)?;
        Some(Dropout { prob, key: stream.key(block, site) })
    }
}
