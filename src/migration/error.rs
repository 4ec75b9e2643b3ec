//! The union of what can go wrong in a migration, and its translation for the operator.

use std::time::Duration;

use crate::protocol::frame::FrameError;
use crate::rpc::v1::{Failure, Phase, Reason};

/// Why a migration stopped.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// An operator, or the agent's shutdown.
    #[error("cancelled: {why}")]
    Cancelled {
        /// Their words.
        why: String,
    },
    /// A step took too long.
    #[error("{what} took longer than {}", humantime::format_duration(*after))]
    Deadline {
        /// The step.
        what: &'static str,
        /// The bound.
        after: Duration,
    },
    /// It cannot be done; nothing was changed.
    #[error("{}", summary(by, reasons))]
    Refused {
        /// Which host said so.
        by: String,
        /// Every reason at once.
        reasons: Vec<Reason>,
    },
    /// The other host failed and said why.
    #[error("{host}: {message}")]
    Peer {
        /// Which host.
        host: String,
        /// Its words.
        message: String,
        /// Lines of its CRIU log.
        log_lines: Vec<String>,
        /// Reasons, when it has them.
        reasons: Vec<Reason>,
    },
    /// The other host stopped the migration.
    #[error("{host} stopped the migration: {why}")]
    Stopped {
        /// Which host.
        host: String,
        /// Its words.
        why: String,
    },
    /// The other host broke the protocol.
    #[error("{host} broke the protocol: {what}")]
    Protocol {
        /// Which host.
        host: String,
        /// What it did.
        what: String,
    },
    /// CRIU failed.
    #[error("{doing} failed: {message}")]
    Criu {
        /// "the dump" or "the restore".
        doing: &'static str,
        /// Cause, or the runtime's last words.
        message: String,
        /// Lines of its log.
        log_lines: Vec<String>,
        /// What to do.
        remedy: Option<&'static str>,
    },
    /// Rounds do not converge and the operator wanted to stop then.
    #[error("the container dirties memory faster than it can be sent ({evidence})")]
    NotConverging {
        /// The last round's numbers.
        evidence: String,
    },
    /// A file or folder of ours.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb phrase.
        doing: &'static str,
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The link or a stream of it.
    #[error("the link to the other host failed")]
    Link(#[from] crate::quic::QuicError),
    /// Framing.
    #[error("the conversation with the other host broke")]
    Frame(#[from] crate::protocol::frame::FrameError),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// The page server.
    #[error("CRIU's pages could not be received")]
    PageServer(#[from] crate::criu::PageServerError),
    /// Memory at the source.
    #[error("memory could not be sent")]
    Memory(#[from] crate::memory::MemoryError),
    /// The attributes of a mapping are not those that CRIU was told.
    #[error(
        "process {pid} changed the attributes (mlock, madvise) of {mappings} mappings in the moment before the freeze"
    )]
    MappingsChanged {
        /// Its process id here.
        pid: i32,
        /// How many.
        mappings: usize,
    },
    /// A container cannot be moved any more.
    #[error("{container} lost its pager before all its memory was here, and was stopped for that")]
    Incomplete {
        /// Its name.
        container: String,
    },
    /// The pager at the destination.
    #[error("the pager failed")]
    Pager(#[from] crate::pager::PagerError),
    /// Memory at the destination.
    #[error("memory could not be stored")]
    Store(#[from] crate::store::StoreError),
    /// Files.
    #[error("files could not be moved")]
    Files(#[from] crate::files::FilesError),
    /// Network.
    #[error("the container's network could not be moved")]
    Network(#[from] crate::network::NetworkError),
    /// Hooks.
    #[error("CRIU's hook failed")]
    Hook(#[from] crate::hook::HookError),
    /// The journal.
    #[error("the journal failed")]
    Journal(#[from] crate::journal::JournalError),
    /// A thread of ours was stopped.
    #[error("the agent is stopping")]
    Stopping,
}

fn summary(by: &str, reasons: &[Reason]) -> String {
    match reasons {
        [] => format!("{by} refuses without a reason"),
        [one] => format!("{by} refuses: {}", one.what),
        [first, rest @ ..] => format!("{by} refuses: {} (and {} more)", first.what, rest.len()),
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl MigrationError {
    /// Shorthand for file errors.
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Could this be what is seen here of something that went wrong at the other host? Then its own words say more.
    pub(crate) fn may_follow_from_the_peer(&self) -> bool {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            let of_the_link = error.is::<FrameError>() || error.is::<crate::quic::QuicError>();
            let of_a_stream =
                error.downcast_ref::<std::io::Error>().is_some_and(|io| io.raw_os_error().is_none());
            if of_the_link || of_a_stream {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// For the operator. `here` is this host, `state_now` says where the container runs.
    #[must_use]
    pub fn failure(&self, phase: Phase, here: &str, state_now: String) -> Failure {
        let (host, reasons, log_lines, remedy) = match self {
            Self::Refused { by, reasons } => (by.as_str(), reasons.clone(), Vec::new(), None),
            Self::Peer { host, log_lines, reasons, .. } => {
                (host.as_str(), reasons.clone(), log_lines.clone(), None)
            }
            Self::Protocol { host, .. } | Self::Stopped { host, .. } => {
                (host.as_str(), Vec::new(), Vec::new(), None)
            }
            Self::Criu { log_lines, remedy, .. } => (here, Vec::new(), log_lines.clone(), *remedy),
            _ => (here, Vec::new(), Vec::new(), None),
        };
        let remedy = remedy.map_or_else(|| self.remedy().to_owned(), str::to_owned);
        Failure {
            phase: phase.into(),
            host: host.to_owned(),
            message: chain(self),
            state_now,
            remedy,
            reasons,
            cancelled: matches!(self, Self::Cancelled { .. }),
            log_lines,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Cancelled { .. } => "nothing to do; start it again when you like",
            Self::Deadline { .. } => {
                "look at both hosts' load and link, then try again with a longer --timeout"
            }
            Self::Refused { .. } => "mend each reason above, then try again",
            Self::Peer { .. } => "look at the other agent's log, mend the cause, then try again",
            Self::Protocol { .. } => "run the same version of decamp on both hosts; if it is, report this",
            Self::Criu { .. } => "see the lines of CRIU's log; mend the cause, then try again",
            Self::NotConverging { .. } => {
                "use --if-not-converging cutover, a larger --downtime-target, or move it when it is quieter"
            }
            Self::Link(_) | Self::Frame(_) => {
                "check that the other agent runs and that UDP reaches it, then try again"
            }
            Self::Network(_) => "check [network] of the destination's configuration, then try again",
            Self::Stopping => "start it again when the agent is back",
            _ => "mend the cause, then try again; the agent's log has the details",
        }
    }
}
