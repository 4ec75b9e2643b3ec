//! Why a benchmark, or one run of it, broke off.

use crate::lab::LabError;

/// A run, or the whole benchmark, could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab, or a command in it.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A migration did not succeed.
    #[error("moving {container} ended with exit code {code}: {last}")]
    Migration {
        /// Which container.
        container: String,
        /// Exit code of `decamp migrate`.
        code: i32,
        /// What it said last.
        last: String,
    },
    /// A workload or a tool did not report, or what it reports cannot be used.
    #[error("{what} did not report: {why}")]
    NoReport {
        /// Which.
        what: String,
        /// What is known.
        why: String,
    },
    /// A content is not what was written.
    #[error("{what} is wrong after the migration: {why}")]
    Wrong {
        /// Whose content.
        what: String,
        /// The first difference.
        why: String,
    },
    /// The load of a writer is a share of the link's page rate, which only an idle migration tells.
    #[error("the link's page rate is not known: no idle container of the reference size was moved before")]
    NoLinkRate,
    /// This machine does not let us measure.
    #[error("cannot {doing}")]
    Io {
        /// What.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl BenchError {
    /// Wraps the kernel's answer; `doing` completes the sentence "cannot …".
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Something did not report.
    pub(super) fn silent(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::NoReport { what: what.into(), why: why.into() }
    }
}

/// An error and its causes on one line: failed runs end up in a report.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
