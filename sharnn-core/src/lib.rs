#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod block;
mod boom;
mod config;
mod gate;
mod init;
mod linear;
mod look;
mod lstm;
mod memory;
mod model;
mod names;
mod ngrams;
mod norm;
pub mod ops;
mod pass;
mod state;
mod stream;

pub use activation::{GELU_SLOPE, gelu};
pub use attention::SingleHeadAttention;
pub use block::{Attending, Block};
pub use boom::Boom;
pub use config::{Attend, ConfigError, NGramConfig, NGramSite, ShaRnnConfig};
pub use gate::{ValueGate, overparam};
pub use linear::Linear;
pub use look::Looked;
pub use lstm::Lstm;
pub use memory::{MemoryEstimate, StepShape};
pub use model::{Decoder, Embedding, SegmentLoss, ShaRnn};
pub use names::pytorch_name;
pub use ngrams::{NGRAM_MODULUS, NGRAM_MULTIPLIER, NGramRows, NGrams};
pub use norm::LayerNorm;
#[cfg(feature = "cuda")]
pub use ops::UnfusedCuda;
#[cfg(feature = "wgpu")]
pub use ops::UnfusedWgpu;
#[cfg(feature = "tch")]
pub use ops::libtorch_device;
pub use ops::{AutodiffBackend, Backend, Dropout, DropoutKey, DropoutSite, DropoutStream, Precision};
pub use pass::Pass;
#[cfg(feature = "flex")]
pub use sharnn_kernels as kernels;
pub use sharnn_stream::{
    BatchGenerator, BatchScorer, ByteDistribution, GenerateError, Generator, Mixer, MixerConfig, MixerError, Sampler,
    Sampling, SamplingError, Scorer, StateError, StreamError, StreamShape, StreamState, Streams, Tally,
};
#[cfg(feature = "flex")]
pub use sharnn_stream::{DecodeEngine, DecodeStreams, FileError, WeightFormat};
pub use state::{BlockState, LstmState, ShaRnnState};
pub use stream::ModelStreams;
