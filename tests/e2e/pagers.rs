//! Agents and pagers that are killed while a container waits for its pages.

use decamp::lab::{Cluster, ContainerSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{cluster, id, must_migrate, running};
use crate::lost::{must_arrive, until, verify};
use crate::moving::Moving;

/// Enough to be there before all of it is served.
const MIB: &str = "384";
/// How often a migration may have been over before its pager was caught.
const ATTEMPTS: u32 = 8;

fn start(cluster: &Cluster, name: &str) {
    let spec = ContainerSpec::workload(id(name), "holder.py", &["plain", "--mib", MIB]);
    cluster.lab.run_container("node-a", &spec).unwrap();
    verify(cluster, "node-a", name, "start");
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|text| text.trim().parse().ok())
}

/// The pager's worker on a host: the one of the two processes whose parent is the other.
fn worker(cluster: &Cluster, host: &str) -> Option<Pid> {
    let all = cluster.host(host).unwrap().pids_matching("decamp-pager");
    all.iter().find(|pid| parent(**pid).is_some_and(|up| all.contains(&up))).map(|pid| Pid::from_raw(*pid))
}

/// What the agent of a host says about a container; null when it does not know it.
fn listed(cluster: &Cluster, host: &str, name: &str) -> Value {
    let output = cluster.decamp(host, &["ls", "--json"], crate::harness::MIGRATION).unwrap();
    let text = crate::harness::everything(&output);
    assert_eq!(output.code, 0, "{text}");
    let reply: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let all = reply["containers"].as_array().unwrap();
    all.iter().find(|container| container["id"] == name).cloned().unwrap_or_default()
}

/// Moves a container until its pager's worker is stopped with pages to come. The container then runs at the host that is
/// returned, with the pager's worker and the migration.
fn catch_pager(cluster: &Cluster, name: &str) -> (&'static str, Pid, Moving) {
    let mut here = ("node-a", "node-b");
    for _ in 0..ATTEMPTS {
        let (from, to) = here;
        let mut moving = Moving::start(cluster, from, name, to, &[]);
        moving.until_phase("cut-over");
        let worker = worker(cluster, to).expect("the pager is there before the freeze");
        moving.until_phase("releasing");
        // It may have ended already: then there is nobody to stop, and nothing to come.
        if kill(worker, Signal::SIGSTOP).is_ok() {
            until(|| stopped_or_gone(worker), "the worker stops");
            let about = listed(cluster, to, name);
            if stopped(worker)
                && about["memory_state"] == "filling"
                && about["pages_missing"].as_u64() > Some(0)
            {
                return (to, worker, moving);
            }
            let _it_is_over = kill(worker, Signal::SIGCONT);
        }
        let ended = moving.end();
        assert_eq!(ended.code, 0, "{}", ended.text);
        here = (to, from);
    }
    panic!("{MIB} MiB were always there before the pager could be stopped");
}

fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn stopped(pid: Pid) -> bool {
    state(pid) == Some('T')
}

fn stopped_or_gone(pid: Pid) -> bool {
    matches!(state(pid), None | Some('T' | 'Z' | 'X'))
}

#[test]
fn a_container_does_not_notice_that_the_agent_dies_while_its_pages_come() {
    let mut cluster = cluster("fill-agent");
    start(&cluster, "fill-agent");
    let (here, worker, moving) = catch_pager(&cluster, "fill-agent");
    let other = if here == "node-a" { "node-b" } else { "node-a" };
    cluster.lab.kill_agent(here, Signal::SIGKILL).unwrap();
    // The source has its commit; how it ends without anybody to wait for is not what is asked here.
    println!("{}", moving.end().text.lines().last().unwrap_or_default());
    assert!(stopped(worker), "the pager outlives the agent");
    kill(worker, Signal::SIGCONT).unwrap();
    cluster.lab.restart_agent(here).unwrap();
    let about = listed(&cluster, here, "fill-agent");
    assert_eq!(about["status"], "running", "{about:#}\n{}", cluster.agent_log(here));
    verify(&cluster, here, "fill-agent", "after-the-restart");
    until(
        || !matches!(listed(&cluster, here, "fill-agent")["memory_state"].as_str(), Some("filling" | "lost")),
        "all memory is there",
    );
    assert_eq!(running(&cluster, here), ["fill-agent"]);
    until(|| running(&cluster, other).is_empty(), "the original is removed");
    must_arrive(&cluster, "fill-agent", here, other);
    verify(&cluster, other, "fill-agent", "back");
    must_arrive(&cluster, "fill-agent", other, here);
    verify(&cluster, here, "fill-agent", "there");
}

#[test]
fn a_container_whose_pager_is_killed_is_stopped_and_never_reads_zeros() {
    let cluster = cluster("fill-pager");
    start(&cluster, "fill-pager");
    let (here, worker, moving) = catch_pager(&cluster, "fill-pager");
    kill(worker, Signal::SIGKILL).unwrap();
    until(|| running(&cluster, here).is_empty(), "the container is stopped");
    println!("{}", moving.end().text.lines().last().unwrap_or_default());
    let history = cluster.decamp(here, &["history", "--json"], crate::harness::MIGRATION).unwrap();
    let history: Value = serde_json::from_str(history.text().lines().last().unwrap()).unwrap();
    let lost = history["entries"].as_array().unwrap().iter().find(|entry| entry["outcome"] == "lost");
    let lost = lost.unwrap_or_else(|| panic!("{history:#}\n{}", cluster.agent_log(here)));
    assert_eq!(lost["container"], "fill-pager", "{history:#}");
    assert!(lost["failure"]["state_now"].as_str().unwrap().contains("was stopped"), "{history:#}");
    let about = listed(&cluster, here, "fill-pager");
    assert!(about.is_null() || about["memory_state"] == "lost", "{about:#}");
    // It never noticed anything wrong before it was stopped.
    let report = "cat /var/lib/decamp/containers/fill-pager/volumes/0/report.json \
                          /var/lib/decamp-lab-containers/fill-pager/volumes/vol/report.json 2>/dev/null || true";
    let reports = cluster.host(here).unwrap().shell(report).unwrap();
    assert!(!reports.contains("\"ok\": false"), "{reports}");

    // The host takes others as before.
    cluster.lab.run_container(here, &ContainerSpec::new(id("next"), &["sleep", "infinity"])).unwrap();
    let other = if here == "node-a" { "node-b" } else { "node-a" };
    must_migrate(&cluster, here, "next", other, &[]);
    must_migrate(&cluster, other, "next", here, &[]);
}
