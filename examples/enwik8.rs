//! Trains a SHA-RNN on enwik8, and says what it reached: `sharnn train`, for whoever has the sources.
//!
//! ```text
//! cargo run --release --example enwik8                         about three minutes on two cores, nothing to install
//! cargo run --release --example enwik8 -- --download           the same on the whole of enwik8
//! cargo run --release --example enwik8 -- --preset paper       the paper's model and recipe, both phases
//! cargo run --release --example enwik8 -- --help               every option
//! ```
//!
//! A run is kept in a directory of its own under `runs/`, and goes on from there with `--resume`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sharnn::cli::run_train(std::env::args_os())
}
