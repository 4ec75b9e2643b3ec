//! The freeze: CRIU dumps, the last changes cross, the destination restores and votes, the decision is written and sent.
//!
//! ```text
//! runc checkpoint ─▶ pre-dump (t0) ─▶ pages through our page server ─▶ post-dump = HOLD, tasks stopped
//!   in the hold: last pages ∥ last files ∥ images ─▶ layouts ─▶ RestoreRequest ─▶ Ready
//!   then: freezer on, host ends down, journal Committing, Commit ─▶ decision
//! ```
//! Up to the journal's Committing every failure ends in: hook refused, CRIU resumes the tasks, network up, freezer off.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::scratch::{Scratch, Setup};
use super::super::{MigrationError, progress::unix_us, restore_within};
use super::hiding::Hiding;
use super::precopy::for_operator;
use super::{Decision, Source};
use crate::criu::{HidePlan, Lock, PageEvent, PageServer, PageServerError, TcpPolicy, diagnose};
use crate::hook::{Action, HookCall, HookWaiter, Verdict};
use crate::journal::Stage;
use crate::network;
use crate::rpc::v1::{
    Commit, DowntimePart, Phase, Prewarm, Ready, RestoreRequest, RoundStats, Summary, control_frame::Body,
    event::Body as EventBody,
};
use crate::runtime::{Checkpoint, RuntimeRun};

/// From starting the runtime to the hold.
const DUMP_WITHIN: Duration = Duration::from_secs(600);
/// The destination's own deadline comes first, and its answer says more than ours would.
const ANSWER_LATER: Duration = Duration::from_secs(10);
const FREEZE_WITHIN: Duration = Duration::from_secs(10);
/// How long CRIU may take to give up and resume the tasks.
const RESUME_WITHIN: Duration = Duration::from_secs(60);
/// Chunks of CRIU's pages that may wait (256 pages each).
const PAGE_QUEUE: usize = 16;

/// A dump under way or held.
pub(super) struct Dump {
    run: RuntimeRun,
    waiter: HookWaiter,
    server: JoinHandle<Result<(), PageServerError>>,
    records: mpsc::Receiver<PageEvent>,
    pub(super) scratch: Scratch,
    /// Set once CRIU holds.
    pub(super) hold: Option<HookCall>,
    pub(super) frozen_at: Option<(Instant, u64)>,
    hiding: Hiding,
}

impl Dump {
    /// Waits for the runtime's end, whatever it says.
    pub(super) async fn wait_end(&mut self) {
        if let Err(error) = self.run.wait().await {
            tracing::debug!(%error, "the runtime's last words after the release");
        }
    }
}

/// When what happened, for the waterfall.
pub(super) struct Times {
    pub(super) frozen_us: u64,
    pub(super) parts: Vec<DowntimePart>,
    mark: Instant,
}

impl Times {
    /// The time since the last mark, as one slice.
    pub(super) fn slice(&mut self, name: &str, host: &str) {
        let now = Instant::now();
        self.push(name, host, now - self.mark);
        self.mark = now;
    }

    fn push(&mut self, name: &str, host: &str, duration: Duration) {
        let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.parts.push(DowntimePart { name: name.to_owned(), duration_us, host: host.to_owned() });
    }
}

impl Source {
    /// Freezes, moves the rest, and lets the destination decide.
    pub(super) async fn cut_over(&mut self) -> Result<Summary, MigrationError> {
        self.say_prewarm().await?;
        let mut dump = self.start_dump().await?;
        let before_commit = async {
            let times = self.reach_hold(&mut dump).await?;
            self.hand_over(&mut dump, times).await
        };
        match before_commit.await {
            Ok((times, final_round)) => self.commit(dump, times, final_round).await,
            Err(error) => {
                self.progress.enter(Phase::RollingBack);
                self.roll_back(dump, &error).await;
                Err(error)
            }
        }
    }

    /// The destination starts the runtime and CRIU meanwhile; it needs no answer.
    async fn say_prewarm(&mut self) -> Result<(), MigrationError> {
        let descriptors = self.inspection.container.descriptors.clone();
        let prewarm = Body::Prewarm(Prewarm { epoch: self.record.epoch.0, descriptors });
        let guard = self.guard.clone();
        guard.run("announcing the cut-over", self.session.send(prewarm)).await
    }

