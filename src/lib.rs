#![doc = include_str!("../README.md")]

#[cfg(feature = "cli")]
pub mod cli;

/// The Burn framework, in the version that this crate extends: whoever depends on `sharnn` builds on this very one.
pub use burn;
#[doc(inline)]
pub use sharnn_core as core;
#[doc(inline)]
pub use sharnn_data as data;
#[doc(inline)]
pub use sharnn_train as train;

pub use sharnn_core::{
    Attend, AutodiffBackend, Backend, ConfigError, DropoutStream, Pass, Precision, ShaRnn, ShaRnnConfig, ShaRnnState,
};
pub use sharnn_data::{Corpus, Lanes, SegmentLengths, Segments, Split, Splits};
pub use sharnn_train::{
    BackendJob, BackendKind, EvalConfig, Generator, Recipe, Sampling, TrainOptions, Trainer, evaluate, load_weights,
    save_weights,
};
