//! The preparers: they read chunks, verify them and give spent memory back, at low priority. They install nothing: what they
//! hand over is only a proposal, which the owner compares with what is still missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::object::{Object, Scratch};
use super::pace::RunQueue;
use super::progress::Progress;
use super::remaining::Piece;
use crate::model::page::{PAGE_SIZE, PageRange};
use crate::sys::priority::set_thread;

/// Pages in a chunk: 256 KiB. Each one wakes a thread or two.
pub(super) const CHUNK: u64 = 64;
/// Niceness of the preparers.
const NICE: i32 = 10;

/// Wakes a thread that sleeps in epoll, and costs nothing while it does not sleep.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) event: EventFd,
    sleeping: AtomicBool,
}

impl Doorbell {
    pub(super) fn new() -> nix::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, sleeping: AtomicBool::new(false) })
    }

    /// Before the last look at the channels and the sleep.
    pub(super) fn before_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    pub(super) fn after_sleep(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
        // EAGAIN when nobody rang.
        let _count = self.event.read();
    }

    /// After something was put into a channel.
    pub(super) fn ring(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // EAGAIN only when it rings already.
            let _rings_already = self.event.write(1);
        }
    }
}

/// Work for a preparer.
#[derive(Debug)]
pub(super) struct Job {
    /// Memory to give back first.
    pub(super) spent: Vec<(Arc<Object>, PageRange)>,
    /// A chunk to prepare.
    pub(super) read: Option<Request>,
}

/// A chunk that an owner wants.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) space: u64,
    pub(super) piece: Piece,
    pub(super) object: Arc<Object>,
    /// At least as long as the piece; comes back with the answer.
    pub(super) bytes: Vec<u8>,
    pub(super) answer: SyncSender<Prepared>,
    pub(super) bell: Arc<Doorbell>,
}

/// A chunk that was read.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) space: u64,
    pub(super) piece: Piece,
    pub(super) bytes: Vec<u8>,
    /// Pages, counted from the first, that do not have their digest. That is an error only if they are still missing: a page that
    /// was installed meanwhile is given back and reads as zero.
    pub(super) bad: Vec<usize>,
    pub(super) error: Option<String>,
    pub(super) ran_ns: u64,
    pub(super) waited_ns: u64,
}

/// The thread's life: until the last owner has gone.
pub(super) fn run(jobs: &Mutex<Receiver<Job>>, progress: &Progress) {
    // Refused only where it does not matter: lowering is always allowed.
    let _refused = set_thread(0, NICE);
    let mut queue = RunQueue::of_this_thread();
    let mut scratch = Scratch::default();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if let Some(request) = job.read {
            prepare(request, &mut scratch, &mut queue);
        }
        for (object, pages) in job.spent {
            if let Err(error) = object.punch(pages) {
                eprintln!("decamp-pager: memory is given back later: {error}");
            }
            progress.punched();
        }
    }
}

fn prepare(request: Request, scratch: &mut Scratch, queue: &mut RunQueue) {
    let Request { space, piece, object, mut bytes, answer, bell } = request;
    let length = usize::try_from(piece.count).unwrap_or(0) * PAGE_SIZE;
    let mut bad = Vec::new();
    let read = object.read(piece.origin, &mut bytes[..length], scratch, &mut bad);
    let (ran_ns, waited_ns) = queue.step();
    let error = read.err().map(|e| format!("cannot read page {}: {e}", piece.origin));
    let prepared = Prepared { space, piece, bytes, bad, error, ran_ns, waited_ns };
    // There is room for every buffer an owner has; it hangs up only when it ends.
    if answer.send(prepared).is_ok() {
        bell.ring();
    }
}
