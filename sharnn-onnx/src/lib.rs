#![doc = include_str!("../README.md")]

mod error;
mod export;
mod file;
mod graph;
mod metadata;
mod network;
mod proto;
mod save;

pub use error::OnnxError;
pub use export::{OnnxExport, OnnxWeights};
