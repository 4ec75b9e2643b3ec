//! The agent: one per host, as root. It binds its sockets, settles what an earlier run left, serves operators (gRPC) and other
//! agents (QUIC), and stops in good order.
//!
//! ```text
//! start ─▶ checked (CRIU, runtime, kernel) ─▶ recovered ─▶ serving ─ SIGTERM ─▶ draining ─▶ stopped
//! ```
//! A host that cannot take part (CRIU too old, no freezer) still serves: `decamp info` says what is wrong, and every migration
//! is refused with that reason. This room decides nothing about a migration.

mod control;
mod error;
mod facts;
mod listen;
mod settings;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use error::AgentError;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::files::DigestCache;
use crate::hook::HookHub;
use crate::journal::Journal;
use crate::migration::source::Outcome;
use crate::migration::{self, Host, Progress, Registry};
use crate::pki::{Identity, PeerIdentity, TlsFiles};
use crate::quic::{Endpoint, Transport};
use crate::rpc::v1::{HistoryEntry, Phase, event::Body};
use crate::runtime::Runc;
use crate::store::RetainedPages;
use crate::telemetry;

/// How long migrations in flight may take to finish or roll back when the agent is told to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(90);

/// One agent.
#[derive(Debug)]
struct Agent {
    host: Arc<Host>,
    registry: Arc<Registry>,
    listen: SocketAddr,
    tasks: TaskTracker,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with what to do about it.
pub fn run(config: &Path) -> Result<(), AgentError> {
    let config = crate::config::load(config)?;
    telemetry::init_logs(&config.log.level, config.log.format)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(AgentError::Runtime)?;
    runtime.block_on(serve(config))
}

fn make_folder(path: &Path) -> Result<(), AgentError> {
    let fail = |source| AgentError::Folder { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(fail)?;
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o711);
    std::fs::set_permissions(path, mode).map_err(fail)
}

/// Every process and shared-memory object of an arriving container has a descriptor of its own here.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays low: containers with very many processes may not fit");
    }
}

async fn serve(config: Config) -> Result<(), AgentError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    raise_descriptor_limit();
    telemetry::serve_metrics(config.metrics.listen)?;
    make_folder(&config.state_dir)?;
    make_folder(&config.run_dir)?;
    let files =
        TlsFiles { ca: config.tls.ca.clone(), cert: config.tls.cert.clone(), key: config.tls.key.clone() };
    let identity = Identity::load(&files)?;
    match identity.name()? {
        PeerIdentity::Host(name) if name == config.host => {}
        other => {
            return Err(AgentError::WrongCertificate {
                host: config.host.to_string(),
                found: format!("{other:?}"),
            });
        }
    }
    let allowed: BTreeSet<_> =
        config.peers.iter().filter(|(_, p)| p.receive).map(|(id, _)| id.clone()).collect();
    let transport = Transport { idle_timeout: config.quic.idle_timeout };
    let endpoint = Endpoint::bind(config.quic.listen, &identity, allowed, transport)?;
    let listen = endpoint.local_address().map_err(AgentError::Runtime)?;
    let runc = Runc { binary: config.runtime.runc.clone(), root: config.runtime.root.clone() };
    let (facts, problems) = facts::gather(&config, &runc).await;
    for problem in &problems {
        tracing::error!(
            what = problem.what,
            evidence = problem.evidence,
            "this host cannot take part in migrations"
        );
    }
    let host = Arc::new(Host {
        id: config.host.clone(),
        settings: settings::of(&config),
        runc,
        facts,
        problems,
        program: std::env::current_exe().map_err(AgentError::Runtime)?,
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        journal: Journal::open(&config.state_dir.join("journal.redb"))?,
        hooks: HookHub::bind(&config.run_dir.join("hook.sock"))?,
        endpoint,
        courtesy: Arc::new(migration::Courtesy::new(config.migration.nice)),
        pagers: migration::Pagers::default(),
        retained: Arc::new(RetainedPages::new(config.store.retain_memory)),
        digests: DigestCache::new(),
        stopping: CancellationToken::new(),
        memory_promised: Default::default(),
    });
    let registry = Arc::default();
    migration::recover(&host, &registry).await?;
    let agent = Arc::new(Agent { host, registry, listen, tasks: TaskTracker::new() });
    let stop = CancellationToken::new();
    let control = listen::control(&config, &identity, Arc::clone(&agent), stop.clone())?;
    agent.tasks.spawn(accept_peers(Arc::clone(&agent)));
    tracing::info!(host = %agent.host.id, quic = %listen, socket = %config.control.socket.display(), "ready");
    wait_for_signal().await?;
    agent.stop().await;
    stop.cancel();
    control.await;
    agent.host.endpoint.close().await;
    Ok(())
}

