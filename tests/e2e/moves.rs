//! Containers move, and come back.

use decamp::lab::{Cluster, ContainerSpec};

use crate::harness::{cluster, id, must_migrate, redis, running};

#[test]
fn redis_moves_and_comes_back_with_every_key() {
    let cluster = cluster("redis");
    redis(&cluster, "node-a", "redis", 50);
    let cli = |args: &str| {
        let client = cluster.lab.client().unwrap();
        client.shell(&format!("redis-cli -h 10.77.0.50 {args}")).unwrap().trim().to_owned()
    };
    assert_eq!(cli("debug populate 20000 key 1000"), "OK");
    assert_eq!(cli("set here node-a"), "OK");
    let digest = cli("debug digest");
    let there = must_migrate(&cluster, "node-a", "redis", "node-b", &[]);
    println!("{there}");
    assert_eq!(running(&cluster, "node-a"), Vec::<String>::new());
    assert_eq!(running(&cluster, "node-b"), ["redis"]);
    assert_eq!(cli("debug digest"), digest);
    let back = must_migrate(&cluster, "node-b", "redis", "node-a", &[]);
    println!("{back}");
    assert_eq!(running(&cluster, "node-a"), ["redis"]);
    assert_eq!(cli("debug digest"), digest);
}

/// Lets the tree check everything that it holds, on whichever host it is.
fn verify_tree(cluster: &Cluster, host: &str, token: &str) {
    let script = format!(
        "echo {token} > /vol/verify
         for i in $(seq 600); do grep -q '\"token\": \"{token}\"' /vol/report.json 2>/dev/null && break; sleep 0.1; done
         cat /vol/report.json /vol/status.json"
    );
    let said = cluster.lab.exec(host, &["runc", "exec", "tree", "sh", "-c", &script]).unwrap();
    let told: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told.iter().all(|status| status["ok"] == true), "{said}");
    assert_eq!(told[0]["token"], token, "{said}");
}

#[test]
fn a_process_tree_with_everything_moves_and_comes_back() {
    let cluster = cluster("tree");
    let spec = ContainerSpec::workload(id("tree"), "tree.py", &[]).tmpfs("/scratch");
    cluster.lab.run_container("node-a", &spec).unwrap();
    verify_tree(&cluster, "node-a", "before");
    println!("{}", must_migrate(&cluster, "node-a", "tree", "node-b", &[]));
    verify_tree(&cluster, "node-b", "there");
    println!("{}", must_migrate(&cluster, "node-b", "tree", "node-a", &[]));
    verify_tree(&cluster, "node-a", "back");
    assert_eq!(running(&cluster, "node-b"), Vec::<String>::new());
}
