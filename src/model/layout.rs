//! What the destination builds CRIU's page images from: which pages each object has at the freeze, and one digest over them all.

use super::page::{Digest, ObjectId, PageRange};

/// CRIU's flag for pages that are in its parent image (criu/include/pagemap.h, `PE_PARENT`).
pub const PE_PARENT: u32 = 1;
/// CRIU's flag for pages that may be restored lazily (`PE_LAZY`).
pub const PE_LAZY: u32 = 2;
/// CRIU's flag for pages whose bytes are in the pages image (`PE_PRESENT`).
pub const PE_PRESENT: u32 = 4;

/// Consecutive pages with the same flags: one record of CRIU's pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutRun {
    /// Number of the first page.
    pub first: u64,
    /// How many, at least one.
    pub count: u32,
    /// CRIU's `PE_*` flags, [`PE_PRESENT`] always among them.
    pub flags: u32,
}

impl LayoutRun {
    /// One past the last page.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

/// Appends a run, joining it to the last one when they touch.
pub fn push_merged(out: &mut Vec<PageRange>, pages: PageRange) {
    match out.last_mut() {
        Some(last) if last.end() == pages.first => last.count += pages.count,
        _ => out.push(pages),
    }
}

/// One object's pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLayout {
    /// The object.
    pub object: ObjectId,
    /// Its pages, ascending.
    pub runs: Vec<LayoutRun>,
    /// BLAKE3 over the digests of these pages, in order.
    pub root: Digest,
}

impl ObjectLayout {
    /// How many pages it has.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }
}
