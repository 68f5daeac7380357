#![doc = include_str!("../README.md")]

mod adagrad;
mod attention;
mod blocks;
mod boom;
mod buffer;
mod decode;
mod decoder_loss;
mod dropout;
mod gemm;
pub mod int8;
mod isa;
mod lamb;
mod layer_norm;
mod linear;
mod lstm;
mod math;
mod orthogonal;
mod rows;
mod simd;
pub mod team;
#[cfg(test)]
mod testing;

pub use adagrad::adagrad_rows;
pub use attention::Attention;
pub use boom::{Boom, BoomGrads, Preactivations};
pub use buffer::Buffer;
pub use decode::{
    AttentionWeights, BlockWeights, DecodeModel, NGramWeights, NormWeights, PackedRows, Streams, WeightFormat,
    value_gate,
};
pub use decoder_loss::{DecoderLoss, DecoderLossGrads};
pub use dropout::{Mask, dropout};
pub use gemm::{Mat, Operands, Packed, gemm, round_bf16};
pub use isa::{ISA_VARIABLE, Isa};
pub use lamb::{LambNorms, LambStep, squared_norm};
pub use layer_norm::{
    LaneMask, LayerNormGrads, layer_norm, layer_norm_backward, norm_residual, norm_residual_backward,
};
pub use linear::{affine, affine_backward, column_sums};
pub use lstm::{Lstm, LstmGrads, LstmTrace};
pub use orthogonal::{NewtonSchulz, orthogonalize};
pub use rows::{Rows, RowsMut};
