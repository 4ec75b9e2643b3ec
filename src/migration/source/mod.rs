//! The source's side, told start to end.
//!
//! ```text
//! Preflight ─▶ Negotiating ─▶ Files ─▶ PreCopy ⟲ ─▶ CutOver ─▶ Committing ─▶ Releasing ─▶ Completed
//!     any of these before Committing ─ error | cancel | deadline ─▶ RollingBack ─▶ Aborted (the container runs here)
//!     Committing ─ answer lost ─▶ InDoubt ⟲ ask ─▶ Releasing | RollingBack
//! ```
//! The container is thawed at one place (rollback), and only when the destination cannot run it: before Commit was sent, or
//! after the destination said that this epoch is refused. It is killed at one place (release), after the destination said that
//! it runs there.

mod cutover;
mod decision;
mod hiding;
mod images;
mod inspect;
mod layouts;
mod negotiate;
mod precopy;
mod release;

use std::sync::Arc;
use std::time::Duration;

pub use decision::{Decision, resolve};
pub use release::{finish_release, undo};
use tokio::time::Instant;

use super::clock::Offset;
use super::guard::{Cancel, Guard};
use super::progress::{unix_ms, unix_us};
use super::request::{Mode, Request};
use super::session::Session;
use super::{Host, MigrationError, Progress};
use crate::journal::{Record, Stage};
use crate::memory::{MixedTracker, PagePlane, Tracker};
use crate::model::Epoch;
use crate::protocol::pace::Pacer;
use crate::quic::Link;
use crate::rpc::v1::{Abort, Failure, FileStats, Phase, RoundStats, Summary, control_frame::Body};
use crate::runtime::Status;
use inspect::Inspection;

/// How a migration ended.
#[derive(Debug)]
pub enum Outcome {
    /// The container runs at the destination.
    Completed(Box<Summary>),
    /// The container runs here as before (or the failure says what else is true).
    Failed(Box<Failure>),
}

/// Pages of the frozen container, for the summary.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    total: u64,
    lazy: u64,
    missed: u64,
    spot_checked: u64,
}

/// Everything that one migration holds at the source after the offer was accepted.
struct Source {
    host: Arc<Host>,
    request: Request,
    progress: Progress,
    guard: Guard,
    record: Record,
    inspection: Inspection,
    link: Link,
    session: Session,
    plane: PagePlane,
    tracker: Arc<dyn Tracker>,
    pages_verified: u64,
    /// The destination can install pages after the container runs.
    lazy_there: bool,
    counts: Counts,
    pacer: Arc<Pacer>,
    offset: Offset,
    started: Instant,
    rounds: Vec<RoundStats>,
    file_rounds: Vec<FileStats>,
    image_bytes: u64,
}

/// Moves one container. Returns when it is decided where it runs and everything else is cleaned up.
pub async fn migrate(host: Arc<Host>, request: Request, progress: Progress, cancel: Cancel) -> Outcome {
    let guard = Guard::new(cancel, request.timeout);
    let id = request.container.clone();
    match Box::pin(run(&host, request, &progress, guard)).await {
        Ok(summary) => {
            progress.enter(Phase::Completed);
            Outcome::Completed(Box::new(summary))
        }
        Err((error, phase)) => {
            let state_now = state_now(&host, &id);
            let failure = error.failure(phase, host.id.as_str(), state_now);
            progress.enter(Phase::Aborted);
            Outcome::Failed(Box::new(failure))
        }
    }
}

fn state_now(host: &Host, id: &crate::model::ContainerId) -> String {
    match crate::runtime::Container::read(&host.runc.root, id).map(|container| container.status) {
        Ok(Status::Running) => format!("{id} runs on {} as before", host.id),
        Ok(Status::Paused) => format!("{id} is frozen on {}: it does not run, and nothing is lost", host.id),
        Ok(Status::Stopped) => format!("{id} is stopped on {}", host.id),
        Err(error) => format!("{id} is not found on {}: {error}", host.id),
    }
}

