//! `decamp pki`: hands over to the pki room.

use std::process::ExitCode;

use super::args::{PkiArgs, PkiCommand};
use super::terminal::Screen;
use super::{Complaint, Exit};

/// Makes what was asked for and says which files it wrote.
pub(super) fn run(args: &PkiArgs) -> Result<ExitCode, Complaint> {
    let made = match &args.command {
        PkiCommand::Init { dir, validity, force } => crate::pki::init(dir, *validity, *force),
        PkiCommand::Issue { name, dir, addresses, validity, operator, force } => {
            crate::pki::issue(dir, name, addresses, *validity, *operator, *force)
        }
    };
    let files = made.map_err(|error| Complaint::of_error("no certificate was made", &error))?;
    let mut screen = Screen::standard(false);
    files.iter().for_each(|file| screen.line(&file.display().to_string()));
    screen.finish().map(|()| Exit::Done.into())
}
