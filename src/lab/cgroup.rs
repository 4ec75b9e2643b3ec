//! Cgroups of a lab host: one parent per host in every hierarchy of this machine.
//!
//! Hierarchies of cgroup v1 are shared by all hosts of the machine, and a runtime derives a container's cgroup from its id:
//! without a parent of its own for each host the same container on two hosts would be one cgroup. The host's cgroup
//! namespace is rooted at that parent, so nothing inside can tell (cgroup_namespaces(7)).
//!
//! Must never touch a cgroup whose name does not begin with the lab's prefix.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use super::error::{Doing, LabError};

/// Every cgroup of every lab begins with this.
pub const PREFIX: &str = "decamp-lab.";

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where this machine has mounted it.
    pub(super) mount: PathBuf,
    /// Folder name and mount options inside a host; `None` for cgroup2.
    pub(super) v1: Option<String>,
    /// Below which our cgroups are made, relative to the mount.
    parent: PathBuf,
}

/// All hierarchies that this process can see mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>, LabError> {
    let read = || -> Result<_, procfs::ProcError> {
        let me = Process::myself()?;
        Ok((me.mountinfo()?, me.cgroups()?))
    };
    let (mounts, groups) = read().map_err(io::Error::other).doing(|| "read this process's cgroups")?;
    let mut found = Vec::new();
    for group in &groups {
        let first = group.controllers.first().map_or("", String::as_str);
        let mount = mounts.0.iter().find(|m| match first.strip_prefix("name=") {
            _ if first.is_empty() => m.fs_type == "cgroup2",
            Some(name) => {
                m.fs_type == "cgroup"
                    && m.super_options.get("name").is_some_and(|n| n.as_deref() == Some(name))
            }
            None => m.fs_type == "cgroup" && m.super_options.contains_key(first),
        });
        let Some(mount) = mount else { continue };
        let own = group.pathname.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or("");
        let v1 = (!first.is_empty()).then(|| group.controllers.join(","));
        found.push(Hierarchy {
            mount: mount.mount_point.clone(),
            v1,
            parent: PathBuf::from(own.trim_start_matches('/')),
        });
    }
    if found.iter().all(|h| h.v1.is_none()) {
        // Pure cgroup v2: our own cgroup holds processes, so it cannot hand controllers to children; the root can.
        for h in &mut found {
            h.parent = PathBuf::new();
        }
    }
    Ok(found)
}

/// The cgroups of one host.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct HostCgroups {
    /// Roots of the host's cgroup namespace.
    pub(super) roots: Vec<PathBuf>,
    /// Where the host's own processes sit; differs from the root only on pure cgroup v2.
    pub(super) members: Vec<PathBuf>,
}

/// Name of a host's cgroup.
pub(super) fn name_of(lab: &str, host: &str) -> String {
    format!("{PREFIX}{lab}.{host}")
}

/// Makes a host's cgroups.
pub(super) fn create(lab: &str, host: &str) -> Result<HostCgroups, LabError> {
    let all = hierarchies()?;
    let pure_v2 = all.iter().all(|h| h.v1.is_none());
    let mut made = HostCgroups::default();
    for h in &all {
        let parent = h.mount.join(&h.parent);
        let root = parent.join(name_of(lab, host));
        make(&root)?;
        if h.v1.as_deref().is_some_and(|c| c.split(',').any(|c| c == "cpuset")) {
            // A new v1 cpuset has no cpu and takes no process (kernel: cgroup-v1/cpusets.rst).
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = fs::read_to_string(parent.join(file))
                    .doing(|| format!("read {file} of {}", parent.display()))?;
                write(&root.join(file), value.trim())?;
            }
        }
        let member = if pure_v2 { root.join("init") } else { root.clone() };
        if pure_v2 {
            hand_down(&parent);
            make(&member)?;
        }
        made.roots.push(root);
        made.members.push(member);
    }
    Ok(made)
}

fn make(dir: &Path) -> Result<(), LabError> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(e).doing(|| format!("make cgroup {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &str) -> Result<(), LabError> {
    fs::write(file, value).doing(|| format!("write {value:?} to {}", file.display()))
}

/// Enables every controller for children, one by one: one that cannot be enabled must not cost the others.
pub(super) fn hand_down(dir: &Path) {
    let Ok(controllers) = fs::read_to_string(dir.join("cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        // A missing controller shows itself where a container asks for it.
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Moves the calling process (all of its threads) into these cgroups.
pub(super) fn join(dirs: &[PathBuf]) -> Result<(), LabError> {
    dirs.iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), "0"))
}

/// Processes in a cgroup and all below it.
pub(super) fn members(dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|l| l.parse().ok()).filter(|p| *p > 0).collect())
        .unwrap_or_default();
    for child in children(dir) {
        pids.extend(members(&child));
    }
    pids
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Kills what is left in these cgroups and removes them with all below.
///
/// # Errors
/// When one is still there at the deadline.
pub(super) fn remove(dirs: &[PathBuf], deadline: Duration) -> Result<(), LabError> {
    let until = Instant::now() + deadline;
    loop {
        let left: Vec<&PathBuf> = dirs.iter().filter(|dir| dir.exists()).collect();
        if left.is_empty() {
            return Ok(());
        }
        for dir in &left {
            thaw(dir);
            for pid in members(dir) {
                // It may have ended by itself in between.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let mut last = None;
        for dir in &left {
            last = remove_tree(dir).err().or(last);
        }
        if let (Some(source), true) = (last, Instant::now() >= until) {
            return Err(LabError::Io { doing: format!("remove cgroup {}", left[0].display()), source });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A frozen v1 task does not die from SIGKILL until it is thawed (kernel: cgroup-v1/freezer-subsystem.rst).
fn thaw(dir: &Path) {
    for child in children(dir) {
        thaw(&child);
    }
    let state = dir.join("freezer.state");
    if state.exists() {
        // Failing to thaw shows itself as a cgroup that cannot be removed.
        let _ = fs::write(state, "THAWED");
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Every cgroup of a lab, or of all labs when `lab` is `None`, wherever in the hierarchies it was made.
pub(super) fn find(lab: Option<&str>) -> Result<Vec<PathBuf>, LabError> {
    let prefix = lab.map_or_else(|| PREFIX.to_owned(), |lab| format!("{PREFIX}{lab}."));
    let mut found = Vec::new();
    for h in hierarchies()? {
        search(&h.mount, &prefix, &mut found);
    }
    Ok(found)
}

fn search(dir: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for child in children(dir) {
        if child.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)) {
            found.push(child);
        } else {
            search(&child, prefix, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_made_found_and_removed() {
        let lab = format!("unit{}", std::process::id());
        let made = create(&lab, "a").unwrap();
        assert!(!made.roots.is_empty());
        assert_eq!(find(Some(&lab)).unwrap().len(), made.roots.len());
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for dir in &made.members {
            fs::create_dir(dir.join("inner")).unwrap();
            // A v1 cpuset without cpus takes nobody; any other hierarchy does.
            let _ = fs::write(dir.join("inner/cgroup.procs"), sleeper.id().to_string());
        }
        let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
        remove(&made.roots, Duration::from_secs(10)).unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(find(Some(&lab)).unwrap().is_empty());
    }
}
