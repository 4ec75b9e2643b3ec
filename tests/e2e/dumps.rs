//! Containers that CRIU cannot dump go on, and the operator reads why.

use std::time::Duration;

use decamp::lab::{Cluster, ContainerSpec};

use crate::harness::{cluster, id, running};
use crate::moving::Moving;
use crate::subject::{assert_traces, traces};

fn count(cluster: &Cluster, name: &str) -> u64 {
    let path = format!("/var/lib/decamp-lab-containers/{name}/volumes/vol/undumpable.json");
    let status: serde_json::Value =
        serde_json::from_slice(&cluster.host("node-a").unwrap().read_file(&path).unwrap()).unwrap();
    assert_eq!(status["ok"], true, "{status:#}");
    status["count"].as_u64().unwrap()
}

#[test]
fn what_criu_cannot_dump_is_named_and_goes_on() {
    let cluster = cluster("dump");
    let clean = traces(&cluster, "node-b", "undumpable");
    for kind in ["userfaultfd", "io_uring"] {
        let name = format!("undumpable-{}", kind.replace('_', "-"));
        cluster
            .lab
            .run_container("node-a", &ContainerSpec::workload(id(&name), "undumpable.py", &[kind]))
            .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        // A second attempt fails in the same way: the first left nothing in its way.
        for _ in 0..2 {
            let failed = Moving::start(&cluster, "node-a", &name, "node-b", &[]).end().must_fail(1);
            println!("{failed:#}");
            assert!(failed["message"].as_str().unwrap().contains(kind), "{failed:#}");
            assert!(!failed["remedy"].as_str().unwrap().is_empty(), "{failed:#}");
            assert!(running(&cluster, "node-a").contains(&name));
            let before = count(&cluster, &name);
            std::thread::sleep(Duration::from_millis(300));
            assert!(count(&cluster, &name) > before, "{name} does not go on");
            assert_traces(&cluster, "node-b", "undumpable", &clean);
        }
    }
}
