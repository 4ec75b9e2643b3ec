//! Watches each process by asynchronous write protection. What the kernel says about a mapping is the truth, never what an earlier
//! look at /proc/PID/maps said: a mapping that is new at an old place (munmap and mmap, mremap, MAP_FIXED, brk) is not registered, the
//! kernel says so, and all its pages are candidates.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::libc;

use super::super::error::MemoryError;
use super::super::mapping::{AddressSpace, Backing, Mapping, address_space, shared_memory_device};
use super::super::process::Process;
use super::writers::{Descriptors, Recent};
use super::{MappedPages, Survey, Technique, TrackedProcess, Tracker, ranges};
use crate::model::page::PageRange;
use crate::sys::inject::{self, Refusal};
use crate::sys::pagemap::{Marks, Method, Pagemap, Rearm, Scratch};
use crate::sys::uffd_wp::{self, WriteProtection};

/// Why a process is not watched.
#[derive(Debug)]
pub(super) enum NotWatched {
    /// It cannot be, for this reason; worth another try later or not.
    Refused { reason: String, later: bool },
    /// It cannot be looked at at all.
    Failed(io::Error),
}

impl From<io::Error> for NotWatched {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

/// Why a look broke off. Marks may have been cleared by then, so the process begins anew.
enum Lost {
    /// The address space is another one: execve.
    AddressSpace,
    /// Somebody else's userfaultfd is there.
    Foreign,
    Failed(io::Error),
}

impl From<io::Error> for Lost {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

/// One process under watch.
#[derive(Debug)]
struct Watched {
    protection: WriteProtection,
    stopped_us: u64,
    /// What was registered and protected at the last survey, and reported by it; a set. Whatever is outside begins anew.
    known: Vec<PageRange>,
    /// Candidates that could not be read.
    owed: Vec<PageRange>,
    /// Registered in this survey, as the mappings were when it began.
    adopted: Vec<PageRange>,
    /// Candidates in every survey; a set.
    pinned: Vec<PageRange>,
    /// Reports of a process whose devices write late; `None` for all others.
    recent: Option<Recent>,
}

/// Asynchronous write protection for every process. A process that cannot be watched is an error: see [`super::MixedTracker`].
#[derive(Debug)]
pub struct UserfaultTracker {
    program: PathBuf,
    shared_device: (u64, u64),
    processes: Mutex<HashMap<i32, Arc<Mutex<Option<Watched>>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UserfaultTracker {
    /// Probes the kernel. `program` is this program, which is started again as the injector; usually /proc/self/exe.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`]: the kernel does not have all that is needed.
    pub fn probe(program: &Path) -> Result<Self, MemoryError> {
        uffd_wp::probe().map_err(MemoryError::Pagemap)?;
        let shared_device = shared_memory_device().map_err(MemoryError::Pagemap)?;
        Ok(Self { program: program.to_owned(), shared_device, processes: Mutex::default() })
    }

    fn slot(&self, pid: i32) -> Arc<Mutex<Option<Watched>>> {
        Arc::clone(lock(&self.processes).entry(pid).or_default())
    }

    /// The watched process, if it is one; others are not held up meanwhile.
    fn with<T>(&self, pid: i32, work: impl FnOnce(&mut Watched) -> T) -> Option<T> {
        let slot = lock(&self.processes).get(&pid).map(Arc::clone)?;
        let mut slot = lock(&slot);
        slot.as_mut().map(work)
    }

    /// A survey, or why the process is not watched.
    pub(super) fn try_survey(&self, pid: i32) -> Result<Survey, NotWatched> {
        let slot = self.slot(pid);
        let mut slot = lock(&slot);
        let outcome = self.survey_slot(pid, &mut slot);
        if outcome.is_err() {
            // Its last descriptor takes all protection away.
            *slot = None;
        }
        outcome
    }

    fn survey_slot(&self, pid: i32, slot: &mut Option<Watched>) -> Result<Survey, NotWatched> {
        for last_try in [false, true] {
            if slot.is_none() {
                let space = address_space(pid, self.shared_device)?;
                if space.lines.is_empty() {
                    // Ended, and not yet waited for.
                    return Ok(Survey { task: space.task, mappings: Vec::new() });
                }
                *slot = Some(self.watch(pid, space.task)?);
            }
            let Some(watched) = slot.as_mut() else { continue };
            // Read after the injection: a process that executed another program before it would show the wrong mappings.
            let looked = address_space(pid, self.shared_device).map_err(Lost::from).and_then(|space| {
                let survey = watched.look(&space, last_try)?;
                if !watched.adopted.is_empty() {
                    watched.let_go_of_cuts(&space, &address_space(pid, self.shared_device)?);
                }
                Ok(survey)
            });
            match looked {
                Ok(survey) => return Ok(survey),
                Err(Lost::AddressSpace) => *slot = None,
                Err(Lost::Foreign) => {
                    let reason = "it uses a userfaultfd of its own".to_owned();
                    return Err(NotWatched::Refused { reason, later: false });
                }
                Err(Lost::Failed(e)) => return Err(e.into()),
            }
        }
        let reason = "it executes one program after the other".to_owned();
        Err(NotWatched::Refused { reason, later: true })
    }

    fn watch(&self, pid: i32, task: i32) -> Result<Watched, NotWatched> {
        if Descriptors::of(task).userfaultfd {
            let reason = "it has a userfaultfd of its own".to_owned();
            return Err(NotWatched::Refused { reason, later: false });
        }
        let injected =
            inject::take_userfaultfd(&self.program, pid).map_err(|trouble| match trouble.refusal {
                Refusal::Gone => NotWatched::Failed(io::Error::from_raw_os_error(libc::ESRCH)),
                refusal => NotWatched::Refused { reason: trouble.what, later: refusal != Refusal::Not64Bit },
            })?;
        Ok(Watched {
            protection: WriteProtection::open(injected.descriptor)?,
            stopped_us: injected.stopped_us,
            known: Vec::new(),
            owed: Vec::new(),
            adopted: Vec::new(),
            pinned: Vec::new(),
            recent: None,
        })
    }

    /// Is this process watched now?
    pub(super) fn watches(&self, pid: i32) -> bool {
        self.with(pid, |watched| !watched.known.is_empty()).unwrap_or(false)
    }

    /// As [`Tracker::final_survey`]; `None` when the process is not watched.
    pub(super) fn try_final_survey(&self, pid: i32, hidden: &[PageRange]) -> Option<io::Result<Survey>> {
        self.with(pid, |watched| {
            let space = address_space(pid, self.shared_device)?;
            watched.look_at_last(&space, hidden)
        })
    }
}

impl Tracker for UserfaultTracker {
    fn name(&self, _process: Process) -> &'static str {
        Technique::Userfaultfd.name()
    }

