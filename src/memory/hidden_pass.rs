//! The pages that CRIU was not shown, at the hold: what changed in them since the last round is read from the stopped process and
//! sent, what is gone is forgotten, and the rest is believed to be what the destination has acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::Work;
use super::error::MemoryError;
use super::invariant;
use super::pipeline::{PagePlane, joined, scanners};
use super::process::Process;
use super::scanner::{self, Plan};
use super::stats::Counters;
use super::tracker::{Survey, Tracker};
use crate::model::layout::{LayoutRun, ObjectLayout, PE_LAZY, PE_PRESENT, push_merged};
use crate::model::page::{ObjectId, PageIndex, PageRange};

/// What was hidden of one object.
#[derive(Debug, Default)]
pub(super) struct HiddenPart {
    /// Whole mappings, ascending.
    mappings: Vec<PageRange>,
    /// Pages in them that have to be there before the process runs.
    eager: Vec<PageIndex>,
}

pub(super) type HiddenParts = HashMap<ObjectId, HiddenPart>;

impl PagePlane {
    /// Brings what CRIU did not deliver of one stopped process: the mappings that it was not shown, and whatever else is missing,
    /// which is nothing unless decamp has a bug. `survey` is the tracker's last look at the hidden mappings; pages of `eager` are
    /// laid out for the pages image instead of being installed later; nothing is missed in `left_out` (ascending), where CRIU
    /// leaves pages behind on purpose. Returns when all that differs is queued.
    ///
    /// # Errors
    /// [`MemoryError::FinalPages`] when a page of a stopped process cannot be read; otherwise as for a round.
    pub async fn complete_process(
        &mut self,
        process: Process,
        hidden: &[PageRange],
        survey: Survey,
        eager: &[PageIndex],
        left_out: &[PageRange],
        tracker: &Arc<dyn Tracker>,
    ) -> Result<(), MemoryError> {
        let object = ObjectId::Task(process.vpid);
        let delivered = self.final_pass.as_ref().map(|pass| pass.delivered(object)).unwrap_or_default();
        let method = self.method;
        let mut known = [hidden, left_out].concat();
        known.sort_unstable_by_key(|range| range.first);
        let look = move || invariant::missed(process, &known, &delivered, method);
        let missed = joined(tokio::task::spawn_blocking(look)).await??;
        let (mut hidden, mut eager, mut survey) = (hidden.to_vec(), eager.to_vec(), survey);
        if !missed.mappings.is_empty() {
            survey.task = missed.task;
            let pages: Vec<PageRange> = missed.mappings.iter().flat_map(|it| it.populated.clone()).collect();
            let count: u64 = pages.iter().map(|range| range.count).sum();
            tracing::error!(%object, pid = process.pid, count, mappings = ?missed.mappings, "CRIU was to dump these pages and did not");
            Counters::add(&self.shared.counters.missed, count);
            eager.extend(pages.iter().flat_map(|range| range.iter()));
            eager.sort_unstable();
            hidden.extend(pages);
            hidden.sort_unstable_by_key(|range| range.first);
            survey.mappings.extend(missed.mappings);
            survey.mappings.sort_by_key(|it| it.populated.first().map(|range| range.first));
        }
        if hidden.is_empty() {
            return Ok(());
        }
        self.final_hidden(process, &hidden, &survey, &eager, tracker).await
    }

    async fn final_hidden(
        &mut self,
        process: Process,
        hidden: &[PageRange],
        survey: &Survey,
        eager: &[PageIndex],
        tracker: &Arc<dyn Tracker>,
    ) -> Result<(), MemoryError> {
        let object = ObjectId::Task(process.vpid);
        if self.final_pass.as_ref().is_none_or(|pass| !pass.has(object)) {
            self.final_object(object).await?;
        }
        self.enter()?;
        let plan = Arc::new(Plan::of_hidden(process, hidden, survey, &self.shared.ledger));
        Counters::add(&self.shared.counters.missed, plan.pages_missed);
        for (object, ranges) in &plan.forget {
            Counters::add(&self.shared.counters.forgotten, ranges.iter().map(|range| range.count).sum());
            self.enqueue(Work::Forget { object: *object, ranges: ranges.clone() }).await?;
        }
        let unread = Counters::get(&self.shared.counters.unread);
        let stop = Arc::new(AtomicBool::new(false));
        let _stopping = super::pipeline::StopOnDrop(Arc::clone(&stop));
        let scanning: Vec<_> = (0..scanners().min(plan.pieces().max(1)))
            .map(|_| {
                let (plan, tracker, shared) =
                    (Arc::clone(&plan), Arc::clone(tracker), Arc::clone(&self.shared));
                let (queue, stop) = (self.queue.clone(), Arc::clone(&stop));
                tokio::task::spawn_blocking(move || scanner::scan(&plan, &*tracker, &shared, &queue, &stop))
            })
            .collect();
        let scanned = async {
            for thread in scanning {
                joined(thread).await?;
            }
            Ok(())
        };
        self.or_failure(scanned).await?;
        if Counters::get(&self.shared.counters.unread) != unread {
            return Err(MemoryError::FinalPages {
                object,
                rule: "every page of a stopped process can be read",
            });
        }
        let part = self.hidden_parts.entry(object).or_default();
        part.mappings = hidden.to_vec();
        part.eager = eager.to_vec();
        self.leave();
        Ok(())
    }

    /// Adds to a layout what CRIU was not shown. Everything is acknowledged by now.
    pub(super) fn lay_out_hidden(&self, layout: &mut ObjectLayout, part: &HiddenPart) {
        let mut runs = Vec::new();
        // One by one, so that no run crosses from one mapping into the next.
        for mapping in part.mappings.chunks(1) {
            let held = self.shared.ledger.held(layout.object, mapping);
            held.into_iter().for_each(|range| split(range, &part.eager, &mut runs));
        }
        layout.runs.extend(runs);
        layout.runs.sort_unstable_by_key(|run| run.first);
        layout.hidden_root = self.shared.ledger.root_of(layout.object, &part.mappings);
        layout.hidden.clone_from(&part.mappings);
    }
}

