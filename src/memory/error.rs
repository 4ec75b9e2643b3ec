//! What can go wrong with pages at the source.

use std::io;

use crate::model::page::ObjectId;
use crate::protocol::pages::PageFrameError;

/// The container's pages could not be found, read or sent.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// /proc of the container's first process.
    #[error("the processes of the container with init pid {init} could not be listed")]
    Processes {
        /// Its process id.
        init: i32,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A process could not be looked at; it may be gone.
    #[error("the memory of process {pid} could not be {action}")]
    Process {
        /// Its process id.
        pid: i32,
        /// "surveyed", "read".
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Neither PAGEMAP_SCAN nor /proc/PID/pagemap works here.
    #[error("the kernel does not tell which pages are populated")]
    Pagemap(#[source] io::Error),
    /// One of the streams to the destination.
    #[error("page stream {stream} to the destination failed")]
    Stream {
        /// Number of the stream, from 0.
        stream: usize,
        /// Why.
        #[source]
        source: PageFrameError,
    },
    /// The destination answers something else than it was asked.
    #[error("the destination broke the protocol on page stream {stream}: {rule}")]
    Answer {
        /// Number of the stream, from 0.
        stream: usize,
        /// The rule that it broke.
        rule: &'static str,
    },
    /// The destination ended a stream while answers were due.
    #[error("the destination closed page stream {stream} before it had answered everything")]
    Closed {
        /// Number of the stream, from 0.
        stream: usize,
    },
    /// An earlier failure or cancellation left batches in an unknown state.
    #[error("the page streams cannot be used any more after an earlier failure")]
    Broken,
    /// Somebody asked for an end.
    #[error("cancelled")]
    Cancelled,
    /// Pages of the final dump came in an order that CRIU does not use.
    #[error("the final dump's pages of {object} cannot be used: {rule}")]
    FinalPages {
        /// The object.
        object: ObjectId,
        /// The rule that was broken.
        rule: &'static str,
    },
    /// A page changed without the tracker's knowing.
    #[error(
        "a page of {object} at {address:#x} is not what the destination was sent: a write to it was missed"
    )]
    Stale {
        /// The object.
        object: ObjectId,
        /// Address of the page.
        address: u64,
    },
    /// Compression tables could not be allocated.
    #[error("no memory for a compressor")]
    Compressor(#[source] io::Error),
    /// The kernel refused memory for retained pages.
    #[error("pages of the departed container could not be retained")]
    Retain(#[source] io::Error),
}
