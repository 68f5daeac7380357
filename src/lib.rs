#![doc = include_str!("../README.md")]

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "pretrained")]
pub mod pretrained;

/// The Burn framework, in the version that this crate extends: whoever depends on `sharnn` builds on this very one.
pub use burn;
#[cfg(feature = "codec")]
#[doc(inline)]
pub use sharnn_codec as codec;
#[doc(inline)]
pub use sharnn_core as core;
#[doc(inline)]
pub use sharnn_data as data;
#[cfg(feature = "onnx")]
#[doc(inline)]
pub use sharnn_onnx as onnx;
#[doc(inline)]
pub use sharnn_train as train;

pub use sharnn_core::{
    Attend, AutodiffBackend, Backend, BatchGenerator, BatchScorer, ConfigError, DropoutStream, Generator, Mixer,
    MixerConfig, ModelStreams, NGramConfig, NGramSite, Pass, Precision, Sampling, Scorer, ShaRnn, ShaRnnConfig,
    ShaRnnState, StreamState, Streams,
};
#[cfg(feature = "flex")]
pub use sharnn_core::{DecodeEngine, WeightFormat};
pub use sharnn_data::{Corpus, Lanes, SegmentLengths, Segments, Split, Splits};
pub use sharnn_train::{
    BackendJob, BackendKind, EvalConfig, Recipe, TrainOptions, Trainer, evaluate, import_weights, load_state,
    load_weights, save_state, save_weights,
};
