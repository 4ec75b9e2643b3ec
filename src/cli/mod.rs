//! The command line: parses, asks an agent, shows what it says. It never touches a container itself, and it never decides
//! anything about a migration: it only asks and tells.
//!
//! ```text
//! args ─▶ connect ─▶ follow (events, signals) ─▶ view: json | lines | terminal ─▶ exit
//! ```

pub mod args;
mod commands;
mod complaint;
mod connect;
mod exit;
mod follow;
mod interrupts;
mod terminal;
mod view;

use std::ffi::OsString;

use complaint::Complaint;
pub use exit::Exit;

use self::args::{Cli, Command};
use self::terminal::{Screen, Terminal};

/// Runs one command line to its exit code. Everything that can be said has been said when it returns.
#[must_use]
pub fn run<I: IntoIterator<Item = OsString>>(line: I) -> Exit {
    let cli = match Cli::parse_line(line) {
        Ok(cli) => cli,
        Err(told) => {
            // If nobody reads it (`decamp --help | head -1`) that is all right.
            let _ = told.print();
            return if told.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let terminal = Terminal::detect(cli.global.color);
    dispatch(&cli.command, terminal).unwrap_or_else(|complaint| {
        Screen::standard(false).complain(&complaint.lines(terminal.err));
        complaint.exit
    })
}

fn dispatch(command: &Command, terminal: Terminal) -> Result<Exit, Complaint> {
    match command {
        Command::Ls(args) => client(commands::ls(args, terminal)),
        Command::Info(args) => client(commands::info(args, terminal)),
        Command::History(args) => client(commands::history(args, terminal)),
        Command::Migrate(args) => client(commands::migrate(args, terminal)),
        Command::Drain(args) => client(commands::drain(args, terminal)),
        Command::Watch(args) => client(commands::watch(args, terminal)),
        Command::Cancel(args) => client(commands::cancel(args)),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::tree(), "decamp", &mut script);
            Screen::standard(false).line(String::from_utf8_lossy(&script).trim_end());
            Ok(Exit::Done)
        }
    }
}

/// Runs a client on one thread: it only waits.
fn client(work: impl Future<Output = Result<Exit, Complaint>>) -> Result<Exit, Complaint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Complaint::new(Exit::Failed, "no runtime").fact("what", error.to_string()))?;
    runtime.block_on(work)
}
