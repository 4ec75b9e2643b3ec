//! Nothing is ever lost: programs that know what each of their pages must hold, moved in full flight.

use std::time::Duration;

use decamp::lab::{Cluster, ContainerSpec};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{cluster, id, migrate, redis, running};
use crate::moving::{Ended, Moving};

/// How long checking everything may take.
const CHECKED_WITHIN: Duration = Duration::from_secs(300);

/// Lets the program in a container check everything it holds, wherever it is, and returns what it reports.
#[track_caller]
pub(crate) fn verify(cluster: &Cluster, host: &str, container: &str, token: &str) -> Value {
    let script = format!(
        "echo {token} > /vol/verify.new; mv /vol/verify.new /vol/verify
         until grep -q '\"token\": \"{token}\"' /vol/report.json 2>/dev/null; do sleep 0.05; done
         cat /vol/report.json"
    );
    let argv = ["runc", "exec", container, "sh", "-c", &script];
    let said = cluster.host(host).unwrap().exec_with(&argv, b"", CHECKED_WITHIN);
    let text = said.as_ref().map(crate::harness::everything).unwrap_or_default();
    let report: Value =
        text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    assert_eq!(report["ok"], true, "{token}: {said:?}\n{}", cluster.agent_log(host));
    report
}

/// Moves a container and insists on the books: everything was verified and nothing was missed. Returns the summary.
#[track_caller]
pub(crate) fn must_arrive(cluster: &Cluster, container: &str, from: &str, to: &str) -> Value {
    must_have_arrived(cluster, from, to, &Moving::restless(cluster, from, container, to, &[]))
}

#[track_caller]
pub(crate) fn must_have_arrived(cluster: &Cluster, from: &str, to: &str, ended: &Ended) -> Value {
    let logs = || format!("--- {from}\n{}\n--- {to}\n{}", cluster.agent_log(from), cluster.agent_log(to));
    assert_eq!(ended.code, 0, "{}\n{}", ended.text, logs());
    let summary = ended.event("completed");
    assert_eq!(summary["pages_missed"], 0, "{summary:#}\n{}", logs());
    assert_eq!(summary["pages_verified"], summary["pages_total"], "{summary:#}\n{}", logs());
    summary
}

/// The hosts of each trip: there, back, there again, …
pub(crate) fn trips(count: usize) -> impl Iterator<Item = (&'static str, &'static str)> {
    [("node-a", "node-b"), ("node-b", "node-a")].into_iter().cycle().take(count)
}

#[test]
fn a_program_that_changes_its_mappings_all_the_time_moves_twenty_times() {
    let cluster = cluster("mapfuzz");
    let spec = ContainerSpec::workload(
        id("mapfuzz"),
        "mapfuzz.py",
        &["--seed", "1", "--threads", "2", "--mib", "32"],
    );
    cluster.lab.run_container("node-a", &spec).unwrap();
    println!("{}", verify(&cluster, "node-a", "mapfuzz", "start"));
    let mut lazy = 0;
    for (number, (from, to)) in trips(20).enumerate() {
        let summary = must_arrive(&cluster, "mapfuzz", from, to);
        lazy += summary["pages_lazy"].as_u64().unwrap();
        let report = verify(&cluster, to, "mapfuzz", &format!("trip-{number}"));
        println!("{to}: {} lazy pages of {}, {report}", summary["pages_lazy"], summary["pages_total"]);
    }
    assert!(lazy > 0, "no mapping was ever large enough to be hidden");
}

/// There, back, and there again with a program that holds memory in one of many ways; everything is checked after each trip.
fn holder_moves(kind: &str, mib: u64) {
    let name = format!("hold-{kind}");
    let cluster = cluster(&name);
    let spec = ContainerSpec::workload(id(&name), "holder.py", &[kind, "--mib", &mib.to_string()]);
    cluster.lab.run_container("node-a", &spec).unwrap();
    println!("{}", verify(&cluster, "node-a", &name, "start"));
    for (number, (from, to)) in trips(3).enumerate() {
        let summary = must_arrive(&cluster, &name, from, to);
        let report = verify(&cluster, to, &name, &format!("trip-{number}"));
        println!(
            "{to}: {} lazy pages of {}, tracker {}, {report}",
            summary["pages_lazy"], summary["pages_total"], summary["tracker"]
        );
        assert!(summary["pages_lazy"].as_u64() > Some(0), "{summary:#}");
    }
    assert_eq!(running(&cluster, "node-a"), Vec::<String>::new());
}

#[test]
fn huge_pages_arrive_whole() {
    holder_moves("thp", 128);
}

#[test]
fn private_mappings_of_files_arrive_and_leave_the_file_alone() {
    holder_moves("cow", 64);
}

#[test]
fn a_process_that_nobody_may_dump_arrives() {
    holder_moves("hidden", 64);
}

#[test]
fn many_threads_arrive_with_their_stacks() {
    holder_moves("threads", 64);
}

#[test]
fn direct_reads_into_memory_arrive() {
    holder_moves("direct", 64);
}

