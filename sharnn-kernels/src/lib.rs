#![doc = include_str!("../README.md")]

mod attention;
mod buffer;
mod dropout;
mod gemm;
mod isa;
mod linear;
mod lstm;
mod math;
mod rows;
mod simd;
mod team;
#[cfg(test)]
mod testing;

pub use attention::Attention;
pub use dropout::Mask;
pub use gemm::{Mat, Operands, Packed, gemm, round_bf16};
pub use isa::{ISA_VARIABLE, Isa};
pub use lstm::{Lstm, LstmGrads, LstmTrace};
pub use rows::{Rows, RowsMut};
pub use team::{MAX_THREADS, set_threads, threads};
