//! The judge: a copy of a process that is fed by nothing but what the tracker reports, compared at the end with the stopped process,
//! page by page.

use std::collections::HashMap;

use decamp::memory::{Backing, ContentHashTracker, Process, Survey, Tracker};
use decamp::model::page::{PAGE_SIZE, PageIndex, PageRange};
use decamp::sys::process_vm::read_pages;

/// All addresses a process can have.
pub(crate) const EVERYTHING: PageRange = PageRange { first: PageIndex(0), count: 1 << 35 };

/// Page number to digest.
pub(crate) struct Mirror {
    process: Process,
    pages: HashMap<u64, blake3::Hash>,
}

/// How many pages were read, and how many populated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) candidates: u64,
    pub(crate) populated: u64,
}

impl Mirror {
    pub(crate) fn new(process: Process) -> Self {
        Self { process, pages: HashMap::new() }
    }

    /// One round, as a migration makes it.
    pub(crate) fn round(&mut self, tracker: &dyn Tracker) -> Seen {
        let survey = tracker.survey(self.process).unwrap();
        let all: Vec<PageRange> = survey.mappings.iter().map(|pages| pages.mapping.pages).collect();
        self.pages.retain(|page, _| all.iter().any(|range| contains(*range, *page)));
        self.take(tracker, &survey)
    }

    /// The last round of a process that stands still.
    pub(crate) fn last_round(&mut self, tracker: &dyn Tracker) -> Seen {
        let survey = tracker.final_survey(self.process, &[EVERYTHING]).unwrap();
        self.take(tracker, &survey)
    }

    fn take(&mut self, tracker: &dyn Tracker, survey: &Survey) -> Seen {
        let mut seen = Seen { candidates: 0, populated: 0 };
        for pages in &survey.mappings {
            let whole = pages.mapping.pages;
            let is_populated = |page: &u64| pages.populated.iter().any(|run| contains(*run, *page));
            if whole.count < 1 << 20 {
                let gone: Vec<u64> =
                    whole.iter().map(|page| page.0).filter(|page| self.pages.contains_key(page)).collect();
                for page in gone.iter().filter(|page| !is_populated(page)) {
                    self.pages.remove(page);
                }
            }
            seen.populated += count(&pages.populated);
            let candidates = pages.candidates.as_ref().unwrap_or(&pages.populated);
            seen.candidates += count(candidates);
            for page in candidates.iter().flat_map(|run| run.iter()) {
                match read(survey.task, page) {
                    Some(digest) => {
                        self.pages.insert(page.0, digest);
                    }
                    None => {
                        self.pages.remove(&page.0);
                        tracker.not_read(self.process, PageRange { first: page, count: 1 });
                    }
                }
            }
        }
        seen
    }

    /// Every populated page of the stopped process is in the copy as it is. Returns how many there were.
    pub(crate) fn must_be_right(&self, what: &str) -> usize {
        let truth = ContentHashTracker::probe().unwrap().survey(self.process).unwrap();
        let (mut right, mut wrong) = (0, Vec::new());
        for pages in
            truth.mappings.iter().filter(|pages| !matches!(pages.mapping.backing, Backing::Shared { .. }))
        {
            for page in pages.populated.iter().flat_map(|run| run.iter()) {
                let Some(digest) = read(truth.task, page) else { continue };
                if self.pages.get(&page.0) == Some(&digest) {
                    right += 1;
                } else {
                    let known = self.pages.contains_key(&page.0);
                    wrong.push(format!("{:x} known {known} in {:x?}", page.address(), pages.mapping));
                }
            }
        }
        assert!(right > 0, "{what}: nothing to compare");
        assert!(
            wrong.is_empty(),
            "{what}: {} pages wrong, {right} right, first {:#?}",
            wrong.len(),
            &wrong[..1]
        );
        right
    }
}

fn contains(range: PageRange, page: u64) -> bool {
    range.first.0 <= page && page < range.end().0
}

fn count(runs: &[PageRange]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

fn read(task: i32, page: PageIndex) -> Option<blake3::Hash> {
    let (mut bytes, mut missing) = (vec![0; PAGE_SIZE], Vec::new());
    read_pages(task, &[PageRange { first: page, count: 1 }], &mut bytes, &mut missing).ok()?;
    missing.is_empty().then(|| blake3::hash(&bytes))
}