async fn run(
    host: &Arc<Host>,
    request: Request,
    progress: &Progress,
    guard: Guard,
) -> Result<Summary, (MigrationError, Phase)> {
    let at = |progress: &Progress| {
        let phase = progress.phase();
        move |error| (error, phase)
    };
    progress.enter(Phase::Preflight);
    if matches!(host.pagers.state(&request.container), Some(state) if !state.is_final()) {
        progress.note("waiting until all memory of it is here: it has only just arrived");
    }
    let resident = host.pagers.resident(&request.container);
    guard.run("waiting for its memory", resident).await.map_err(|e| at(progress)(e))?;
    let inspection =
        guard.run("the preflight", inspect::inspect(host, &request)).await.map_err(|e| at(progress)(e))?;
    progress.enter(Phase::Negotiating);
    let record = Record {
        migration: progress.migration().clone(),
        container: request.container.clone(),
        peer: request.to.clone(),
        peer_address: Some(request.address.to_string()),
        epoch: Epoch(unix_us()),
        stage: Stage::Preparing,
        freezer: Some(inspection.container.freezer.path().to_owned()),
        init: Some((inspection.container.init_pid, inspection.container.init_start)),
        host_ends: inspection.host_ends(),
        started_unix_ms: unix_ms(),
        resumed_us: 0,
    };
    host.journal.put(&record).await.map_err(|e| at(progress)(e.into()))?;
    let migration = record.migration.clone();
    let result = agreed(host, request, progress, guard, record, inspection).await;
    // In doubt, the record must stay: it is what the next start asks with.
    if !matches!(result, Err((_, Phase::InDoubt)))
        && let Err(error) = host.journal.remove(&migration).await
    {
        tracing::error!(%migration, %error, "a finished migration stays in the journal");
    }
    result
}

async fn agreed(
    host: &Arc<Host>,
    request: Request,
    progress: &Progress,
    guard: Guard,
    record: Record,
    inspection: Inspection,
) -> Result<Summary, (MigrationError, Phase)> {
    let negotiated = negotiate::negotiate(host, &request, &guard, &record, &inspection).await;
    let negotiate::Agreed { link, session, plane, pacer, offset, lazy_there } =
        negotiated.map_err(|error| (error, Phase::Negotiating))?;
    let tracker = match MixedTracker::probe(&host.program) {
        Ok(tracker) => Arc::new(tracker),
        Err(error) => return Err((error.into(), Phase::Negotiating)),
    };
    let mut source = Source {
        host: Arc::clone(host),
        request,
        progress: progress.clone(),
        guard,
        record,
        inspection,
        link,
        session,
        plane,
        tracker,
        pages_verified: 0,
        lazy_there,
        counts: Counts::default(),
        pacer,
        offset,
        started: Instant::now(),
        rounds: Vec::new(),
        file_rounds: Vec::new(),
        image_bytes: 0,
    };
    match source.copy_and_cut_over().await {
        Ok(summary) => Ok(summary),
        Err(error) if progress.phase() == Phase::InDoubt => Err((error, Phase::InDoubt)),
        Err(error) => {
            let phase = progress.failed_in();
            tracing::warn!(migration = %source.record.migration, error = super::error::chain(&error), "stopping");
            let error = source.session.better_reason(error).await;
            source.say_abort(&error).await;
            Err((error, phase))
        }
    }
}

impl Source {
    async fn copy_and_cut_over(&mut self) -> Result<Summary, MigrationError> {
        let copying = self.host.courtesy.copying();
        self.progress.enter(Phase::Files);
        self.file_round(1, false).await?;
        if self.request.mode == Mode::PreCopy {
            self.progress.enter(Phase::PreCopy);
            self.pre_copy().await?;
            self.file_round(2, false).await?;
        }
        self.progress.enter(Phase::CutOver);
        let _frozen = self.host.courtesy.frozen();
        drop(copying);
        self.cut_over().await
    }

    /// Tells the destination that it is over, if it still listens, so that it cleans up at once.
    async fn say_abort(&mut self, error: &MigrationError) {
        let abort = Abort { epoch: self.record.epoch.0, why: super::error::chain(error) };
        let said = tokio::time::timeout(Duration::from_secs(2), self.session.send(Body::Abort(abort))).await;
        if !matches!(said, Ok(Ok(()))) {
            tracing::debug!(migration = %self.record.migration, "the destination could not be told of the abort");
        }
        // Let the frame out before the connection goes.
        let _closed_or_late = tokio::time::timeout(Duration::from_secs(5), self.session.drained()).await;
        self.link.close(crate::quic::close::ABORTED, "aborted");
    }
}
