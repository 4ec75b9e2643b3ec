//! What is kept about an open lab, so that another process can reach it and remove what a crash leaves.
//!
//! ```text
//! /run/decamp-lab/NAME/   lock (held by the owner)  lab.json  root/HOST/ (mount points)  *.log
//! ```
//! A lab whose lock nobody holds is a leftover: [`down`] and the next open of that name remove it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::error::{Doing, LabError};
use super::host::{Host, Identity};
use super::process::last_lines;

/// Where labs keep their state.
pub const STATE_DIR: &str = "/run/decamp-lab";
const NAME_MAX: usize = 32;
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Names become parts of cgroup names, paths and host names; a dot would make one lab's prefix match another's.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), LabError> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('-');
    if fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Ok(());
    }
    Err(LabError::BadInput {
        what: format!("{what} {name:?}"),
        why: format!("it takes 1 to {NAME_MAX} lower-case letters, digits and dashes, no dash first"),
    })
}

/// The content of lab.json.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateFile {
    pub(super) lab: String,
    pub(super) owner: Identity,
    /// The owner is `decamp lab up`, which closes the lab on SIGTERM.
    pub(super) supervised: bool,
    pub(super) hub: Option<Host>,
    pub(super) hosts: Vec<Host>,
}

impl StateFile {
    pub(super) fn host(&self, name: &str) -> Result<Host, LabError> {
        self.hosts.iter().find(|h| h.name == name).cloned().ok_or_else(|| LabError::NoSuchHost {
            lab: self.lab.clone(),
            host: name.to_owned(),
            known: self.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn processes(&self) -> Vec<Identity> {
        self.hub.iter().chain(&self.hosts).flat_map(|h| [h.launcher, h.init]).collect()
    }
}

/// The owner's view of a lab's state.
#[derive(Debug)]
pub(super) struct State {
    pub(super) dir: PathBuf,
    pub(super) file: StateFile,
    /// Held for as long as the lab is open.
    _lock: Flock<File>,
}

fn dir_of(name: &str) -> PathBuf {
    Path::new(STATE_DIR).join(name)
}

fn try_lock(dir: &Path, name: &str) -> Result<Flock<File>, LabError> {
    let path = dir.join("lock");
    let doing = || format!("lock {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(&path).doing(doing)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).or_else(|e| match e {
        nix::Error::EWOULDBLOCK => Err(LabError::AlreadyOpen { lab: name.to_owned() }),
        e => Err(e).doing(doing),
    })
}

impl State {
    /// Takes the name; what an earlier lab of that name left is removed.
    pub(super) fn create(name: &str) -> Result<Self, LabError> {
        let dir = dir_of(name);
        let mut file = None;
        // Between making the folder and locking the file in it, a `down` of the same name may remove the folder.
        for _ in 0..3 {
            fs::create_dir_all(&dir).doing(|| format!("make {}", dir.display()))?;
            let lock = try_lock(&dir, name)?;
            if dir.join("lock").exists() {
                file = Some(lock);
                break;
            }
        }
        let lock = file.ok_or_else(|| LabError::AlreadyOpen { lab: name.to_owned() })?;
        if let Ok(left) = read(name) {
            remove_processes(&left);
        }
        cgroup::remove(&cgroup::find(Some(name))?, REMOVE_DEADLINE)?;
        clear(&dir, true)?;
        let pid = i32::try_from(std::process::id()).ok().and_then(Identity::of);
        let owner = pid.ok_or_else(|| LabError::HostDown { lab: name.to_owned(), host: "owner".into() })?;
        let file = StateFile { lab: name.to_owned(), owner, supervised: false, hub: None, hosts: Vec::new() };
        let state = Self { dir, file, _lock: lock };
        state.save()?;
        Ok(state)
    }

    /// Writes lab.json, whole or not at all.
    pub(super) fn save(&self) -> Result<(), LabError> {
        let path = self.dir.join("lab.json");
        let new = self.dir.join("lab.json.new");
        let text = serde_json::to_vec_pretty(&self.file)
            .map_err(|source| LabError::State { path: path.clone(), source })?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .doing(|| format!("write {}", path.display()))
    }

    /// An empty folder on which a host builds its mounts.
    pub(super) fn staging(&self, host: &str) -> Result<PathBuf, LabError> {
        let dir = self.dir.join("root").join(host);
        fs::create_dir_all(&dir).doing(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    pub(super) fn create_log(&self, name: &str) -> Result<File, LabError> {
        let path = self.dir.join(name);
        File::create(&path).doing(|| format!("create {}", path.display()))
    }

    pub(super) fn log_tail(&self, name: &str) -> String {
        last_lines(&fs::read(self.dir.join(name)).unwrap_or_default(), 12)
    }

    /// Removes everything that the lab had, at its end.
    pub(super) fn sweep(&mut self) -> Result<(), LabError> {
        remove_processes(&self.file);
        cgroup::remove(&cgroup::find(Some(&self.file.lab))?, REMOVE_DEADLINE)?;
        clear(&self.dir, false)
    }
}

fn remove_processes(file: &StateFile) {
    for process in file.processes() {
        process.signal(Signal::SIGKILL);
    }
}

/// Empties a lab's folder; without `keep_lock` the folder goes too.
fn clear(dir: &Path, keep_lock: bool) -> Result<(), LabError> {
    let doing = || format!("remove {}", dir.display());
    if !dir.exists() {
        // `decamp lab down` was faster than the owner.
        return Ok(());
    }
    for entry in fs::read_dir(dir).doing(doing)? {
        let entry = entry.doing(doing)?;
        if entry.file_name() == "lock" {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.doing(|| format!("remove {}", path.display()))?;
    }
    if !keep_lock {
        fs::remove_dir_all(dir).doing(doing)?;
        // The last lab takes the parent with it; another one keeps it.
        let _ = fs::remove_dir(STATE_DIR);
    }
    Ok(())
}

fn read(name: &str) -> Result<StateFile, LabError> {
    let path = dir_of(name).join("lab.json");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(LabError::NotOpen { lab: name.to_owned() });
        }
        other => other.doing(|| format!("read {}", path.display()))?,
    };
    serde_json::from_slice(&text).map_err(|source| LabError::State { path, source })
}

/// What is known about a lab.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its owner's pid, if the owner lives.
    pub owner: Option<i32>,
    /// Its hosts, the client among them, and whether each is up.
    pub hosts: Vec<(Host, bool)>,
}

/// Names of the labs on this machine, open or left over.
///
/// # Errors
/// When a cgroup hierarchy cannot be read.
pub fn names() -> Result<Vec<String>, LabError> {
    let mut found: Vec<String> = fs::read_dir(STATE_DIR)
        .map(|entries| {
            entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    for dir in cgroup::find(None)? {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        found.extend(name.trim_start_matches(cgroup::PREFIX).split('.').next().map(str::to_owned));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Looks at a lab without touching it.
///
/// # Errors
/// [`LabError::NotOpen`], or a state file that cannot be read.
pub fn status(name: &str) -> Result<Status, LabError> {
    check_name("lab name", name)?;
    let file = read(name)?;
    let hosts = file.hosts.iter().map(|h| (h.clone(), h.alive())).collect();
    Ok(Status { name: file.lab, owner: file.owner.alive().then_some(file.owner.pid), hosts })
}

/// A host of a lab that another process holds.
///
/// # Errors
/// [`LabError::NotOpen`], [`LabError::NoSuchHost`].
pub fn attach(name: &str, host: &str) -> Result<Host, LabError> {
    check_name("lab name", name)?;
    read(name)?.host(host)
}

/// Is the lab up and held by `decamp lab up`?
pub(super) fn is_supervised(name: &str) -> bool {
    read(name).is_ok_and(|file| file.supervised)
}

/// Ends a lab, whoever owns it and whatever is left of it. Nothing to do is not an error.
///
/// `decamp lab up` is asked to close it; any other owner (a test, a benchmark) loses its hosts and is left alone.
///
/// # Errors
/// What could not be removed.
pub fn down(name: &str) -> Result<(), LabError> {
    check_name("lab name", name)?;
    let dir = dir_of(name);
    let known = read(name).ok();
    if let Some(file) = &known {
        if file.supervised {
            file.owner.signal(Signal::SIGTERM);
            let until = Instant::now() + Duration::from_secs(20);
            while file.owner.alive() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            file.owner.signal(Signal::SIGKILL);
        }
        remove_processes(file);
    }
    cgroup::remove(&cgroup::find(Some(name))?, REMOVE_DEADLINE)?;
    clear(&dir, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_meet_other_labs_are_refused() {
        for bad in ["", "a.b", "A", "-x", "a/b", "..", &"x".repeat(33)] {
            assert!(check_name("lab name", bad).is_err(), "{bad:?}");
        }
        check_name("lab name", "e2e-17").unwrap();
    }

    #[test]
    fn a_name_is_held_once_and_free_again_after_the_sweep() {
        let name = format!("state{}", std::process::id());
        let mut state = State::create(&name).unwrap();
        assert!(matches!(State::create(&name), Err(LabError::AlreadyOpen { .. })));
        assert_eq!(status(&name).unwrap().owner, i32::try_from(std::process::id()).ok());
        state.sweep().unwrap();
        assert!(matches!(status(&name), Err(LabError::NotOpen { .. })));
        drop(state);
        State::create(&name).unwrap().sweep().unwrap();
        down(&name).unwrap();
    }
}
