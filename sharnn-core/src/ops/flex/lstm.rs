//! The LSTM on flex.

use burn::tensor::Tensor;
use burn_flex::Flex;
use sharnn_kernels::{Buffer, Lstm, LstmGrads as Outputs, LstmTrace};

use super::memory::{Values, is_f32, tensor};
use crate::ops::{LstmGrads, LstmInputs, LstmSaved, LstmWanted, Precision, lstm as generic};

/// The inputs' memory.
struct Memory {
    x: Values,
    weight_ih: Values,
    weight_hh: Values,
    bias_ih: Values,
    bias_hh: Values,
    h0: Values,
    c0: Values,
    /// Steps, lanes, width of the input, width of the state.
    sizes: [usize; 4],
    precision: Precision,
}

impl Memory {
    /// `None` where a tensor is not of f32.
    fn of(inputs: &LstmInputs<Flex>, precision: Precision) -> Option<Self> {
        let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, .. } = inputs;
        let all_f32 = is_f32(x)
            && [weight_ih, weight_hh, h0, c0].into_iter().all(is_f32)
            && [bias_ih, bias_hh].into_iter().all(is_f32);
        let ([seq_len, lanes, d_in], [_, d]) = (x.dims(), h0.dims());
        all_f32.then(|| Self {
            x: Values::of(x),
            weight_ih: Values::of(weight_ih),
            weight_hh: Values::of(weight_hh),
            bias_ih: Values::of(bias_ih),
            bias_hh: Values::of(bias_hh),
            h0: Values::of(h0),
            c0: Values::of(c0),
            sizes: [seq_len, lanes, d_in, d],
            precision,
        })
    }

    fn lstm(&self) -> Lstm<'_> {
        let [seq_len, lanes, d_in, d] = self.sizes;
        Lstm {
            seq_len,
            lanes,
            d_in,
            d,
            x: &self.x,
            weight_ih: &self.weight_ih,
            weight_hh: &self.weight_hh,
            bias_ih: &self.bias_ih,
            bias_hh: &self.bias_hh,
            h0: &self.h0,
            c0: &self.c0,
            operands: self.precision.into(),
        }
    }

    /// Room for the packed output.
    fn output(&self) -> (Buffer, [usize; 3]) {
        let [seq_len, lanes, _, d] = self.sizes;
        (Buffer::room((seq_len + 1) * lanes * d), [seq_len + 1, lanes, d])
    }
}

pub(super) fn infer(inputs: LstmInputs<Flex>, precision: Precision) -> Tensor<Flex, 3> {
    let Some(memory) = Memory::of(&inputs, precision) else { return generic::infer(inputs, precision) };
    let (mut output, shape) = memory.output();
    memory.lstm().forward(&mut output, None);
    tensor(output, shape)
}

pub(super) fn forward(inputs: LstmInputs<Flex>, precision: Precision) -> (Tensor<Flex, 3>, LstmSaved<Flex>) {
    let Some(memory) = Memory::of(&inputs, precision) else { return generic::forward(inputs, precision) };
    let [seq_len, lanes, _, d] = memory.sizes;
    let (mut output, shape) = memory.output();
    let mut gates = (!inputs.recompute).then(|| Buffer::room(seq_len * lanes * 4 * d));
    let mut cells = Buffer::room(seq_len * lanes * d);
    memory.lstm().forward(&mut output, Some(LstmTrace { gates: gates.as_deref_mut(), cells: &mut cells }));
    let output = tensor(output, shape);
    let saved = LstmSaved {
        inputs,
        output: output.clone(),
        gates: gates.map(|gates| tensor(gates, [seq_len, lanes, 4 * d])),
        cells: tensor(cells, [seq_len, lanes, d]),
        precision,
    };
    (output, saved)
}

pub(super) fn backward(saved: LstmSaved<Flex>, grad: Tensor<Flex, 3>, wanted: LstmWanted) -> LstmGrads<Flex> {
    // As the forward pass decided, whose gates and cells only its own backward can read.
    let Some(memory) = Memory::of(&saved.inputs, saved.precision) else {
        return generic::backward(saved, grad, wanted);
    };
    assert!(is_f32(&grad), "the gradient of an output of f32 is {:?}", grad.dtype());
    let [seq_len, lanes, d_in, d] = memory.sizes;
    let room = |wanted: bool, len: usize| wanted.then(|| Buffer::room(len));
    let mut x = room(wanted.x, seq_len * lanes * d_in);
    let mut weight_ih = room(wanted.weight_ih, 4 * d * d_in);
    let mut weight_hh = room(wanted.weight_hh, 4 * d * d);
    let mut bias = room(wanted.bias, 4 * d);
    let (mut h0, mut c0) = (Buffer::room(lanes * d), Buffer::room(lanes * d));
    let outputs = Outputs {
        x: x.as_deref_mut(),
        weight_ih: weight_ih.as_deref_mut(),
        weight_hh: weight_hh.as_deref_mut(),
        bias: bias.as_deref_mut(),
        h0: &mut h0,
        c0: &mut c0,
    };
    let [output, cells, grad] = [&saved.output, &saved.cells, &grad].map(Values::of);
    let gates = saved.gates.as_ref().map(Values::of);
    memory.lstm().backward(&output, gates.as_deref(), &cells, &grad, outputs);
    LstmGrads {
        x: x.map(|x| tensor(x, [seq_len, lanes, d_in])),
        weight_ih: weight_ih.map(|weight| tensor(weight, [4 * d, d_in])),
        weight_hh: weight_hh.map(|weight| tensor(weight, [4 * d, d])),
        bias: bias.map(|bias| tensor(bias, [4 * d])),
        h0: tensor(h0, [lanes, d]),
        c0: tensor(c0, [lanes, d]),
    }
}
