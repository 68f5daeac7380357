//! The LSTM over a whole segment (Hochreiter and Schmidhuber 1997, in PyTorch's convention).
//!
//! With `[i, f, g, o]` the four `d`-wide parts of `W_ih x_t + b_ih + W_hh h_{t-1} + b_hh`:
//!
//! ```text
//! c_t = σ(f) c_{t-1} + σ(i) tanh(g)        h_t = σ(o) tanh(c_t)
//! ```
//!
//! The operation has one output, because an autodiff node has one: the rows `h_1 .. h_T, c_T` packed into
//! `[seq_len + 1, batch_size, d]`. So a gradient through the final cell state arrives in the last row.

use burn::tensor::Tensor;

use super::{Backend, Precision};
use crate::activation::sigmoid;

/// Inputs of the LSTM operation.
#[derive(Clone, Debug)]
pub struct LstmInputs<B: Backend> {
    /// `[seq_len, batch_size, d_in]`
    pub x: Tensor<B, 3>,
    /// `[4 d, d_in]`, rows in the order i, f, g, o.
    pub weight_ih: Tensor<B, 2>,
    /// `[4 d, d]`
    pub weight_hh: Tensor<B, 2>,
    /// `[4 d]`
    pub bias_ih: Tensor<B, 1>,
    /// `[4 d]`
    pub bias_hh: Tensor<B, 1>,
    /// Hidden state before the segment, `[batch_size, d]`.
    pub h0: Tensor<B, 2>,
    /// Cell state before the segment, `[batch_size, d]`.
    pub c0: Tensor<B, 2>,
    /// Whether the backward computes the gates again, so that nothing but outputs and cells need be kept.
    pub recompute: bool,
}

/// What the forward pass leaves for the backward: inputs, outputs and activated gates.
#[derive(Clone, Debug)]
pub struct LstmSaved<B: Backend> {
    /// The inputs.
    pub inputs: LstmInputs<B>,
    /// The packed output, `[seq_len + 1, batch_size, d]`.
    pub output: Tensor<B, 3>,
    /// Activated gates i, f, g, o side by side, `[seq_len, batch_size, 4 d]`, unless they are computed again. A backend with
    /// a backward of its own may lay out gates and cells as it likes.
    pub gates: Option<Tensor<B, 3>>,
    /// `c_1 .. c_T`, `[seq_len, batch_size, d]`.
    pub cells: Tensor<B, 3>,
    /// The precision that was used.
    pub precision: Precision,
}

/// Gradients of the LSTM operation, shaped as its inputs. Both biases have the same gradient.
#[derive(Debug)]
pub struct LstmGrads<B: Backend> {
    /// `[seq_len, batch_size, d_in]`
    pub x: Option<Tensor<B, 3>>,
    /// `[4 d, d_in]`
    pub weight_ih: Option<Tensor<B, 2>>,
    /// `[4 d, d]`
    pub weight_hh: Option<Tensor<B, 2>>,
    /// `[4 d]`, of either bias.
    pub bias: Option<Tensor<B, 1>>,
    /// `[batch_size, d]`
    pub h0: Tensor<B, 2>,
    /// `[batch_size, d]`
    pub c0: Tensor<B, 2>,
}

/// Which parents want a gradient.
#[derive(Clone, Copy, Debug)]
pub struct LstmWanted {
    /// The input sequence.
    pub x: bool,
    /// The input weights.
    pub weight_ih: bool,
    /// The recurrent weights.
    pub weight_hh: bool,
    /// Either bias.
    pub bias: bool,
}

/// One step's values as they are gathered over the segment.
struct Trace<B: Backend> {
    gates: Vec<Tensor<B, 2>>,
    cells: Vec<Tensor<B, 2>>,
}

/// Runs the recurrence. The packed output, and the trace where `keep` asks for it.
fn run<B: Backend>(inputs: &LstmInputs<B>, precision: Precision, keep: bool) -> (Tensor<B, 3>, Trace<B>) {
    let [seq_len, batch_size, d_in] = inputs.x.dims();
    let [_, d] = inputs.h0.dims();
    let bias = inputs.bias_ih.clone() + inputs.bias_hh.clone();
    // The input's part of all gates of all steps is one product.
    let projected = super::linear::forward(
        inputs.x.clone().reshape([seq_len * batch_size, d_in]),
        inputs.weight_ih.clone(),
        bias,
        precision,
    );
    let recurrent = precision.round(inputs.weight_hh.clone()).transpose();
    let (mut h, mut c) = (inputs.h0.clone(), inputs.c0.clone());
    let mut hidden = Vec::with_capacity(seq_len + 1);
    let mut trace = Trace { gates: Vec::new(), cells: Vec::new() };
    for t in 0..seq_len {
        let z = projected.clone().narrow(0, t * batch_size, batch_size) + precision.round(h).matmul(recurrent.clone());
        let part = |k: usize| z.clone().narrow(1, k * d, d);
        let (i, f, g, o) = (sigmoid(part(0)), sigmoid(part(1)), part(2).tanh(), sigmoid(part(3)));
        c = f.clone() * c + i.clone() * g.clone();
        h = o.clone() * c.clone().tanh();
        hidden.push(h.clone());
        if keep {
            trace.cells.push(c.clone());
        }
        if keep && !inputs.recompute {
            trace.gates.push(Tensor::cat(vec![i, f, g, o], 1));
        }
    }
    hidden.push(c);
    (Tensor::stack(hidden, 0), trace)
}

