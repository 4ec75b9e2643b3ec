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
    /// CRIU's `PE_*` flags: [`PE_PRESENT`] for bytes in the pages image, [`PE_LAZY`] alone for pages that come later.
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
    /// BLAKE3 over the digests of the pages outside `hidden`, in order.
    pub root: Digest,
    /// Whole mappings that CRIU was not shown, ascending, disjoint: their pages were copied in rounds. Runs inside are lazy, but
    /// for single pages that must be there from the start.
    pub hidden: Vec<PageRange>,
    /// One digest over all pages of `hidden`, as a book of pages computes it (see the pages room); of no meaning when nothing is
    /// hidden.
    pub hidden_root: Digest,
}

impl ObjectLayout {
    /// One without pages.
    #[must_use]
    pub fn empty(object: ObjectId) -> Self {
        Self {
            object,
            runs: Vec::new(),
            root: Digest([0; 32]),
            hidden: Vec::new(),
            hidden_root: Digest([0; 32]),
        }
    }

    /// How many pages the pages image has.
    #[must_use]
    pub fn pages_present(&self) -> u64 {
        let present = self.runs.iter().filter(|run| run.flags & PE_PRESENT != 0);
        present.map(|run| u64::from(run.count)).sum()
    }

    /// How many pages come later.
    #[must_use]
    pub fn pages_lazy(&self) -> u64 {
        let lazy = self.runs.iter().filter(|run| run.flags & PE_PRESENT == 0);
        lazy.map(|run| u64::from(run.count)).sum()
    }
}
