#![doc = include_str!("../README.md")]

mod adaptive;
mod buckets;
mod counts;
mod distribution;
mod logistic;
mod mixer;
mod past;
mod refine;
mod saved;
mod weights;

pub use distribution::ByteDistribution;
pub use mixer::{Mixer, MixerConfig};
pub use saved::MixerError;
