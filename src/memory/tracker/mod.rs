//! Which pages may have changed since the last round. A tracker may always say "perhaps" and never wrongly "no": whatever it names
//! is read, hashed and compared, so that a false alarm costs time and not bytes on the wire.
//!
//! ```text
//!            ┌─────────┐  injected    ┌─────────────┐
//!   first ──▶│ untried ├─────────────▶│ userfaultfd │  exact: whole mappings may be hidden from CRIU's final dump
//!   survey   └────┬────┘              └──┬───────▲──┘
//!                 │ refused              │ EBUSY, │ execve: injected anew
//!                 ▼                      ▼ own uffd
//!            ┌──────────────┐  never  ┌──────────────┐
//!            │ content hash ├────────▶│ content hash │  every populated page is a candidate; the reason is kept
//!            │ (once more)  │  again  │ (for good)   │
//!            └──────────────┘         └──────────────┘
//! ```
//! What no page table shows, writes to shared memory through other mappings and descriptors, is not tracked: shared memory is read by
//! object, every round and by CRIU. Writes of devices to pinned pages show when the page is pinned and not when they happen: see
//! `writers`. A process can notice one thing: a new mapping beside a watched one is not joined with it before the next survey, and
//! mremap(2) of a range across both fails then, where one joined mapping would have moved.

mod content_hash;
mod mixed;
mod ranges;
mod userfault;
mod writers;

use super::error::MemoryError;
use super::mapping::Mapping;
use super::process::Process;
use crate::model::page::PageRange;

pub use content_hash::ContentHashTracker;
pub use mixed::MixedTracker;
pub use userfault::UserfaultTracker;

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

/// How the changed pages of a process are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Technique {
    /// Asynchronous write protection by userfaultfd, read with PAGEMAP_SCAN.
    Userfaultfd,
    /// The soft-dirty bit of the page table (/proc/PID/clear_refs). Named here because it is the first choice where a kernel has it
    /// and nobody else clears it: it needs no descriptor of the process. No kernel that decamp runs on has been found to have it
    /// (CONFIG_MEM_SOFT_DIRTY), so nothing chooses it. A probe has to look at bit 55 of a page of its own, before and after a
    /// write: writing "4" to clear_refs succeeds without the feature as well.
    SoftDirty,
    /// Every page is read and its digest compared.
    ContentHash,
}

impl Technique {
    /// For the operator.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Userfaultfd => "userfaultfd",
            Self::SoftDirty => "soft-dirty",
            Self::ContentHash => "content hash",
        }
    }
}

/// What the operator may know about one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedProcess {
    /// Its process id on this host.
    pub pid: i32,
    /// How it is tracked.
    pub technique: Technique,
    /// Why not better.
    pub reason: Option<String>,
    /// How long one of its threads stood still for it, microseconds.
    pub stopped_us: u64,
}

/// Finds pages that may have changed. One tracker serves all processes of a container and may treat each in its own way; what it
/// remembers of them is its own affair. Calls come from blocking threads.
pub trait Tracker: Send + Sync + std::fmt::Debug {
    /// What the operator reads: "content hash", "userfaultfd", … for this process.
    fn name(&self, process: Process) -> &'static str;

    /// Looks at a process: what is populated, and what may have changed since the last survey of it. Its pages are read after this
    /// returns, so a write in between must show in the next survey. A round that breaks off before all candidates were read ends with
    /// [`Tracker::release`], or with [`Tracker::not_read`] for the rest. Not for frozen processes: a new one would have to run.
    ///
    /// # Errors
    /// The process is gone or cannot be looked at. It is left out of this round, and the final pass brings all of it.
    fn survey(&self, process: Process) -> Result<Survey, MemoryError>;

    /// These pages were candidates and could not be read: a tracker that clears marks must name them again next time.
    fn not_read(&self, process: Process, pages: PageRange) {
        let _ = (process, pages);
    }

    /// May whole mappings of this process be hidden from CRIU, and brought after a final survey alone? Only where that survey is
    /// quick: it happens while the container is frozen.
    fn exact(&self, process: Process) -> bool {
        let _ = process;
        false
    }

    /// Looks once more at a frozen process, at what is inside `hidden` (ascending) alone. Names besides what was written since the
    /// last survey what was not read, and what a device may have written late. May be repeated: it clears no marks.
    ///
    /// # Errors
    /// As [`Tracker::survey`].
    fn final_survey(&self, process: Process, hidden: &[PageRange]) -> Result<Survey, MemoryError> {
        let mut survey = self.survey(process)?;
        survey.mappings = survey.mappings.iter().flat_map(|pages| inside(pages, hidden)).collect();
        Ok(survey)
    }

    /// How each process that was surveyed is tracked, by pid.
    fn report(&self) -> Vec<TrackedProcess> {
        Vec::new()
    }

    /// Lets go of all processes. Costs some 25 ms for each GiB that is under watch, so it comes after the switch. Whoever surveys a
    /// process afterwards begins anew with it.
    fn release(&self) {}
}

/// The parts of a mapping that are inside `wanted`.
fn inside(pages: &MappedPages, wanted: &[PageRange]) -> Vec<MappedPages> {
    let parts = ranges::intersection(&[pages.mapping.pages], wanted);
    parts
        .into_iter()
        .map(|part| MappedPages {
            mapping: Mapping { pages: part, ..pages.mapping },
            populated: ranges::intersection(&pages.populated, &[part]),
            candidates: pages.candidates.as_ref().map(|pages| ranges::intersection(pages, &[part])),
        })
        .collect()
}
