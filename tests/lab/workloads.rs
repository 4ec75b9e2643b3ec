//! The workloads check what they claim to check: each passes when nothing is wrong, survives a dump and restore, and fails
//! when something is damaged.

use std::time::{Duration, Instant};

use decamp::lab::{ContainerSpec, Host, WORKLOADS_IN_HOST};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{id, one_at_a_time, open, start_redis};

fn json(host: &Host, path: &str) -> Option<Value> {
    serde_json::from_slice(&host.read_file(path).ok()?).ok()
}

fn wait_for(what: &str, mut check: impl FnMut() -> Option<Value>) -> Value {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn volume(spec: &ContainerSpec) -> String {
    format!("{}/volumes/vol", spec.bundle())
}

fn start_tree(host: &Host) -> ContainerSpec {
    let spec = ContainerSpec::workload(id("tree"), "tree.py", &["--pages", "1024"]).tmpfs("/scratch");
    host.run_container(&spec).unwrap();
    spec
}

/// Asks tree.py to check everything.
fn verify_tree(host: &Host, spec: &ContainerSpec, token: &str) -> Value {
    let dir = volume(spec);
    host.write_file(&format!("{dir}/verify"), token.as_bytes(), 0o644).unwrap();
    wait_for("the report of tree.py", || {
        let status = json(host, &format!("{dir}/status.json"));
        if let Some(status) = status.filter(|s| s["ok"] != true) {
            return Some(status);
        }
        json(host, &format!("{dir}/report.json")).filter(|r| r["token"] == token)
    })
}

fn checkpoint(host: &Host, spec: &ContainerSpec, more: &str) -> Result<String, decamp::lab::LabError> {
    host.shell(&format!(
        "rm -rf /tmp/img; mkdir -p /tmp/img/work; echo skip-in-flight > /etc/criu/runc.conf
         runc --log /tmp/runc.log checkpoint --tcp-established --file-locks {more} --image-path /tmp/img --work-path /tmp/img/work {id} \
           || {{ grep -n Error /tmp/img/work/dump.log >&2; tail -3 /tmp/runc.log >&2; exit 1; }}",
        id = spec.id
    ))
}

fn restore(host: &Host, spec: &ContainerSpec) {
    host.shell(&format!(
        "runc --log /tmp/runc.log restore -d --tcp-established --file-locks --image-path /tmp/img --work-path /tmp/img/work \
           --bundle {bundle} {id} </dev/null >/dev/null 2>&1 \
           || {{ grep -n Error /tmp/img/work/restore.log >&2; tail -3 /tmp/runc.log >&2; exit 1; }}",
        bundle = spec.bundle(),
        id = spec.id
    ))
    .unwrap();
}

#[test]
fn tree_checks_itself_across_a_restore_and_notices_damage() {
    let _one = one_at_a_time();
    let lab = open("tree");
    let host = lab.host("node-a").unwrap();
    let spec = start_tree(&host);
    let first = verify_tree(&host, &spec, "before");
    assert_eq!(first["ok"], true, "{first}");
    checkpoint(&host, &spec, "").unwrap();
    restore(&host, &spec);
    let second = verify_tree(&host, &spec, "after");
    assert_eq!(second["ok"], true, "{second}");
    for counter in ["pipe", "tcp", "unix", "alarm", "timerfd", "ticks", "pages_checked", "appended"] {
        assert!(second[counter].as_u64().unwrap() > first[counter].as_u64().unwrap(), "{counter}: {second}");
    }
    assert!(second["worst_gap_real_ms"].as_f64().unwrap() > 20.0, "the restore was not noticed: {second}");
    // SIGUSR1 asks for the same.
    host.exec(&["runc", "kill", "tree", "USR1"]).unwrap();
    let dir = volume(&spec);
    wait_for("the report asked for by a signal", || {
        json(&host, &format!("{dir}/report.json"))
            .filter(|r| r["token"].as_str().is_some_and(|t| t.starts_with("signal")))
    });
    lab.delete_container("node-a", &spec.id).unwrap();

    let damages = [
        ("append.log", "printf X | dd of=$V/append.log bs=1 seek=3 conv=notrunc"),
        ("attributes", "touch -m $V/attributes/plain"),
        ("attributes", "setfattr -n user.decamp -v other $V/attributes/plain"),
        ("mapped", "printf X | dd of=$V/mapped bs=1 seek=5000 conv=notrunc"),
        ("removed", "touch /var/lib/decamp-lab-containers/tree/rootfs/usr/bin/redis-benchmark"),
        ("the other end closed", "kill -9 $(pgrep -f '[/]workloads/tree.py' | sed -n 2p)"),
    ];
    for (clue, damage) in damages {
        let spec = start_tree(&host);
        assert_eq!(verify_tree(&host, &spec, "before")["ok"], true);
        host.shell(&format!("V={}; {damage}", volume(&spec))).unwrap();
        let after = verify_tree(&host, &spec, "damaged");
        assert_eq!(after["ok"], false, "{damage} was not noticed");
        let reason = after["reason"].as_str().unwrap();
        assert!(reason.contains(clue) || clue == "the other end closed", "{damage}: {reason}");
        lab.delete_container("node-a", &spec.id).unwrap();
    }
    lab.close().unwrap();
}

#[test]
fn damaged_memory_is_noticed() {
    let _one = one_at_a_time();
    let lab = open("mem");
    let host = lab.host("node-a").unwrap();
    let spec = ContainerSpec::workload(id("dirty"), "dirty.py", &["8", "16"]);
    host.run_container(&spec).unwrap();
    let status = format!("{}/dirty.json", volume(&spec));
    wait_for("dirty pages", || json(&host, &status).filter(|s| s["changed"].as_u64() > Some(8000)));
    // One byte in the middle of a 16 MiB mapping, as a wrong page from a migration would be.
    let script = r#"
import re, sys
pid = sys.argv[1]
for line in open(f"/proc/{pid}/maps").readlines():
    start, end = (int(x, 16) for x in line.split()[0].split("-"))
    if end - start >= 16 << 20 and len(line.split()) == 5:
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            for at in range(start + 100, end, 4096):
                try:
                    memory.seek(at)
                    memory.write(b"\0\0")
                except OSError:
                    sys.exit()  # it has noticed, and ended
"#;
    let pid = host.shell("pgrep -f '[/]workloads/dirty.py'").unwrap();
    host.exec(&["python3", "-c", script, pid.trim()]).unwrap();
    let noticed = wait_for("the damage being noticed", || json(&host, &status).filter(|s| s["ok"] == false));
    assert!(noticed["reason"].as_str().unwrap().contains("does not hold its pattern"), "{noticed}");
    lab.close().unwrap();
}

/// Runs one of the programs that talk to Redis on the client; its exit code and its answer must agree.
fn redis_program(client: &Host, program: &str, more: &[&str]) -> Value {
    let path = format!("{WORKLOADS_IN_HOST}/{program}");
    let argv: Vec<&str> = ["python3", &path, "10.77.0.50"].into_iter().chain(more.iter().copied()).collect();
    let got = client.exec_with(&argv, b"", Duration::from_secs(100)).unwrap();
    let said: Value = serde_json::from_slice(&got.stdout).unwrap_or_else(|_| panic!("{got:?}"));
    assert_eq!(got.code == 0, said["ok"] == true, "{got:?}");
    said
}

#[test]
fn the_redis_client_counts_every_answer_and_the_database_is_checked() {
    let _one = one_at_a_time();
    let lab = open("redis");
    let (host, client) = (lab.host("node-a").unwrap(), lab.client().unwrap());
    let spec = start_redis(&host, &client);
    let python = |program: &str, more: &[&str]| redis_program(&client, program, more);
    let incr = |report: &str, more: &[&str]| {
        let path = format!("{WORKLOADS_IN_HOST}/incr.py");
        let argv: Vec<&str> = ["python3", &path, "10.77.0.50", "--report", report]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let started = client.spawn(&argv, &[], "incr.log").unwrap();
        client.shell("sleep 0.5").unwrap();
        started
    };
    let filled = python("fill_redis.py", &["--mib", "8"]);
    let digest = filled["digest"].as_str().unwrap().to_owned();
    assert_eq!(python("check_redis.py", &["--mib", "8", "--digest", &digest])["keys"], 512);

    // A dump and restore under load: the same connection, every answer one more than the last.
    let mut counting = incr("/tmp/one.json", &[]);
    checkpoint(&host, &spec, "").unwrap();
    restore(&host, &spec);
    client.shell("sleep 0.5").unwrap();
    counting.signal(Signal::SIGTERM);
    assert_eq!(counting.wait(Duration::from_secs(60)).unwrap(), 0);
    let one = json(&client, "/tmp/one.json").unwrap();
    assert!(one["ok"] == true && one["reconnects"] == 0 && one["waiting"] == 0, "{one}");
    assert_eq!(one["last_value"], one["replies"], "{one}");
    assert_eq!(one["sent"], one["replies"], "{one}");
    assert!(one["worst_gap_ms"].as_f64().unwrap() > 20.0, "the restore was not noticed: {one}");
    assert!(one["latency_us"]["p50"].as_u64().unwrap() < 1_000_000, "{one}");
    assert_eq!(python("check_redis.py", &["--mib", "8", "--other-keys", "1"])["ok"], true);

    // Somebody else's increment, a broken connection, a lost key, a changed key: each is noticed.
    let mut counting = incr("/tmp/two.json", &[]);
    client.exec(&["redis-cli", "-h", "10.77.0.50", "incr", "counter"]).unwrap();
    assert_eq!(counting.wait(Duration::from_secs(60)).unwrap(), 1);
    assert!(json(&client, "/tmp/two.json").unwrap()["reason"].as_str().unwrap().contains("the answer after"));
    let mut counting = incr("/tmp/three.json", &[]);
    client.exec(&["redis-cli", "-h", "10.77.0.50", "client", "kill", "type", "normal"]).unwrap();
    assert_eq!(counting.wait(Duration::from_secs(60)).unwrap(), 1);
    assert_eq!(json(&client, "/tmp/three.json").unwrap()["reconnects"], 1);
    let mut counting = incr("/tmp/four.json", &["--allow-reconnect"]);
    client.exec(&["redis-cli", "-h", "10.77.0.50", "client", "kill", "type", "normal"]).unwrap();
    client.shell("sleep 0.3").unwrap();
    counting.signal(Signal::SIGTERM);
    assert_eq!(counting.wait(Duration::from_secs(60)).unwrap(), 0);
    assert_eq!(json(&client, "/tmp/four.json").unwrap()["reconnects"], 1);
    client.exec(&["redis-cli", "-h", "10.77.0.50", "setrange", "decamp:1:00000007", "99", "x"]).unwrap();
    assert!(
        python("check_redis.py", &["--mib", "8", "--other-keys", "1"])["reason"]
            .to_string()
            .contains("another value")
    );
    client.exec(&["redis-cli", "-h", "10.77.0.50", "del", "decamp:1:00000007"]).unwrap();
    assert!(
        python("check_redis.py", &["--mib", "8", "--other-keys", "1"])["reason"]
            .to_string()
            .contains("is lost")
    );
    lab.close().unwrap();
}

#[test]
fn what_criu_cannot_dump_is_refused_and_goes_on() {
    let _one = one_at_a_time();
    let lab = open("undump");
    let host = lab.host("node-a").unwrap();
    for kind in ["userfaultfd", "io_uring"] {
        let spec = ContainerSpec::workload(id("held"), "undumpable.py", &[kind]);
        host.run_container(&spec).unwrap();
        let status = format!("{}/undumpable.json", volume(&spec));
        wait_for("the workload's start", || json(&host, &status).filter(|s| s["ok"] == true));
        let refused = checkpoint(&host, &spec, "").unwrap_err().to_string();
        let count = json(&host, &status).unwrap()["count"].as_u64();
        wait_for("the workload going on", || json(&host, &status).filter(|s| s["count"].as_u64() > count));
        eprintln!("{kind}: {refused}");
        lab.delete_container("node-a", &spec.id).unwrap();
    }
    // And two that it can dump.
    for (program, args, file) in [("zero.py", vec!["--mib", "64"], "zero"), ("gap.py", vec![], "gap")] {
        let spec = ContainerSpec::workload(id("plain"), program, &args);
        host.run_container(&spec).unwrap();
        let status = format!("{}/{file}.json", volume(&spec));
        let before = wait_for("the workload's start", || json(&host, &status).filter(|s| s["ok"] == true));
        checkpoint(&host, &spec, "").unwrap();
        restore(&host, &spec);
        let later = |s: &Value| {
            s["ok"] == true && s["unix_ms"].as_f64() > before["unix_ms"].as_f64().map(|t| t + 500.0)
        };
        wait_for("the workload going on", || json(&host, &status).filter(later));
        lab.delete_container("node-a", &spec.id).unwrap();
    }
    lab.close().unwrap();
}
