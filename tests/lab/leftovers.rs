//! Nothing is left behind: not after closing, not after Ctrl-C, not after a crash of the owner, not after a crash of all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use decamp::lab::{self, Host, LabError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{one_at_a_time, open, options, start_redis};

/// What a lab could leave on this machine.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    named_netns: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    state: BTreeSet<PathBuf>,
    rules: String,
}

fn entries(dir: &str) -> BTreeSet<PathBuf> {
    std::fs::read_dir(dir).map(|d| d.filter_map(Result::ok).map(|e| e.path()).collect()).unwrap_or_default()
}

fn cgroups(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(lab::cgroup::PREFIX) {
                found.insert(entry.path());
            }
            cgroups(&entry.path(), found);
        }
    }
}

impl Machine {
    fn look() -> Self {
        let names = |dir: &str| entries(dir).iter().map(|p| p.display().to_string()).collect();
        let mut groups = BTreeSet::new();
        cgroups(Path::new("/sys/fs/cgroup"), &mut groups);
        let rules = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
        Self {
            mounts: std::fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect(),
            links: names("/sys/class/net"),
            named_netns: names("/run/netns"),
            cgroups: groups,
            state: entries(lab::STATE_DIR),
            rules,
        }
    }
}

/// Namespaces (as the kernel names them) and processes of a lab's hosts and of all that runs in them.
fn inside(hosts: &[Host]) -> (BTreeSet<String>, BTreeSet<i32>) {
    let pids: BTreeSet<i32> = hosts.iter().flat_map(|h| h.pids_matching("")).collect();
    let pids: BTreeSet<i32> = pids.into_iter().chain(hosts.iter().map(Host::init_pid)).collect();
    let mut own = namespaces(&pids);
    own.retain(|ns| !namespaces(&BTreeSet::from([std::process::id().cast_signed()])).contains(ns));
    (own, pids)
}

fn namespaces(pids: &BTreeSet<i32>) -> BTreeSet<String> {
    let of = |pid: &i32| entries(&format!("/proc/{pid}/ns"));
    let links = pids.iter().flat_map(of).filter_map(|p| std::fs::read_link(p).ok());
    links.map(|l| l.display().to_string()).collect()
}

fn all_pids() -> BTreeSet<i32> {
    entries("/proc").iter().filter_map(|p| p.file_name()?.to_str()?.parse().ok()).collect()
}

