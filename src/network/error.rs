//! What can go wrong in this room.

use std::io;
use std::path::PathBuf;

use crate::rpc::v1::Reason;

/// Why a network could not be described, made, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The network is not one that decamp can carry, or not one that this host can make; every reason at once.
    #[error("the network cannot be moved: {}", join(.reasons))]
    Refused {
        /// All reasons, in the order in which they were found.
        reasons: Vec<Reason>,
    },
    /// The kernel refused a netlink request.
    #[error("{doing} {what:?} over netlink")]
    Netlink {
        /// The request in words: "adding address".
        doing: &'static str,
        /// The object: an interface, an address, a route.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file operation on a network namespace failed.
    #[error("{doing} network namespace {}", path.display())]
    Namespace {
        /// The operation in words: "mounting".
        doing: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An interface that was there before has gone, or is not what it was.
    #[error("interface {name:?} {why}")]
    Interface {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The gate was opened and the link did not come up in time.
    #[error("interface {name:?} did not come up within {waited_ms} ms: {state}")]
    NotUp {
        /// The host end.
        name: String,
        /// How long was waited.
        waited_ms: u128,
        /// What was seen last.
        state: String,
    },
    /// Frames could not be sent.
    #[error("announcing the addresses of interface {interface:?}")]
    Announce {
        /// The interface inside the container.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter could not be set inside the namespace.
    #[error("setting kernel parameter {key:?} inside the namespace")]
    Sysctl {
        /// The parameter, dotted.
        key: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The thread that works inside a namespace could not be started or died.
    #[error("{doing} the thread that works inside a network namespace")]
    Thread {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn join(reasons: &[Reason]) -> String {
    reasons
        .iter()
        .map(|reason| format!("{} ({})", reason.what, reason.evidence))
        .collect::<Vec<_>>()
        .join("; ")
}

impl NetworkError {
    /// The kernel's error number, when there is one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } | Self::Namespace { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The reasons to show to a peer or an operator: all of a refusal's, or one made of this error.
    #[must_use]
    pub fn into_reasons(self) -> Vec<Reason> {
        match self {
            Self::Refused { reasons } => reasons,
            other => {
                let cause = std::error::Error::source(&other).map(ToString::to_string).unwrap_or_default();
                vec![reason("network-failed", other.to_string(), cause, "see the agent's log on this host")]
            }
        }
    }
}

/// Builds one reason.
pub(super) fn reason(
    code: &str,
    what: impl Into<String>,
    evidence: impl Into<String>,
    remedy: impl Into<String>,
) -> Reason {
    Reason { code: code.to_owned(), what: what.into(), evidence: evidence.into(), remedy: remedy.into() }
}
