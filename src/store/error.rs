//! What can go wrong with pages at the destination.

use std::io;
use std::path::PathBuf;

use crate::model::page::ObjectId;
use crate::protocol::pages::PageFrameError;

/// A page could not be taken, kept, or put into an image.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The peer's stream.
    #[error("pages from the source could not be received")]
    Stream(#[source] PageFrameError),
    /// More memory than was agreed upon when the migration was accepted.
    #[error(
        "the container's pages need more than the {budget_bytes} bytes of memory reserved for this migration"
    )]
    BudgetExceeded {
        /// What was reserved.
        budget_bytes: u64,
    },
    /// More processes and shared-memory objects than any container has.
    #[error("the source names more than {max} processes and shared-memory objects")]
    TooManyObjects {
        /// The bound.
        max: usize,
    },
    /// The bytes are not those that the source hashed.
    #[error(
        "batch {batch} of {object} arrived damaged: its pages do not hash to the root that the source sent"
    )]
    WrongRoot {
        /// The object.
        object: ObjectId,
        /// Number of the batch on its stream.
        batch: u64,
    },
    /// The payload does not decompress to what it says.
    #[error("batch {batch} of {object} could not be decompressed")]
    Payload {
        /// The object.
        object: ObjectId,
        /// Number of the batch on its stream.
        batch: u64,
        /// What zstd says.
        #[source]
        source: io::Error,
    },
    /// The kernel refused memory for pages.
    #[error("pages of {object} could not be {action}")]
    Memory {
        /// The object.
        object: ObjectId,
        /// "written", "read", "given back".
        action: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Decompression tables could not be allocated.
    #[error("no memory for a decompressor")]
    Decompressor(#[source] io::Error),
    /// The layout names what CRIU could not restore or we did not promise.
    #[error("the layout of {object} cannot be used: {rule}")]
    Layout {
        /// The object.
        object: ObjectId,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A page that the layout names never arrived.
    #[error("page {page:#x} of {object} is in the layout but never arrived")]
    MissingPage {
        /// The object.
        object: ObjectId,
        /// Number of the page.
        page: u64,
    },
    /// The assembled pages are not those of the frozen container.
    #[error("the pages of {object} do not hash to the root that the source computed at the freeze")]
    WrongObject {
        /// The object.
        object: ObjectId,
    },
    /// An image file.
    #[error("image file {} could not be written", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Somebody asked for an end.
    #[error("stopped before the images were complete")]
    Stopped,
}