#[test]
fn a_filter_that_ends_whoever_makes_a_userfaultfd_does_not_end_the_program() {
    holder_moves("seccomp", 64);
}

#[test]
fn a_tree_that_forks_and_executes_all_the_time_moves_and_comes_back() {
    let cluster = cluster("forker");
    let spec = ContainerSpec::workload(id("forker"), "forker.py", &["--mib", "48"]);
    cluster.lab.run_container("node-a", &spec).unwrap();
    println!("{}", verify(&cluster, "node-a", "forker", "start"));
    for (number, (from, to)) in trips(4).enumerate() {
        must_arrive(&cluster, "forker", from, to);
        println!("{to}: {}", verify(&cluster, to, "forker", &format!("trip-{number}")));
    }
}

#[test]
fn a_traced_process_is_a_reason_until_it_is_let_go() {
    let cluster = cluster("traced");
    let spec = ContainerSpec::workload(id("traced"), "tracer.py", &[]);
    cluster.lab.run_container("node-a", &spec).unwrap();
    let wait = |path: &str| {
        let script = format!("until [ -s /vol/{path} ]; do sleep 0.05; done");
        cluster.lab.exec("node-a", &["runc", "exec", "traced", "sh", "-c", &script]).unwrap();
    };
    wait("traced");
    let failed = Moving::start(&cluster, "node-a", "traced", "node-b", &[]).end().must_fail(3);
    let reason = &failed["reasons"][0];
    assert_eq!(reason["code"], "task-traced", "{failed:#}");
    assert!(reason["evidence"].as_str().unwrap().contains("TracerPid"), "{failed:#}");
    let (code, text) = migrate(&cluster, "node-a", "traced", "node-b", &[]);
    assert!(code == 3 && text.contains("task-traced"), "{text}");
    cluster.lab.exec("node-a", &["runc", "exec", "traced", "touch", "/vol/let-go"]).unwrap();
    wait("free");
    must_arrive(&cluster, "traced", "node-a", "node-b");
    assert_eq!(running(&cluster, "node-b"), ["traced"]);
}

/// The database's files of the lab, in MiB.
const REDIS_MIB: &str = "96";

#[test]
fn redis_moves_while_it_saves_in_a_child() {
    let cluster = cluster("bgsave");
    redis(&cluster, "node-a", "bgsave", 50);
    let client = cluster.lab.client().unwrap();
    let python = |program: &str, more: &[&str]| {
        let path = format!("/var/lib/decamp-lab/workloads/{program}");
        let argv = [&["python3", path.as_str(), "10.77.0.50", "--mib", REDIS_MIB], more].concat();
        let said = client.exec_with(&argv, b"", CHECKED_WITHIN).unwrap();
        assert_eq!(said.code, 0, "{program}: {}", crate::harness::everything(&said));
        serde_json::from_str::<Value>(said.text().trim()).unwrap()
    };
    let cli =
        |args: &str| client.shell(&format!("redis-cli -h 10.77.0.50 {args}")).unwrap().trim().to_owned();
    let filled = python("fill_redis.py", &[]);
    let digest = filled["digest"].as_str().unwrap().to_owned();
    // Saving takes its time, so that it is under way at the freeze.
    cli("config set rdb-key-save-delay 1000");

    // Idle: the whole database's digest stays what it was.
    assert_eq!(cli("bgsave"), "Background saving started");
    must_arrive(&cluster, "bgsave", "node-a", "node-b");
    python("check_redis.py", &["--digest", &digest]);

    // Under load, the save beginning in a memory round.
    let program = "/var/lib/decamp-lab/workloads/incr.py";
    let argv = ["python3", program, "10.77.0.50", "--report", "/tmp/bgsave.json", "--interval-ms", "2"];
    let mut load = cluster.lab.spawn("client", &argv, "bgsave.log").unwrap();
    until(|| cli("dbsize") == (filled["keys"].as_u64().unwrap() + 1).to_string(), "the load begins");
    until(|| cli("info persistence").contains("rdb_bgsave_in_progress:0"), "the first save ends");
    let mut moving = Moving::start(&cluster, "node-b", "bgsave", "node-a", &[]);
    moving.until_phase("pre-copy");
    assert_eq!(cli("bgsave"), "Background saving started");
    must_have_arrived(&cluster, "node-b", "node-a", &moving.end());
    load.signal(Signal::SIGTERM);
    let code = load.wait(Duration::from_secs(60)).unwrap();
    let report = client.read_file("/tmp/bgsave.json").unwrap();
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&report));
    python("check_redis.py", &["--other-keys", "1"]);
    until(|| cli("info persistence").contains("rdb_bgsave_in_progress:0"), "the second save ends");
    // What was saved is what is held: the child's copy arrived too.
    let status = cli("info persistence");
    assert!(status.contains("rdb_last_bgsave_status:ok"), "{status}");
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn until(mut what: impl FnMut() -> bool, name: &str) {
    let end = std::time::Instant::now() + Duration::from_secs(120);
    while !what() {
        assert!(std::time::Instant::now() < end, "it never came: {name}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
