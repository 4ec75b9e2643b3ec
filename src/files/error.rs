//! What can go wrong with a file tree.

use crate::protocol::frame::FrameError;

/// A tree could not be read, sent, received or applied. Paths are shown with odd bytes escaped.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The kernel said no.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The stream to the other host failed or carried nonsense.
    #[error("the exchange of files with the other host broke off")]
    Stream(#[from] FrameError),
    /// An overlay feature that ties the upper directory to its source host.
    #[error("{path} carries {xattr}, which cannot travel: {why}")]
    OverlayFeature {
        /// The file in the upper directory.
        path: String,
        /// The overlay's extended attribute.
        xattr: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// Something is mounted inside the tree: its content is not the tree's.
    #[error(
        "a file system is mounted at {path}, inside the tree; name it as a mount of its own or unmount it"
    )]
    MountInside {
        /// The mount point.
        path: String,
    },
    /// A bound of `model::limits` is exceeded.
    #[error("{what} of {path} is {have}, at most {max} can be moved")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The tree or file.
        path: String,
        /// The count.
        have: u64,
        /// The bound.
        max: u64,
    },
    /// The tree must stand still in the last round, and does not.
    #[error("{path} changed during the last round: something outside the frozen container writes to it")]
    Changed {
        /// The file.
        path: String,
    },
    /// The peer's manifest or need list breaks the rules.
    #[error("the other host sent an unusable file list: {why} (at {path})")]
    BadList {
        /// The rule.
        why: &'static str,
        /// The entry.
        path: String,
    },
    /// The peer sent a block that does not have the promised content, or that nobody asked for.
    #[error("the other host sent a wrong block {block} of {path}: {why}")]
    BadBlock {
        /// What is wrong.
        why: &'static str,
        /// The file.
        path: String,
        /// Number of the block in the file.
        block: u32,
    },
    /// The source refers to a manifest that this side does not hold.
    #[error("round {round} builds on round {base_round}, but the last round received here is {held}")]
    UnknownBase {
        /// The round that begins.
        round: u32,
        /// What it builds on.
        base_round: u32,
        /// What is held; 0: none.
        held: u32,
    },
    /// What is on disk after the last round is not what was asked for.
    #[error("{path} did not arrive as it was: {what} differs")]
    Differs {
        /// The first file that differs.
        path: String,
        /// Which property.
        what: &'static str,
    },
    /// The destination says all is well, but its tree has another digest.
    #[error("the tree at the destination has another digest than the tree at the source")]
    DigestDiffers,
    /// The destination could not apply the round.
    #[error("the destination could not apply the files: {message}")]
    Refused {
        /// Its own words.
        message: String,
    },
    /// The root of a tree has no name or no parent.
    #[error("{path} cannot be the root of a tree: it has no name of its own")]
    BadRoot {
        /// What was given.
        path: String,
    },
    /// The runtime is shutting down, or a worker panicked.
    #[error("file work was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl FilesError {
    /// Whether this means that the file is simply not there (any more).
    pub(super) fn is_vanished(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_vanished(source))
    }

    /// This error and its causes in one line, for the other host.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// The name is gone, or a directory on the way to it is, or it is now something else.
pub(super) fn is_vanished(error: &std::io::Error) -> bool {
    use nix::libc::{ELOOP, ENOENT, ENOTDIR, ESTALE};
    matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR | ELOOP | ESTALE))
}

/// Attaches what was tried to a kernel error.
pub(super) trait Doing<T> {
    /// `doing` completes "cannot ...".
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, FilesError>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, FilesError> {
        self.map_err(|error| FilesError::Io { doing, path: show(path), source: error.into() })
    }
}

/// A path for a person: quoted, odd bytes escaped, cut; the root is "the root of the tree".
pub(super) fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return "the root of the tree".to_owned();
    }
    let cut = &path[..path.len().min(512)];
    format!("\"{}\"", cut.escape_ascii())
}
