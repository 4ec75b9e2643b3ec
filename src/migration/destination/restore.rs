//! From bytes to a container: its home, network and images made ready, CRIU's restore up to the hold, the decision, the
//! release. And the reverse: everything of an arrival that must not stay, removed.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::home::{Arrived, Home};
use super::super::host::MemoryPromise;
use super::super::request::Mode;
use super::super::scratch::Scratch;
use super::super::{Host, MigrationError, pagers, progress::unix_us, restore_within};
use super::preflight::Plan;
use super::receive::Incoming;
use super::warm::Warm;
use crate::criu::diagnose;
use crate::hook::{Action, HookCall, HookWaiter, Verdict};
use crate::images::timerfd;
use crate::journal::{Record, Stage};
use crate::model::layout::ObjectLayout;
use crate::model::{ContainerId, LAZY_PAGES};
use crate::network::{self, Prepared};
use crate::pager::{LazyObject, PagerError, PagerHandle};
use crate::rpc::v1::{Offer, Ready, Running, Timing};
use crate::runtime::{Container, RuntimeRun, forget_half_made};
use crate::store::assemble::{AssembleStats, assemble};
use crate::store::{LazyPages, PageStore, StoreError};

const DELETE_WITHIN: Duration = Duration::from_secs(30);
/// How long CRIU may take to destroy what it restored when it is told to stop; it takes milliseconds unless it hangs.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(10);

/// What an arrival has made on this host so far.
pub(super) struct Arriving {
    pub(super) home: Home,
    pub(super) scratch: Scratch,
    pub(super) network: Option<Prepared>,
    pub(super) pager: Option<PagerHandle>,
    pub(super) restoring: Option<Restoring>,
    /// The restore waits for its images.
    pub(super) warm: Option<Warm>,
    /// Bound of the restore.
    pub(super) within: Duration,
    _memory: MemoryPromise,
}

pub(super) struct Restoring {
    pub(super) run: RuntimeRun,
    pub(super) waiter: HookWaiter,
    pub(super) hold: Option<HookCall>,
}

/// Periodic timers that expired in the freeze are armed again, see [`timerfd`].
fn rearm_timers(images: &Path) -> Result<(), MigrationError> {
    let path = images.join("files.img");
    let image = std::fs::read(&path).map_err(MigrationError::io("read", &path))?;
    let bad = |error| MigrationError::io("understand", &path)(std::io::Error::other(error));
    if let Some((changed, armed)) = timerfd::rearm(&image).map_err(bad)? {
        std::fs::write(&path, changed).map_err(MigrationError::io("write", &path))?;
        tracing::info!(armed, "periodic timers that expired in the freeze go on");
    }
    Ok(())
}

/// Sets a flag when it goes: the assembling threads look at it.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes the images, and says what is in none of them.
async fn assemble_off_thread(
    store: Arc<PageStore>,
    layouts: Vec<ObjectLayout>,
    folder: PathBuf,
) -> Result<(AssembleStats, Vec<LazyPages>), MigrationError> {
    let stop = Arc::new(AtomicBool::new(false));
    let _stop_when_left = StopOnDrop(Arc::clone(&stop));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = move || {
        let stats = assemble(&store, &layouts, &folder, 1, threads, &stop)?;
        Ok((stats, store.lazy(&layouts)))
    };
    let done: Result<_, StoreError> =
        tokio::task::spawn_blocking(work).await.map_err(|_| MigrationError::Stopping)?;
    Ok(done?)
}

/// Can pages be installed here after a container runs?
fn lazy_here(host: &Host) -> bool {
    host.facts.capabilities.iter().any(|word| word == LAZY_PAGES)
}

fn lazy_object(pages: LazyPages) -> std::io::Result<LazyObject> {
    Ok(LazyObject {
        vpid: pages.vpid,
        mappings: pages.mappings,
        content: pages.content,
        file: pages.pages.as_fd().try_clone_to_owned()?,
        digests: pages.digests.as_fd().try_clone_to_owned()?,
    })
}

fn timing(name: &str, since: Instant) -> Timing {
    let duration_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    Timing { name: name.to_owned(), duration_us }
}

