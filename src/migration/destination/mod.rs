//! The destination's side, told start to end.
//!
//! ```text
//! Offer ─▶ preflight ─▶ Accepted ─▶ receiving files, pages, images (Prewarm: CRIU started) ─▶ assembling ─▶ restored, held ─▶ Ready
//!     any of these ─ error | abort | link lost ─▶ CleaningUp ─▶ Fenced (nothing is left, this epoch never runs here)
//! Ready ─ Commit ─▶ Committed (fsynced: the decision) ─▶ hold released, network up ─▶ Running ─▶ told the source
//!     Committed ─ CRIU fails before any task ran ─▶ CleaningUp ─▶ Fenced (told the source, which goes on)
//! ```
//! Nothing that the peer says chooses a host path; every byte is checked against a digest before a task may see it.

mod images;
mod preflight;
mod receive;
mod restore;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::home::Home;
use super::progress::{unix_ms, unix_us};
use super::registry::Registry;
use super::session::Session;
use super::{Host, MigrationError, Pagers, Turn};
use crate::journal::{Record, Stage};
use crate::model::{ContainerId, Epoch, MigrationId, limits};
use crate::pager::PagerState;
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::quic::{Link, Stream};
use crate::rpc::v1::{
    Accept, HistoryEntry, Offer, Pong, Query, QueryAnswer, Refuse, Refused, Resident, StreamHello,
    control_frame::Body, query_answer, stream_hello::Role,
};
use crate::telemetry;
use receive::Incoming;

pub use restore::settle_committed;

/// A new connection says what it wants within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A source that says nothing and sends nothing for this long has given up; QUIC notices a dead one much earlier.
const IDLE: Duration = Duration::from_secs(3600);
/// How long the conversation goes on after the resume: until all memory is here and the original is gone.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(120);

/// Serves one connection from an allowed peer, from its first stream to the end.
pub async fn serve(host: Arc<Host>, registry: Arc<Registry>, link: Link) {
    let peer = link.peer().clone();
    let first = async {
        let mut stream = link.accept_bi().await?;
        let hello: StreamHello = read_message(&mut stream).await?;
        Ok::<_, MigrationError>((stream, hello))
    };
    let (stream, hello) = match tokio::time::timeout(HELLO_WITHIN, first).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => {
            tracing::debug!(%peer, error = super::error::chain(&error), "a connection ended before it said anything");
            return;
        }
        Err(_) => return link.close(crate::quic::close::PROTOCOL, "no hello"),
    };
    let served = match hello.role() {
        Role::Control => converse(host, registry, &link, stream).await,
        Role::Query => answer_query(&host, &registry, stream, &link).await,
        _ => Err(MigrationError::Protocol {
            host: peer.to_string(),
            what: "began with a data stream".to_owned(),
        }),
    };
    if let Err(error) = served {
        tracing::warn!(%peer, error = super::error::chain(&error), "a migration towards this host failed");
    }
}

async fn converse(
    host: Arc<Host>,
    registry: Arc<Registry>,
    link: &Link,
    stream: Stream,
) -> Result<(), MigrationError> {
    let mut session = Session::new(link.peer().clone(), stream);
    let offer = session.expect("Offer", |body| match body {
        Body::Offer(offer) => Some(*Box::new(offer)),
        _ => None,
    });
    let offer = tokio::time::timeout(HELLO_WITHIN, offer)
        .await
        .map_err(|_| MigrationError::Deadline { what: "waiting for the offer", after: HELLO_WITHIN })??;
    let (container, migration) = match (
        ContainerId::try_from(offer.container.as_str()),
        MigrationId::try_from(offer.migration_id.as_str()),
    ) {
        (Ok(container), Ok(migration)) => (container, migration),
        (Err(bad), _) | (_, Err(bad)) => {
            return Err(MigrationError::Protocol { host: link.peer().to_string(), what: bad.to_string() });
        }
    };
    let reserved = registry.reserve_arrival(&container, host.settings.max_concurrent);
    let checked = preflight::check(&host, &offer, &container, reserved.as_ref().err()).await;
    let (plan, reservation) = match (checked, reserved) {
        (Ok(plan), Ok(reservation)) => (plan, reservation),
        (Err(reasons), _) => return refuse(session, reasons).await,
        (Ok(_), Err(reason)) => return refuse(session, vec![reason]).await,
    };
    let record = Record {
        migration,
        container,
        peer: link.peer().clone(),
        peer_address: None,
        epoch: Epoch(offer.epoch),
        stage: Stage::Accepted,
        freezer: None,
        init: None,
        host_ends: Vec::new(),
        started_unix_ms: unix_ms(),
        resumed_us: 0,
    };
    // An id that is known here belongs to an earlier attempt, or to a migration of our own.
    if host.journal.get(&record.migration)?.is_some() {
        return Err(MigrationError::Protocol {
            host: link.peer().to_string(),
            what: format!("offered migration {} again", record.migration),
        });
    }
    host.journal.put(&record).await?;
    let outcome = Arrival { host: Arc::clone(&host), session, record, offer, plan }.run(link).await;
    drop(reservation);
    outcome
}

