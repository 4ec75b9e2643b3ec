//! `decamp demo`: hands over to the demo room, prints its last page, and lets the verdict decide the exit code.

use std::process::ExitCode;

use super::args::DemoArgs;
use super::terminal::{Screen, Terminal};
use super::{Complaint, Exit};

/// Plays the demo. With `--json` the story goes to standard error, and standard output gets one document.
pub(super) fn run(args: &DemoArgs, terminal: Terminal) -> Result<ExitCode, Complaint> {
    let gave_up =
        |error: crate::demo::DemoError| Complaint::of_error("the demo was not played to its end", &error);
    let mut screen = Screen::standard(false);
    let (json, quiet) = (args.telling.json, args.telling.quiet);
    let played = crate::demo::run(args.values, args.keep, &mut |line| match (json, quiet) {
        (true, _) => screen.complain(&[line.to_owned()]),
        (false, true) => {}
        (false, false) => screen.line(line),
    })
    .map_err(gave_up)?;
    let report = crate::demo::report(&played.containers, terminal.out);
    if json {
        let document = serde_json::json!({
            "containers": played.containers,
            "passed": report.passed(),
            "failures": report.failures,
        });
        screen.line(&document.to_string());
    } else if !quiet || !report.passed() {
        report.lines.iter().for_each(|line| screen.line(line));
    }
    screen.complain(&played.how_to_look());
    let exit = if report.passed() { Exit::Done } else { Exit::CheckFailed };
    played.close().map_err(gave_up)?;
    screen.finish()?;
    Ok(exit.into())
}