/// Makes home, network and scratch. What was made before a failure is removed by [`clean_home`].
pub(super) async fn prepare(
    host: &Arc<Host>,
    record: &mut Record,
    offer: &Offer,
    plan: &Plan,
) -> Result<Arriving, MigrationError> {
    let memory = host.promise_memory(offer.memory_bytes.saturating_mul(2));
    let home = super::home(host, &record.container);
    home.create()?;
    for mount in &plan.copied {
        let path = home.volume(mount.index);
        let made = if mount.is_directory { std::fs::create_dir(&path) } else { std::fs::write(&path, b"") };
        made.map_err(MigrationError::io("create", &path))?;
    }
    let scratch = Scratch::create(&host.run_dir, &record.migration)?;
    let network = match &plan.network {
        Some(descriptor) => Some(network::prepare(descriptor, host.settings.bridge.as_deref()).await?),
        None => None,
    };
    let pager = match lazy_here(host) && offer.mode == Mode::PreCopy.as_str() {
        true => Some(pagers::start(host, &record.container, &scratch.work()).await?),
        false => None,
    };
    record.host_ends = network.as_ref().map(Prepared::host_ends).unwrap_or_default();
    let arriving = Arriving {
        home,
        scratch,
        network,
        pager,
        restoring: None,
        warm: None,
        within: restore_within(offer.memory_bytes),
        _memory: memory,
    };
    match arriving.remember(host, record, plan).await {
        Ok(()) => Ok(arriving),
        Err(error) => {
            clean_up(host, record, arriving).await;
            Err(error)
        }
    }
}

impl Arriving {
    /// Where the root file system's tree is received.
    pub(super) fn root_tree(&self, plan: &Plan) -> PathBuf {
        if plan.overlay.is_some() { self.home.upper() } else { self.home.rootfs() }
    }

    /// Writes down what was made, so that it is found again after a crash, and gives the network its parameters.
    async fn remember(&self, host: &Host, record: &Record, plan: &Plan) -> Result<(), MigrationError> {
        self.home.write_arrived(&Arrived {
            from: record.peer.clone(),
            migration: record.migration.to_string(),
            network: self.network.as_ref().map(|prepared| prepared.name().to_owned()),
            host_ends: record.host_ends.clone(),
        })?;
        host.journal.put(record).await?;
        if let Some(network) = &self.network {
            network.set_sysctls(plan.bundle.sysctls()).await?;
        }
        Ok(())
    }

    /// Assembles the images and restores up to the hold.
    pub(super) async fn restore(
        &mut self,
        host: &Host,
        record: &Record,
        plan: &Plan,
        incoming: &Incoming,
        layouts: Vec<ObjectLayout>,
    ) -> Result<Ready, MigrationError> {
        let began = Instant::now();
        let store = Arc::clone(incoming.store());
        let (assembled, lazy) = assemble_off_thread(store, layouts, self.scratch.images()).await?;
        let mut timings = vec![timing("assemble", began)];
        let began = Instant::now();
        self.load_pager(lazy).await?;
        timings.push(timing("pager", began));
        let began = Instant::now();
        rearm_timers(&self.scratch.images())?;
        self.let_restore(host, record, plan).await?;
        let restoring = self.restoring.as_mut().ok_or(crate::hook::HookError::Never)?;
        let held =
            tokio::time::timeout(self.within, restoring.reach(Action::PostRestore, &self.scratch)).await;
        let call =
            held.map_err(|_| MigrationError::Deadline { what: "the restore", after: self.within })??;
        restoring.hold = Some(call);
        if let Some(pager) = &self.pager {
            // From here on a container whose memory cannot be completed is stopped.
            let container = Container::read(&host.runc.root, &record.container)?;
            pager.release_to_container(container.freezer.path(), container.init_pid).await?;
        }
        timings.push(timing("restore", began));
        Ok(Ready {
            epoch: record.epoch.0,
            timings,
            pages_verified: assembled.pages_verified + assembled.pages_lazy,
        })
    }

