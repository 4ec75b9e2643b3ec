//! The control plane: thin. It checks words, finds things in the registry, and streams events.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Agent;
use crate::migration::{self, Cancel, Home, Progress};
use crate::model::MigrationId;
use crate::pager::PagerState;
use crate::rpc::v1::control_server::Control;
use crate::rpc::v1::{
    CancelReply, CancelRequest, ContainerInfo, Event, Failure, HistoryEntry, HistoryReply, HistoryRequest,
    InfoReply, InfoRequest, ListReply, ListRequest, MigrateRequest, Phase, Reason, WatchRequest, event::Body,
};
use crate::runtime::Container;

/// Events that wait for a slow reader.
const QUEUE: usize = 64;
const HISTORY_MAX: usize = 10_000;

/// The service; one per agent, shared by all its listeners.
#[derive(Debug, Clone)]
pub(super) struct ControlService(pub(super) Arc<Agent>);

type EventStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Event, Status>> + Send>>;

/// What ended a stream of events.
fn is_last(event: &Event) -> bool {
    matches!(event.body, Some(Body::Completed(_) | Body::Failed(_)))
}

/// Sends what was, then what comes, until the last event or until nobody reads.
async fn follow(
    past: Vec<Event>,
    mut coming: broadcast::Receiver<Event>,
    sink: mpsc::Sender<Result<Event, Status>>,
) {
    for event in past {
        let last = is_last(&event);
        if sink.send(Ok(event)).await.is_err() || last {
            return;
        }
    }
    loop {
        match coming.recv().await {
            Ok(event) => {
                let last = is_last(&event);
                if sink.send(Ok(event)).await.is_err() || last {
                    return;
                }
            }
            // A reader that is too slow misses numbers in between.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn stream_of(many: Vec<Progress>) -> EventStream {
    let (sink, events) = mpsc::channel(QUEUE);
    for progress in many {
        let (past, coming) = progress.subscribe();
        tokio::spawn(follow(past, coming, sink.clone()));
    }
    Box::pin(ReceiverStream::new(events))
}

/// A stream with one event: the request was refused before anything began.
fn refused(container: &str, host: &str, reasons: Vec<Reason>) -> EventStream {
    let message = match reasons.as_slice() {
        [] => "refused".to_owned(),
        [one] => one.what.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", first.what, rest.len()),
    };
    let failure = Failure {
        phase: Phase::Preflight.into(),
        host: host.to_owned(),
        message,
        state_now: format!("nothing was changed; {container} is as it was"),
        remedy: "mend each reason above, then try again".to_owned(),
        reasons,
        ..Default::default()
    };
    let event = Event {
        container: container.to_owned(),
        unix_ms: migration::unix_ms(),
        body: Some(Body::Failed(failure)),
        ..Default::default()
    };
    Box::pin(tokio_stream::once(Ok(event)))
}

fn internal(error: &dyn std::error::Error) -> Status {
    Status::internal(migration::chain(error))
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoReply>, Status> {
        let agent = &self.0;
        let host = &agent.host;
        Ok(Response::new(InfoReply {
            host: host.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_versions: crate::protocol::VERSIONS.to_vec(),
            kernel: host.facts.kernel.clone(),
            criu_version: host.facts.criu_version.clone(),
            runtime_version: host.facts.runtime_version.clone(),
            capabilities: host.facts.capabilities.clone(),
            problems: host.problems.clone(),
            memory_available_bytes: host.memory_available(),
            disk_available_bytes: host.disk_available(),
            retained_pages: host.retained.pages(),
            migrations_in_flight: u32::try_from(agent.registry.in_flight()).unwrap_or(u32::MAX),
            listen: agent.listen.to_string(),
            peers: host.settings.peers.keys().map(ToString::to_string).collect(),
        }))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let agent = Arc::clone(&self.0);
        let listed = tokio::task::spawn_blocking(move || {
            let host = &agent.host;
            let info = |container: Container| ContainerInfo {
                id: container.id.to_string(),
                status: container.status.as_str().to_owned(),
                init_pid: u32::try_from(container.init_pid).unwrap_or(0),
                bundle: container.bundle.to_string_lossy().into_owned(),
                memory_bytes: container.memory_bytes(),
                processes: u32::try_from(container.pids().len()).unwrap_or(u32::MAX),
                migration_id: agent.registry.migration_of(&container.id).unwrap_or_default(),
                arrived_from: arrived_from(&host.state_dir, &container),
                memory_state: memory_state(host.pagers.state(&container.id).as_ref()).to_owned(),
                pages_missing: pages_missing(host.pagers.state(&container.id).as_ref()),
            };
            Container::list(&host.runc.root).into_iter().map(info).collect()
        });
        let containers = listed.await.map_err(|error| internal(&error))?;
        Ok(Response::new(ListReply { containers }))
    }

    type MigrateStream = EventStream;

    async fn migrate(&self, request: Request<MigrateRequest>) -> Result<Response<EventStream>, Status> {
        let agent = Arc::clone(&self.0);
        let asked = request.into_inner();
        let host = agent.host.id.to_string();
        let checked = match migration::Request::check(&asked, &agent.host.settings) {
            Ok(checked) => checked,
            Err(reasons) => return Ok(Response::new(refused(&asked.container, &host, reasons))),
        };
        let progress = Progress::new(MigrationId::fresh(), checked.container.clone());
        let cancel = Cancel::default();
        let max = agent.host.settings.max_concurrent;
        let reservation = match agent.registry.reserve_departure(&progress, &cancel, max) {
            Ok(reservation) => reservation,
            Err(reason) => return Ok(Response::new(refused(&asked.container, &host, vec![reason]))),
        };
        let events = stream_of(vec![progress.clone()]);
        let started = migration::unix_ms();
        agent.clone().tasks.spawn(async move {
            let outcome = Box::pin(migration::source::migrate(
                Arc::clone(&agent.host),
                checked.clone(),
                progress.clone(),
                cancel,
            ))
            .await;
            // Free the name before the last event: who sees the end may start the next one.
            drop(reservation);
            agent.finished(&checked, &progress, outcome, started).await;
        });
        Ok(Response::new(events))
    }

    type WatchStream = EventStream;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<EventStream>, Status> {
        let which = request.into_inner().which;
        let found: Vec<Progress> = self.0.registry.departures(&which).into_iter().map(|(p, _)| p).collect();
        if found.is_empty() && !which.is_empty() {
            return Err(Status::not_found(format!(
                "no migration {which:?} is in flight here; see `decamp history`"
            )));
        }
        Ok(Response::new(stream_of(found)))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        let asked = request.into_inner();
        if asked.which.is_empty() {
            return Err(Status::invalid_argument("say which migration or container"));
        }
        let found = self.0.registry.departures(&asked.which);
        let Some((progress, cancel)) = found.first() else {
            return Err(Status::not_found(format!("no migration {:?} is in flight here", asked.which)));
        };
        let decided = matches!(
            progress.phase(),
            Phase::Committing | Phase::Releasing | Phase::Completed | Phase::InDoubt
        );
        if decided {
            let message = format!(
                "too late: the decision about {} was handed to the destination; follow it with `decamp watch {}`",
                progress.container(),
                progress.container()
            );
            return Ok(Response::new(CancelReply { accepted: false, message }));
        }
        let why = if asked.why.is_empty() { "an operator asked for it".to_owned() } else { asked.why };
        cancel.cancel(why);
        let message = format!("{} goes on here; the migration stops", progress.container());
        Ok(Response::new(CancelReply { accepted: true, message }))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryReply>, Status> {
        let limit = match request.into_inner().limit {
            0 => 20,
            limit => (limit as usize).min(HISTORY_MAX),
        };
        let journal = self.0.host.journal.clone();
        let read = tokio::task::spawn_blocking(move || journal.history(limit)).await;
        let entries: Vec<HistoryEntry> =
            read.map_err(|error| internal(&error))?.map_err(|error| internal(&error))?;
        Ok(Response::new(HistoryReply { entries }))
    }
}

/// In the words of the control plane; empty for a container that needs no pager (any more).
fn memory_state(pager: Option<&PagerState>) -> &'static str {
    match pager {
        None => "",
        Some(PagerState::Resident { .. }) => "resident",
        Some(PagerState::Listening | PagerState::Serving { .. } | PagerState::Filling { .. }) => "filling",
        Some(PagerState::Failed(_) | PagerState::Lost) => "lost",
    }
}

fn pages_missing(pager: Option<&PagerState>) -> u64 {
    match pager {
        Some(PagerState::Serving { pages_missing } | PagerState::Filling { pages_missing, .. }) => {
            *pages_missing
        }
        _ => 0,
    }
}

fn arrived_from(state_dir: &std::path::Path, container: &Container) -> String {
    let home = Home::of(state_dir, &container.id);
    if !home.owns(&container.bundle) {
        return String::new();
    }
    home.arrived().map(|arrived| arrived.from.to_string()).unwrap_or_default()
}
