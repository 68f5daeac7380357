//! The fused operations on flex: `sharnn-kernels` on the tensors' memory. Tensors of another type than f32 take the generic
//! bodies.

mod adagrad;
mod attention;
mod lamb;
mod lstm;
mod memory;
mod rowwise;

use burn::tensor::Tensor;
use burn_flex::Flex;
use sharnn_kernels::{Isa, Mask, Operands};

use super::{
    AdagradStep, AttentionGrads, AttentionInputs, AttentionSaved, Backend, BoomGrads, BoomInputs, BoomSaved,
    DecoderLossInputs, DecoderLossSaved, Dropout, LambParam, LambRatios, LambStep, LambUpdate, LinearGrads, LstmGrads,
    LstmInputs, LstmSaved, LstmWanted, Precision, ResidualGrads, ResidualInputs, ResidualSaved,
};

impl From<Precision> for Operands {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl From<Operands> for Precision {
    fn from(operands: Operands) -> Self {
        match operands {
            Operands::F32 => Self::F32,
            Operands::Bf16 => Self::Bf16,
        }
    }
}

impl Dropout {
    fn kernel_mask(&self) -> Mask {
        let (key, step) = self.key.philox_key();
        Mask { key, step, first_lane: self.key.stream.first_lane, threshold: self.threshold() }
    }
}

impl Backend for Flex {
    fn instructions() -> Option<&'static str> {
        Some(Isa::current().name())
    }

    const KEEPS_ATTENTION_WEIGHTS: bool = false;

    fn affine(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 1>,
        precision: Precision,
    ) -> Tensor<Self, 2> {
        rowwise::affine(x, weight, bias, precision)
    }

    fn affine_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
        wanted: [bool; 3],
        precision: Precision,
    ) -> LinearGrads<Self> {
        rowwise::affine_backward(x, weight, grad, wanted, precision)
    }

    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        rowwise::layer_norm(x, weight, bias)
    }

    fn layer_norm_rows_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>, Tensor<Self, 1>) {
        rowwise::layer_norm_backward(x, weight, grad)
    }

    fn dropout(x: Tensor<Self, 3>, dropout: Dropout) -> Tensor<Self, 3> {
        rowwise::dropout(x, dropout)
    }

    fn norm_residual(inputs: ResidualInputs<Self>) -> Tensor<Self, 3> {
        rowwise::norm_residual(inputs)
    }

    fn norm_residual_backward(saved: ResidualSaved<Self>, grad: Tensor<Self, 3>) -> ResidualGrads<Self> {
        rowwise::norm_residual_backward(saved, grad)
    }

    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        lstm::infer(inputs, precision)
    }

    fn lstm_forward(inputs: LstmInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, LstmSaved<Self>) {
        lstm::forward(inputs, precision)
    }

    fn lstm_backward(saved: LstmSaved<Self>, grad: Tensor<Self, 3>, wanted: LstmWanted) -> LstmGrads<Self> {
        lstm::backward(saved, grad, wanted)
    }

    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        attention::infer(inputs, precision)
    }

    fn memory_attention_forward(
        inputs: AttentionInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 3>, AttentionSaved<Self>) {
        attention::forward(inputs, precision)
    }

    fn memory_attention_backward(
        saved: AttentionSaved<Self>,
        grad: Tensor<Self, 3>,
        memory_wanted: bool,
    ) -> AttentionGrads<Self> {
        attention::backward(saved, grad, memory_wanted)
    }

    fn boom(inputs: BoomInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        rowwise::boom(inputs, precision, false).0
    }

    fn boom_forward(inputs: BoomInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, BoomSaved<Self>) {
        match rowwise::boom(inputs, precision, true) {
            (y, Some(saved)) => (y, saved),
            (_, None) => unreachable!("it was to be kept"),
        }
    }

    fn boom_backward(saved: BoomSaved<Self>, grad: Tensor<Self, 3>) -> BoomGrads<Self> {
        rowwise::boom_backward(saved, grad)
    }

    fn decoder_loss(inputs: DecoderLossInputs<Self>, precision: Precision) -> Tensor<Self, 1> {
        rowwise::decoder_loss(inputs, precision).0
    }

    fn decoder_loss_forward(
        inputs: DecoderLossInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 1>, DecoderLossSaved<Self>) {
        rowwise::decoder_loss(inputs, precision)
    }

    fn decoder_loss_backward(
        saved: DecoderLossSaved<Self>,
        grad: Tensor<Self, 1>,
        wanted: [bool; 3],
    ) -> LinearGrads<Self> {
        rowwise::decoder_loss_backward(saved, grad, wanted)
    }

    fn lamb(step: &LambStep<Self>, params: Vec<LambParam<Self>>) -> (Vec<LambUpdate<Self>>, LambRatios<Self>) {
        lamb::update(step, params)
    }

    fn squared_norm(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        lamb::squared_norm(xs)
    }

    fn adagrad_rows(
        table: Tensor<Self, 2>,
        squares: Tensor<Self, 1>,
        step: AdagradStep<Self>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        adagrad::rows(table, squares, step)
    }

    fn orthogonalize(x: Tensor<Self, 3>, precision: Precision) -> Tensor<Self, 3> {
        lamb::orthogonalize(x, precision)
    }
}
