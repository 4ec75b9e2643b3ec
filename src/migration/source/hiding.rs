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

use super::super::MigrationError;
use super::super::request::Mode;
use super::Source;
use crate::criu::{HidePlan, Hidden, stack_pointer_pages};
use crate::memory::{Process, SpotCheck, Tracker, processes};
use crate::model::page::PageRange;
use crate::telemetry;

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
        let number = self.rounds.last().map_or(1, |round| round.round + 1);
        let last = self.memory_round(number).await?;
        self.rounds.push(last);
        let found = processes(self.inspection.container.init_pid)?;
        let tracker = Arc::clone(&self.tracker);
        let into = folder.to_owned();
        let look = move || -> std::io::Result<Hiding> {
            let exact: BTreeMap<i32, Process> =
                found.iter().filter(|p| tracker.exact(**p)).map(|p| (p.pid, *p)).collect();
            // The copy of smaps helps for every process; only exact ones have something hidden.
            let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
            let mut plan = HidePlan::look(&pids)?;
            plan.restrict(|pid, _| exact.contains_key(&pid));
            plan.write(&into)?;
            let processes = found.into_iter().map(|process| (process.pid, process)).collect();
            Ok(Hiding { plan: Arc::new(plan), processes, hidden: BTreeMap::new() })
        };
        let looked = tokio::task::spawn_blocking(look).await.map_err(|_| MigrationError::Stopping)?;
        looked.map_err(MigrationError::io("write what CRIU is not to read into", folder))
    }

    /// At the hold: the pages that CRIU did not see, as they are now.
    pub(super) async fn take_hidden(
        &mut self,
        hiding: &mut Hiding,
        folder: &Path,
    ) -> Result<(), MigrationError> {
        hiding.hidden = Hidden::read(folder)
            .map_err(MigrationError::io("read what was hidden from CRIU in", folder))?;
        for (pid, ranges) in &hiding.hidden {
            let process = *hiding.processes.get(pid).ok_or_else(|| unknown_process(folder, *pid))?;
            let tracker = Arc::clone(&self.tracker);
            let ranges = ranges.clone();
            let look = move || {
                let survey = tracker.final_survey(process, &ranges)?;
                let eager = stack_pointer_pages(process.pid);
                Ok::<_, crate::memory::MemoryError>((ranges, survey, eager))
            };
            let looked = tokio::task::spawn_blocking(look).await.map_err(|_| MigrationError::Stopping)?;
            let (ranges, survey, eager) = looked?;
            let eager = eager.map_err(MigrationError::io("read the stack pointers in", folder))?;
            self.plane.final_hidden(process, &ranges, survey, &eager).await?;
        }
        Ok(())
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

/// Clean pages read again while the destination restores: 16 MiB, a few milliseconds.
const SAMPLE_PAGES_MAX: usize = 4096;

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
    let folder = format!("/proc/{}", process.pid);
    let changed = plan.changed_flags(process.pid);
    let changed = changed.map_err(MigrationError::io("read the mappings in", Path::new(&folder)))?;
    if changed.is_empty() {
        return Ok(());
    }
    Err(MigrationError::Memory(crate::memory::MemoryError::FlagsChanged { pid: process.pid, mappings: changed.len() }))
}

fn unknown_process(folder: &Path, pid: i32) -> MigrationError {
    let source = std::io::Error::other(format!("pages of process {pid} were hidden, which was not asked for"));
    MigrationError::io("understand what was hidden from CRIU in", folder)(source)
}
