//! The model and its operations from outside, on every backend that is compiled in. One binary: Burn is compiled into each.

#[macro_use]
mod support;

#[cfg(feature = "flex")]
mod adaptive;
#[cfg(feature = "flex")]
mod decoder;
#[cfg(feature = "flex")]
mod generate;
mod golden;
mod model;
mod ngrams;
mod ops;
#[cfg(feature = "flex")]
mod persistent;
#[cfg(feature = "flex")]
mod stream;
#[cfg(feature = "flex")]
mod stream_state;
