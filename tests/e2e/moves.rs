//! Containers move, and come back.

use crate::harness::{cluster, must_migrate, redis, running};

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
