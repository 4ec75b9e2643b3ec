//! `decamp pki`: hands over to the pki room.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{PkiArgs, PkiCommand};
use super::terminal::Screen;
use super::{Complaint, Exit};
use crate::model::HostId;
use crate::pki::{self, Issued, PkiError, Validity};

fn validity(days: u32) -> Validity {
    Validity(Duration::from_secs(u64::from(days) * 24 * 3600))
}

fn make(command: &PkiCommand) -> Result<Issued, PkiError> {
    match command {
        PkiCommand::Init { dir, days, force } => pki::init(dir, validity(*days), *force),
        PkiCommand::Issue { name, dir, days, operator: true, force, .. } => {
            pki::issue_operator(dir, name, validity(*days), *force)
        }
        PkiCommand::Issue { name, dir, addresses, days, force, .. } => {
            let host = HostId::try_from(name.as_str())
                .map_err(|error| PkiError::Name { name: name.clone(), why: error.to_string() })?;
            pki::issue_host(dir, &host, addresses, validity(*days), *force)
        }
    }
}

/// Makes what was asked for and says which files it wrote.
pub(super) fn run(args: &PkiArgs) -> Result<ExitCode, Complaint> {
    let issued =
        make(&args.command).map_err(|error| Complaint::of_error("no certificate was made", &error))?;
    let mut screen = Screen::standard(false);
    [issued.cert, issued.key].iter().for_each(|file| screen.line(&file.display().to_string()));
    screen.finish().map(|()| Exit::Done.into())
}
