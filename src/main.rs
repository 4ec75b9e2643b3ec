//! The `decamp` command: a hook of CRIU, an injector, a process of the lab, or the command line, by how it was called.

use std::process::ExitCode;

fn main() -> ExitCode {
    if decamp::hook::called_as_hook(std::env::args_os().next().as_deref()) {
        return decamp::hook::main();
    }
    if decamp::sys::inject::called_as_injector(std::env::args_os().next().as_deref()) {
        return decamp::sys::inject::main();
    }
    if let Some(code) = decamp::lab::entry(std::env::args_os()) {
        return code;
    }
    decamp::cli::run(std::env::args_os())
}