    fn survey(&self, process: Process) -> Result<Survey, MemoryError> {
        self.try_survey(process.pid).map_err(|why| {
            let source = match why {
                NotWatched::Refused { reason, .. } => io::Error::other(reason),
                NotWatched::Failed(e) => e,
            };
            MemoryError::Process { pid: process.pid, action: "surveyed", source }
        })
    }

    fn not_read(&self, process: Process, pages: PageRange) {
        self.with(process.pid, |watched| watched.owed.push(pages));
    }

    fn exact(&self, process: Process) -> bool {
        self.watches(process.pid)
    }

    fn final_survey(&self, process: Process, hidden: &[PageRange]) -> Result<Survey, MemoryError> {
        let gone = || Err(io::Error::other("it is not watched"));
        self.try_final_survey(process.pid, hidden)
            .unwrap_or_else(gone)
            .map_err(|source| MemoryError::Process { pid: process.pid, action: "surveyed", source })
    }

    fn report(&self) -> Vec<TrackedProcess> {
        let slots: Vec<_> =
            lock(&self.processes).iter().map(|(pid, slot)| (*pid, Arc::clone(slot))).collect();
        let mut found: Vec<TrackedProcess> = slots
            .into_iter()
            .filter_map(|(pid, slot)| {
                let stopped_us = lock(&slot).as_ref()?.stopped_us;
                Some(TrackedProcess { pid, technique: Technique::Userfaultfd, reason: None, stopped_us })
            })
            .collect();
        found.sort_unstable_by_key(|process| process.pid);
        found
    }

