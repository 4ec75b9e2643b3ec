//! One address space: its userfaultfd, what is still missing in it, and the rules for putting pages there.
//!
//! Only one thread, its owner, reads the events of a space and installs pages in it. So no page can be given back, moved or
//! unmapped between the look at `remaining` and the call that installs: the kernel refuses the call (EAGAIN) as long as there is an
//! event that the owner has not read.

use std::sync::Arc;

use nix::errno::Errno;

use super::object::{Object, Scratch};
use super::remaining::{Piece, Remaining};
use crate::model::layout::push_merged;
use crate::model::page::{PAGE_SIZE, PageIndex, PageRange};
use crate::sys::uffd::{Event, Stopped, Uffd};

/// Pages that are installed around a fault, aligned: 64 KiB.
pub(super) const AROUND: u64 = 16;
const AROUND_STEP: u64 = 4;
const AROUND_STEP_BYTES: usize = 4 * PAGE_SIZE;
/// Neighbourhoods that wait: the fill comes by anyway.
const AROUNDS_MAX: usize = 16;
const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Landed {
    /// Everything that belongs there is there.
    Done,
    /// An event has to be read first.
    Changing,
    /// The container's memory limit is reached: later.
    Full,
    /// The process is gone.
    Gone,
    /// Going on could show the container wrong memory.
    Broken(String),
}

/// A process that is being filled.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) uffd: Uffd,
    pub(super) object: Option<Arc<Object>>,
    pub(super) remaining: Remaining,
    /// Where the fill continues.
    pub(super) cursor: u64,
    /// Chunks being prepared.
    pub(super) requested: usize,
    /// Read from the descriptor, not answered yet.
    pub(super) faults: Vec<(PageIndex, bool)>,
    /// Answered; their neighbourhood is to follow.
    pub(super) around: Vec<PageIndex>,
    /// Pages whose memory can be given back.
    pub(super) spent: Vec<PageRange>,
    /// A forked process reads the same object, so nothing of it is given back.
    pub(super) shared: bool,
    /// Pages for which there was no mapping any more.
    pub(super) homeless: u64,
}

impl Space {
    pub(super) fn new(uffd: Uffd, object: Option<Arc<Object>>) -> Self {
        let remaining = object.as_deref().map(Object::remaining).unwrap_or_default();
        Self {
            uffd,
            object,
            remaining,
            cursor: 0,
            requested: 0,
            faults: Vec::new(),
            around: Vec::new(),
            spent: Vec::new(),
            shared: false,
            homeless: 0,
        }
    }

    /// The child's space: what was missing in the parent is missing in the child.
    fn forked(&mut self, uffd: Uffd) -> Self {
        self.shared = true;
        let mut child = Self::new(uffd, None);
        child.object.clone_from(&self.object);
        child.remaining = self.remaining.clone();
        child.shared = true;
        child
    }

    /// Takes note of what was read from the descriptor; returns the child of a fork.
    pub(super) fn note(&mut self, event: Event) -> Result<Option<Self>, String> {
        match event {
            Event::Fault { page, write } => self.faults.push((page, write)),
            Event::Fork(uffd) => return Ok(Some(self.forked(uffd))),
            Event::Remap { from, to } => self.remaining.shift(from, to),
            Event::Remove(pages) | Event::Unmap(pages) => self.forget(pages),
            Event::Unknown(kind) => return Err(format!("unknown userfaultfd event 0x{kind:x}")),
        }
        Ok(None)
    }

    /// These pages are there, or nobody wants them any more.
    pub(super) fn forget(&mut self, pages: PageRange) {
        for piece in self.remaining.remove(pages) {
            if !self.shared {
                push_merged(
                    &mut self.spent,
                    PageRange { first: PageIndex(piece.origin), count: piece.count },
                );
            }
        }
    }

    /// Nothing is missing any more, whatever happened.
    pub(super) fn forget_all(&mut self) {
        self.forget(PageRange { first: PageIndex(0), count: u64::MAX });
        self.faults.clear();
        self.around.clear();
    }

    /// Answers one fault: the page's content, or zero where there is none.
    pub(super) fn serve(&mut self, page: PageIndex, write: bool, scratch: &mut Scratch) -> Landed {
        let Some(piece) = self.remaining.at(page.0) else { return self.serve_zero(page, write) };
        let mut bytes = [0; PAGE_SIZE];
        if let Err(why) = self.read(piece.origin, &mut bytes, scratch) {
            return Landed::Broken(why);
        }
        // A fault comes from a mapping that is registered now: if it is gone, an event says so.
        let landed = self.install(Piece { count: 1, ..piece }, &bytes, false);
        if matches!(landed, Landed::Done) {
            if self.around.len() == AROUNDS_MAX {
                self.around.remove(0);
            }
            self.around.push(page);
            return self.wake(page);
        }
        landed
    }

