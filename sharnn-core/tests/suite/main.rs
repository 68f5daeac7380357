//! The model and its operations from outside, on every backend that is compiled in. One binary: Burn is compiled into each.

#[macro_use]
mod support;

#[cfg(feature = "flex")]
mod decoder;
mod golden;
mod model;
mod ops;
