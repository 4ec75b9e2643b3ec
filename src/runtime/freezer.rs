//! The cgroup freezer, version 1 (`freezer.state`) and 2 (`cgroup.freeze`).
//!
//! Kernel: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst ("cgroup.freeze"). A version-1 frozen
//! task does not even die from SIGKILL until it is thawed; a version-2 one does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::RuntimeError;

/// What the freezer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// Tasks run.
    Thawed,
    /// On the way.
    Freezing,
    /// No task runs.
    Frozen,
    /// The cgroup is gone.
    Gone,
}

/// One container's freezer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freezer {
    /// `freezer.state`.
    V1(PathBuf),
    /// `cgroup.freeze`.
    V2(PathBuf),
}

impl Freezer {
    /// From libcontainer's `cgroup_paths`: the version-1 controller if there is one, else the unified path (key "").
    #[must_use]
    pub fn of(paths: &HashMap<String, PathBuf>) -> Option<Self> {
        let v1 = paths.get("freezer").cloned().map(Self::V1);
        v1.or_else(|| paths.get("").cloned().map(Self::V2))
    }

    /// The cgroup folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }

    /// From a folder remembered in the journal.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        if path.join("cgroup.freeze").exists() { Self::V2(path) } else { Self::V1(path) }
    }

    /// What it says now.
    #[must_use]
    pub fn state(&self) -> FreezerState {
        let text = match self {
            Self::V1(path) => std::fs::read_to_string(path.join("freezer.state")),
            Self::V2(path) => std::fs::read_to_string(path.join("cgroup.events")),
        };
        let Ok(text) = text else { return FreezerState::Gone };
        match self {
            Self::V1(_) => match text.trim() {
                "FROZEN" => FreezerState::Frozen,
                "FREEZING" => FreezerState::Freezing,
                _ => FreezerState::Thawed,
            },
            Self::V2(_) if text.lines().any(|line| line == "frozen 1") => FreezerState::Frozen,
            Self::V2(_) => FreezerState::Thawed,
        }
    }

    /// Freezes and waits until it is so.
    ///
    /// # Errors
    /// The write failed, or the state was not reached in time.
    pub async fn freeze(&self, within: Duration) -> Result<(), RuntimeError> {
        self.set(true)?;
        self.wait(FreezerState::Frozen, "frozen", within).await
    }

    /// Thaws and waits until it is so. A freezer that is gone is thawed.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub async fn thaw(&self, within: Duration) -> Result<(), RuntimeError> {
        if self.state() == FreezerState::Gone {
            return Ok(());
        }
        self.set(false)?;
        self.wait(FreezerState::Thawed, "thawed", within).await
    }

    fn set(&self, frozen: bool) -> Result<(), RuntimeError> {
        let (file, text) = match self {
            Self::V1(path) => (path.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" }),
            Self::V2(path) => (path.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
        };
        std::fs::write(&file, text).map_err(RuntimeError::io("write the freezer state to", &file))
    }

    async fn wait(
        &self,
        wanted: FreezerState,
        word: &'static str,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let start = Instant::now();
        loop {
            let now = self.state();
            if now == wanted || (wanted == FreezerState::Thawed && now == FreezerState::Gone) {
                return Ok(());
            }
            if start.elapsed() >= within {
                return Err(RuntimeError::Freezer {
                    path: self.path().to_owned(),
                    state: format!("{now:?}").to_lowercase(),
                    wanted: word,
                    waited_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                });
            }
            // Version 1 makes progress towards FROZEN only when it is asked again.
            if wanted == FreezerState::Frozen {
                self.set(true)?;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Processes in this cgroup and below it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(
                text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 0),
            );
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// SIGKILL for every process, and thaw, so that they can die of it. Used only for a copy that must not run.
    ///
    /// # Errors
    /// The freezer could not be thawed.
    pub async fn kill_all(&self, within: Duration) -> Result<(), RuntimeError> {
        self.signal_kill();
        self.thaw(within).await
    }

    /// SIGKILL for every process, leaving the freezer as it is: a frozen task gets it as its very first act when thawed, so no
    /// user code of it ever runs again.
    pub fn signal_kill(&self) {
        use nix::sys::signal::{Signal, kill};
        for pid in self.pids() {
            // A process that is gone already is what we want.
            let _gone = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_preferred_and_states_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = HashMap::from([
            (String::new(), dir.path().join("u")),
            ("freezer".to_owned(), dir.path().to_owned()),
        ]);
        let freezer = Freezer::of(&paths).unwrap();
        assert_eq!(freezer, Freezer::V1(dir.path().to_owned()));
        assert_eq!(freezer.state(), FreezerState::Gone);
        std::fs::write(dir.path().join("freezer.state"), "FREEZING\n").unwrap();
        assert_eq!(freezer.state(), FreezerState::Freezing);
        let v2 = Freezer::V2(dir.path().to_owned());
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert_eq!(v2.state(), FreezerState::Frozen);
    }

    #[tokio::test]
    async fn a_freezer_that_does_not_freeze_is_an_error_with_its_state() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        std::fs::write(dir.path().join("cgroup.freeze"), "0").unwrap();
        let freezer = Freezer::at(dir.path().to_owned());
        let error = freezer.freeze(Duration::from_millis(20)).await.unwrap_err();
        assert!(error.to_string().contains("did not become frozen within 20 ms"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join("cgroup.freeze")).unwrap(), "1");
    }
}
