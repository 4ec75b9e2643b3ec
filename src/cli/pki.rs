//! `decamp pki`: hands over to the pki room and says where the result lies.

use std::process::ExitCode;

use super::args::{PkiArgs, PkiCommand};
use super::terminal::Screen;
use super::{Complaint, Exit};
use crate::human::instant_ms;
use crate::pki::{IssueRequest, PeerIdentity, PkiError};

/// Makes what was asked for.
pub(super) fn run(args: &PkiArgs) -> Result<ExitCode, Complaint> {
    let failed = |error: PkiError| Complaint::of_error("no certificate was made", &error);
    let mut screen = Screen::standard(false);
    match &args.command {
        PkiCommand::Init { dir, days, force } => {
            let made = crate::pki::init(dir, *days, *force).map_err(failed)?;
            screen.line(&format!("authority    {}", made.cert.display()));
            screen.line(&format!("its key      {}: whoever has it can be any host", made.key.display()));
        }
        PkiCommand::Issue { name, dir, addresses, days, operator, force } => {
            let subject = if *operator { PeerIdentity::operator(name) } else { PeerIdentity::host(name) };
            let subject = subject.map_err(|error| Complaint {
                exit: Exit::Usage,
                ..Complaint::of_error("no such name", &error)
            })?;
            let (dir, addresses) = (dir.clone(), addresses.clone());
            let request = IssueRequest { dir, subject, addresses, days: *days, force: *force };
            let made = crate::pki::issue(&request).map_err(failed)?;
            let until = instant_ms(made.not_after_unix_s.saturating_mul(1000));
            screen.line(&format!("{}    {}, valid until {until} UTC", request.subject, made.dir.display()));
        }
    }
    screen.finish().map(|()| Exit::Done.into())
}
