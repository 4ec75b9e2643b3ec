//! An agent that plays scripts: the same service, none of the work.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use decamp::rpc::v1::control_server::{Control, ControlServer};
use decamp::rpc::v1::{
    CancelReply, CancelRequest, Event, Failure, HistoryReply, HistoryRequest, InfoReply, InfoRequest,
    ListReply, ListRequest, MigrateRequest, Phase, PhaseChange, Summary, WatchRequest, event::Body,
};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// One line of a script.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a dozen of them exist at a time")]
pub(crate) enum Step {
    /// An event; the container and the id are filled in.
    Say(Body),
    /// Wait until somebody asks to cancel.
    AwaitCancel,
    /// Time passes.
    Pause(Duration),
    /// Never anything again.
    Hang,
    /// The stream breaks with a status.
    Break(Status),
}

/// What the agent knows and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) list: ListReply,
    pub(crate) info: InfoReply,
    pub(crate) history: HistoryReply,
    /// Script by container or migration id; "" for watching all.
    pub(crate) scripts: HashMap<String, Vec<Step>>,
    /// Answer to Migrate and Watch instead of a stream.
    pub(crate) refuse: Option<Status>,
    pub(crate) refuse_cancel: Option<String>,
    pub(crate) migrations: Vec<MigrateRequest>,
    pub(crate) watched: Vec<String>,
    pub(crate) cancels: Vec<CancelRequest>,
    pub(crate) in_flight: usize,
    pub(crate) most_in_flight: usize,
}

/// A running fake agent; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    runtime: Option<Runtime>,
    pub(crate) state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Service {
    state: Arc<Mutex<State>>,
    cancelled: Arc<Notify>,
}

impl Service {
    pub(crate) fn new(state: Arc<Mutex<State>>) -> ControlServer<Self> {
        ControlServer::new(Self { state, cancelled: Arc::new(Notify::new()) })
    }
}

impl Fake {
    /// Listens on a UNIX socket of its own.
    pub(crate) fn start(state: State) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let state = Arc::new(Mutex::new(state));
        let service = Service::new(Arc::clone(&state));
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(dir.path().join("agent.sock")).unwrap()
        };
        runtime.spawn(
            Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { dir, runtime: Some(runtime), state }
    }

    /// One container with one script.
    pub(crate) fn playing(container: &str, script: Vec<Step>) -> Self {
        Self::start(State { scripts: HashMap::from([(container.to_owned(), script)]), ..State::default() })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Dies without a word: every connection is cut.
    pub(crate) fn vanish(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.vanish();
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

impl Service {
    fn play(&self, name: &str, container: &str) -> Result<Response<Events>, Status> {
        let script = {
            let mut state = self.state.lock().unwrap();
            if let Some(status) = state.refuse.clone() {
                return Err(status);
            }
            let Some(script) = state.scripts.get(name).cloned() else {
                return Err(Status::not_found(format!("no container {name} on this host")));
            };
            state.in_flight += 1;
            state.most_in_flight = state.most_in_flight.max(state.in_flight);
            script
        };
        let (events, stream) = mpsc::channel(1);
        let (service, container) = (self.clone(), container.to_owned());
        tokio::spawn(async move {
            for step in script {
                let ended = service.step(step, &container, &events).await;
                if ended.is_err() {
                    break;
                }
            }
            service.state.lock().unwrap().in_flight -= 1;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn step(
        &self,
        step: Step,
        container: &str,
        events: &mpsc::Sender<Result<Event, Status>>,
    ) -> Result<(), ()> {
        let event = match step {
            Step::Say(body) => Ok(Event {
                migration_id: format!("id-of-{container}"),
                container: container.to_owned(),
                unix_ms: 1,
                body: Some(body),
            }),
            Step::Break(status) => Err(status),
            Step::Pause(time) => {
                tokio::time::sleep(time).await;
                return Ok(());
            }
            Step::AwaitCancel => loop {
                let notified = self.cancelled.notified();
                let id = format!("id-of-{container}");
                if self.state.lock().unwrap().cancels.iter().any(|cancel| cancel.which == id) {
                    return Ok(());
                }
                let _ = tokio::time::timeout(Duration::from_millis(50), notified).await;
            },
            Step::Hang => return std::future::pending().await,
        };
        events.send(event).await.map_err(|_| ())
    }
}

#[tonic::async_trait]
impl Control for Service {
    type MigrateStream = Events;
    type WatchStream = Events;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoReply>, Status> {
        Ok(Response::new(self.state.lock().unwrap().info.clone()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(self.state.lock().unwrap().list.clone()))
    }

    async fn migrate(&self, request: Request<MigrateRequest>) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let container = request.container.clone();
        self.state.lock().unwrap().migrations.push(request);
        self.play(&container, &container)
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Events>, Status> {
        let which = request.into_inner().which;
        self.state.lock().unwrap().watched.push(which.clone());
        self.play(&which, which.trim_start_matches("id-of-"))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        let mut state = self.state.lock().unwrap();
        if let Some(message) = state.refuse_cancel.clone() {
            return Ok(Response::new(CancelReply { accepted: false, message }));
        }
        state.cancels.push(request.into_inner());
        self.cancelled.notify_waiters();
        Ok(Response::new(CancelReply { accepted: true, message: String::new() }))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryReply>, Status> {
        let limit = request.into_inner().limit as usize;
        let entries = self.state.lock().unwrap().history.entries.iter().take(limit).cloned().collect();
        Ok(Response::new(HistoryReply { entries }))
    }
}

/// A change of phase.
pub(crate) fn phase(phase: Phase) -> Step {
    Step::Say(Body::Phase(PhaseChange { phase: phase.into() }))
}

/// The good end.
pub(crate) fn completed(container: &str) -> Step {
    Step::Say(Body::Completed(Summary {
        migration_id: format!("id-of-{container}"),
        container: container.to_owned(),
        source: "node-a".into(),
        destination: "node-b".into(),
        mode: "precopy".into(),
        downtime_us: 82_000,
        total_us: 2_900_000,
        bytes_sent: 484 << 20,
        ..Summary::default()
    }))
}

/// A bad end.
pub(crate) fn failed(failure: Failure) -> Step {
    Step::Say(Body::Failed(failure))
}

/// The end after a request to cancel.
pub(crate) fn cancelled() -> Step {
    let state_now = "redis runs at node-a".to_owned();
    failed(Failure { phase: Phase::PreCopy.into(), cancelled: true, state_now, ..Failure::default() })
}