async fn wait_for_signal() -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Runtime)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: migrations in flight are rolled back or finished");
    Ok(())
}

async fn accept_peers(agent: Arc<Agent>) {
    loop {
        let link = tokio::select! {
            link = agent.host.endpoint.accept() => link,
            () = agent.host.stopping.cancelled() => None,
        };
        let Some(link) = link else { return };
        let (host, registry) = (Arc::clone(&agent.host), Arc::clone(&agent.registry));
        agent.tasks.spawn(Box::pin(migration::destination::serve(host, registry, link)));
    }
}

impl Agent {
    /// A migration from here has ended: history, metrics, the last event.
    async fn finished(
        &self,
        request: &migration::Request,
        progress: &Progress,
        outcome: Outcome,
        started: u64,
    ) {
        let (word, summary, failure) = match outcome {
            Outcome::Completed(summary) => ("completed", Some(*summary), None),
            Outcome::Failed(failure) if failure.phase() == Phase::InDoubt => {
                ("in-doubt", None, Some(*failure))
            }
            Outcome::Failed(failure) => ("aborted", None, Some(*failure)),
        };
        metrics::counter!(telemetry::MIGRATIONS, "role" => "source", "outcome" => word).increment(1);
        if let Some(summary) = &summary {
            let downtime = Duration::from_micros(summary.downtime_us);
            metrics::histogram!(telemetry::DOWNTIME_SECONDS).record(downtime.as_secs_f64());
            metrics::counter!(telemetry::BYTES_SENT, "kind" => "memory").increment(summary.memory_bytes_sent);
            metrics::counter!(telemetry::BYTES_SENT, "kind" => "files").increment(summary.file_bytes_sent);
            metrics::counter!(telemetry::BYTES_SENT, "kind" => "images").increment(summary.image_bytes_sent);
            for round in &summary.rounds {
                for (kind, pages) in [
                    ("zero", round.pages_zero),
                    ("known", round.pages_known),
                    ("compressed", round.pages_compressed),
                    ("raw", round.pages_raw),
                ] {
                    metrics::counter!(telemetry::PAGES, "kind" => kind).increment(pages);
                }
            }
        }
        let entry = HistoryEntry {
            migration_id: progress.migration().to_string(),
            container: request.container.to_string(),
            source: self.host.id.to_string(),
            destination: request.to.to_string(),
            role: "source".to_owned(),
            outcome: word.to_owned(),
            started_unix_ms: started,
            finished_unix_ms: migration::unix_ms(),
            summary: summary.clone(),
            failure: failure.clone(),
        };
        if let Err(error) = self.host.journal.add_history(&entry).await {
            tracing::error!(error = migration::chain(&error), "a migration is missing from the history");
        }
        match (summary, failure) {
            (Some(summary), _) => progress.emit(Body::Completed(summary)),
            (None, Some(failure)) => {
                tracing::warn!(container = %request.container, message = failure.message, state = failure.state_now, "migration failed");
                progress.emit(Body::Failed(failure));
            }
            (None, None) => {}
        }
    }

    /// Asks every departure to stop, and waits until all have come to an end.
    async fn stop(&self) {
        for (_, cancel) in self.registry.departures("") {
            cancel.cancel("the agent is stopping");
        }
        self.host.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::error!("a migration did not end in time; the journal has it, the next start settles it");
        }
    }
}