    /// Gives the pager what is in no image; it goes when there is nothing.
    async fn load_pager(&mut self, lazy: Vec<LazyPages>) -> Result<(), MigrationError> {
        let Some(pager) = &self.pager else {
            return match lazy.is_empty() {
                true => Ok(()),
                false => Err(MigrationError::Protocol {
                    host: "the source".to_owned(),
                    what: "left pages for later, which this host had not offered".to_owned(),
                }),
            };
        };
        // A restore that waits was started for a pager; it then only brings zeros.
        if lazy.is_empty() && self.warm.is_none() {
            pager.abort().await?;
            self.pager = None;
            return Ok(());
        }
        let objects: std::io::Result<Vec<LazyObject>> = lazy.into_iter().map(lazy_object).collect();
        let objects =
            objects.map_err(|source| PagerError::Io { doing: "hand the pages to the pager", source })?;
        Ok(pager.load(objects).await?)
    }

    /// The pager of the container that runs now.
    pub(super) fn take_pager(&mut self) -> Option<PagerHandle> {
        self.pager.take()
    }

    /// Returns when CRIU dies at the hold.
    pub(super) async fn died(&mut self) -> MigrationError {
        let Some(Restoring { hold: Some(hold), .. }) = &mut self.restoring else {
            return std::future::pending().await;
        };
        hold.gone().await;
        restore_error("CRIU ended while it was held".to_owned(), &self.scratch)
    }

    /// The decision, then the release. An error means that no task of the container ran.
    pub(super) async fn commit(
        &mut self,
        host: &Host,
        record: &mut Record,
    ) -> Result<Running, MigrationError> {
        let began = Instant::now();
        record.stage = Stage::Committed;
        host.journal.put(record).await?;
        let mut timings = vec![timing("decision", began)];
        let began = Instant::now();
        if let Some(network) = &self.network {
            network.up().await?;
        }
        timings.push(timing("network", began));
        let began = Instant::now();
        let restoring = self.restoring.as_mut().ok_or(crate::hook::HookError::Never)?;
        let hold = restoring.hold.take().ok_or(crate::hook::HookError::Never)?;
        hold.answer(Verdict::Proceed)?;
        let resumed =
            tokio::time::timeout(self.within, restoring.reach(Action::PostResume, &self.scratch)).await;
        let resumed =
            resumed.unwrap_or(Err(MigrationError::Deadline { what: "the resume", after: self.within }));
        let resumed_us = match resumed {
            Ok(call) => {
                let resumed_us = unix_us();
                if call.answer(Verdict::Proceed).is_err() {
                    tracing::warn!(container = %record.container, "CRIU was gone right after the resume");
                }
                resumed_us
            }
            // Without the hook's word only what is there counts.
            Err(_) if runs(host, record) => unix_us(),
            Err(error) => return Err(error),
        };
        timings.push(timing("resume", began));
        record.stage = Stage::Running;
        record.resumed_us = resumed_us;
        // It runs: nothing may undo that any more. "Committed" in the journal is settled by looking, at the next start.
        if let Err(error) = host.journal.put(record).await {
            tracing::error!(container = %record.container, %error, "the journal does not know that the container runs here");
        }
        Ok(Running { epoch: record.epoch.0, resumed_us, timings, notes: Vec::new() })
    }

    /// The container runs: tell the network, let the runtime end, forget seeds.
    pub(super) async fn settle(&mut self, host: &Host, record: &Record) {
        if let Some(network) = self.network.take()
            && let Err(error) = network.announce().await
        {
            tracing::warn!(container = %record.container, %error, "the network could not be told of the move");
        }
        if let Some(mut restoring) = self.restoring.take() {
            match tokio::time::timeout(DELETE_WITHIN, restoring.run.wait()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(container = %record.container, %error, "the runtime complained after the restore")
                }
                Err(_) => {
                    tracing::warn!(container = %record.container, "the runtime does not end after the restore")
                }
            }
        }
        if let Err(error) = self.home.forget_retained() {
            tracing::warn!(container = %record.container, %error, "old files of the container are left");
        }
        host.retained.remove(&record.container);
    }
}

impl Restoring {
    /// Lets CRIU pass every script point before the wanted one.
    async fn reach(&mut self, wanted: Action, scratch: &Scratch) -> Result<HookCall, MigrationError> {
        loop {
            tokio::select! {
                biased;
                call = self.waiter.next() => {
                    let call = call?;
                    if call.action == wanted {
                        return Ok(call);
                    }
                    call.answer(Verdict::Proceed)?;
                }
                done = self.run.wait() => {
                    let words = match done {
                        Ok(()) => "the runtime ended before the container was restored".to_owned(),
                        Err(error) => super::super::error::chain(&error),
                    };
                    return Err(restore_error(words, scratch));
                }
            }
        }
    }
}

