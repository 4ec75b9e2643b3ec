//! Takes every populated page for a candidate and leaves it to the digests. Works on every kernel and sees every kind of write.

use super::super::error::MemoryError;
use super::super::mapping::{Backing, mappings, shared_memory_device};
use super::super::process::Process;
use super::{MappedPages, Survey, Technique, Tracker};
use crate::sys::pagemap::{self, Method, Pagemap};

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
        Technique::ContentHash.name()
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
