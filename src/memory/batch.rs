//! Dirty pages on their way from the scanner to a stream.

use std::sync::{Mutex, PoisonError};

use crate::model::limits::BATCH_PAGES_MAX;
use crate::model::page::{Digest, ObjectId, PAGE_SIZE, PageRange};

/// Content pages in one batch: 1 MiB. Large enough that frames and answers cost nothing, small enough that a few of them in flight
/// for each stream are no memory to speak of and fit the processor's caches.
pub(super) const CONTENT_PAGES: usize = 256;
/// Buffers kept for the next batches.
const POOL_MAX: usize = 32;

const _: () = assert!(CONTENT_PAGES <= BATCH_PAGES_MAX);

/// One dirty page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageEntry {
    pub(super) page: u64,
    pub(super) digest: Digest,
    /// Place of its bytes in the batch's data, in pages; `None`: all zero.
    pub(super) slot: Option<u16>,
}

/// Dirty pages of one object, ascending.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) object: ObjectId,
    pub(super) pages: Vec<PageEntry>,
    pub(super) data: Vec<u8>,
    /// The destination could not produce these: their bytes go whatever it is thought to have.
    pub(super) resend: bool,
}

impl Batch {
    pub(super) fn content(&self, slot: u16) -> &[u8] {
        &self.data[usize::from(slot) * PAGE_SIZE..][..PAGE_SIZE]
    }

    /// Some of its pages again, to be sent with their bytes.
    pub(super) fn subset(&self, places: &[u16], data: Vec<u8>) -> Self {
        let mut builder = BatchBuilder::new(self.object, data);
        for entry in places.iter().filter_map(|place| self.pages.get(usize::from(*place))) {
            builder.push(entry.page, entry.digest, entry.slot.map(|slot| self.content(slot)));
        }
        Self { resend: true, ..builder.batch }
    }
}

/// Fills a batch.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    batch: Batch,
}

impl BatchBuilder {
    pub(super) fn new(object: ObjectId, mut data: Vec<u8>) -> Self {
        data.clear();
        Self { batch: Batch { object, pages: Vec::new(), data, resend: false } }
    }

    pub(super) fn object(&self) -> ObjectId {
        self.batch.object
    }

    /// Adds a page behind the last; `content` is `None` for a zero page.
    pub(super) fn push(&mut self, page: u64, digest: Digest, content: Option<&[u8]>) {
        let slot = content.map(|bytes| {
            let slot = u16::try_from(self.batch.data.len() / PAGE_SIZE).expect("a batch is bounded");
            self.batch.data.extend_from_slice(bytes);
            slot
        });
        self.batch.pages.push(PageEntry { page, digest, slot });
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.data.len() >= CONTENT_PAGES * PAGE_SIZE || self.batch.pages.len() >= BATCH_PAGES_MAX
    }

    pub(super) fn finish(self) -> Option<Batch> {
        (!self.batch.pages.is_empty()).then_some(self.batch)
    }
}

/// One thing for a stream to do.
#[derive(Debug)]
pub(super) enum Work {
    Pages(Batch),
    Forget { object: ObjectId, ranges: Vec<PageRange> },
}

/// Buffers that went round, to save the kernel from giving us fresh pages all the time.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    pub(super) fn take(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Vec::with_capacity(CONTENT_PAGES * PAGE_SIZE))
    }

    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < POOL_MAX && buffer.capacity() >= PAGE_SIZE {
            kept.push(buffer);
        }
    }
}
