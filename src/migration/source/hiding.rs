//! What CRIU is spared at the source. Its dump and its reading of smaps cost time in proportion to memory, while everything stands
//! still; so it is not shown the large private mappings whose pages were copied in rounds, and what changed in them since is read
//! by us at the hold.
//!
//! ```text
//! runtime started ─▶ pre-dump: one more round, plan written ─ t0 ─▶ dump ─▶ post-dump: which ranges were hidden?
//!                                                                    │
//!   per process: survey of the stopped task ─▶ changed pages sent, gone ones forgotten ─▶ invariant ─▶ layouts
//!   while the destination restores: flags of the mappings compared again, clean pages read again as a sample
//! ```
//! Nothing is hidden of a process whose changes are not known exactly, when the destination cannot install pages later, or when
//! CRIU could not be asked; then it dumps everything as ever, and the migration is merely slower. A doubt found while the
//! destination restores ends the migration before the decision: the container goes on here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::MigrationError;
use super::super::request::Mode;
use super::Source;
use crate::criu::{Hidden, HidePlan, stack_pointer_pages};
use crate::memory::{Process, SpotCheck, Survey, processes};
use crate::model::layout::ObjectLayout;
use crate::model::page::{PageIndex, PageRange};
use crate::rpc::v1::event::Body as EventBody;
use crate::telemetry;

/// Clean pages read again while the destination restores: 16 MiB, a few milliseconds.
const SAMPLE_PAGES_MAX: usize = 4096;

/// Mappings that are read so quickly are read once more right before the freeze.
const LOOK_AGAIN_BELOW: Duration = Duration::from_millis(50);

/// What the plan was, and what came of it.
#[derive(Default)]
pub(super) struct Hiding {
    plan: Arc<HidePlan>,
    /// The processes of the container when the plan was made, by their pid here.
    processes: BTreeMap<i32, Process>,
    /// What CRIU did not see, by pid here.
    hidden: BTreeMap<i32, Vec<PageRange>>,
}

impl Source {
    /// Is anything to be hidden from CRIU at all?
    pub(super) fn hides(&self) -> bool {
        self.request.mode == Mode::PreCopy && self.lazy_there
    }

    /// At `pre-dump`, the container still running: a last round, so that little is left to be read in the freeze, and the plan.
    pub(super) async fn before_freeze(&mut self, folder: &Path) -> Result<Hiding, MigrationError> {
        if !self.hides() {
            return Ok(Hiding::default());
        }
        let failed = || MigrationError::io("write what CRIU is not to read into", folder);
        // The copy of smaps takes long where there is much memory, so it comes before the last round and not behind it.
        let pids: Vec<i32> = self.processes()?.into_iter().map(|process| process.pid).collect();
        let began = std::time::Instant::now();
        let look = tokio::task::spawn_blocking(move || HidePlan::look(&pids));
        let mut plan = look.await.map_err(|_| MigrationError::Stopping)?.map_err(failed())?;
        let quick = began.elapsed() <= LOOK_AGAIN_BELOW;
        let number = self.rounds.last().map_or(1, |round| round.round + 1);
        let last = self.memory_round(number).await?;
        self.progress.emit(EventBody::MemoryRound(last));
        self.rounds.push(last);
        let found = self.processes()?;
        let tracker = Arc::clone(&self.tracker);
        let into = folder.to_owned();
        let finish = move || -> std::io::Result<Hiding> {
            let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
            // What is read later is less likely to change until the freeze.
            match quick {
                true => plan = HidePlan::look(&pids)?,
                false => plan.refresh(&pids)?,
            }
            let processes: BTreeMap<i32, Process> = found.into_iter().map(|it| (it.pid, it)).collect();
            // The copy of smaps serves every process; only those whose changes are known exactly have something hidden.
            plan.restrict(|pid, _| processes.get(&pid).is_some_and(|process| tracker.exact(*process)));
            plan.write(&into)?;
            Ok(Hiding { plan: Arc::new(plan), processes, hidden: BTreeMap::new() })
        };
        tokio::task::spawn_blocking(finish).await.map_err(|_| MigrationError::Stopping)?.map_err(failed())
    }

    fn processes(&self) -> Result<Vec<Process>, MigrationError> {
        Ok(processes(self.inspection.container.init_pid)?)
    }

    /// At the hold: the pages that CRIU did not see, as they are now.
    pub(super) async fn take_hidden(
        &mut self,
        hiding: &mut Hiding,
        folder: &Path,
    ) -> Result<(), MigrationError> {
        hiding.hidden =
            Hidden::read(folder).map_err(MigrationError::io("read what was hidden from CRIU in", folder))?;
        let frozen = self.processes()?;
        if let Some(pid) = hiding.hidden.keys().find(|pid| !frozen.iter().any(|it| it.pid == **pid)) {
            return Err(unknown_process(folder, *pid));
        }
        for process in frozen {
            hiding.processes.insert(process.pid, process);
            let ranges = hiding.hidden.get(&process.pid).cloned().unwrap_or_default();
            let (survey, eager) = self.look_at_hidden(process, ranges.clone()).await?;
            let left_out = hiding.plan.never_dumped(process.pid);
            self.plane.complete_process(process, &ranges, survey, &eager, &left_out, &self.tracker).await?;
        }
        Ok(())
    }