    fn release(&self) {
        // Not under the lock: closing takes its time.
        let slots = std::mem::take(&mut *lock(&self.processes));
        drop(slots);
    }
}

impl Watched {
    /// One survey. `last_try`: a mapping that cannot be registered is left out of the watch and is no reason to begin anew.
    fn look(&mut self, space: &AddressSpace, last_try: bool) -> Result<Survey, Lost> {
        if space.lines.is_empty() {
            return Err(Lost::AddressSpace);
        }
        let pagemap = Pagemap::open(space.task, Method::Scan)?;
        self.adopted.clear();
        // Until this look is complete, nothing is known: marks are cleared on the way.
        let known = std::mem::take(&mut self.known);
        let mut now_known = Vec::with_capacity(space.lines.len());
        let mut scratch = Scratch::default();
        let mut mappings = Vec::with_capacity(space.lines.len());
        // What cannot be read is not reported either, and begins anew when it can be.
        for mapping in space.lines.iter().filter(|line| line.readable).map(|line| line.mapping) {
            if matches!(mapping.backing, Backing::Shared { .. }) {
                mappings.push(MappedPages { mapping, populated: Vec::new(), candidates: None });
                continue;
            }
            let file = mapping.backing == Backing::PrivateFile;
            let mut marks = Marks::default();
            let seen = ranges::covers(&known, mapping.pages)
                && is_protected(pagemap.marks(mapping.pages, file, Rearm::Yes, &mut scratch, &mut marks))?;
            if seen {
                now_known.push(mapping.pages);
                mappings.push(MappedPages {
                    mapping,
                    populated: marks.populated,
                    candidates: Some(marks.written),
                });
                continue;
            }
            let (populated, registered) = self.adopt(&pagemap, mapping, last_try, &mut scratch)?;
            if registered {
                now_known.push(mapping.pages);
                self.adopted.push(mapping.pages);
            }
            mappings.push(MappedPages { mapping, populated, candidates: None });
        }
        self.add_what_no_mark_shows(space, &mut mappings)?;
        self.known = ranges::set(now_known);
        Ok(Survey { task: space.task, mappings })
    }

    /// Begins with a mapping: all its populated pages, and whether it is under watch from now on.
    fn adopt(
        &self,
        pagemap: &Pagemap,
        mapping: Mapping,
        last_try: bool,
        scratch: &mut Scratch,
    ) -> Result<(Vec<PageRange>, bool), Lost> {
        let file = mapping.backing == Backing::PrivateFile;
        let registered = match self.protection.register(mapping.pages) {
            Ok(()) => true,
            Err(e) => match e.raw_os_error() {
                Some(libc::EBUSY) => return Err(Lost::Foreign),
                // The address space is gone, or it has as many mappings as it may have.
                Some(libc::ENOMEM) if !last_try => return Err(Lost::AddressSpace),
                _ => false,
            },
        };
        if registered && self.protection.lift(mapping.pages).is_ok() {
            let mut marks = Marks::default();
            if is_protected(pagemap.marks(mapping.pages, file, Rearm::Yes, scratch, &mut marks))? {
                return Ok((marks.populated, true));
            }
        }
        // It changes while we look at it: another time.
        let mut populated = Vec::new();
        pagemap.populated(mapping.pages, file, &mut populated)?;
        Ok((populated, false))
    }