async fn refuse(mut session: Session, reasons: Vec<crate::rpc::v1::Reason>) -> Result<(), MigrationError> {
    session.send(Body::Refuse(Refuse { reasons })).await?;
    let _peer_closes_when_it_has_read = tokio::time::timeout(Duration::from_secs(5), session.drained()).await;
    Ok(())
}

/// One container on its way in.
struct Arrival {
    host: Arc<Host>,
    session: Session,
    record: Record,
    offer: Offer,
    plan: preflight::Plan,
}

impl Arrival {
    async fn run(mut self, link: &Link) -> Result<(), MigrationError> {
        let started_unix_ms = unix_ms();
        let mut arriving = None;
        let result = self.arrive(link, &mut arriving).await;
        let error = match result {
            Ok(()) => return self.remember(started_unix_ms, "completed", None).await,
            Err(error) => error,
        };
        if let Some(arriving) = arriving {
            restore::clean_up(&self.host, &self.record, arriving).await;
        } else {
            restore::clean_home(&self.host, &self.record.container).await;
        }
        self.record.stage = Stage::Fenced;
        self.host.journal.put(&self.record).await?;
        let (log_lines, reasons) = match &error {
            MigrationError::Criu { log_lines, .. } => (log_lines.clone(), Vec::new()),
            MigrationError::Refused { reasons, .. } => (Vec::new(), reasons.clone()),
            _ => (Vec::new(), Vec::new()),
        };
        let message = super::error::chain(&error);
        let refused = Refused { epoch: self.record.epoch.0, message: message.clone(), log_lines, reasons };
        if self.session.send(Body::Refused(refused)).await.is_ok() {
            let _peer_closes = tokio::time::timeout(Duration::from_secs(5), self.session.drained()).await;
        }
        self.remember(started_unix_ms, "aborted", Some(message)).await?;
        Err(error)
    }

    async fn arrive(
        &mut self,
        link: &Link,
        arriving: &mut Option<restore::Arriving>,
    ) -> Result<(), MigrationError> {
        let arriving =
            arriving.insert(restore::prepare(&self.host, &mut self.record, &self.offer, &self.plan).await?);
        self.session.send(Body::Accept(self.accept())).await?;
        let copying = self.host.courtesy.copying();
        let budget = self.plan.memory_budget;
        let mut incoming = Incoming::start(link, &self.host, &self.record, arriving, budget, &self.plan);
        let (request, frozen) = self.receive(&mut incoming, arriving).await?;
        drop(copying);
        let layouts = incoming.complete(&request).await?;
        let ready = tokio::select! {
            ready = arriving.restore(&self.host, &self.record, &self.plan, &incoming, layouts) => ready?,
            // A restore may take long, or for ever: who cancels, or is gone, is not kept waiting for it.
            stopped = self.session.next() => return Err(stopped.err().unwrap_or_else(|| MigrationError::Protocol {
                host: self.session.peer().to_string(),
                what: "sent a frame that does not belong into the restore".to_owned(),
            })),
        };
        self.session.send(Body::Ready(ready)).await?;
        self.wait_commit(arriving).await?;
        let running = arriving.commit(&self.host, &mut self.record).await?;
        drop(frozen);
        // What the container had on the disk there is on the disk here before the source forgets it.
        incoming.sync().await;
        // The source asks if this does not arrive: the record says Running.
        if let Err(error) = self.session.send(Body::Running(running)).await {
            tracing::warn!(migration = %self.record.migration, error = super::error::chain(&error), "the source will have to ask");
        }
        let pager = arriving.take_pager();
        let filling = pager.map(|pager| Pagers::follow(&self.host, &self.record.container, pager));
        arriving.settle(&self.host, &self.record).await;
        self.wait_released(filling).await;
        Ok(())
    }

