//! The optimizer: its options, its step over all parameters, Muon for matrices, and Adagrad for rows of n-grams.
//!
//! Here lives what turns gradients into a step; rates over time are the recipe's.
//! It may use params, files and group; recipe, run and trainer may use it.

mod config;
mod muon;
mod optimizer;

pub use config::{AdagradConfig, LambConfig, MuonConfig, OptimizerConfigError};
pub use optimizer::{FIRST_MOMENT, Optimizer, RowGrads, SECOND_MOMENT, SQUARES, StepReport};
