//! Which pages may have changed since the last round. A tracker may always say "perhaps" and never wrongly "no": whatever it names
//! is read, hashed and compared, so that a false alarm costs time and not bytes on the wire.

use super::error::MemoryError;
use super::mapping::{Backing, Mapping, mappings, shared_memory_device};
use super::process::Process;
use crate::model::page::PageRange;
use crate::sys::pagemap::{self, Method, Pagemap};

/// One mapping and its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPages {
    /// The mapping.
    pub mapping: Mapping,
    /// Pages that exist, ascending. Empty for shared memory, which is read by object and not through one of its mappings.
    pub populated: Vec<PageRange>,
    /// Those of them that may have changed since the last survey, ascending; `None`: all.
    pub candidates: Option<Vec<PageRange>>,
}

/// One process at the start of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The thread through which its memory is read.
    pub task: i32,
    /// Its mappings, ascending.
    pub mappings: Vec<MappedPages>,
}

/// Finds pages that may have changed. One tracker serves all processes of a container and may treat each in its own way; what it
/// remembers of them is its own affair. Calls come from blocking threads.
pub trait Tracker: Send + Sync + std::fmt::Debug {
    /// What the operator reads: "content hash", "userfaultfd", … for this process.
    fn name(&self, process: Process) -> &'static str;

    /// Looks at a process: what is populated, and what may have changed since the last survey of it. Its pages are read after this
    /// returns, so a write in between must show in the next survey.
    ///
    /// # Errors
    /// The process is gone or cannot be looked at. It is left out of this round, and the final pass brings all of it.
    fn survey(&self, process: Process) -> Result<Survey, MemoryError>;

    /// These pages were candidates and could not be read: a tracker that clears marks must name them again next time.
    fn not_read(&self, process: Process, pages: PageRange) {
        let _ = (process, pages);
    }
}

/// Takes every populated page for a candidate and leaves it to the digests. Works on every kernel and sees every kind of write.
#[derive(Debug, Clone, Copy)]
pub struct ContentHashTracker {
    method: Method,
    shared_device: (u64, u64),
}

impl ContentHashTracker {
    /// Probes the kernel.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] when nothing tells which pages are populated.
    pub fn probe() -> Result<Self, MemoryError> {
        let method = pagemap::probe().map_err(MemoryError::Pagemap)?;
        let shared_device = shared_memory_device().map_err(MemoryError::Pagemap)?;
        Ok(Self { method, shared_device })
    }
}

impl Tracker for ContentHashTracker {
    fn name(&self, _process: Process) -> &'static str {
        "content hash"
    }

    fn survey(&self, process: Process) -> Result<Survey, MemoryError> {
        let failed = |source| MemoryError::Process { pid: process.pid, action: "surveyed", source };
        let (task, mappings) = mappings(process.pid, self.shared_device).map_err(failed)?;
        if mappings.is_empty() {
            return Ok(Survey { task, mappings: Vec::new() });
        }
        let pagemap = Pagemap::open(task, self.method).map_err(failed)?;
        let mut found = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let mut populated = Vec::new();
            let only_private = mapping.backing == Backing::PrivateFile;
            if !matches!(mapping.backing, Backing::Shared { .. }) {
                pagemap.populated(mapping.pages, only_private, &mut populated).map_err(failed)?;
            }
            found.push(MappedPages { mapping, populated, candidates: None });
        }
        Ok(Survey { task, mappings: found })
    }
}
