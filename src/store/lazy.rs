//! Pages that are in no image: handed to whoever installs them after the container runs.

use std::sync::Arc;

use super::PageStore;
use crate::model::layout::{ObjectLayout, PE_PRESENT};
use crate::model::page::{ObjectId, PageIndex, PageRange};
use crate::sys::memfd::MemFile;

/// The lazy pages of one process.
#[derive(Debug)]
pub struct LazyPages {
    /// The process, by its pid inside the container.
    pub vpid: u32,
    /// The whole mappings that were hidden from CRIU, ascending. What is not in `content` is zero there.
    pub mappings: Vec<PageRange>,
    /// Pages with content, ascending.
    pub content: Vec<PageRange>,
    /// Their bytes, each page at its number times the page size.
    pub pages: Arc<MemFile>,
    /// Their digests, each at its page's number times 32.
    pub digests: Arc<MemFile>,
}

impl PageStore {
    /// What is lazy in these layouts, of which [`assemble`](super::assemble::assemble) has written the rest. Cheap: descriptors and
    /// runs, no page is touched. The store and what is handed out share the memory from here on.
    #[must_use]
    pub fn lazy(&self, layouts: &[ObjectLayout]) -> Vec<LazyPages> {
        layouts.iter().filter_map(|layout| self.lazy_of(layout)).collect()
    }

    fn lazy_of(&self, layout: &ObjectLayout) -> Option<LazyPages> {
        let ObjectId::Task(vpid) = layout.object else { return None };
        if layout.pages_lazy() == 0 {
            return None;
        }
        let (_, object) = self.find(layout.object)?;
        let lazy = layout.runs.iter().filter(|run| run.flags & PE_PRESENT == 0);
        let lazy = lazy.map(|run| PageRange { first: PageIndex(run.first), count: u64::from(run.count) });
        let (content, files) = object.content(lazy);
        let files = files?;
        let mappings = layout.hidden.clone();
        Some(LazyPages { vpid, mappings, content, pages: files.pages, digests: files.digests })
    }
}
