//! Containers as runc's state files describe them (`<root>/<id>/state.json`, written by libcontainer).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Freezer, FreezerState, RuntimeError};
use crate::model::ContainerId;

/// runc's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its first process is alive.
    Running,
    /// Alive and in the freezer.
    Paused,
    /// Its first process is gone.
    Stopped,
}

impl Status {
    /// The word for people and for JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// One container on this host.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub id: ContainerId,
    /// Its first process, as seen from here.
    pub init_pid: i32,
    /// Start time of that process in clock ticks since boot: tells a reused pid.
    pub init_start: u64,
    /// Bundle folder.
    pub bundle: PathBuf,
    /// Root file system.
    pub rootfs: PathBuf,
    /// Every cgroup folder of the container.
    pub cgroups: Vec<PathBuf>,
    /// Where it can be frozen.
    pub freezer: Freezer,
    /// What its standard streams were when it was started, in order; CRIU's images say the same at a dump.
    pub descriptors: Vec<String>,
    /// What runs.
    pub status: Status,
}

#[derive(Deserialize)]
struct StateFile {
    id: String,
    init_process_pid: i32,
    init_process_start: u64,
    config: StateConfig,
    cgroup_paths: std::collections::HashMap<String, PathBuf>,
    #[serde(default)]
    external_descriptors: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct StateConfig {
    rootfs: PathBuf,
    #[serde(default)]
    labels: Vec<String>,
}

impl Container {
    /// Reads one container's state.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when there is none; otherwise what is wrong with the file.
    pub fn read(root: &Path, id: &ContainerId) -> Result<Self, RuntimeError> {
        let path = root.join(id.as_str()).join("state.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RuntimeError::NotFound { id: id.to_string(), root: root.to_owned() });
            }
            Err(source) => return Err(RuntimeError::Io { doing: "read", path, source }),
        };
        let state: StateFile = serde_json::from_slice(&text)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
        let malformed = |what: String| RuntimeError::Malformed { path: path.clone(), what };
        if state.id != id.as_str() {
            return Err(malformed(format!("describes {:?}", state.id)));
        }
        let bundle = state
            .config
            .labels
            .iter()
            .find_map(|label| label.strip_prefix("bundle="))
            .ok_or_else(|| malformed("has no bundle label".to_owned()))?;
        let freezer = Freezer::of(&state.cgroup_paths)
            .ok_or_else(|| malformed("names no cgroup with a freezer".to_owned()))?;
        let mut cgroups: Vec<PathBuf> = state.cgroup_paths.into_values().collect();
        cgroups.sort();
        cgroups.dedup();
        let mut container = Self {
            id: id.clone(),
            init_pid: state.init_process_pid,
            init_start: state.init_process_start,
            bundle: PathBuf::from(bundle),
            rootfs: state.config.rootfs,
            cgroups,
            freezer,
            descriptors: state.external_descriptors.unwrap_or_default(),
            status: Status::Stopped,
        };
        container.status = container.look();
        Ok(container)
    }

    /// All containers, by name; a folder that cannot be read is passed over with a warning.
    #[must_use]
    pub fn list(root: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
        let mut found: Vec<Self> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| ContainerId::try_from(name).ok())
            .filter_map(|id| match Self::read(root, &id) {
                Ok(container) => Some(container),
                Err(RuntimeError::NotFound { .. }) => None,
                Err(error) => {
                    tracing::warn!(container = %id, %error, "a container's state cannot be read");
                    None
                }
            })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// Its status now.
    #[must_use]
    pub fn look(&self) -> Status {
        if !self.init_alive() {
            Status::Stopped
        } else if self.freezer.state() == FreezerState::Frozen {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// Is the very process that runc started still there (proc(5), field 22 of stat)?
    #[must_use]
    pub fn init_alive(&self) -> bool {
        procfs::process::Process::new(self.init_pid)
            .and_then(|process| process.stat())
            .is_ok_and(|stat| stat.starttime == self.init_start && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Every process in the container's cgroup.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.freezer.pids()
    }

    /// Resident and swapped memory of all processes, bytes; shared pages count once per process: an upper bound.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.pids()
            .into_iter()
            .filter_map(|pid| procfs::process::Process::new(pid).ok()?.status().ok())
            .map(|status| (status.vmrss.unwrap_or(0) + status.vmswap.unwrap_or(0)) * 1024)
            .sum()
    }
}
