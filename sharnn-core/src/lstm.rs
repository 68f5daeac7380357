//! One LSTM layer over a segment, with its state.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::init::Initializer;
use crate::ops::LstmInputs;
use crate::{Backend, LstmState, Pass, Precision};

/// An LSTM in PyTorch's convention: gates in the order i, f, g, o and two biases.
#[derive(Module, Debug)]
pub struct Lstm<B: burn::tensor::backend::Backend> {
    /// `[4 d_model, d_model]`
    pub weight_ih: Param<Tensor<B, 2>>,
    /// `[4 d_model, d_model]`
    pub weight_hh: Param<Tensor<B, 2>>,
    /// `[4 d_model]`
    pub bias_ih: Param<Tensor<B, 1>>,
    /// `[4 d_model]`
    pub bias_hh: Param<Tensor<B, 1>>,
}

impl<B: burn::tensor::backend::Backend> Lstm<B> {
    pub(crate) fn new(d: usize, init: &mut Initializer<B>) -> Self {
        Self {
            weight_ih: init.lstm([4 * d, d]),
            weight_hh: init.lstm([4 * d, d]),
            bias_ih: init.lstm([4 * d]),
            bias_hh: init.lstm([4 * d]),
        }
    }
}

impl<B: Backend> Lstm<B> {
    /// Runs a segment from `state` (zeros where it is `None`) and returns the outputs and the state after it.
    ///
    /// # Shapes
    /// - `x` and the outputs: `[batch_size, seq_len, d_model]`
    ///
    /// # Panics
    /// If the state's batch size is not that of `x`.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        state: Option<LstmState<B>>,
        precision: Precision,
    ) -> (Tensor<B, 3>, LstmState<B>) {
        let pass = Pass { precision, ..Pass::default() };
        let (y, state) = self.forward_time_major(x.swap_dims(0, 1), state, &pass);
        (y.swap_dims(0, 1), state)
    }

    /// [`forward`](Self::forward) in the inner layout, `[seq_len, batch_size, d_model]`.
    pub(crate) fn forward_time_major(
        &self,
        x: Tensor<B, 3>,
        state: Option<LstmState<B>>,
        pass: &Pass,
    ) -> (Tensor<B, 3>, LstmState<B>) {
        let [seq_len, batch_size, _] = x.dims();
        let [_, d] = self.weight_hh.dims();
        let LstmState { h: h0, c: c0 } = state.unwrap_or_else(|| LstmState {
            h: Tensor::zeros([batch_size, d], (&x.device(), x.dtype())),
            c: Tensor::zeros([batch_size, d], (&x.device(), x.dtype())),
        });
        assert_eq!(
            h0.dims(),
            [batch_size, d],
            "the LSTM state has shape {:?}, the input needs [batch_size, d_model] = [{batch_size}, {d}]",
            h0.dims()
        );
        let packed = B::lstm(
            LstmInputs {
                x,
                weight_ih: self.weight_ih.val(),
                weight_hh: self.weight_hh.val(),
                bias_ih: self.bias_ih.val(),
                bias_hh: self.bias_hh.val(),
                h0,
                c0,
                recompute: pass.recompute,
            },
            pass.precision,
        );
        let row = |t: usize| packed.clone().narrow(0, t, 1).reshape([batch_size, d]);
        let state = LstmState { h: row(seq_len - 1), c: row(seq_len) };
        (packed.narrow(0, 0, seq_len), state)
    }
}