/// Waits until no process is in the lab's namespaces and none carries the lab's name in its arguments.
fn assert_gone(name: &str, namespaces_of_lab: &BTreeSet<String>, pids: &BTreeSet<i32>) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let mine = std::process::id().cast_signed();
        let left: Vec<(i32, String)> = all_pids()
            .into_iter()
            .filter(|pid| *pid != mine)
            .map(|pid| (pid, std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()))
            .map(|(pid, line)| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
            .filter(|(pid, line)| {
                line.contains(name) || !namespaces(&BTreeSet::from([*pid])).is_disjoint(namespaces_of_lab)
            })
            .collect();
        if left.is_empty() {
            assert!(pids.len() >= 3, "the test looked at too few processes: {pids:?}");
            return;
        }
        assert!(Instant::now() < until, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a lab by `decamp lab up --detach`, with a container in it; returns its owner's pid.
fn up(name: &str) -> (i32, Vec<Host>) {
    let asked = options(name);
    let done = Command::new(&asked.decamp)
        .args(["lab", "up", "--detach", "--name", &asked.name])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let status = lab::status(&asked.name).unwrap();
    assert!(status.hosts.iter().all(|(_, alive)| *alive) && status.hosts.len() == 3);
    let hosts: Vec<Host> = status.hosts.into_iter().map(|(host, _)| host).collect();
    start_redis(&lab::attach(&asked.name, "node-a").unwrap(), &lab::attach(&asked.name, "client").unwrap());
    (status.owner.unwrap(), hosts)
}

fn decamp(args: &[&str]) -> (i32, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_decamp")).args(args).stdin(Stdio::null()).output().unwrap();
    (done.status.code().unwrap(), String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn closing_leaves_nothing() {
    let _one = one_at_a_time();
    let before = Machine::look();
    let lab = open("close");
    let name = lab.name().to_owned();
    start_redis(&lab.host("node-a").unwrap(), &lab.client().unwrap());
    // A frozen container does not die before it is thawed.
    lab.exec("node-a", &["runc", "pause", "redis"]).unwrap();
    assert_ne!(Machine::look(), before, "this test cannot fail");
    let (own, pids) = inside(&lab.hosts());
    let second = decamp::lab::Lab::open(&options("close"), &mut |_| ());
    assert!(matches!(second, Err(LabError::AlreadyOpen { .. })));
    lab.close().unwrap();
    assert_gone(&name, &own, &pids);
    assert_eq!(Machine::look(), before);
}

#[test]
fn a_lab_that_fails_to_open_leaves_nothing() {
    let _one = one_at_a_time();
    let before = Machine::look();
    let mut asked = options("half");
    // The hosts come up, and then their links cannot be joined at this speed.
    asked.rate_bits = Some(1);
    let failed = decamp::lab::Lab::open(&asked, &mut |_| ()).unwrap_err();
    assert!(failed.to_string().contains("tc in hub"), "{failed}");
    assert_eq!(Machine::look(), before);
}

#[test]
fn ctrl_c_and_down_leave_nothing() {
    let _one = one_at_a_time();
    for end in ["ctrl-c", "down"] {
        let before = Machine::look();
        let (owner, hosts) = up(end);
        let name = options(end).name;
        let (own, pids) = inside(&hosts);
        let (code, said) =
            decamp(&["lab", "exec", "--name", &name, "node-b", "--", "sh", "-c", "hostname; exit 5"]);
        assert_eq!((code, said.as_str()), (5, "node-b\n"));
        assert!(decamp(&["lab", "status"]).1.contains(&name));
        if end == "ctrl-c" {
            kill(Pid::from_raw(owner), Signal::SIGINT).unwrap();
        } else {
            assert_eq!(decamp(&["lab", "down", "--name", &name]).0, 0);
        }
        assert_gone(&name, &own, &pids);
        assert_eq!(Machine::look(), before, "after {end}");
    }
}

#[test]
fn a_killed_owner_leaves_nothing_after_down() {
    let _one = one_at_a_time();
    let before = Machine::look();
    let (owner, hosts) = up("crash");
    let name = options("crash").name;
    let (own, pids) = inside(&hosts);
    kill(Pid::from_raw(owner), Signal::SIGKILL).unwrap();
    // The launchers do their part without being told.
    assert_gone(&name, &own, &pids);
    assert!(lab::status(&name).unwrap().owner.is_none());
    assert_eq!(decamp(&["lab", "down", "--name", &name]).0, 0);
    assert_eq!(Machine::look(), before);
}

#[test]
fn a_crash_of_all_of_it_leaves_nothing_after_down() {
    let _one = one_at_a_time();
    let before = Machine::look();
    let (owner, hosts) = up("wreck");
    let name = options("wreck").name;
    let (own, pids) = inside(&hosts);
    let line = |pid: i32| {
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
            .into_owned()
    };
    let launchers: Vec<i32> =
        all_pids().into_iter().filter(|p| line(*p).contains(&name) && *p != owner).collect();
    assert!(launchers.len() >= 4, "{launchers:?}");
    for pid in launchers.iter().chain([&owner]) {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    assert_gone(&name, &own, &pids);
    assert_ne!(Machine::look().cgroups, before.cgroups, "nobody was left to remove the cgroups");
    // Its description is lost too: the names alone must do.
    std::fs::write(Path::new(lab::STATE_DIR).join(&name).join("lab.json"), "{").unwrap();
    assert_eq!(decamp(&["lab", "down", "--name", &name]).0, 0);
    assert_eq!(Machine::look(), before);
}
