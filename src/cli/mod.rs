//! The command line: parses, asks an agent, shows what it says. It never touches a container itself, and it never decides
//! anything about a migration: it only asks and tells.
//!
//! ```text
//! args ─▶ connect ─▶ follow (events, signals) ─▶ view: json | lines | terminal ─▶ exit
//! ```

mod agent;
pub mod args;
mod bench;
mod commands;
mod complaint;
mod connect;
mod demo;
mod exit;
mod follow;
mod hook;
mod interrupts;
mod lab;
mod pki;
mod terminal;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use complaint::Complaint;
pub use exit::Exit;

use self::args::{Cli, Command};
use self::terminal::{Screen, Terminal};

/// Runs one command line to its exit code. Everything that can be said has been said when it returns.
#[must_use]
pub fn run<I: IntoIterator<Item = OsString>>(line: I) -> ExitCode {
    let cli = match Cli::parse_line(line) {
        Ok(cli) => cli,
        Err(told) => {
            // If nobody reads it (`decamp --help | head -1`) that is all right.
            let _ = told.print();
            return if told.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let terminal = Terminal::detect(cli.global.color);
    dispatch(&cli.command, terminal).unwrap_or_else(|complaint| {
        Screen::standard(false).complain(&complaint.lines(terminal.err));
        complaint.exit.into()
    })
}

fn dispatch(command: &Command, terminal: Terminal) -> Result<ExitCode, Complaint> {
    match command {
        Command::Ls(args) => client(commands::ls(args, terminal)),
        Command::Info(args) => client(commands::info(args, terminal)),
        Command::History(args) => client(commands::history(args, terminal)),
        Command::Migrate(args) => client(commands::migrate(args, terminal)),
        Command::Drain(args) => client(commands::drain(args, terminal)),
        Command::Watch(args) => client(commands::watch(args, terminal)),
        Command::Cancel(args) => client(commands::cancel(args)),
        Command::Completions(args) => commands::completions(args),
        Command::Agent(args) => agent::run(args),
        Command::Hook(_) => Ok(hook::run()),
        Command::Pki(args) => pki::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Demo(args) => demo::run(args, terminal),
        Command::Bench(args) => bench::run(args, terminal),
    }
}

/// Runs a client on one thread: it only waits.
fn client(work: impl Future<Output = Result<Exit, Complaint>>) -> Result<ExitCode, Complaint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Complaint::of_error("no runtime", &error))?;
    runtime.block_on(work).map(ExitCode::from)
}
