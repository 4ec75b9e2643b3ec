//! What can go wrong with a lab, in words for the person who started it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A lab could not be built, opened, used or closed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces, mounts and cgroups need root.
    #[error(
        "a lab needs root: namespaces, mounts and cgroups are made on this machine (effective uid is {uid})"
    )]
    NotRoot {
        /// Who asked.
        uid: u32,
    },
    /// A program that must be on this machine is not.
    #[error("{program} is not installed on this machine: {remedy}")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A system call or a file operation failed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A command ran and failed.
    #[error("{what} failed with {status}: {tail}")]
    Failed {
        /// The command, and where it ran.
        what: String,
        /// Exit code or signal.
        status: String,
        /// The last lines that it wrote.
        tail: String,
    },
    /// A command or a wait took too long.
    #[error("{what} was not finished after {}", humantime::format_duration(*deadline))]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        deadline: Duration,
    },
    /// A helper process of the lab reported why it cannot go on.
    #[error("host {host} cannot be opened: {why}")]
    HostFailed {
        /// Which host.
        host: String,
        /// Its last words.
        why: String,
    },
    /// The host's first process is gone.
    #[error("host {host} of lab {lab} is down")]
    HostDown {
        /// Which lab.
        lab: String,
        /// Which host.
        host: String,
    },
    /// The name is not one of this lab's hosts.
    #[error("lab {lab} has no host {host}: it has {known}")]
    NoSuchHost {
        /// Which lab.
        lab: String,
        /// What was asked for.
        host: String,
        /// What there is.
        known: String,
    },
    /// Somebody else holds the lab.
    #[error(
        "lab {lab} is already open: close it with `decamp lab down --name {lab}`, or give the new one another --name"
    )]
    AlreadyOpen {
        /// Which lab.
        lab: String,
    },
    /// There is nothing to attach to.
    #[error("there is no lab {lab}: open it with `decamp lab up --name {lab}`")]
    NotOpen {
        /// Which lab.
        lab: String,
    },
    /// A name, an address or a list was not usable.
    #[error("{what} is not usable: {why}")]
    BadInput {
        /// What was given.
        what: String,
        /// The rule it breaks.
        why: String,
    },
    /// A file of the lab's own could not be read back.
    #[error("{path} is not what this version of decamp writes", path = path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// The root file system is there but lacks something.
    #[error("the lab's root file system {path} is not usable: {why}; remove that folder and it is built again", path = path.display())]
    Rootfs {
        /// Where it is.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
}

/// Says what was being done when a call failed.
pub(super) trait Doing<T> {
    /// Wraps the error; `what` completes the sentence "cannot …".
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, LabError> {
        self.map_err(|e| LabError::Io { doing: what().into(), source: e.into() })
    }
}

/// An error and its causes on one line: helper processes can only hand over text.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
