//! What can go wrong between us and the runtime.

use std::path::PathBuf;

/// The runtime or its files did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such container.
    #[error("no container {id:?} in {root}")]
    NotFound {
        /// Name asked for.
        id: String,
        /// runc's state folder.
        root: PathBuf,
    },
    /// A file of the runtime, the bundle or the kernel could not be read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb phrase.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("{path} is not the JSON that belongs there")]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// A JSON file lacks something.
    #[error("{path}: {what}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// The runtime could not be started.
    #[error("cannot run {command}")]
    Spawn {
        /// Command line.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runtime ran and failed.
    #[error("{command} failed ({status}): {message}")]
    Failed {
        /// Command line.
        command: String,
        /// Exit status in words.
        status: String,
        /// Its last error, one line.
        message: String,
    },
    /// A freezer did not reach the state in time.
    #[error("the freezer {path} is {state:?} and did not become {wanted} within {waited_ms} ms")]
    Freezer {
        /// cgroup folder.
        path: PathBuf,
        /// What it says.
        state: String,
        /// What we want.
        wanted: &'static str,
        /// How long we waited.
        waited_ms: u64,
    },
    /// A mount could not be made or undone.
    #[error("cannot {doing} at {path}")]
    Mount {
        /// Verb phrase.
        doing: &'static str,
        /// Mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
}

impl RuntimeError {
    /// Shorthand for the commonest case.
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