    async fn start_dump(&self) -> Result<Dump, MigrationError> {
        let scratch = Scratch::create(&self.host.run_dir, &self.record.migration)?;
        let server = PageServer::bind().await?;
        let waiter = self.host.hooks.register();
        let tcp = self.request.tcp;
        let lock = if self.host.network_lock_nftables() { Lock::Nftables } else { Lock::Usual };
        let mut environment = scratch.criu_environment(&Setup {
            program: &self.host.program,
            tcp,
            lock,
            hook_socket: self.host.hooks.path(),
            token: waiter.token(),
        })?;
        // Nothing is hidden yet: the plan is written at `pre-dump`, and read by the dump. Without one the object still sees to it
        // that CRIU does not wait for the freezer longer than the freezer takes.
        let hide = HidePlan::default().write(scratch.root());
        environment.extend(hide.map_err(MigrationError::io("write a plan into", scratch.root()))?);
        let (sink, records) = mpsc::channel(PAGE_QUEUE);
        let run = self.host.runc.checkpoint(&Checkpoint {
            id: &self.request.container,
            images: &scratch.images(),
            work: &scratch.work(),
            page_server: server.address(),
            tcp_established: tcp == TcpPolicy::Keep,
            environment: &environment,
        })?;
        let server = tokio::spawn(server.serve(sink));
        Ok(Dump {
            run,
            waiter,
            server,
            records,
            scratch,
            hold: None,
            frozen_at: None,
            hiding: Hiding::default(),
        })
    }

    /// Until CRIU stands at `post-dump` and all its pages are taken.
    async fn reach_hold(&mut self, dump: &mut Dump) -> Result<Times, MigrationError> {
        let guard = self.guard.clone();
        guard.within("the dump", DUMP_WITHIN, self.take_dump(dump)).await?;
        let (frozen, frozen_us) = dump.frozen_at.unwrap_or_else(|| (Instant::now(), unix_us()));
        let mut times = Times { frozen_us, parts: Vec::new(), mark: frozen };
        times.slice("dump", self.host.id.as_str());
        Ok(times)
    }

    async fn take_dump(&mut self, dump: &mut Dump) -> Result<(), MigrationError> {
        let mut pages_open = true;
        while dump.hold.is_none() || pages_open {
            tokio::select! {
                record = dump.records.recv(), if pages_open => match record {
                    Some(PageEvent::Object(object)) => self.plane.final_object(object).await?,
                    Some(PageEvent::Pages(pages)) => {
                        self.plane.final_pages(pages.object, pages.first, pages.flags, pages.data).await?;
                    }
                    None => pages_open = false,
                },
                call = dump.waiter.next() => {
                    let call = call?;
                    match call.action {
                        Action::PreDump => {
                            dump.hiding = self.before_freeze(dump.scratch.root()).await?;
                            dump.frozen_at = Some((Instant::now(), unix_us()));
                            call.answer(Verdict::Proceed)?;
                        }
                        Action::PostDump => dump.hold = Some(call),
                        _ => call.answer(Verdict::Proceed)?,
                    }
                }
                done = dump.run.wait() => return Err(dump_failed(done, dump)),
            }
        }
        match (&mut dump.server).await {
            Ok(served) => served.map_err(Into::into),
            Err(_) => Err(MigrationError::Stopping),
        }
    }

    /// In the hold: everything that is left crosses, the destination restores and votes.
    async fn hand_over(
        &mut self,
        dump: &mut Dump,
        mut times: Times,
    ) -> Result<(Times, RoundStats), MigrationError> {
        let here = self.host.id.to_string();
        let there = self.request.to.to_string();
        let guard = self.guard.clone();
        let folder = dump.scratch.root().to_owned();
        guard.run("reading the last pages", self.take_hidden(&mut dump.hiding, &folder)).await?;
        let (layouts, final_round) = guard.run("sending the last pages", self.plane.finish_final()).await?;
        let final_round = for_operator(0, &final_round);
        self.count(&layouts, final_round.pages_missed);
        times.slice("last pages", &here);
        let last_round = self.file_rounds.last().map_or(1, |stats| stats.round + 1);
        self.file_round(last_round, true).await?;
        times.slice("files", &here);
        let images = dump.scratch.images();
        let sent = guard.run("sending CRIU's images", self.send_images(&images)).await?;
        self.image_bytes = sent.bytes;
        let objects = u32::try_from(layouts.len()).unwrap_or(u32::MAX);
        for layout in layouts {
            guard.run("sending a layout", self.send_layout(layout)).await?;
        }
        times.slice("images", &here);
        let ask = RestoreRequest { epoch: self.record.epoch.0, objects, image_files: sent.files };
        guard.run("asking for the restore", self.session.send(Body::Restore(ask))).await?;
        let within = restore_within(self.inspection.memory_bytes) + ANSWER_LATER;
        let doubt = self.doubt(&dump.hiding);
        let ready = guard.within("the restore", within, self.wait_ready(dump)).await?;
        self.settle_doubt(doubt).await?;
        restore_slices(&mut times, &ready, &there);
        self.pages_verified = ready.pages_verified;
        if ready.epoch != self.record.epoch.0 {
            return Err(MigrationError::Protocol {
                host: there,
                what: format!("voted for epoch {}", ready.epoch),
            });
        }
        self.progress.emit(EventBody::MemoryRound(final_round));
        // From here a dying CRIU must not resume the tasks behind our back.
        guard
            .within(
                "freezing the container",
                FREEZE_WITHIN,
                self.inspection.container.freezer.freeze(FREEZE_WITHIN),
            )
            .await?;
        if let Some(capture) = &self.inspection.capture {
            guard.within("taking the network down", FREEZE_WITHIN, network::isolate(capture)).await?;
        }
        Ok((times, final_round))
    }

