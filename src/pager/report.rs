//! What remains of a pager: one JSON file that says how it ended.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::wire::PagerState;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Everything is in the container's memory.
    Resident,
    /// The restore failed or was given up.
    Failed,
    /// The container was killed, or is to be.
    Lost,
}

/// `pager.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub state: Ending,
    /// Pages that had not been installed, at most.
    pub pages_missing: u64,
    /// Pages of all processes.
    pub pages_total: u64,
    /// Faults that were answered; 0 when the worker could not say.
    pub faults: u64,
    /// Pages whose mapping was gone without an event.
    pub pages_homeless: u64,
    /// From CRIU's end to this, milliseconds; 0 when CRIU had not finished.
    pub after_ms: u64,
    /// When, milliseconds of UNIX time.
    pub unix_ms: u64,
    /// In words.
    pub why: String,
}

impl Report {
    pub(super) fn now(state: Ending, (pages_missing, pages_total): (u64, u64), why: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Self { state, pages_missing, pages_total, faults: 0, pages_homeless: 0, after_ms: 0, unix_ms, why }
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not there, or not what belongs there.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Puts it there, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    }

    /// The state that the agent is told.
    #[must_use]
    pub fn as_state(&self) -> PagerState {
        match self.state {
            Ending::Resident => PagerState::Resident { after_ms: self.after_ms },
            Ending::Failed => PagerState::Failed(self.why.clone()),
            Ending::Lost => PagerState::Lost,
        }
    }
}
