//! The page plane of a source: streams, scanner threads and books of one migration, and the rounds over them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::batch::{Pool, Work};
use super::error::MemoryError;
use super::final_pass::FinalPass;
use super::hidden_pass::{HiddenParts, SpotChecker};
use super::ledger::Ledger;
use super::process::Process;
use super::scanner::{self, Plan};
use super::stats::{Counters, Progress, RoundStats};
use super::stream::{self, Sent};
use super::tracker::Tracker;
use crate::pages::compress::{Compression, Policy};
use crate::protocol::pace::Pacer;
use crate::sys::pagemap::{self, Method};

/// Batches that wait for a stream. Together with those in flight this bounds the memory of the plane.
const QUEUE_BATCHES: usize = 2;
/// Scanner threads: reading and hashing one page takes about as long as sending it does on the other side of the machine.
const SCANNERS_MAX: usize = 2;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How pages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlaneOptions {
    /// Whether content is compressed.
    pub compression: Compression,
    /// Ask the destination which contents it holds from earlier visits; worth it when it said that it holds any.
    pub ask_retained: bool,
}

/// What scanner, streams and rounds share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ledger: Ledger,
    pub(super) sent: Sent,
    pub(super) counters: Counters,
    pub(super) pool: Pool,
    pub(super) pacer: Arc<Pacer>,
    policy: Mutex<Policy>,
    pub(super) outstanding: Outstanding,
    pub(super) ask_retained: bool,
    pub(super) streams: usize,
}

impl Shared {
    pub(super) fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that is queued or in flight.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    count: AtomicUsize,
    changed: Notify,
}

impl Outstanding {
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn done(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.changed.notify_waiters();
        }
    }

    /// Until everything that was added is done.
    async fn none(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// The queue's end that all streams take from.
#[derive(Debug)]
pub(super) struct Queue(tokio::sync::Mutex<mpsc::Receiver<Work>>);

impl Queue {
    pub(super) async fn next(&self) -> Option<Work> {
        self.0.lock().await.recv().await
    }
}

/// Sets a flag when it goes, however that happens: scanner threads look at it.
pub(super) struct StopOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The pages of one container on their way to one destination. Dropping it ends its tasks at once, and its threads after the
/// piece they are reading.
#[derive(Debug)]
pub struct PagePlane {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::Sender<Work>,
    workers: JoinSet<Result<(), MemoryError>>,
    pub(super) final_pass: Option<FinalPass>,
    pub(super) hidden_parts: HiddenParts,
    /// How page tables are read.
    pub(super) method: Method,
    /// A round was left in the middle: what is in flight is not known any more.
    broken: bool,
    previous_round: Option<Instant>,
}

impl PagePlane {
    /// Takes over streams on which the greeting has been exchanged. Must be called within a tokio runtime.
    #[must_use]
    pub fn new<S>(streams: Vec<S>, pacer: Arc<Pacer>, options: PlaneOptions) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let policy = Policy::new(options.compression, streams.len().min(cores), pacer.cap());
        let shared = Arc::new(Shared {
            ledger: Ledger::default(),
            sent: Sent::default(),
            counters: Counters::default(),
            pool: Pool::default(),
            pacer,
            policy: Mutex::new(policy),
            outstanding: Outstanding::default(),
            ask_retained: options.ask_retained,
            streams: streams.len(),
        });
        let (queue, receiver) = mpsc::channel(QUEUE_BATCHES);
        let receiver = Arc::new(Queue(tokio::sync::Mutex::new(receiver)));
        let mut workers = JoinSet::new();
        for (number, stream) in streams.into_iter().enumerate() {
            workers.spawn(stream::run(number, stream, Arc::clone(&receiver), Arc::clone(&shared)));
        }
        Self {
            shared,
            queue,
            workers,
            final_pass: None,
            hidden_parts: HiddenParts::new(),
            method: pagemap::probe().unwrap_or(Method::Classic),
            broken: false,
            previous_round: None,
        }
    }

    /// Compares clean pages of stopped processes with what the destination holds, beside whatever else goes on.
    #[must_use]
    pub fn spot_checker(&self) -> SpotChecker {
        SpotChecker(Arc::clone(&self.shared))
    }

    /// What the destination has acknowledged so far.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// One pre-copy round: every candidate page of `processes` is compared with what the destination holds, and what differs is sent
    /// and acknowledged when this returns. The container runs on; what it writes meanwhile is for the next round.
    ///
    /// # Errors
    /// A stream failed, the destination broke the protocol, or `cancel` fired. After an error, and after this future was dropped
    /// unfinished, the plane only gives [`MemoryError::Broken`].
    pub async fn round(
        &mut self,
        processes: Vec<Process>,
        tracker: Arc<dyn Tracker>,
        progress: impl Fn(Progress),
        cancel: CancellationToken,
    ) -> Result<RoundStats, MemoryError> {
        self.enter()?;
        let started = Instant::now();
        self.shared.counters.take();
        self.shared.sent.prune(&self.shared.ledger);
        let stop = Arc::new(AtomicBool::new(false));
        let _stop_when_left = StopOnDrop(Arc::clone(&stop));
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(MemoryError::Cancelled),
            failure = failure_of(&mut self.workers) => Err(failure),
            done = scan_and_send(&self.shared, &self.queue, processes, tracker, &progress, &stop) => done,
        };
        if let Err(error) = result {
            self.workers.abort_all();
            return Err(error);
        }
        let shared = Arc::clone(&self.shared);
        joined(tokio::task::spawn_blocking(move || shared.ledger.refresh())).await?;
        self.broken = false;
        let mut stats = self.shared.counters.take();
        stats.duration = started.elapsed();
        if let Some(previous) = self.previous_round.replace(started) {
            let since = started.duration_since(previous).as_micros().max(1);
            let rate = u128::from(stats.pages_dirty) * 1_000_000 / since;
            stats.dirty_pages_per_s = u64::try_from(rate).unwrap_or(u64::MAX);
        }
        Ok(stats)
    }

    /// Ends all streams in good order: when this returns, the destination has seen their ends.
    ///
    /// # Errors
    /// A stream failed.
    pub async fn close(mut self) -> Result<(), MemoryError> {
        self.enter()?;
        let Self { queue, mut workers, .. } = self;
        drop(queue);
        while let Some(ended) = workers.join_next().await {
            outcome(ended)?;
        }
        Ok(())
    }

    /// Marks the plane as unusable until whoever calls this has come to a good end.
    pub(super) fn enter(&mut self) -> Result<(), MemoryError> {
        if std::mem::replace(&mut self.broken, true) { Err(MemoryError::Broken) } else { Ok(()) }
    }

    /// The good end.
    pub(super) fn leave(&mut self) {
        self.broken = false;
    }

    /// Something of ours, unless a stream fails first.
    pub(super) async fn or_failure<T>(
        &mut self,
        work: impl Future<Output = Result<T, MemoryError>>,
    ) -> Result<T, MemoryError> {
        tokio::select! {
            biased;
            failure = failure_of(&mut self.workers) => Err(failure),
            done = work => done,
        }
    }

    /// Queues work, or says why nobody takes it.
    pub(super) async fn enqueue(&mut self, work: Work) -> Result<(), MemoryError> {
        self.shared.outstanding.add();
        tokio::select! {
            biased;
            failure = failure_of(&mut self.workers) => Err(failure),
            sent = self.queue.send(work) => sent.map_err(|_| MemoryError::Broken),
        }
    }

    /// Until everything that was queued is acknowledged.
    pub(super) async fn all_acknowledged(&mut self) -> Result<(), MemoryError> {
        tokio::select! {
            biased;
            failure = failure_of(&mut self.workers) => Err(failure),
            () = self.shared.outstanding.none() => Ok(()),
        }
    }
}

