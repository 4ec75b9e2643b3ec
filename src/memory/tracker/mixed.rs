//! Chooses for each process: write protection where it can be watched, digests where not, and remembers why not.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::error::MemoryError;
use super::super::process::Process;
use super::userfault::NotWatched;
use super::{ContentHashTracker, Survey, Technique, TrackedProcess, Tracker, UserfaultTracker, inside};
use crate::model::page::PageRange;

/// How often a process is tried that was refused for a reason that may go away.
const TRIES: u32 = 2;

#[derive(Debug)]
struct Refused {
    reason: String,
    tries: u32,
}

/// The tracker of a migration.
#[derive(Debug)]
pub struct MixedTracker {
    watching: Result<UserfaultTracker, String>,
    hashing: ContentHashTracker,
    refused: Mutex<HashMap<i32, Refused>>,
}

impl MixedTracker {
    /// Probes the kernel. `program` is this program, which is started again as the injector; usually /proc/self/exe.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] when nothing tells which pages are populated.
    pub fn probe(program: &Path) -> Result<Self, MemoryError> {
        let watching = UserfaultTracker::probe(program).map_err(|e| {
            let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            format!("this kernel has no asynchronous write protection ({why})")
        });
        Ok(Self { watching, hashing: ContentHashTracker::probe()?, refused: Mutex::default() })
    }

    /// Why no process is watched on this host, if so.
    #[must_use]
    pub fn unavailable(&self) -> Option<&str> {
        self.watching.as_ref().err().map(String::as_str)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<i32, Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watching(&self, pid: i32) -> Option<&UserfaultTracker> {
        self.watching.as_ref().ok().filter(|watching| watching.watches(pid))
    }

    fn given_up(&self, pid: i32) -> bool {
        self.refused().get(&pid).is_some_and(|refused| refused.tries >= TRIES)
    }
}

impl Tracker for MixedTracker {
    fn name(&self, process: Process) -> &'static str {
        let watched = self.watching(process.pid).is_some();
        if watched { Technique::Userfaultfd.name() } else { Technique::ContentHash.name() }
    }

    fn survey(&self, process: Process) -> Result<Survey, MemoryError> {
        let pid = process.pid;
        let Ok(watching) = &self.watching else { return self.hashing.survey(process) };
        if self.given_up(pid) {
            return self.hashing.survey(process);
        }
        match watching.try_survey(pid) {
            Ok(survey) => {
                self.refused().remove(&pid);
                Ok(survey)
            }
            Err(NotWatched::Refused { reason, later }) => {
                {
                    let mut all = self.refused();
                    let refused =
                        all.entry(pid).or_insert_with(|| Refused { reason: String::new(), tries: 0 });
                    refused.tries = if later { refused.tries + 1 } else { TRIES };
                    tracing::info!(pid, %reason, "process is tracked by content hash");
                    refused.reason = reason;
                }
                self.hashing.survey(process)
            }
            Err(NotWatched::Failed(source)) => Err(MemoryError::Process { pid, action: "surveyed", source }),
        }
    }

    fn not_read(&self, process: Process, pages: PageRange) {
        if let Ok(watching) = &self.watching {
            watching.not_read(process, pages);
        }
    }

    fn exact(&self, process: Process) -> bool {
        self.watching(process.pid).is_some()
    }

    fn final_survey(&self, process: Process, hidden: &[PageRange]) -> Result<Survey, MemoryError> {
        let watched = self.watching.as_ref().ok().and_then(|all| all.try_final_survey(process.pid, hidden));
        if let Some(survey) = watched {
            return survey.map_err(|source| MemoryError::Process {
                pid: process.pid,
                action: "surveyed",
                source,
            });
        }
        // Nothing is hidden of such a process; the answer is right all the same.
        let mut survey = self.hashing.survey(process)?;
        survey.mappings = survey.mappings.iter().flat_map(|pages| inside(pages, hidden)).collect();
        Ok(survey)
    }

    fn report(&self) -> Vec<TrackedProcess> {
        let mut found = self.watching.as_ref().map(Tracker::report).unwrap_or_default();
        let hashed = self.refused();
        found.extend(hashed.iter().map(|(pid, refused)| TrackedProcess {
            pid: *pid,
            technique: Technique::ContentHash,
            reason: Some(refused.reason.clone()),
            stopped_us: 0,
        }));
        found.sort_unstable_by_key(|process| process.pid);
        found
    }

    fn release(&self) {
        if let Ok(watching) = &self.watching {
            watching.release();
        }
        self.refused().clear();
    }
}
