//! What the examples with options have in common.

use std::process::ExitCode;

/// The exit code of a program; an error is printed in one line.
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
