//! What a runtime call that hangs leaves behind when it is killed: CRIU, half-restored tasks that never ran, their cgroups, the
//! mount below the runtime's state folder. The runtime itself removes none of it, because its own record is written last.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use super::{RuntimeError, unmount_all_below};
use crate::model::ContainerId;

/// Processes below one of ours, and the cgroups that were made for a container among them.
#[derive(Debug, Default)]
pub struct Orphans {
    pids: Vec<i32>,
    cgroups: Vec<PathBuf>,
}

impl Orphans {
    /// Everything below a process, itself included; of their cgroups those that bear the container's name.
    #[must_use]
    pub fn below(root: i32, id: &ContainerId) -> Self {
        let mut found = Self { pids: vec![root], cgroups: Vec::new() };
        let mut next = 0;
        while let Some(pid) = found.pids.get(next).copied() {
            next += 1;
            let Ok(process) = Process::new(pid) else { continue };
            let tasks = process.tasks().into_iter().flatten().flatten();
            let children = tasks.filter_map(|task| task.children().ok()).flatten();
            let children: Vec<i32> = children.filter_map(|child| i32::try_from(child).ok()).collect();
            found.pids.extend(children);
            for group in process.cgroups().map(|groups| groups.0).unwrap_or_default() {
                let controller = match group.controllers.join(",") {
                    unified if unified.is_empty() => "unified".to_owned(),
                    named => named.trim_start_matches("name=").to_owned(),
                };
                for base in [Path::new("/sys/fs/cgroup").join(controller), "/sys/fs/cgroup".into()] {
                    let path = base.join(group.pathname.trim_start_matches('/'));
                    if path.file_name().is_some_and(|name| name == id.as_str())
                        && !found.cgroups.contains(&path)
                    {
                        found.cgroups.push(path);
                    }
                }
            }
        }
        found
    }

    /// SIGKILL for all, then their cgroups are removed as soon as they are empty.
    pub async fn remove(self, within: Duration) {
        for pid in self.pids {
            // One that is gone already is what we want.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let until = Instant::now() + within;
        let mut left = self.cgroups;
        loop {
            left.retain(|path| path.exists() && std::fs::remove_dir(path).is_err());
            if left.is_empty() {
                return;
            }
            if Instant::now() >= until {
                return tracing::error!(?left, "cgroups of a half-made container are left");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Removes the runtime's folder of a container that it never finished making: no record in it, but perhaps a mount.
///
/// # Errors
/// The kernel's or the file system's. A container with a record is left alone.
pub fn forget_half_made(root: &Path, id: &ContainerId) -> Result<(), RuntimeError> {
    let folder = root.join(id.as_str());
    if !folder.exists() || folder.join("state.json").exists() {
        return Ok(());
    }
    unmount_all_below(&folder)?;
    std::fs::remove_dir_all(&folder).map_err(RuntimeError::io("remove", &folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_whole_tree_is_found_and_killed() {
        let mut shell =
            std::process::Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).spawn().unwrap();
        let root = i32::try_from(shell.id()).unwrap();
        let id = "nobody".try_into().unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let mut found = Orphans::below(root, &id);
        while found.pids.len() < 3 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
            found = Orphans::below(root, &id);
        }
        assert_eq!(found.pids.len(), 3);
        assert!(found.cgroups.is_empty());
        let pids = found.pids.clone();
        found.remove(Duration::from_secs(1)).await;
        shell.wait().unwrap();
        for pid in &pids[1..] {
            let gone =
                |pid: i32| Process::new(pid).and_then(|p| p.stat()).map_or(true, |stat| stat.state == 'Z');
            while !gone(*pid) {
                assert!(Instant::now() < until, "{pid} is alive");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[test]
    fn only_a_folder_without_a_record_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id: ContainerId = "c".try_into().unwrap();
        forget_half_made(dir.path(), &id).unwrap();
        std::fs::create_dir_all(dir.path().join("c/criu-root")).unwrap();
        forget_half_made(dir.path(), &id).unwrap();
        assert!(!dir.path().join("c").exists());
        std::fs::create_dir(dir.path().join("c")).unwrap();
        std::fs::write(dir.path().join("c/state.json"), "{}").unwrap();
        forget_half_made(dir.path(), &id).unwrap();
        assert!(dir.path().join("c/state.json").exists());
    }
}
