//! `decamp lab`: hands over to the lab room, which also brings what may be typed after `lab`.

use std::process::ExitCode;

use super::terminal::Screen;
use super::{Complaint, Exit};

/// `decamp lab`
#[derive(Debug, clap::Args)]
#[command(
    about = "Simulated hosts on this machine, to try things out (needs root)",
    long_about = "Simulated hosts on this machine: namespaces with their own processes, mounts and network, joined by a \
        bridge. Needs root and, the first time, the network to fetch packages. `decamp lab down` removes everything, also \
        after a crash.",
    after_long_help = "\
Examples:
  decamp lab up --detach
  decamp lab exec node-a -- decamp ls
  decamp lab down"
)]
pub struct LabArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: crate::lab::command::LabCommand,
}

/// Does it; `lab exec` ends with the exit code of what it ran.
pub(super) fn run(args: &LabArgs) -> Result<ExitCode, Complaint> {
    let (mut out, mut err) = (Screen::standard(false), Screen::standard(false));
    let ended =
        args.command.clone().run(&mut |line| out.line(line), &mut |line| err.complain(&[line.to_owned()]));
    let code = ended.map_err(|error| Complaint::of_error("the lab gave up", &error))?;
    out.finish()?;
    Ok(u8::try_from(code).map_or_else(|_| Exit::Failed.into(), ExitCode::from))
}
