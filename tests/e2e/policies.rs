//! The ways a container can be made, and the ways it can be moved.

use std::time::Duration;

use decamp::lab::{Cluster, ContainerSpec};
use nix::sys::signal::Signal;

use crate::harness::{cluster, cluster_with, id, must_migrate, redis, running};
use crate::moving::Moving;

/// Appends a line ten times a second, each time opening the file anew.
const TICKING: &str = "while :; do echo tick >> /data/ticks; sleep 0.1; done";

fn ticking(name: &str, source: &str) -> ContainerSpec {
    ContainerSpec::new(id(name), &["sh", "-c", TICKING]).volume(source, "/data")
}

fn ticks(cluster: &Cluster, host: &str, folder: &str) -> usize {
    cluster
        .host(host)
        .unwrap()
        .shell(&format!("cat {folder}/ticks 2>/dev/null || true"))
        .unwrap()
        .lines()
        .count()
}

fn assert_ticking(cluster: &Cluster, host: &str, folder: &str) {
    let before = ticks(cluster, host, folder);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(cluster, host, folder) > before, "nothing is written to {folder} on {host}");
}

#[test]
fn mounts_are_shared_and_mapped() {
    let more = |_: &str| "[files]\nallow_sources = [\"/var/tmp/allowed\"]\n".to_owned();
    let cluster = cluster_with("mounts", more);
    for host in ["node-a", "node-b"] {
        cluster
            .host(host)
            .unwrap()
            .shell("mkdir -p /var/tmp/allowed/shared /var/tmp/allowed/mapped")
            .unwrap();
    }
    let spec = ticking("shared", "/var/tmp/allowed/shared");
    cluster.lab.run_container("node-a", &spec).unwrap();
    cluster.lab.run_container("node-a", &ticking("mapped", "own")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    must_migrate(&cluster, "node-a", "shared", "node-b", &["--mount", "/data=shared"]);
    // Nothing was sent: the folder there has only what was written there.
    assert_ticking(&cluster, "node-b", "/var/tmp/allowed/shared");
    let first = ticks(&cluster, "node-a", "/var/tmp/allowed/shared");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ticks(&cluster, "node-a", "/var/tmp/allowed/shared"), first, "the original still writes");
    let map = ["--mount", "/data=map:/var/tmp/allowed/mapped"];
    must_migrate(&cluster, "node-a", "mapped", "node-b", &map);
    assert_ticking(&cluster, "node-b", "/var/tmp/allowed/mapped");
    assert_eq!(running(&cluster, "node-a"), Vec::<String>::new());
}

/// A container whose root file system is a folder with a shell, made by hand.
fn run_on_plain_folder(cluster: &Cluster, name: &str) {
    let spec = ticking(name, "data");
    let bundle = spec.bundle();
    let script = format!(
        "mkdir -p {bundle}/rootfs/bin {bundle}/rootfs/data {bundle}/volumes/data
         cp /bin/sh /bin/sleep {bundle}/rootfs/bin/
         for f in $(ldd /bin/sh /bin/sleep | grep -o '/[^ ]*\\.so[^ ]*' | sort -u); do
             mkdir -p {bundle}/rootfs$(dirname $f); cp -L $f {bundle}/rootfs$f
         done
         ip netns add ct-{name}; ip -n ct-{name} link set lo up"
    );
    let host = cluster.host("node-a").unwrap();
    host.shell(&script).unwrap();
    let config = serde_json::to_vec(&spec.config_json()).unwrap();
    host.write_file(&format!("{bundle}/config.json"), &config, 0o644).unwrap();
    let run = format!("runc run --detach --bundle {bundle} {name} </dev/null >/dev/null 2>&1");
    host.shell(&run).unwrap();
}

#[test]
fn a_plain_folder_without_an_address_moves_there_and_back() {
    let cluster = cluster("plain");
    run_on_plain_folder(&cluster, "plain");
    std::thread::sleep(Duration::from_millis(300));
    must_migrate(&cluster, "node-a", "plain", "node-b", &[]);
    assert_eq!(running(&cluster, "node-b"), ["plain"]);
    assert_ticking(&cluster, "node-b", "/var/lib/decamp/containers/plain/volumes/0");
    must_migrate(&cluster, "node-b", "plain", "node-a", &[]);
    assert_eq!(running(&cluster, "node-a"), ["plain"]);
    assert_ticking(&cluster, "node-a", "/var/lib/decamp/containers/plain/volumes/0");
}

#[test]
fn a_cold_move_has_one_round_and_keeps_connections_and_close_drops_them() {
    let cluster = cluster("cold");
    redis(&cluster, "node-a", "cold", 50);
    let argv = |more: &[&'static str]| {
        let program = "/var/lib/decamp-lab/workloads/incr.py";
        let first = ["python3", program, "10.77.0.50", "--report", "/tmp/incr.json", "--interval-ms", "4"];
        [first.as_slice(), more].concat()
    };
    let report = || -> serde_json::Value {
        serde_json::from_slice(&cluster.lab.client().unwrap().read_file("/tmp/incr.json").unwrap()).unwrap()
    };
    let mut client = cluster.lab.spawn("client", &argv(&[]), "cold.log").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let ended = Moving::start(&cluster, "node-a", "cold", "node-b", &["--mode", "cold"]).end();
    assert_eq!(ended.code, 0, "{}\n{}", ended.text, cluster.agent_log("node-b"));
    let summary = ended.event("completed");
    assert_eq!(summary["rounds"].as_array().unwrap().len(), 1, "{summary:#}");
    assert_eq!(summary["mode"], "cold");
    client.signal(Signal::SIGTERM);
    let code = client.wait(Duration::from_secs(40)).unwrap();
    assert!(code == 0 && report()["reconnects"] == 0, "{:#}", report());

    let mut client = cluster.lab.spawn("client", &argv(&["--allow-reconnect"]), "close.log").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    must_migrate(&cluster, "node-b", "cold", "node-a", &["--tcp", "close"]);
    std::thread::sleep(Duration::from_millis(500));
    client.signal(Signal::SIGTERM);
    assert_eq!(client.wait(Duration::from_secs(40)).unwrap(), 0, "{:#}", report());
    assert_eq!(report()["reconnects"], 1, "{:#}", report());
}

#[test]
fn a_connection_that_must_not_be_moved_is_a_reason() {
    let cluster = cluster("tcp");
    redis(&cluster, "node-a", "tcp", 50);
    let client =
        cluster.lab.spawn("client", &["redis-cli", "-h", "10.77.0.50", "blpop", "nothing", "0"], "blpop.log");
    std::thread::sleep(Duration::from_millis(500));
    let failed = Moving::start(&cluster, "node-a", "tcp", "node-b", &["--tcp", "refuse"]).end().must_fail(3);
    assert_eq!(failed["reasons"][0]["code"], "connections", "{failed:#}");
    drop(client);
}
