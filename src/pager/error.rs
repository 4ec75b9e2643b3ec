//! What can go wrong with the pager.

use std::io;

/// The pager could not be started, asked or believed.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A call failed.
    #[error("cannot {doing}")]
    Io {
        /// Verb phrase.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody said something that has no meaning.
    #[error("{0}")]
    Malformed(String),
    /// The pager answered that it will not do it.
    #[error("the pager refused: {0}")]
    Refused(String),
    /// There is no pager any more.
    #[error("the pager is gone")]
    Gone,
    /// The pager did not answer in time.
    #[error("the pager did not answer within {0:?}")]
    Silent(std::time::Duration),
}

impl PagerError {
    /// For `map_err`.
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { doing, source: source.into() }
    }
}