    fn accept(&self) -> Accept {
        Accept {
            epoch: self.record.epoch.0,
            protocol_version: crate::protocol::VERSIONS[0],
            host: Some(self.host.facts.clone()),
            streams: self.offer.streams.clamp(1, limits::STREAMS_MAX),
            retained_pages: self.host.retained.pages(),
        }
    }

    /// Control frames and data streams until the source asks for the restore.
    async fn receive(
        &mut self,
        incoming: &mut Incoming,
        arriving: &mut restore::Arriving,
    ) -> Result<(crate::rpc::v1::RestoreRequest, Turn), MigrationError> {
        let mut frozen = None;
        loop {
            let body = tokio::select! {
                body = self.session.next() => body?,
                error = incoming.failed() => return Err(error),
                () = tokio::time::sleep_until(Instant::now() + IDLE) => {
                    return Err(MigrationError::Deadline { what: "waiting for the source", after: IDLE });
                }
            };
            match body {
                Body::Ping(ping) => {
                    let pong = Pong { sent_us: ping.sent_us, peer_us: unix_us() };
                    self.session.send(Body::Pong(pong)).await?;
                }
                Body::Layout(part) => incoming.layout(part)?,
                Body::Prewarm(with) if with.epoch == self.record.epoch.0 => {
                    frozen = Some(self.host.courtesy.frozen());
                    arriving.prewarm(&self.host, &self.record, &self.plan, &with)?;
                }
                Body::Restore(request) if request.epoch == self.record.epoch.0 => {
                    return Ok((request, frozen.unwrap_or_else(|| self.host.courtesy.frozen())));
                }
                _ => {
                    return Err(MigrationError::Protocol {
                        host: self.session.peer().to_string(),
                        what: "sent a frame that does not belong before the restore".to_owned(),
                    });
                }
            }
        }
    }

    /// The container is restored and held. Only a Commit of this epoch lets it run.
    async fn wait_commit(&mut self, arriving: &mut restore::Arriving) -> Result<(), MigrationError> {
        let epoch = self.record.epoch.0;
        let commit = self.session.expect("Commit", |body| match body {
            Body::Commit(commit) if commit.epoch == epoch => Some(()),
            _ => None,
        });
        tokio::select! {
            commit = commit => commit,
            error = arriving.died() => Err(error),
        }
    }