/// Runs of lazy pages, cut at those that are eager (ascending).
fn split(range: PageRange, eager: &[PageIndex], out: &mut Vec<LayoutRun>) {
    let mut push = |mut first: u64, end: u64, flags| {
        while first < end {
            let count = u32::try_from(end - first).unwrap_or(u32::MAX);
            out.push(LayoutRun { first, count, flags });
            first += u64::from(count);
        }
    };
    let mut at = range.first.0;
    let inside = &eager[eager.partition_point(|page| *page < range.first)..];
    for page in inside.iter().map(|page| page.0).take_while(|page| *page < range.end().0) {
        push(at, page, PE_LAZY);
        push(page, page + 1, PE_PRESENT);
        at = page + 1;
    }
    push(at, range.end().0, PE_LAZY);
}

/// What of `from` is not in `without` (both ascending, disjoint).
pub(super) fn difference(from: &[PageRange], without: &[PageRange]) -> Vec<PageRange> {
    let mut out = Vec::new();
    let mut rest = without;
    for range in from {
        let mut at = range.first.0;
        while at < range.end().0 {
            while rest.first().is_some_and(|cut| cut.end().0 <= at) {
                rest = &rest[1..];
            }
            match rest.first() {
                Some(cut) if cut.first.0 <= at => at = cut.end().0,
                cut => {
                    let end = range.end().0.min(cut.map_or(u64::MAX, |cut| cut.first.0));
                    push_merged(&mut out, PageRange { first: PageIndex(at), count: end - at });
                    at = end;
                }
            }
        }
    }
    out
}

/// Reads clean pages of stopped processes again and compares them with what the destination holds.
#[derive(Debug, Clone)]
pub struct SpotChecker(pub(super) Arc<super::pipeline::Shared>);

/// What a [`SpotChecker`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpotCheck {
    /// Pages that were read and were the same.
    pub pages: u64,
}

impl SpotChecker {
    /// Reads about `pages_max` pages, spread over everything that is hidden, until `stop` is set. Blocking.
    ///
    /// # Errors
    /// [`MemoryError::Stale`]: a page differs, so that a write was missed and nothing the destination holds can be believed.
    pub fn check(
        &self,
        hidden: &[(Process, Vec<PageRange>)],
        pages_max: usize,
        stop: &AtomicBool,
    ) -> Result<SpotCheck, MemoryError> {
        let all: Vec<(Process, Vec<PageRange>)> = hidden
            .iter()
            .map(|(process, ranges)| (*process, self.0.ledger.held(ObjectId::Task(process.vpid), ranges)))
            .collect();
        let total: u64 = all.iter().flat_map(|(_, held)| held).map(|range| range.count).sum();
        let stride = (total / pages_max.max(1) as u64).max(1);
        // Another sample every time: the time is as good as any number.
        let offset = u64::from(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .subsec_nanos(),
        ) % stride;
        let mut found = SpotCheck::default();
        let mut next = offset;
        for (process, held) in &all {
            let pages = held.iter().flat_map(|range| range.iter());
            let mut sample = Vec::new();
            for page in pages {
                if next == 0 {
                    sample.push(PageRange { first: page, count: 1 });
                    next = stride;
                }
                next -= 1;
            }
            for part in sample.chunks(super::scanner::PIECE_RANGES) {
                if stop.load(Ordering::Relaxed) {
                    return Ok(found);
                }
                self.compare(*process, part)?;
                found.pages += part.len() as u64;
            }
        }
        Ok(found)
    }

    fn compare(&self, process: Process, sample: &[PageRange]) -> Result<(), MemoryError> {
        let object = ObjectId::Task(process.vpid);
        let mut reader = scanner::Reader::default();
        let source = scanner::Source::Process { process, task: process.pid, stopped: true };
        let failed = |source| MemoryError::Process { pid: process.pid, action: "read again", source };
        reader.read(&source, sample).map_err(failed)?;
        let mut digests = Vec::new();
        scanner::Digester::default().digest(&reader.buffer, &mut digests);
        let entries: Vec<_> = sample.iter().map(|range| range.first.0).zip(digests).collect();
        let mut stale = None;
        self.0.ledger.differing(object, &entries, |place| stale = stale.or(Some(entries[place].0)));
        match stale.or_else(|| reader.missing.first().map(|place| entries[*place].0)) {
            Some(page) => Err(MemoryError::Stale { object, address: PageIndex(page).address() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    #[test]
    fn a_difference_is_what_is_left() {
        let left = difference(&[range(0, 10), range(20, 10)], &[range(2, 3), range(8, 14), range(29, 5)]);
        assert_eq!(left, [range(0, 2), range(5, 3), range(22, 7)]);
        assert_eq!(difference(&[range(3, 2)], &[]), [range(3, 2)]);
        assert_eq!(difference(&[range(3, 2)], &[range(0, 9)]), []);
    }

    #[test]
    fn pages_that_must_be_there_are_cut_out() {
        let mut runs = Vec::new();
        split(range(10, 10), &[PageIndex(9), PageIndex(10), PageIndex(15), PageIndex(20)], &mut runs);
        let run = |first, count, flags| LayoutRun { first, count, flags };
        assert_eq!(
            runs,
            [run(10, 1, PE_PRESENT), run(11, 4, PE_LAZY), run(15, 1, PE_PRESENT), run(16, 4, PE_LAZY)]
        );
    }
}
