//! What all threads of the worker know together: how much is missing, and whether anything went wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Counters, and the bell of the main thread.
#[derive(Debug)]
pub(super) struct Progress {
    missing: AtomicU64,
    total: AtomicU64,
    open: AtomicU64,
    faults: AtomicU64,
    homeless: AtomicU64,
    unpunched: AtomicU64,
    broken: AtomicBool,
    why: Mutex<Option<String>>,
    /// Rings when a space is complete or something broke.
    pub(super) bell: EventFd,
}

impl Progress {
    pub(super) fn new() -> nix::Result<Self> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            missing: AtomicU64::new(0),
            total: AtomicU64::new(0),
            open: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            homeless: AtomicU64::new(0),
            unpunched: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            why: Mutex::new(None),
            bell,
        })
    }

    /// One more address space. Counted before the one it was forked from can be closed.
    pub(super) fn opened(&self, missing: u64) {
        self.missing.fetch_add(missing, Ordering::SeqCst);
        self.total.fetch_add(missing, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    /// Pages that are there, or that nobody wants any more.
    pub(super) fn settled(&self, pages: u64) {
        if pages > 0 {
            self.missing.fetch_sub(pages, Ordering::SeqCst);
        }
    }

    pub(super) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// A space is complete and closed.
    pub(super) fn closed(&self, homeless: u64) {
        self.homeless.fetch_add(homeless, Ordering::SeqCst);
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ring();
        }
    }

    /// Ranges of memory that a preparer is asked to give back.
    pub(super) fn to_punch(&self, ranges: usize) {
        self.unpunched.fetch_add(ranges as u64, Ordering::SeqCst);
    }

    pub(super) fn punched(&self) {
        if self.unpunched.fetch_sub(1, Ordering::SeqCst) == 1 && self.open() == 0 {
            self.ring();
        }
    }

    /// Every space is closed and all memory is given back.
    pub(super) fn is_over(&self) -> bool {
        self.open() == 0 && self.unpunched.load(Ordering::SeqCst) == 0
    }

    /// Something happened after which no page may be installed any more. The first reason counts.
    pub(super) fn break_with(&self, why: String) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.broken.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    pub(super) fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn missing(&self) -> u64 {
        self.missing.load(Ordering::SeqCst)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::SeqCst)
    }

    fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub(super) fn homeless(&self) -> u64 {
        self.homeless.load(Ordering::SeqCst)
    }

    fn ring(&self) {
        // EAGAIN only when it rings already.
        let _rings_already = self.bell.write(1);
    }
}
