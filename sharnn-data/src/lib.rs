#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod corpus;
pub mod enwik8;
mod error;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod format;
pub mod lanes;
pub mod segment_lengths;
pub mod segments;
pub mod shell;
pub mod stats;
pub mod whole_file;

pub use corpus::{Corpus, Split, Splits};
pub use error::DataError;
#[cfg(feature = "fetch")]
pub use fetch::{FetchError, FetchProgress};
pub use lanes::Lanes;
pub use rand_chacha::ChaCha8Rng;
pub use segment_lengths::SegmentLengths;
pub use segments::{Segment, Segments, SegmentsState};
pub use stats::{ByteCounts, order0_entropy};