fn restore_error(last_words: String, scratch: &Scratch) -> MigrationError {
    let diagnosis = diagnose(&scratch.work().join("restore.log"));
    MigrationError::Criu {
        doing: "the restore",
        message: diagnosis.cause.map_or(last_words, str::to_owned),
        log_lines: diagnosis.lines,
        remedy: diagnosis.remedy,
    }
}

fn runs(host: &Host, record: &Record) -> bool {
    Container::read(&host.runc.root, &record.container).is_ok_and(|container| container.init_alive())
}

/// Removes everything of an arrival that failed: CRIU first, then the runtime's record, network, mounts, files.
pub(super) async fn clean_up(host: &Host, record: &Record, mut arriving: Arriving) {
    // A CRIU that waits for images gives up now.
    drop(arriving.warm.take());
    if let Some(mut restoring) = arriving.restoring.take() {
        if let Some(hold) = restoring.hold.take()
            && hold.answer(Verdict::Refuse("the migration was stopped".to_owned())).is_err()
        {
            tracing::debug!("CRIU was gone before it was told to stop");
        }
        // A waiter that is gone refuses every later hook.
        drop(restoring.waiter);
        if tokio::time::timeout(GIVE_UP_WITHIN, restoring.run.wait()).await.is_err() {
            tracing::error!(container = %record.container, "the restore did not end and is killed");
            restoring.run.kill_all(&record.container).await;
        }
    }
    if let Some(pager) = arriving.pager.take()
        && let Err(error) = pager.abort().await
    {
        tracing::debug!(container = %record.container, %error, "the pager of a failed arrival ends by itself");
    }
    if let Some(network) = arriving.network.take()
        && let Err(error) = network.destroy().await
    {
        tracing::error!(container = %record.container, %error, "the network of a failed arrival is left");
    }
    drop(arriving);
    clean_home(host, &record.container).await;
}

/// Removes a container that never ran here, as far as it exists: runtime's record, network, mounts, files.
pub(super) async fn clean_home(host: &Host, id: &ContainerId) {
    pagers::forget(host, id).await;
    let home = super::home(host, id);
    if !home.root.exists() {
        return;
    }
    if let Ok(container) = Container::read(&host.runc.root, id)
        && home.owns(&container.bundle)
    {
        if let Err(error) = container.freezer.kill_all(DELETE_WITHIN).await {
            tracing::error!(container = %id, %error, "a half-made container could not be killed");
        }
        if let Err(error) = host.runc.delete(id, &host.run_dir, DELETE_WITHIN).await {
            tracing::error!(container = %id, %error, "a half-made container could not be deleted");
        }
    }
    if let Err(error) = forget_half_made(&host.runc.root, id) {
        tracing::error!(container = %id, %error, "the runtime's folder of a half-made container is left");
    }
    if let Some(arrived) = home.arrived()
        && let Some(name) = arrived.network
        && let Err(error) = network::remove(&name, &arrived.host_ends).await
    {
        tracing::error!(container = %id, %error, "the network of a half-made container is left");
    }
    if let Err(error) = home.remove() {
        tracing::error!(container = %id, error = super::super::error::chain(&error), "files of a half-made container are left");
    }
}

/// At the agent's start: the decision was written, what became of it was not. CRIU may still be finishing on its own.
///
/// # Errors
/// The journal cannot be written.
pub async fn settle_committed(host: &Host, record: &Record) -> Result<Stage, MigrationError> {
    let mut record = record.clone();
    let until = Instant::now() + Duration::from_secs(10);
    while !runs(host, &record) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if runs(host, &record) {
        if let Err(error) = network::raise(&record.host_ends).await {
            tracing::error!(container = %record.container, %error, "the network of an arrived container could not be brought up");
        }
        record.stage = Stage::Running;
        record.resumed_us = unix_us();
    } else {
        clean_home(host, &record.container).await;
        record.stage = Stage::Fenced;
    }
    host.journal.put(&record).await?;
    Ok(record.stage)
}
