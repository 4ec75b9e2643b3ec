//! `decamp demo`: hands over to the demo room, prints its last page, and lets the verdict decide the exit code.

use std::process::ExitCode;

use super::args::DemoArgs;
use super::terminal::{Screen, Terminal};
use super::{Complaint, Exit};

/// Plays the demo.
pub(super) fn run(args: &DemoArgs, terminal: Terminal) -> Result<ExitCode, Complaint> {
    let mut progress = Screen::standard(false);
    let containers = crate::demo::run(args.values, args.keep, &mut |line| progress.line(line))
        .map_err(|error| Complaint::of_error("the demo could not be played to its end", &error))?;
    let report = crate::demo::report(&containers, terminal.out);
    let mut screen = Screen::standard(false);
    report.lines.iter().for_each(|line| screen.line(line));
    Ok(if report.passed() { Exit::Done } else { Exit::CheckFailed }.into())
}
