//! `decamp hook`: CRIU's action script by hand; for looking at what goes wrong. CRIU itself starts the binary under the name
//! `decamp-hook`, which `main` looks at before anything else.

use std::process::ExitCode;

/// `decamp hook`
#[derive(Debug, clap::Args)]
#[command(hide = true, about = "CRIU's action script (started by CRIU as decamp-hook)")]
pub struct HookArgs {}

/// Runs the hook.
pub(super) fn run() -> ExitCode {
    crate::hook::main()
}
