//! The container that must not run on with holes in its memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long to wait for the freezer: a task in the middle of a page fault may keep it from settling, and SIGKILL ends that too.
const FREEZE_WITHIN: Duration = Duration::from_millis(500);
/// How long to look for survivors.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What to kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Convict {
    /// Folder of the freezer's cgroup, version 1 or 2.
    freezer: PathBuf,
    init_pid: i32,
    /// In clock ticks since boot: a number that has been given to another process since then is left alone.
    init_start: Option<u64>,
}

impl Convict {
    pub(super) fn new(freezer: PathBuf, init_pid: i32) -> Self {
        Self { freezer, init_pid, init_start: start_of(init_pid) }
    }

    /// Freezes, kills every process of the cgroup and the container's init, thaws (version 1 lets nobody die frozen), and looks until
    /// nobody is left. Returns how many are.
    pub(super) fn execute(&self) -> usize {
        let freezer = Freezer::at(&self.freezer);
        freezer.set(true);
        let start = Instant::now();
        while !freezer.is_frozen() && start.elapsed() < FREEZE_WITHIN {
            std::thread::sleep(Duration::from_millis(2));
            // Version 1 makes progress only when it is asked again.
            freezer.set(true);
        }
        self.kill_all();
        freezer.set(false);
        while start.elapsed() < GONE_WITHIN {
            if self.kill_all() == 0 {
                return 0;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill_all()
    }

    fn kill_all(&self) -> usize {
        let mut pids = pids(&self.freezer);
        if self.init_start.is_some() && start_of(self.init_pid) == self.init_start {
            pids.push(self.init_pid);
        }
        for pid in &pids {
            // Who is gone already is what we want.
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        pids.len()
    }
}

enum Freezer {
    V1(PathBuf),
    V2 { set: PathBuf, events: PathBuf },
}

impl Freezer {
    fn at(folder: &Path) -> Self {
        let set = folder.join("cgroup.freeze");
        if set.exists() {
            Self::V2 { set, events: folder.join("cgroup.events") }
        } else {
            Self::V1(folder.join("freezer.state"))
        }
    }

    fn set(&self, frozen: bool) {
        let (file, text) = match self {
            Self::V1(state) => (state, if frozen { "FROZEN" } else { "THAWED" }),
            Self::V2 { set, .. } => (set, if frozen { "1" } else { "0" }),
        };
        if let Err(error) = std::fs::write(file, text) {
            // The cgroup is gone, or was none: the signals remain.
            eprintln!("decamp-pager: cannot write {text} to {}: {error}", file.display());
        }
    }

    fn is_frozen(&self) -> bool {
        let read = |file: &Path| std::fs::read_to_string(file);
        match self {
            Self::V1(state) => read(state).map_or(true, |text| text.trim() == "FROZEN"),
            Self::V2 { events, .. } => {
                read(events).map_or(true, |text| text.lines().any(|line| line == "frozen 1"))
            }
        }
    }
}

/// Processes of the cgroup and of those below it.
fn pids(folder: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> =
        text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect();
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(pids(&entry.path()));
    }
    found
}

/// Start time of a live process: field 22 of /proc/PID/stat (proc(5)), counted behind the name, which may contain anything.
fn start_of(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_number_lives() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let right = Convict::new(dir.path().to_owned(), pid);
        let wrong = Convict { init_start: right.init_start.map(|start| start + 1), ..right.clone() };
        assert_eq!(wrong.execute(), 0);
        assert!(child.try_wait().unwrap().is_none());
        let killer = std::thread::spawn(move || right.execute());
        assert!(!child.wait().unwrap().success());
        assert_eq!(killer.join().unwrap(), 0);
    }
}