/// Waits for a worker to end, which none does before the queue is closed unless it failed.
async fn failure_of(workers: &mut JoinSet<Result<(), MemoryError>>) -> MemoryError {
    match workers.join_next().await {
        Some(ended) => outcome(ended).err().unwrap_or(MemoryError::Broken),
        None => MemoryError::Broken,
    }
}

fn outcome(ended: Result<Result<(), MemoryError>, tokio::task::JoinError>) -> Result<(), MemoryError> {
    match ended {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(MemoryError::Cancelled),
    }
}

async fn scan_and_send(
    shared: &Arc<Shared>,
    queue: &mpsc::Sender<Work>,
    processes: Vec<Process>,
    tracker: Arc<dyn Tracker>,
    progress: &impl Fn(Progress),
    stop: &Arc<AtomicBool>,
) -> Result<(), MemoryError> {
    let surveying = {
        let (shared, tracker) = (Arc::clone(shared), Arc::clone(&tracker));
        tokio::task::spawn_blocking(move || Arc::new(Plan::make(&processes, &*tracker, &shared.ledger)))
    };
    let plan = joined(surveying).await?;
    for (object, ranges) in &plan.forget {
        Counters::add(&shared.counters.forgotten, ranges.iter().map(|range| range.count).sum());
        shared.outstanding.add();
        let work = Work::Forget { object: *object, ranges: ranges.clone() };
        queue.send(work).await.map_err(|_| MemoryError::Broken)?;
    }
    let scanning: Vec<_> = (0..scanners())
        .map(|_| {
            let (plan, tracker, shared) = (Arc::clone(&plan), Arc::clone(&tracker), Arc::clone(shared));
            let (queue, stop) = (queue.clone(), Arc::clone(stop));
            tokio::task::spawn_blocking(move || scanner::scan(&plan, &*tracker, &shared, &queue, &stop))
        })
        .collect();
    let finished = async {
        for thread in scanning {
            joined(thread).await?;
        }
        shared.outstanding.none().await;
        Ok::<(), MemoryError>(())
    };
    tokio::pin!(finished);
    let tell = || {
        progress(Progress {
            pages_done: Counters::get(&shared.counters.scanned),
            pages_total: plan.pages_total,
            bytes_sent: Counters::get(&shared.counters.bytes),
        });
    };
    loop {
        tokio::select! {
            biased;
            done = &mut finished => {
                done?;
                tell();
                return Ok(());
            }
            () = tokio::time::sleep(PROGRESS_EVERY) => tell(),
        }
    }
}

/// How many threads read and hash.
pub(super) fn scanners() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(SCANNERS_MAX)
}

/// What a blocking thread returned; its panic is ours.
pub(super) async fn joined<T>(thread: JoinHandle<T>) -> Result<T, MemoryError> {
    match thread.await {
        Ok(value) => Ok(value),
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(MemoryError::Cancelled),
    }
}

#[cfg(test)]
#[path = "pipeline_tests/mod.rs"]
mod tests;
