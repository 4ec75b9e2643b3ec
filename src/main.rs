//! The `decamp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    decamp::cli::run(std::env::args_os())
}
