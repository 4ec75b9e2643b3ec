//! The `decamp` command: a hook of CRIU, a pager, a process of the lab, or the command line, by how it was called.

use std::process::ExitCode;

fn main() -> ExitCode {
    if decamp::hook::called_as_hook(std::env::args_os().next().as_deref()) {
        return decamp::hook::main();
    }
    if decamp::pager::called_as_pager(std::env::args_os().next().as_deref()) {
        return decamp::pager::main();
    }
    if let Some(code) = decamp::lab::entry(std::env::args_os()) {
        return code;
    }
    decamp::cli::run(std::env::args_os())
}
