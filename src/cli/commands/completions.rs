//! `decamp completions`: from the same tree that parses.

use std::process::ExitCode;

use crate::cli::args::{Cli, CompletionsArgs};
use crate::cli::terminal::Screen;
use crate::cli::{Complaint, Exit};

/// Prints the script for a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Complaint> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::tree(), "decamp", &mut script);
    let mut screen = Screen::standard(false);
    screen.line(String::from_utf8_lossy(&script).trim_end());
    screen.finish().map(|()| Exit::Done.into())
}
