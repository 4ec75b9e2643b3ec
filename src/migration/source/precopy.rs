//! Rounds while the container runs: files and memory.

use super::super::MigrationError;
use super::super::convergence::{Round, Verdict, decide, expected_downtime};
use super::Source;
use super::negotiate::open;
use std::sync::Arc;

use crate::memory::{Progress as PagesSoFar, RoundStats as PageStats, large_private, processes};
use crate::model::ObjectId;
use crate::preload::plan::HIDDEN_BYTES_MIN;
use crate::rpc::v1::{
    FileProgress, FileStats, MemoryProgress, RoundStats, event::Body as EventBody, stream_hello::Role,
};

impl Source {
    /// One round over every tree of files. The last one runs while the container is frozen and must be exact.
    pub(super) async fn file_round(&mut self, round: u32, last: bool) -> Result<FileStats, MigrationError> {
        let mut total = FileStats { round, ..Default::default() };
        for tree in &mut self.inspection.trees {
            let mut stream = self
                .guard
                .run("opening a file stream", open(&self.link, Role::Files, &self.record.migration))
                .await?;
            let progress = self.progress.clone();
            let told = move |bytes_done, bytes_total| {
                progress.emit(EventBody::FileProgress(FileProgress { round, bytes_done, bytes_total }));
            };
            let sent = tree.source.send_round(&mut stream, tree.number, round, last, &self.pacer, told);
            let stats = self.guard.run("sending files", sent).await?;
            self.guard.run("closing a file stream", stream.finish()).await?;
            total.entries += stats.entries;
            total.files_changed += stats.files_changed;
            total.files_deleted += stats.files_deleted;
            total.bytes_total += stats.bytes_total;
            total.bytes_known += stats.bytes_known;
            total.bytes_sent += stats.bytes_sent;
            total.duration_us += stats.duration_us;
        }
        self.progress.emit(EventBody::FileRound(total));
        self.file_rounds.push(total);
        Ok(total)
    }

    /// Memory rounds until the rest is worth a freeze, or the policy says otherwise.
    pub(super) async fn pre_copy(&mut self) -> Result<(), MigrationError> {
        let mut previous: Option<Round> = None;
        for number in 1.. {
            let mut stats = self.memory_round(number).await?;
            let round = self.observed(&stats);
            let expected = expected_downtime(&round);
            stats.expected_downtime_ms = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            self.progress.emit(EventBody::MemoryRound(stats));
            self.rounds.push(stats);
            match decide(&self.request.policy, previous.as_ref(), &round) {
                Verdict::GoOn => previous = Some(round),
                Verdict::CutOver(why) => {
                    self.progress.note(format!("cutting over: {why}"));
                    return Ok(());
                }
                Verdict::GiveUp(evidence) => return Err(MigrationError::NotConverging { evidence }),
            }
        }
        Ok(())
    }

    pub(super) async fn memory_round(&mut self, number: u32) -> Result<RoundStats, MigrationError> {
        let progress = self.progress.clone();
        let started = std::time::Instant::now();
        let told = move |PagesSoFar { pages_done, pages_total, bytes_sent }| {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let bytes_per_s = bytes_sent.saturating_mul(1000) / elapsed_ms;
            progress.emit(EventBody::MemoryProgress(MemoryProgress {
                round: number,
                pages_done,
                pages_total,
                bytes_sent,
                bytes_per_s,
            }));
        };
        let found = processes(self.inspection.container.init_pid)?;
        let cancel = self.guard.cancel().token();
        let round = self.plane.round(found, Arc::clone(&self.tracker), told, cancel);
        let stats = self.guard.run("a memory round", round).await?;
        Ok(for_operator(number, &stats))
    }
}

/// In the words of the control plane.
pub(super) fn for_operator(round: u32, stats: &PageStats) -> RoundStats {
    RoundStats {
        round,
        pages_scanned: stats.pages_scanned,
        pages_dirty: stats.pages_dirty,
        pages_zero: stats.pages_zero,
        pages_known: stats.pages_known,
        pages_compressed: stats.pages_compressed,
        pages_raw: stats.pages_raw,
        bytes_sent: stats.bytes_sent,
        duration_us: u64::try_from(stats.duration.as_micros()).unwrap_or(u64::MAX),
        dirty_pages_per_s: stats.dirty_pages_per_s,
        expected_downtime_ms: 0,
        pages_missed: stats.pages_missed,
    }
}

impl Source {
    /// Pages that CRIU itself has to dump and restore in the freeze.
    fn pages_eager(&self) -> u64 {
        let ledger = self.plane.ledger();
        if !self.hides() {
            return ledger.pages();
        }
        let found = processes(self.inspection.container.init_pid).unwrap_or_default();
        let hidden = found.into_iter().filter(|process| self.tracker.exact(*process)).map(|process| {
            let large = large_private(process, HIDDEN_BYTES_MIN).unwrap_or_default();
            let held = ledger.held(ObjectId::Task(process.vpid), &large);
            held.iter().map(|range| range.count).sum::<u64>()
        });
        ledger.pages().saturating_sub(hidden.sum())
    }

    fn observed(&self, stats: &RoundStats) -> Round {
        Round { pages_eager: self.pages_eager(), ..observed(stats, &self.rounds) }
    }
}

/// Link speed from the round that moved most: later ones are too short to say anything.
fn observed(stats: &RoundStats, before: &[RoundStats]) -> Round {
    let speed = |stats: &RoundStats| {
        let pages = stats.pages_compressed + stats.pages_raw + stats.pages_known;
        let bytes = pages * crate::model::PAGE_SIZE as u64;
        bytes.saturating_mul(1_000_000) / stats.duration_us.max(1)
    };
    Round {
        number: stats.round,
        pages_eager: 0,
        // Zero pages are told in runs and cost next to nothing.
        pages_dirty: stats.pages_dirty - stats.pages_zero.min(stats.pages_dirty),
        bytes_per_s: before.iter().chain([stats]).map(speed).max().unwrap_or(0),
    }
}
