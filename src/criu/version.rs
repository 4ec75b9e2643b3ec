//! Which CRIU is here, and is it good enough. Checked before it is used, not found out in the freeze.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// CRIU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    /// 4 in 4.2.1.
    pub major: u32,
    /// 2 in 4.2.1.
    pub minor: u32,
    /// 1 in 4.2.1.
    pub patch: u32,
}

/// Older ones fail on current kernels: 3.17 on the vDSO since 6.13, 4.1 on `SO_PASSCRED` since 6.16.
pub const MINIMUM: CriuVersion = CriuVersion { major: 4, minor: 2, patch: 0 };

/// First version that may compress or encrypt page images, which decamp does not read yet.
const UNKNOWN_FROM: CriuVersion = CriuVersion { major: 5, minor: 0, patch: 0 };

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl CriuVersion {
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Version:"))?;
        let mut parts = line.trim().split('.').map(|part| {
            part.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok()
        });
        Some(Self {
            major: parts.next()??,
            minor: parts.next()??,
            patch: parts.next().flatten().unwrap_or(0),
        })
    }
}

/// Why CRIU here cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CriuProblem {
    /// It cannot be started.
    #[error("{program} cannot be run")]
    Absent {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its version cannot be read.
    #[error("{program} --version prints no version: {printed:?}")]
    Unreadable {
        /// The program.
        program: String,
        /// What it printed.
        printed: String,
    },
    /// Too old.
    #[error("CRIU {found} is too old, {MINIMUM} or later is needed (older ones fail on current kernels)")]
    TooOld {
        /// What is here.
        found: CriuVersion,
    },
    /// Newer than what decamp was tested with, with another page format possible.
    #[error("CRIU {found} is newer than what this decamp knows; its page images may have another form")]
    TooNew {
        /// What is here.
        found: CriuVersion,
    },
    /// `criu check` does not like this kernel.
    #[error("criu check fails on this kernel: {printed}")]
    CheckFailed {
        /// Its last words.
        printed: String,
    },
}

async fn output(program: &Path, arguments: &[&str]) -> Result<std::process::Output, CriuProblem> {
    let absent = |source| CriuProblem::Absent { program: program.display().to_string(), source };
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(Duration::from_secs(20), run)
        .await
        .map_err(|_| absent(std::io::ErrorKind::TimedOut.into()))?
        .map_err(absent)
}

/// Asks the program for its version and runs `criu check`.
///
/// # Errors
/// What is wrong, as [`CriuProblem`].
pub async fn check(program: &Path) -> Result<CriuVersion, CriuProblem> {
    let printed = String::from_utf8_lossy(&output(program, &["--version"]).await?.stdout).into_owned();
    let found = CriuVersion::parse(&printed).ok_or_else(|| CriuProblem::Unreadable {
        program: program.display().to_string(),
        printed: printed.chars().take(200).collect(),
    })?;
    if found < MINIMUM {
        return Err(CriuProblem::TooOld { found });
    }
    if found >= UNKNOWN_FROM {
        return Err(CriuProblem::TooNew { found });
    }
    let checked = output(program, &["check"]).await?;
    if !checked.status.success() {
        let text = String::from_utf8_lossy(&checked.stderr).into_owned();
        let last = text.lines().rev().find(|line| line.contains("Error")).unwrap_or("it gave no reason");
        return Err(CriuProblem::CheckFailed { printed: last.trim().to_owned() });
    }
    Ok(found)
}

/// Can it lock a network with nftables here (criu/cr-check.c)? No answer is a no.
pub async fn knows_nftables(program: &Path) -> bool {
    let asked = output(program, &["check", "--feature", "network_lock_nftables"]).await;
    asked.is_ok_and(|answer| answer.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let parse = |text| CriuVersion::parse(text);
        assert_eq!(parse("Version: 4.2.1\n"), Some(CriuVersion { major: 4, minor: 2, patch: 1 }));
        assert_eq!(parse("Version: 4.3\nGitID: x"), Some(CriuVersion { major: 4, minor: 3, patch: 0 }));
        assert!(parse("Version: 3.17.1").unwrap() < MINIMUM);
        assert_eq!(parse("criu"), None);
    }

    #[tokio::test]
    async fn an_absent_program_is_said_by_name() {
        let error = check(Path::new("/nonexistent/criu")).await.unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/criu cannot be run");
    }
}
