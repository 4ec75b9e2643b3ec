//! The container runs at the destination: the original dies, and what belonged to it here goes. All of it is outside the
//! downtime. Also used at the agent's start for migrations that were in doubt when it stopped.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::home::Home;
use super::super::progress::unix_us;
use super::super::{Host, MigrationError};
use super::Source;
use super::cutover::{Dump, Times};
use crate::hook::Verdict;
use crate::journal::Record;

use crate::memory::{ContentHashTracker, MemoryError, TrackedProcess, processes, retain_departed};
use crate::model::PAGE_SIZE;
use crate::network;
use crate::rpc::v1::{Phase, Released, RoundStats, Running, Summary, control_frame::Body};
use crate::runtime::{Bundle, Container, Freezer, FreezerState};

const KILL_WITHIN: Duration = Duration::from_secs(30);
/// How long the operator waits for the word that all memory is there.
const RESIDENT_WITHIN: Duration = Duration::from_secs(60);

impl Source {
    pub(super) async fn release(
        &mut self,
        mut dump: Dump,
        mut times: Times,
        final_round: RoundStats,
        running: &Running,
    ) -> Result<Summary, MigrationError> {
        self.progress.enter(Phase::Releasing);
        let there = self.request.to.to_string();
        for timing in &running.timings {
            times.parts.push(crate::rpc::v1::DowntimePart {
                name: timing.name.clone(),
                duration_us: timing.duration_us,
                host: there.clone(),
            });
        }
        if let Err(error) = self.retain_pages().await {
            tracing::warn!(container = %self.request.container, error = super::super::error::chain(&error),
                "the departed container's pages are not kept; a return will send them again");
        }
        self.kill_original(&mut dump).await;
        let origin = self.inspection.origin();
        let disk = self.inspection.disk_bytes();
        let network = self.inspection.capture.is_some().then(|| self.inspection.network.name.clone());
        let bundle = self.inspection.container.bundle.clone();
        let keep = disk <= self.host.settings.retain_disk;
        let cleaned =
            clean_up(&self.host, &self.record, &bundle, network.as_deref(), keep.then_some(&origin)).await;
        if let Err(error) = cleaned {
            let text = super::super::error::chain(&error);
            self.progress
                .note(format!("something of the departed container is left on {}: {text}", self.host.id));
        }
        let released = self.session.send(Body::Released(Released { epoch: self.record.epoch.0 }));
        if !matches!(tokio::time::timeout(Duration::from_secs(5), released).await, Ok(Ok(()))) {
            tracing::debug!("the destination keeps its record of this migration until it expires");
        }
        let total = self.started.elapsed();
        let resident_after_us = self.wait_resident().await;
        let mut summary = self.summary(times, final_round, running);
        summary.total_us = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
        summary.resident_after_us = resident_after_us;
        let bytes = self.counts.lazy.saturating_mul(PAGE_SIZE as u64);
        summary.fill_bytes_per_s =
            bytes.saturating_mul(1_000_000).checked_div(resident_after_us).unwrap_or(0);
        Ok(summary)
    }

