//! Exit codes, in one place: the enum, the text in `decamp --help`, and what each ending of a migration means.

use std::process::ExitCode;

use crate::rpc::v1::{Failure, Phase};

/// How `decamp` ends. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed; a container that was being moved runs at the source.
    Failed = 1,
    /// The command line, a file it names, or a name in it is wrong; nothing was tried.
    Usage = 2,
    /// Refused before anything was changed; every reason was listed.
    Refused = 3,
    /// Cancelled; the container runs at the source.
    Cancelled = 4,
    /// Whether the destination took over is not known yet.
    InDoubt = 5,
    /// No agent, or the connection to it ended before the outcome was known here.
    Unreachable = 6,
    /// A check of the demo or of a benchmark failed.
    CheckFailed = 7,
}

/// The paragraph in `decamp --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; a container that was being moved runs at the source
  2  the command line is wrong or names what does not exist; nothing was tried
  3  refused before anything was changed; every reason is listed
  4  cancelled; the container runs at the source
  5  in doubt: which host won is not known yet; the container is never run twice
  6  the agent cannot be reached, or was left or lost before the outcome
  7  a check of the demo or of a benchmark failed";

impl Exit {
    /// The code for a migration that ended with this failure.
    ///
    /// "Refused" is kept for refusals before anything was touched; a destination that refuses later, at the restore, is a
    /// failure with reasons.
    #[must_use]
    pub fn of_failure(failure: &Failure) -> Self {
        let early = matches!(failure.phase(), Phase::Unspecified | Phase::Preflight | Phase::Negotiating);
        if failure.phase() == Phase::InDoubt {
            Self::InDoubt
        } else if failure.cancelled {
            Self::Cancelled
        } else if early && !failure.reasons.is_empty() {
            Self::Refused
        } else {
            Self::Failed
        }
    }

    /// The code for several migrations: not knowing outranks failing, failing outranks being cancelled.
    #[must_use]
    pub fn of_many(each: &[Self]) -> Self {
        for known in [Self::Unreachable, Self::InDoubt] {
            if each.contains(&known) {
                return known;
            }
        }
        if each.iter().any(|exit| !matches!(exit, Self::Done | Self::Cancelled)) {
            return Self::Failed;
        }
        if each.contains(&Self::Cancelled) { Self::Cancelled } else { Self::Done }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::Reason;

    fn failure(phase: Phase, reasons: usize, cancelled: bool) -> Failure {
        Failure {
            phase: phase.into(),
            reasons: vec![Reason::default(); reasons],
            cancelled,
            ..Failure::default()
        }
    }

    #[test]
    fn a_failure_has_one_code() {
        let cases = [
            (failure(Phase::Negotiating, 3, false), Exit::Refused),
            (failure(Phase::Negotiating, 0, false), Exit::Failed),
            (failure(Phase::CutOver, 1, false), Exit::Failed),
            (failure(Phase::PreCopy, 0, true), Exit::Cancelled),
            (failure(Phase::InDoubt, 0, true), Exit::InDoubt),
        ];
        for (failure, exit) in cases {
            assert_eq!(Exit::of_failure(&failure), exit, "{failure:?}");
        }
    }

    #[test]
    fn many_end_as_the_worst_of_them() {
        assert_eq!(Exit::of_many(&[]), Exit::Done);
        assert_eq!(Exit::of_many(&[Exit::Done, Exit::Cancelled]), Exit::Cancelled);
        assert_eq!(Exit::of_many(&[Exit::Cancelled, Exit::Refused]), Exit::Failed);
        assert_eq!(Exit::of_many(&[Exit::Failed, Exit::InDoubt]), Exit::InDoubt);
        assert_eq!(Exit::of_many(&[Exit::InDoubt, Exit::Unreachable, Exit::Done]), Exit::Unreachable);
    }

    #[test]
    fn every_code_is_documented() {
        for code in 0..=Exit::CheckFailed as u8 {
            assert!(EXIT_CODES.lines().any(|line| line.starts_with(&format!("  {code}  "))), "{code}");
        }
    }
}
