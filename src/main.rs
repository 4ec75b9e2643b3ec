//! The `decamp` command: a hook of CRIU, an injector, a pager, a process of the lab, or the command line, by how it was called.

use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next();
    if decamp::hook::called_as_hook(program.as_deref()) {
        return decamp::hook::main();
    }
    if decamp::sys::inject::called_as_injector(program.as_deref()) {
        return decamp::sys::inject::main();
    }
    if decamp::pager::called_as_pager(program.as_deref()) {
        return decamp::pager::main();
    }
    if let Some(code) = decamp::lab::entry(std::env::args_os()) {
        return code;
    }
    decamp::cli::run(std::env::args_os())
}