    async fn look_at_hidden(
        &self,
        process: Process,
        hidden: Vec<PageRange>,
    ) -> Result<(Survey, Vec<PageIndex>), MigrationError> {
        if hidden.is_empty() {
            return Ok((Survey { task: process.pid, mappings: Vec::new() }, Vec::new()));
        }
        let tracker = Arc::clone(&self.tracker);
        let look = move || -> Result<_, MigrationError> {
            let survey = tracker.final_survey(process, &hidden)?;
            let folder = format!("/proc/{}", process.pid);
            let eager = stack_pointer_pages(process.pid);
            let eager =
                eager.map_err(MigrationError::io("read the stack pointers in", Path::new(&folder)))?;
            Ok((survey, eager))
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| MigrationError::Stopping)?
    }

    /// Runs beside the restore at the destination, and costs no downtime: what was believed about the hidden mappings is looked at
    /// once more. Ends early, with what it found so far, when `stop` is set.
    pub(super) fn doubt(&self, hiding: &Hiding) -> Doubt {
        let stop = Arc::new(AtomicBool::new(false));
        let plan = Arc::clone(&hiding.plan);
        let hidden: Vec<(Process, Vec<PageRange>)> = hiding
            .hidden
            .iter()
            .filter_map(|(pid, ranges)| Some((*hiding.processes.get(pid)?, ranges.clone())))
            .collect();
        let checker = self.plane.spot_checker();
        let stopped = Arc::clone(&stop);
        let work = move || -> Result<SpotCheck, MigrationError> {
            let sample = checker.check(&hidden, SAMPLE_PAGES_MAX, &stopped)?;
            for (process, _) in &hidden {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                flags_are_the_same(&plan, *process)?;
            }
            Ok(sample)
        };
        Doubt { stop, running: tokio::task::spawn_blocking(work) }
    }
}

impl Source {
    /// What the operator is told of the frozen container's pages.
    pub(super) fn count(&mut self, layouts: &[ObjectLayout], missed: u64) {
        self.counts.lazy = layouts.iter().map(ObjectLayout::pages_lazy).sum();
        self.counts.total = layouts.iter().map(ObjectLayout::pages_present).sum::<u64>() + self.counts.lazy;
        self.counts.missed = missed;
        if missed > 0 {
            metrics::counter!(telemetry::BUGS, "kind" => "page-missed").increment(missed);
            self.progress.note(format!(
                "{missed} pages had been missed by all rounds and were sent in the freeze: a bug of decamp, please report it"
            ));
        }
    }

    /// Ends a doubt, which may end the migration.
    pub(super) async fn settle_doubt(&mut self, doubt: Doubt) -> Result<(), MigrationError> {
        let settled = doubt.settle().await.inspect_err(|_| {
            metrics::counter!(telemetry::BUGS, "kind" => "page-stale").increment(1);
        })?;
        self.counts.spot_checked = settled.pages;
        if !settled.whole {
            tracing::debug!(container = %self.request.container, "the destination was faster than the second look at the mappings");
        }
        Ok(())
    }
}

/// A check that runs while the destination restores.
pub(super) struct Doubt {
    stop: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<Result<SpotCheck, MigrationError>>,
}

impl Doubt {
    /// What was found until now. Reading flags takes as long as reading smaps, which grows with memory; the freeze does not wait
    /// for it: what is not done by the destination's vote is left undone, and said so by `whole`.
    pub(super) async fn settle(self) -> Result<Settled, MigrationError> {
        let whole = self.running.is_finished();
        self.stop.store(true, Ordering::Relaxed);
        if !whole {
            // One process's smaps cannot be left in the middle; its thread ends by itself and nobody listens.
            return Ok(Settled { pages: 0, whole });
        }
        let sample = self.running.await.map_err(|_| MigrationError::Stopping)??;
        Ok(Settled { pages: sample.pages, whole })
    }
}

/// What a [`Doubt`] came to.
pub(super) struct Settled {
    /// Pages that were read again and were the same.
    pub(super) pages: u64,
    /// Everything was looked at.
    pub(super) whole: bool,
}

fn flags_are_the_same(plan: &HidePlan, process: Process) -> Result<(), MigrationError> {
    let pid = process.pid;
    let folder = format!("/proc/{pid}");
    let changed = plan.changed_flags(pid);
    let changed = changed.map_err(MigrationError::io("read the mappings in", Path::new(&folder)))?;
    match changed.len() {
        0 => Ok(()),
        mappings => Err(MigrationError::MappingsChanged { pid, mappings }),
    }
}

fn unknown_process(folder: &Path, pid: i32) -> MigrationError {
    let source =
        std::io::Error::other(format!("pages of process {pid} were hidden, which was not asked for"));
    MigrationError::io("understand what was hidden from CRIU in", folder)(source)
}
