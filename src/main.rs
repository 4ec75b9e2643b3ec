//! The `decamp` command.

use std::process::ExitCode;

<<<<<<< HEAD
use clap::Parser;

/// Moves running containers from one host to another.
#[derive(Debug, Parser)]
#[command(name = "decamp", version)]
enum Cli {
    /// Simulated hosts on this machine, to try decamp on
    #[command(subcommand)]
    Lab(decamp::lab::command::LabCommand),
}

fn main() -> ExitCode {
    if let Some(code) = decamp::lab::entry(std::env::args_os()) {
        return code;
    }
    let Cli::Lab(command) = Cli::parse();
    match command.run(&mut |line| println!("{line}"), &mut |line| eprintln!("{line}")) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("decamp: {:#}", anyhow::Error::new(e));
            ExitCode::FAILURE
        }
    }
=======
fn main() -> ExitCode {
    decamp::cli::run(std::env::args_os()).into()
>>>>>>> cli
}
