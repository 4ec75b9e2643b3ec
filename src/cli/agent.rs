//! `decamp agent`: hands over to the agent room.

use std::process::ExitCode;

use super::args::AgentArgs;
use super::{Complaint, Exit};

/// Runs the agent until it is told to stop.
pub(super) fn run(args: &AgentArgs) -> Result<ExitCode, Complaint> {
    match crate::agent::run(&args.config) {
        Ok(()) => Ok(Exit::Done.into()),
        Err(error) => Err(Complaint::of_error("the agent ended", &error)),
    }
}
