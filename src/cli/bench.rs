//! `decamp bench`: hands over to the bench room, prints its report, and lets failed runs decide the exit code.

use std::process::ExitCode;

use super::args::{BenchArgs, BenchCommand, DowntimeArgs};
use super::terminal::{Screen, Terminal};
use super::{Complaint, Exit};

/// Measures. With `--json` progress goes to standard error, and standard output gets one document.
pub(super) fn run(args: &BenchArgs, terminal: Terminal) -> Result<ExitCode, Complaint> {
    let BenchCommand::Downtime(args) = &args.command;
    downtime(args, terminal)
}

fn downtime(args: &DowntimeArgs, terminal: Terminal) -> Result<ExitCode, Complaint> {
    let mut screen = Screen::standard(false);
    let report = crate::bench::downtime(&args.options(), &mut |line| {
        if args.json {
            screen.complain(&[line.to_owned()]);
        } else {
            screen.line(line);
        }
    });
    let report = report.map_err(|error| Complaint::of_error("the benchmark was not done", &error))?;
    if args.json {
        let document = serde_json::to_string(&report).expect("a report has only strings as keys");
        screen.line(&document);
    } else {
        screen.line("");
        crate::bench::lines(&report, terminal.out).iter().for_each(|line| screen.line(line));
    }
    screen.finish()?;
    let exit = if report.failures.is_empty() { Exit::Done } else { Exit::CheckFailed };
    Ok(exit.into())
}
