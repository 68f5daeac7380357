//! Attention on flex.

use burn::tensor::Tensor;
use burn_flex::Flex;
use sharnn_kernels::{Attention, Buffer, RowsMut};

use super::memory::{Lanes, Values, is_f32, tensor};
use crate::ops::{AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved, Precision, attention as generic};

/// The inputs' memory.
struct Memory<'a> {
    query: Lanes,
    memory: Option<Lanes>,
    current: Lanes,
    inputs: &'a AttentionInputs<Flex>,
    precision: Precision,
}

impl<'a> Memory<'a> {
    /// `None` where a tensor is not of f32.
    fn of(inputs: &'a AttentionInputs<Flex>, precision: Precision) -> Option<Self> {
        let AttentionInputs { query, memory, current, .. } = inputs;
        let all_f32 = is_f32(query) && is_f32(current) && memory.as_ref().is_none_or(is_f32);
        all_f32.then(|| Self {
            query: Lanes::of(query),
            memory: memory.as_ref().map(Lanes::of),
            current: Lanes::of(current),
            inputs,
            precision,
        })
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            query: self.query.rows(),
            memory: self.memory.as_ref().map(Lanes::rows),
            current: self.current.rows(),
            heads: self.inputs.n_heads,
            value_dropout: self.inputs.value_dropout.map(|dropout| dropout.kernel_mask()),
            weight_dropout: self.inputs.weight_dropout.map(|dropout| dropout.kernel_mask()),
            operands: self.precision.into(),
        }
    }
}

/// Room for `[lanes, rows, d]`, to lie time-major as everything around attention does.
struct TimeMajor {
    values: Buffer,
    shape: [usize; 3],
}

impl TimeMajor {
    fn room(shape: [usize; 3]) -> Self {
        Self { values: Buffer::room(shape.iter().product()), shape }
    }

    fn rows(&mut self) -> RowsMut<'_> {
        let [lanes, _, d] = self.shape;
        RowsMut::new(&mut self.values, self.shape, [d, lanes * d])
    }

    fn tensor(self) -> Tensor<Flex, 3> {
        let [lanes, rows, d] = self.shape;
        tensor(self.values, [rows, lanes, d]).swap_dims(0, 1)
    }
}

pub(super) fn infer(inputs: AttentionInputs<Flex>, precision: Precision) -> Tensor<Flex, 3> {
    let Some(memory) = Memory::of(&inputs, precision) else { return generic::forward(inputs, precision).0 };
    let mut out = TimeMajor::room(inputs.query.dims());
    memory.attention().forward(out.rows(), None);
    out.tensor()
}

pub(super) fn forward(inputs: AttentionInputs<Flex>, precision: Precision) -> (Tensor<Flex, 3>, AttentionSaved<Flex>) {
    let Some(memory) = Memory::of(&inputs, precision) else { return generic::forward(inputs, precision) };
    let [lanes, seq_len, d] = inputs.query.dims();
    let mut out = TimeMajor::room([lanes, seq_len, d]);
    let mut log_sum_exp = Buffer::room(lanes * inputs.n_heads * seq_len);
    memory.attention().forward(out.rows(), Some(&mut log_sum_exp));
    let kept = AttentionKept::LogSumExp(tensor(log_sum_exp, [lanes, inputs.n_heads, seq_len]));
    (out.tensor(), AttentionSaved { inputs, kept, precision })
}

pub(super) fn backward(
    saved: AttentionSaved<Flex>,
    grad: Tensor<Flex, 3>,
    memory_wanted: bool,
) -> AttentionGrads<Flex> {
    let AttentionSaved { inputs, kept, precision } = &saved;
    let (memory, log_sum_exp) = match (Memory::of(inputs, *precision), kept) {
        (Some(memory), AttentionKept::LogSumExp(log_sum_exp)) if is_f32(&grad) => (memory, log_sum_exp),
        _ => return generic::backward(saved, grad, memory_wanted),
    };
    let (mut query, mut current) = (TimeMajor::room(grad.dims()), TimeMajor::room(grad.dims()));
    let mut of_memory = inputs.memory.as_ref().filter(|_| memory_wanted).map(|memory| TimeMajor::room(memory.dims()));
    memory.attention().backward(
        &Values::of(log_sum_exp),
        Lanes::of(&grad).rows(),
        query.rows(),
        current.rows(),
        of_memory.as_mut().map(TimeMajor::rows),
    );
    AttentionGrads { query: query.tensor(), memory: of_memory.map(TimeMajor::tensor), current: current.tensor() }
}
