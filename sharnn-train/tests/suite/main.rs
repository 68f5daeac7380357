//! Training from outside. One binary: Burn is compiled into each.
#![cfg(feature = "flex")]

mod common;
#[path = "../../../sharnn-core/tests/suite/support/mod.rs"]
mod support;

mod engine_file;
mod evaluate;
mod golden;
mod group;
mod hostile_files;
mod import;
mod interrupt;
mod living_files;
mod moved;
mod ngrams;
mod optimizer;
mod phases;
mod refused;
mod resume;
mod small_corpora;
mod stream_file;
mod weights;