    /// A mapping that grew or moved after it was read is cut by a registration of its old range, and mremap(2) of the whole then
    /// fails where it would have succeeded (mm/mremap.c: one mapping at a time). Such a range shows by a border that was not there
    /// before: it is let go at once, the kernel joins the parts again, and the next survey begins anew with it.
    fn let_go_of_cuts(&mut self, before: &AddressSpace, after: &AddressSpace) {
        let borders = |space: &AddressSpace| {
            let pages = || space.lines.iter().map(|line| line.mapping.pages);
            let starts: HashSet<u64> = pages().map(|it| it.first.0).collect();
            let ends: HashSet<u64> = pages().map(|it| it.end().0).collect();
            (starts, ends)
        };
        let ((starts, ends), (starts_now, ends_now)) = (borders(before), borders(after));
        let cut = |range: &PageRange| {
            let (first, end) = (range.first.0, range.end().0);
            (starts_now.contains(&end) && !starts.contains(&end))
                || (ends_now.contains(&first) && !ends.contains(&first))
        };
        let cuts: Vec<PageRange> = self.adopted.drain(..).filter(cut).collect();
        for range in cuts {
            if let Err(error) = self.protection.unregister(range) {
                tracing::debug!(%error, "a cut mapping stays under watch");
            }
            // Unwatched parts are found by the next look; what is known must not say otherwise.
            self.known.retain(|known| known.first.0 >= range.end().0 || known.end().0 <= range.first.0);
        }
    }

    /// Looked up after the marks: a transfer that began later marks its pages after this look.
    fn add_what_no_mark_shows(
        &mut self,
        space: &AddressSpace,
        mappings: &mut [MappedPages],
    ) -> Result<(), Lost> {
        let descriptors = Descriptors::of(space.task);
        if descriptors.userfaultfd {
            return Err(Lost::Foreign);
        }
        if descriptors.direct || space.asynchronous_io {
            self.recent.get_or_insert_default();
        }
        self.pinned = descriptors.pinned;
        let owed = ranges::set(std::mem::take(&mut self.owed));
        let more = ranges::union(&owed, &self.pinned);
        for pages in mappings.iter_mut() {
            add(pages, &more);
        }
        if let Some(recent) = &mut self.recent {
            let reported =
                mappings.iter().flat_map(|pages| pages.candidates.as_ref().unwrap_or(&pages.populated));
            recent.add(Instant::now(), reported.copied().collect());
        }
        Ok(())
    }

    fn look_at_last(&self, space: &AddressSpace, hidden: &[PageRange]) -> io::Result<Survey> {
        let pagemap = Pagemap::open(space.task, Method::Scan)?;
        let late = self.recent.as_ref().map(Recent::pages).unwrap_or_default();
        let owed = ranges::set(self.owed.clone());
        let more = ranges::union(&ranges::union(&late, &self.pinned), &owed);
        let mut scratch = Scratch::default();
        let mut mappings = Vec::new();
        for line in &space.lines {
            if matches!(line.mapping.backing, Backing::Shared { .. }) {
                continue;
            }
            for part in ranges::intersection(&[line.mapping.pages], hidden) {
                let file = line.mapping.backing == Backing::PrivateFile;
                let mapping = Mapping { pages: part, ..line.mapping };
                let mut marks = Marks::default();
                let seen = line.readable
                    && ranges::covers(&self.known, part)
                    && is_protected(pagemap.marks(part, file, Rearm::No, &mut scratch, &mut marks))?;
                let mut pages =
                    MappedPages { mapping, populated: marks.populated, candidates: Some(marks.written) };
                if seen {
                    add(&mut pages, &more);
                } else {
                    (pages.populated, pages.candidates) = (Vec::new(), None);
                    pagemap.populated(part, file, &mut pages.populated)?;
                }
                mappings.push(pages);
            }
        }
        Ok(Survey { task: space.task, mappings })
    }
}

/// Makes candidates of those populated pages that are in `more`.
fn add(pages: &mut MappedPages, more: &[PageRange]) {
    if let Some(candidates) = &mut pages.candidates
        && !more.is_empty()
    {
        *candidates = ranges::union(candidates, &ranges::intersection(&pages.populated, more));
    }
}

/// False when the kernel says that some of it is not under write protection.
fn is_protected(looked: io::Result<()>) -> io::Result<bool> {
    match looked {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(e) => Err(e),
    }
}