    /// The vote, unless CRIU dies here first.
    async fn wait_ready(&mut self, dump: &mut Dump) -> Result<Ready, MigrationError> {
        let hold = dump.hold.as_mut().ok_or(crate::hook::HookError::Never)?;
        let ready = self.session.expect("Ready", |body| match body {
            Body::Ready(ready) => Some(ready),
            _ => None,
        });
        tokio::select! {
            ready = ready => ready,
            () = hold.gone() => Err(MigrationError::Criu {
                doing: "the dump",
                message: "CRIU ended while it was held".to_owned(),
                log_lines: diagnose(&dump.scratch.work().join("dump.log")).lines,
                remedy: None,
            }),
        }
    }

    async fn commit(
        &mut self,
        mut dump: Dump,
        mut times: Times,
        final_round: RoundStats,
    ) -> Result<Summary, MigrationError> {
        self.record.stage = Stage::Committing;
        if let Err(error) = self.host.journal.put(&self.record).await {
            // Not written, so not decided: the container stays ours.
            self.progress.enter(Phase::RollingBack);
            let error = error.into();
            self.roll_back(dump, &error).await;
            return Err(error);
        }
        self.progress.enter(Phase::Committing);
        let commit = Body::Commit(Commit { epoch: self.record.epoch.0 });
        // A failure to send proves nothing about what arrived: the answer decides, and only the answer.
        let sent = self.session.send(commit).await;
        times.slice("commit", self.host.id.as_str());
        match self.decide(sent).await {
            Decision::Runs(running) => self.release(dump, times, final_round, &running).await,
            Decision::Refused(why) => {
                self.progress.enter(Phase::RollingBack);
                self.record.stage = Stage::Preparing;
                let error = MigrationError::Peer {
                    host: self.request.to.to_string(),
                    message: why,
                    log_lines: Vec::new(),
                    reasons: Vec::new(),
                };
                self.roll_back(dump, &error).await;
                Err(error)
            }
            Decision::Unknown(why) => {
                // The agent is stopping. The hook's process fails with us, and the freezer keeps the tasks where they are.
                drop(dump.hold.take());
                Err(MigrationError::Cancelled {
                    why: format!("in doubt, to be resolved at the next start: {why}"),
                })
            }
        }
    }

    /// The container goes on here as if nothing had happened. The one place that thaws it.
    async fn roll_back(&mut self, mut dump: Dump, error: &MigrationError) {
        let container = &self.inspection.container;
        if let Some(capture) = &self.inspection.capture
            && let Err(error) = network::rejoin(capture).await
        {
            tracing::error!(container = %container.id, %error, "the container's network could not be brought up again");
        }
        // CRIU still holds every task in a ptrace stop, so nothing runs before it has put sockets and rules back.
        if let Err(error) = container.freezer.thaw(FREEZE_WITHIN).await {
            tracing::error!(container = %container.id, %error, "the container could not be thawed");
        }
        dump.server.abort();
        dump.records.close();
        let why = super::super::error::chain(error);
        if let Some(hold) = dump.hold.take()
            && let Err(error) = hold.answer(Verdict::Refuse(why))
        {
            tracing::warn!(container = %container.id, %error, "CRIU was gone before the roll-back");
        }
        let refuse_late_hooks = async {
            while let Ok(call) = dump.waiter.next().await {
                let verdict = match call.action {
                    Action::PostDump | Action::PreDump => {
                        Verdict::Refuse("the migration was stopped".to_owned())
                    }
                    _ => Verdict::Proceed,
                };
                if call.answer(verdict).is_err() {
                    tracing::debug!("a late hook went away");
                }
            }
        };
        tokio::select! {
            _failed_as_asked = dump.run.wait() => {}
            () = refuse_late_hooks => {}
            () = tokio::time::sleep(RESUME_WITHIN) => {
                tracing::error!(container = %container.id, "CRIU did not give up in time and is killed");
                dump.run.kill().await;
            }
        }
    }
}

fn dump_failed(done: Result<(), crate::runtime::RuntimeError>, dump: &Dump) -> MigrationError {
    let diagnosis = diagnose(&dump.scratch.work().join("dump.log"));
    let last_words = match done {
        Ok(()) => "the runtime ended before the hold".to_owned(),
        Err(error) => super::super::error::chain(&error),
    };
    MigrationError::Criu {
        doing: "the dump",
        message: diagnosis.cause.map_or(last_words, str::to_owned),
        log_lines: diagnosis.lines,
        remedy: diagnosis.remedy,
    }
}

/// What the destination measured itself, and the rest as the way there and back.
fn restore_slices(times: &mut Times, ready: &Ready, there: &str) {
    let whole = times.mark.elapsed();
    times.mark = Instant::now();
    let mut known = Duration::ZERO;
    for timing in &ready.timings {
        let duration = Duration::from_micros(timing.duration_us);
        known += duration;
        times.push(&timing.name, there, duration);
    }
    times.push("way there and back", "both", whole.saturating_sub(known));
}
