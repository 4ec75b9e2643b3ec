//! `decamp pki`: hands over to the pki room.

use std::process::ExitCode;

use super::args::{PkiArgs, PkiCommand};
use super::terminal::Screen;
use crate::pki::Validity;
use super::{Complaint, Exit};

/// Makes what was asked for and says which files it wrote.
pub(super) fn run(args: &PkiArgs) -> Result<ExitCode, Complaint> {
    let made = match &args.command {
        PkiCommand::Init { dir, validity, force } => crate::pki::init(dir, Validity(*validity), *force),
        PkiCommand::Issue { name, dir, validity, operator: true, force, .. } => {
            crate::pki::issue_operator(dir, name.as_str(), Validity(*validity), *force)
        }
        PkiCommand::Issue { name, dir, addresses, validity, force, .. } => {
            crate::pki::issue_host(dir, name, addresses, Validity(*validity), *force)
        }
    };
    let issued = made.map_err(|error| Complaint::of_error("no certificate was made", &error))?;
    let mut screen = Screen::standard(false);
    [issued.cert, issued.key].iter().for_each(|file| screen.line(&file.display().to_string()));
    screen.finish().map(|()| Exit::Done.into())
}