    /// Until the destination says that all memory is there, or has nothing more to say. Nothing depends on it: 0 when not known.
    async fn wait_resident(&mut self) -> u64 {
        let (mut resident_after_us, epoch) = (0, self.record.epoch.0);
        let listening = async {
            loop {
                match self.session.next().await {
                    Ok(Body::Resident(word)) if word.epoch == epoch => {
                        resident_after_us = word.resident_after_us;
                        return;
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        };
        let within = if self.counts.lazy > 0 { RESIDENT_WITHIN } else { Duration::from_secs(5) };
        if tokio::time::timeout(within, listening).await.is_err() {
            tracing::debug!("the destination did not close the conversation");
        }
        resident_after_us
    }

    /// SIGKILL first, then the hook's yes, then the thaw: from the first on no user code of the original can run again, even if
    /// CRIU dies in between.
    async fn kill_original(&mut self, dump: &mut Dump) {
        let container = &self.inspection.container;
        container.freezer.signal_kill();
        if let Some(hold) = dump.hold.take()
            && hold.answer(Verdict::Proceed).is_err()
        {
            tracing::warn!(container = %container.id, "CRIU was gone before the release; the original is killed all the same");
        }
        if let Err(error) = container.freezer.kill_all(KILL_WITHIN).await {
            tracing::error!(container = %container.id, %error, "the original could not be thawed to die");
        }
        let ended = tokio::time::timeout(KILL_WITHIN, dump.wait_end()).await;
        if ended.is_err() {
            tracing::warn!(container = %container.id, "the runtime did not end after the release");
        }
    }

    /// Pages of the frozen original, kept in memory: a return sends only what changed.
    async fn retain_pages(&self) -> Result<(), MigrationError> {
        let processes = processes(self.inspection.container.init_pid)?;
        // All pages, whatever changed: not the tracker's question.
        let tracker = ContentHashTracker::probe()?;
        let mut generation = self.host.retained.begin_generation(&self.request.container);
        let keep = move || {
            let never = AtomicBool::new(false);
            retain_departed(&processes, &tracker, &never, |digest, page| generation.add(digest, page))?;
            generation.finish();
            Ok::<(), MemoryError>(())
        };
        tokio::task::spawn_blocking(keep).await.map_err(|_| MigrationError::Stopping)??;
        Ok(())
    }

    fn summary(&self, times: Times, final_round: RoundStats, running: &Running) -> Summary {
        let resumed_us = match running.resumed_us {
            0 => unix_us().saturating_add_signed(self.offset.offset_us),
            known => known,
        };
        let mut rounds = self.rounds.clone();
        rounds.push(final_round);
        let memory_bytes_sent = rounds.iter().map(|round| round.bytes_sent).sum();
        let file_bytes_sent = self.file_rounds.iter().map(|round| round.bytes_sent).sum();
        let mut notes = self.progress.notes();
        notes.extend(running.notes.iter().cloned());
        Summary {
            migration_id: self.record.migration.to_string(),
            container: self.request.container.to_string(),
            source: self.host.id.to_string(),
            destination: self.request.to.to_string(),
            mode: self.request.mode.as_str().to_owned(),
            downtime_us: self.offset.between(times.frozen_us, resumed_us),
            downtime_parts: times.parts,
            rounds,
            file_rounds: self.file_rounds.clone(),
            bytes_sent: memory_bytes_sent + file_bytes_sent + self.image_bytes,
            memory_bytes_sent,
            file_bytes_sent,
            image_bytes_sent: self.image_bytes,
            clock_offset_us: self.offset.offset_us,
            clock_error_us: self.offset.error_us,
            tracker: trackers(&self.tracker.report()),
            pages_total: self.counts.total,
            pages_verified: self.pages_verified,
            notes,
            pages_lazy: self.counts.lazy,
            pages_missed: self.counts.missed,
            pages_spot_checked: self.counts.spot_checked,
            ..Summary::default()
        }
    }
}

/// "userfaultfd (3 processes), content hash (1: it is traced)".
fn trackers(report: &[TrackedProcess]) -> String {
    let mut by_name = std::collections::BTreeMap::<&str, (usize, Option<&str>)>::new();
    for process in report {
        let entry = by_name.entry(process.technique.name()).or_default();
        entry.0 += 1;
        entry.1 = entry.1.or(process.reason.as_deref());
    }
    let told = by_name.iter().map(|(name, (count, reason))| match reason {
        Some(reason) => format!("{name} ({count}: {reason})"),
        None => format!("{name} ({count})"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Removes what belonged to a container that left: the runtime's record of it, its network, its files when they are ours.
async fn clean_up(
    host: &Host,
    record: &Record,
    bundle: &std::path::Path,
    network: Option<&str>,
    keep: Option<&std::collections::BTreeMap<u32, std::path::PathBuf>>,
) -> Result<(), MigrationError> {
    if Container::read(&host.runc.root, &record.container).is_ok() {
        host.runc.delete(&record.container, &host.run_dir, KILL_WITHIN).await?;
    }
    if let Some(name) = network {
        network::remove(name, &record.host_ends).await?;
    }
    let home = Home::of(&host.state_dir, &record.container);
    match (home.owns(bundle), keep) {
        (true, keep) => home.depart(keep.is_some()),
        (false, Some(origin)) => home.depart_foreign(origin),
        (false, None) => home.forget_retained(),
    }
}

/// A migration that was in doubt when the agent stopped turned out to have succeeded: the frozen original dies.
///
/// # Errors
/// Something could not be removed; the original is dead all the same.
pub async fn finish_release(host: &Host, record: &Record) -> Result<(), MigrationError> {
    let Ok(container) = Container::read(&host.runc.root, &record.container) else { return Ok(()) };
    if record.init.is_some_and(|init| init != (container.init_pid, container.init_start)) {
        tracing::warn!(container = %record.container, "the departed original is gone already; the one here now is another");
        return Ok(());
    }
    container.freezer.kill_all(KILL_WITHIN).await?;
    let network = Bundle::read(&container.bundle)
        .ok()
        .and_then(|bundle| bundle.network_namespace())
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
    clean_up(host, record, &container.bundle, network.as_deref(), None).await
}

/// A migration was not decided, or was refused, when the agent stopped: the container goes on here.
///
/// # Errors
/// It could not be thawed.
pub async fn undo(host: &Host, record: &Record) -> Result<(), MigrationError> {
    if !record.host_ends.is_empty()
        && let Err(error) = network::raise(&record.host_ends).await
    {
        tracing::error!(container = %record.container, %error, "the container's network could not be brought up again");
    }
    let Some(path) = &record.freezer else { return Ok(()) };
    let freezer = Freezer::at(path.clone());
    if freezer.state() != FreezerState::Thawed {
        freezer.thaw(KILL_WITHIN).await?;
    }
    tracing::info!(container = %record.container, host = %host.id, "an unfinished migration was undone: the container runs here");
    Ok(())
}
