//! The same binary is CRIU's action script: runtimes start it under the name `decamp-hook` at every hook, and it speaks to the
//! agent. It must be looked at before anything else in `main`, because CRIU passes no arguments that clap would understand.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// Name under which the binary is the hook.
const NAME: &str = "decamp-hook";

/// Runs the hook if this process was started as one; `None` otherwise.
#[must_use]
pub fn if_started_as_hook(program: Option<&OsStr>) -> Option<ExitCode> {
    is_hook(program?).then(crate::agent::hook::main)
}

fn is_hook(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// `decamp hook`: the same, by hand; for looking at what goes wrong.
#[derive(Debug, clap::Args)]
#[command(hide = true, about = "CRIU's action script (started by CRIU as decamp-hook)")]
pub struct HookArgs {}

/// Runs the hook.
pub(super) fn run() -> ExitCode {
    crate::agent::hook::main()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_name_counts() {
        assert!(is_hook(OsStr::new("/run/decamp/m1/decamp-hook")));
        assert!(is_hook(OsStr::new("decamp-hook")));
        assert!(!is_hook(OsStr::new("/decamp-hook/decamp")));
    }
}
