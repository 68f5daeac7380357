//! The program `sharnn`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sharnn::cli::run(std::env::args_os())
}
