//! Numbers of a round: counted by scanner and streams, read by whoever decides and shows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pages and bytes of one round, or of the final pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundStats {
    /// Pages that were read and compared.
    pub pages_scanned: u64,
    /// Of these, pages whose content differs from what the destination holds.
    pub pages_dirty: u64,
    /// Of the dirty: all zero.
    pub pages_zero: u64,
    /// Of the dirty: the destination had the content elsewhere.
    pub pages_known: u64,
    /// Of the dirty: sent in compressed batches.
    pub pages_compressed: u64,
    /// Of the dirty: sent as they are.
    pub pages_raw: u64,
    /// Pages that vanished between survey and reading.
    pub pages_unread: u64,
    /// Pages that the destination was told to forget.
    pub pages_forgotten: u64,
    /// At the hold: pages that exist and that neither the rounds nor the tracker nor CRIU had. Not 0: a bug of decamp, mended.
    pub pages_missed: u64,
    /// Bytes handed to the streams, frames included.
    pub bytes_sent: u64,
    /// How long it took.
    pub duration: Duration,
    /// Dirty pages divided by the time since the previous round began; 0 in the first.
    pub dirty_pages_per_s: u64,
}

/// How far a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Pages read and compared so far.
    pub pages_done: u64,
    /// Pages that this round will read; fewer if some vanish.
    pub pages_total: u64,
    /// Bytes handed to the streams so far in this round.
    pub bytes_sent: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) scanned: AtomicU64,
    pub(super) dirty: AtomicU64,
    pub(super) zero: AtomicU64,
    pub(super) known: AtomicU64,
    pub(super) compressed: AtomicU64,
    pub(super) raw: AtomicU64,
    pub(super) unread: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) missed: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    pub(super) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// The counts since the last call, which starts them anew.
    pub(super) fn take(&self) -> RoundStats {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        RoundStats {
            pages_scanned: take(&self.scanned),
            pages_dirty: take(&self.dirty),
            pages_zero: take(&self.zero),
            pages_known: take(&self.known),
            pages_compressed: take(&self.compressed),
            pages_raw: take(&self.raw),
            pages_unread: take(&self.unread),
            pages_forgotten: take(&self.forgotten),
            pages_missed: take(&self.missed),
            bytes_sent: take(&self.bytes),
            ..RoundStats::default()
        }
    }
}