/// The body of [`Backend::lstm`].
pub fn infer<B: Backend>(inputs: LstmInputs<B>, precision: Precision) -> Tensor<B, 3> {
    run(&inputs, precision, false).0
}

/// The body of [`Backend::lstm_forward`].
pub fn forward<B: Backend>(inputs: LstmInputs<B>, precision: Precision) -> (Tensor<B, 3>, LstmSaved<B>) {
    let (output, trace) = run(&inputs, precision, true);
    let gates = (!inputs.recompute).then(|| Tensor::stack(trace.gates, 0));
    let cells = Tensor::stack(trace.cells, 0);
    (output.clone(), LstmSaved { inputs, output, gates, cells, precision })
}

/// Rows `first, x_1 .. x_{T-1}`: what came before each step.
pub(super) fn before<B: Backend>(first: Tensor<B, 2>, x: Tensor<B, 3>, seq_len: usize) -> Tensor<B, 3> {
    match seq_len {
        1 => first.unsqueeze_dim(0),
        _ => Tensor::cat(vec![first.unsqueeze_dim(0), x.narrow(0, 0, seq_len - 1)], 0),
    }
}

/// The activated gates of all steps at once, from what was put out.
pub(super) fn gates_again<B: Backend>(
    inputs: &LstmInputs<B>,
    output: Tensor<B, 3>,
    precision: Precision,
) -> Tensor<B, 3> {
    let [seq_len, batch_size, d_in] = inputs.x.dims();
    let [_, d] = inputs.h0.dims();
    let rows = seq_len * batch_size;
    let bias = inputs.bias_ih.clone() + inputs.bias_hh.clone();
    let x = inputs.x.clone().reshape([rows, d_in]);
    let h = before(inputs.h0.clone(), output, seq_len).reshape([rows, d]);
    let z = super::linear::forward(x, inputs.weight_ih.clone(), bias, precision)
        + precision.matmul(h, inputs.weight_hh.clone().transpose());
    let part = |k: usize| z.clone().narrow(1, k * d, d);
    let gates = vec![sigmoid(part(0)), sigmoid(part(1)), part(2).tanh(), sigmoid(part(3))];
    Tensor::cat(gates, 1).reshape([seq_len, batch_size, 4 * d])
}

/// The body of [`Backend::lstm_backward`].
///
/// Backpropagation through time. Everything that does not depend on a later step is computed for the whole segment at
/// once; the loop holds the recurrent product and a handful of pointwise operations; weight gradients are one product
/// each over all steps.
pub fn backward<B: Backend>(saved: LstmSaved<B>, grad: Tensor<B, 3>, wanted: LstmWanted) -> LstmGrads<B> {
    let LstmSaved { inputs, output, gates, cells, precision } = saved;
    let [seq_len, batch_size, d_in] = inputs.x.dims();
    let [_, d] = inputs.h0.dims();
    let rows = seq_len * batch_size;
    let gates = gates.unwrap_or_else(|| gates_again(&inputs, output.clone(), precision));
    let [i, f, g, o] = std::array::from_fn(|k| gates.clone().narrow(2, k * d, d));
    let one_minus = |x: Tensor<B, 3>| x.neg() + 1.0;

    let tanh_c = cells.clone().tanh();
    let to_o = tanh_c.clone() * o.clone() * one_minus(o.clone());
    let to_c = o * one_minus(tanh_c.clone() * tanh_c);
    let to_i = g.clone() * i.clone() * one_minus(i.clone());
    let to_f = before(inputs.c0, cells, seq_len) * f.clone() * one_minus(f.clone());
    let to_g = i * one_minus(g.clone() * g);
    let step = |x: &Tensor<B, 3>, t: usize| x.clone().narrow(0, t, 1).reshape([batch_size, d]);

    let recurrent = precision.round(inputs.weight_hh);
    let mut dc = step(&grad, seq_len);
    let mut dh = Tensor::zeros([batch_size, d], (&grad.device(), grad.dtype()));
    let mut dgates = Vec::with_capacity(seq_len);
    for t in (0..seq_len).rev() {
        dh = dh + step(&grad, t);
        dc = dc + dh.clone() * step(&to_c, t);
        let dz = Tensor::cat(
            vec![
                dc.clone() * step(&to_i, t),
                dc.clone() * step(&to_f, t),
                dc.clone() * step(&to_g, t),
                dh * step(&to_o, t),
            ],
            1,
        );
        dc = dc * step(&f, t);
        dh = precision.round(dz.clone()).matmul(recurrent.clone());
        dgates.push(dz);
    }
    dgates.reverse();
    let dgates: Tensor<B, 2> = Tensor::cat(dgates, 0);

    let from_x = super::linear::backward(
        inputs.x.reshape([rows, d_in]),
        inputs.weight_ih,
        dgates.clone(),
        [wanted.x, wanted.weight_ih, wanted.bias],
        precision,
    );
    let weight_hh = wanted.weight_hh.then(|| {
        let h_before = before(inputs.h0, output, seq_len).reshape([rows, d]);
        precision.matmul(dgates.transpose(), h_before)
    });
    LstmGrads {
        x: from_x.x.map(|x| x.reshape([seq_len, batch_size, d_in])),
        weight_ih: from_x.weight,
        weight_hh,
        bias: from_x.bias,
        h0: dh,
        c0: dc,
    }
}