    fn serve_zero(&mut self, page: PageIndex, write: bool) -> Landed {
        let one = PageRange { first: page, count: 1 };
        // The zero page would fault a second time under a write.
        let done = if write { self.uffd.copy(page, &ZEROS) } else { self.uffd.zero(one) };
        match done.err().map(|Stopped { errno, .. }| errno) {
            None => {}
            // Somebody was faster, or the mapping went away under the fault: it is tried again and decided by the kernel.
            Some(Errno::EEXIST | Errno::ENOENT) => return self.wake(page),
            Some(errno) => return other(errno, page.0),
        }
        let rest = PageRange { first: PageIndex(page.0 + 1), count: AROUND - 1 - page.0 % AROUND };
        if !write && rest.count > 0 && self.remaining.within(rest).is_empty() {
            // Only so that a reader of empty memory does not fault for each page; it may stop anywhere.
            let _as_far_as_it_goes = self.uffd.zero(rest);
        }
        Landed::Done
    }

    /// The next 16 KiB of the 64 KiB around the last answered fault, as far as they are missing. Small steps, because the next fault
    /// may be there already.
    pub(super) fn serve_around(&mut self, scratch: &mut Scratch) -> Landed {
        let Some(page) = self.around.pop() else { return Landed::Done };
        let block = PageRange { first: PageIndex(page.0 / AROUND * AROUND), count: AROUND };
        let Some(piece) = self.remaining.within(block).into_iter().next() else { return Landed::Done };
        let piece = Piece { count: piece.count.min(AROUND_STEP), ..piece };
        let mut bytes = [0; AROUND_STEP_BYTES];
        let length = usize::try_from(piece.count).unwrap_or(0) * PAGE_SIZE;
        if let Err(why) = self.read(piece.origin, &mut bytes[..length], scratch) {
            return Landed::Broken(why);
        }
        let before = self.remaining.count();
        // Another mapping may be near that is not registered yet: what has no place now stays missing.
        let landed = self.install(piece, &bytes[..length], false);
        if self.remaining.count() < before {
            self.around.push(page);
        }
        landed
    }

    /// Reads and verifies pages of the object.
    pub(super) fn read(&self, origin: u64, bytes: &mut [u8], scratch: &mut Scratch) -> Result<(), String> {
        let Some(object) = &self.object else { return Err("missing pages without an object".to_owned()) };
        let mut bad = Vec::new();
        object
            .read(origin, bytes, scratch, &mut bad)
            .map_err(|e| format!("cannot read page {origin}: {e}"))?;
        match bad.first() {
            Some(at) => Err(mismatch(origin + *at as u64)),
            None => Ok(()),
        }
    }

    /// Installs what of `piece` still belongs where it says. With `final_layout`, pages without a mapping are dropped.
    pub(super) fn install(&mut self, piece: Piece, bytes: &[u8], final_layout: bool) -> Landed {
        for part in self.remaining.still(piece) {
            let skip = usize::try_from(part.place - piece.place).unwrap_or(0) * PAGE_SIZE;
            let length = usize::try_from(part.count).unwrap_or(0) * PAGE_SIZE;
            match self.install_part(part, &bytes[skip..skip + length], final_layout) {
                Landed::Done => {}
                landed => return landed,
            }
        }
        Landed::Done
    }

    fn install_part(&mut self, part: Piece, bytes: &[u8], final_layout: bool) -> Landed {
        let (mut at, mut step) = (0, part.count);
        while at < part.count {
            let count = step.min(part.count - at);
            let from = usize::try_from(at).unwrap_or(0) * PAGE_SIZE;
            let length = usize::try_from(count).unwrap_or(0) * PAGE_SIZE;
            let pages = |count| PageRange { first: PageIndex(part.place + at), count };
            let settled = match self.uffd.copy(PageIndex(part.place + at), &bytes[from..from + length]) {
                Ok(()) => count,
                Err(Stopped { pages, .. }) if pages > 0 => pages,
                Err(Stopped { errno: Errno::EEXIST, .. }) => 1,
                // The call must stay inside one mapping, so the pages are tried one by one.
                Err(Stopped { errno: Errno::ENOENT, .. }) if count > 1 => {
                    step = 1;
                    continue;
                }
                Err(Stopped { errno: Errno::ENOENT, .. }) if final_layout => {
                    self.homeless += 1;
                    1
                }
                Err(Stopped { errno: Errno::ENOENT, .. }) => {
                    at += 1;
                    continue;
                }
                Err(Stopped { errno, .. }) => return other(errno, part.place + at),
            };
            self.forget(pages(settled));
            at += settled;
        }
        Landed::Done
    }

    fn wake(&self, page: PageIndex) -> Landed {
        match self.uffd.wake(PageRange { first: page, count: 1 }) {
            Ok(()) => Landed::Done,
            Err(error) => Landed::Broken(format!("cannot wake who waits for page {}: {error}", page.0)),
        }
    }
}

/// The sentence for a page that is not what was sent.
pub(super) fn mismatch(page: u64) -> String {
    format!("page {page} does not have the digest it was sent with")
}

fn other(errno: Errno, page: u64) -> Landed {
    match errno {
        Errno::EAGAIN => Landed::Changing,
        Errno::ENOMEM => Landed::Full,
        // Before Linux 4.13 a process that is gone was ENOSPC.
        Errno::ESRCH | Errno::ENOSPC => Landed::Gone,
        errno => Landed::Broken(format!("cannot install page {page}: {errno}")),
    }
}
