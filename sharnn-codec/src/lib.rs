#![doc = include_str!("../README.md")]

mod arithmetic;
mod codec;
mod container;
mod error;
mod lanes;
mod records;

pub use codec::{Codec, Options, Progress, Totals};
pub use container::HEADER_LEN;
pub use error::CodecError;
pub use records::Records;
