//! Why the demo could not be played to its end. That a check failed is not among them.

use crate::lab::LabError;

/// The demo broke off.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab, or a command in it.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A migration did not succeed; what `decamp migrate` said was told as progress.
    #[error(
        "moving {container} from {from} to {to} ended with exit code {code}; {from}'s agent said last: {log}"
    )]
    Migration {
        /// Which container.
        container: String,
        /// Source.
        from: String,
        /// Destination.
        to: String,
        /// Exit code of `decamp migrate`.
        code: i32,
        /// Last lines of the source agent's log.
        log: String,
    },
    /// The agent's history does not tell what a migration cost.
    #[error("the agent on {host} does not tell what moving {container} cost: {why}")]
    NoSummary {
        /// Whose agent.
        host: String,
        /// Which container.
        container: String,
        /// What it answered.
        why: String,
    },
    /// A workload did not report.
    #[error("{what} did not report: {why}")]
    Workload {
        /// Which.
        what: String,
        /// What is known.
        why: String,
    },
    /// Signals cannot be held back.
    #[error("ctrl-c cannot be handled")]
    Signals(#[source] std::io::Error),
    /// Ctrl-C, SIGTERM or a closed terminal.
    #[error("interrupted; the lab was removed")]
    Interrupted,
}