    /// Tells the source when all memory is here, and hears from it that the original is gone; in any order, and neither decides
    /// anything.
    async fn wait_released(&mut self, filling: Option<watch::Receiver<PagerState>>) {
        let epoch = self.record.epoch.0;
        let (mut filling, mut released, mut told) = (filling, false, false);
        let until = Instant::now() + LAST_WORDS_WITHIN;
        while filling.is_some() || !released {
            tokio::select! {
                body = self.session.next() => match body {
                    Ok(Body::Released(word)) if word.epoch == epoch => {
                        released = true;
                        if let Err(error) = self.host.journal.remove(&self.record.migration).await {
                            tracing::error!(%error, "a finished migration stays in the journal");
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                },
                resident_after_us = resident(&mut filling), if filling.is_some() => {
                    filling = None;
                    if let Some(resident_after_us) = resident_after_us {
                        let word = Body::Resident(Resident { epoch, resident_after_us });
                        if self.session.send(word).await.is_err() {
                            return;
                        }
                        told = true;
                    }
                }
                () = tokio::time::sleep_until(until) => return,
            }
        }
        if told {
            // The word must be out before the connection goes: the source closes it when it has it.
            let _closed_or_late = tokio::time::timeout(Duration::from_secs(5), self.session.drained()).await;
        }
    }

    async fn remember(
        &self,
        started_unix_ms: u64,
        outcome: &'static str,
        failure: Option<String>,
    ) -> Result<(), MigrationError> {
        metrics::counter!(telemetry::MIGRATIONS, "role" => "destination", "outcome" => outcome).increment(1);
        let entry = HistoryEntry {
            migration_id: self.record.migration.to_string(),
            container: self.record.container.to_string(),
            source: self.record.peer.to_string(),
            destination: self.host.id.to_string(),
            role: "destination".to_owned(),
            outcome: outcome.to_owned(),
            started_unix_ms,
            finished_unix_ms: unix_ms(),
            summary: None,
            failure: failure.map(|message| crate::rpc::v1::Failure {
                host: self.host.id.to_string(),
                message,
                state_now: format!("{} was never here; it is at {}", self.record.container, self.record.peer),
                ..Default::default()
            }),
        };
        Ok(self.host.journal.add_history(&entry).await?)
    }
}

/// Microseconds from the resume to the last page; `None` when it did not come to that.
async fn resident(filling: &mut Option<watch::Receiver<PagerState>>) -> Option<u64> {
    let last = filling.as_mut()?.wait_for(PagerState::is_final).await.ok()?.clone();
    match last {
        // At least one: 0 means that nobody knows.
        PagerState::Resident { after_ms } => Some((after_ms * 1000).max(1)),
        _ => None,
    }
}

/// A source asks about a migration in doubt. An epoch that is not decided is fenced by the very question: it never runs here.
async fn answer_query(
    host: &Arc<Host>,
    registry: &Registry,
    mut stream: Stream,
    link: &Link,
) -> Result<(), MigrationError> {
    let query: Query = tokio::time::timeout(HELLO_WITHIN, read_message(&mut stream))
        .await
        .map_err(|_| MigrationError::Deadline { what: "waiting for the question", after: HELLO_WITHIN })??;
    let bad = |what: String| MigrationError::Protocol { host: link.peer().to_string(), what };
    let migration =
        MigrationId::try_from(query.migration_id.as_str()).map_err(|error| bad(error.to_string()))?;
    let known = host.journal.get(&migration)?;
    if let Some(record) = &known
        && record.peer != *link.peer()
    {
        return Err(bad(format!("asks about a migration of {}", record.peer)));
    }
    let (state, resumed_us, message) = match known {
        Some(record) if record.stage == Stage::Running => {
            (query_answer::State::Running, record.resumed_us, String::new())
        }
        Some(record) if record.stage == Stage::Committed => {
            (query_answer::State::Committed, 0, "committed, not running yet".to_owned())
        }
        // Still being received by a live conversation: that one ends by itself when its link does, and then fences.
        Some(record) if record.stage == Stage::Accepted && registry.arriving(&record.container) => {
            (query_answer::State::Committed, 0, "still at work here".to_owned())
        }
        Some(record) if record.stage == Stage::Fenced => {
            (query_answer::State::Refused, 0, "this epoch was refused here".to_owned())
        }
        Some(record) if matches!(record.stage, Stage::Preparing | Stage::Committing) => {
            return Err(bad(format!("asks about {migration}, which leaves this host")));
        }
        other => {
            fence(host, &migration, &query, link, other).await?;
            (query_answer::State::Refused, 0, "this epoch was never committed here".to_owned())
        }
    };
    let answer = QueryAnswer { state: state.into(), resumed_us, message };
    write_message(&mut stream, &answer).await?;
    stream.flush().await.map_err(FrameError::Io)?;
    stream.finish().await?;
    Ok(())
}

async fn fence(
    host: &Host,
    migration: &MigrationId,
    query: &Query,
    link: &Link,
    known: Option<Record>,
) -> Result<(), MigrationError> {
    let unknown = || -> Result<Record, MigrationError> {
        Ok(Record {
            migration: migration.clone(),
            container: "unknown".try_into().map_err(|error: crate::model::id::BadName| {
                MigrationError::Protocol { host: link.peer().to_string(), what: error.to_string() }
            })?,
            peer: link.peer().clone(),
            peer_address: None,
            epoch: Epoch(query.epoch),
            stage: Stage::Fenced,
            freezer: None,
            init: None,
            host_ends: Vec::new(),
            started_unix_ms: unix_ms(),
            resumed_us: 0,
        })
    };
    let mut record = match known {
        Some(record) => record,
        None => unknown()?,
    };
    record.stage = Stage::Fenced;
    Ok(host.journal.put(&record).await?)
}

/// What an agent that stopped half-way left of an arrival that was never committed.
pub async fn forget_arrival(host: &Host, record: &Record) -> Result<(), MigrationError> {
    restore::clean_home(host, &record.container).await;
    let mut record = record.clone();
    record.stage = Stage::Fenced;
    Ok(host.journal.put(&record).await?)
}

/// The home of an arriving container.
fn home(host: &Host, container: &ContainerId) -> Home {
    Home::of(&host.state_dir, container)
}
