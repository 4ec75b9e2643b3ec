//! What crosses the wire.

use decamp::lab::{Cluster, ContainerSpec};
use serde_json::Value;

use crate::harness::{cluster, id};
use crate::moving::Moving;

fn summary(cluster: &Cluster, name: &str) -> Value {
    // Without "auto", whose choice depends on how busy this machine is, sizes can be compared.
    let ended = Moving::start(cluster, "node-a", name, "node-b", &["--compress", "on"]).end();
    assert_eq!(ended.code, 0, "{}\n{}", ended.text, cluster.agent_log("node-b"));
    ended.event("completed")
}

fn wait_for_file(cluster: &Cluster, path: &str) {
    let wait = format!("for i in $(seq 600); do test -s {path} && exit; sleep 0.1; done; exit 1");
    cluster.host("node-a").unwrap().shell(&wait).unwrap();
}

#[test]
fn an_idle_container_is_sent_once() {
    let cluster = cluster("idle");
    let program = "import os,time\nb=os.urandom(32<<20)\nopen('/vol/ready','w').write('1')\ntime.sleep(1e6)";
    let spec = ContainerSpec::new(id("idle"), &["python3", "-c", program]).volume("vol", "/vol");
    cluster.lab.run_container("node-a", &spec).unwrap();
    wait_for_file(&cluster, "/var/lib/decamp-lab-containers/idle/volumes/vol/ready");
    let summary = summary(&cluster, "idle");
    let sent = |round: usize| summary["rounds"][round]["bytes_sent"].as_u64().unwrap();
    // What cannot be compressed crosses in full, and then no more.
    assert!(sent(0) > 32 << 20, "{summary:#}");
    assert!(sent(1) * 100 < sent(0), "{summary:#}");
    assert!(sent(2) * 100 < sent(0), "{summary:#}");
    // Two rounds, one more right before the freeze, and what was left in it.
    assert_eq!(summary["rounds"].as_array().unwrap().len(), 4, "{summary:#}");
    assert!(summary["pages_lazy"].as_u64() > Some(8192) && summary["pages_missed"] == 0, "{summary:#}");
}

#[test]
fn zeros_cost_next_to_nothing() {
    let cluster = cluster("zero");
    let mut sent = Vec::new();
    for (name, mib) in [("zero-small", "1"), ("zero-large", "1024")] {
        cluster
            .lab
            .run_container("node-a", &ContainerSpec::workload(id(name), "zero.py", &["--mib", mib]))
            .unwrap();
        wait_for_file(&cluster, &format!("/var/lib/decamp-lab-containers/{name}/volumes/vol/zero.json"));
        let summary = summary(&cluster, name);
        println!("{}", summary["rounds"]);
        let zero: u64 =
            summary["rounds"].as_array().unwrap().iter().map(|r| r["pages_zero"].as_u64().unwrap()).sum();
        assert!(zero << 12 >= mib.parse::<u64>().unwrap() << 20, "{summary:#}");
        sent.push(summary["memory_bytes_sent"].as_u64().unwrap());
        let check = "test \"$(cat /vol/zero.json | grep -c '\"ok\": true')\" = 1";
        cluster.lab.exec("node-b", &["runc", "exec", name, "sh", "-c", check]).unwrap();
    }
    // The program itself crosses both times.
    assert!(sent[1] < sent[0] + (1 << 20), "{sent:?}");
}
