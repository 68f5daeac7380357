//! The value gate: one static vector `r` that scales the values, over-parameterised while it trains.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend as BurnBackend};

use crate::activation::sigmoid;
use crate::init::Initializer;
use crate::{Backend, Linear, Precision};

/// `r = σ(f) ⊙ tanh(c)` with `[c, f] = W σ(gate) + b` (Merity 2019, section 3.3).
///
/// Nothing in it depends on the input, so after training it collapses to the vector `r` itself: then `linear` is gone and
/// `gate` holds `r`, used without a sigmoid.
#[derive(Module, Debug)]
pub struct ValueGate<B: BurnBackend> {
    /// `[d_model]`: the gate's input, or `r` after the collapse.
    pub gate: Param<Tensor<B, 1>>,
    /// `d_model` to `2 d_model`; `None` after the collapse.
    pub linear: Option<Linear<B>>,
}

impl<B: BurnBackend> ValueGate<B> {
    pub(crate) fn new(d: usize, init: &mut Initializer<B>) -> Self {
        Self { gate: init.zeros([d]), linear: Some(Linear::new(d, 2 * d, init)) }
    }
}

impl<B: Backend> ValueGate<B> {
    /// The vector `r`.
    ///
    /// # Shapes
    /// - result: `[d_model]`
    pub fn forward(&self, precision: Precision) -> Tensor<B, 1> {
        let gate = self.gate.val();
        match &self.linear {
            None => gate,
            Some(linear) => overparam(linear, sigmoid(gate).unsqueeze(), precision).squeeze_dims(&[0, 1]),
        }
    }

    /// Replaces the linear map by the vector that it computes. The outputs do not change; a collapsed gate stays as it is.
    pub fn collapse(self) -> Self {
        if self.linear.is_none() {
            return self;
        }
        let r = self.forward(Precision::F32).detach();
        Self { gate: self.gate.map(|_| r).set_require_grad(true), linear: None }
    }
}

/// `σ(f) ⊙ tanh(c)` with `[c, f]` the halves of the linear map.
///
/// # Shapes
/// - `x` and result: `[a, b, d_model]`
pub fn overparam<B: Backend>(linear: &Linear<B>, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
    let [_, _, d] = x.dims();
    let both = linear.forward(x, precision);
    let (c, f) = (both.clone().narrow(2, 0, d), both.narrow(2, d, d));
    sigmoid(f) * c.tanh()
}
