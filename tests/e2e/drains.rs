//! A host that is emptied.

use decamp::lab::ContainerSpec;

use crate::harness::{MIGRATION, cluster, id, redis, running};

#[test]
fn drain_moves_them_all() {
    let cluster = cluster("drain");
    redis(&cluster, "node-a", "drain-redis", 50);
    cluster.lab.run_container("node-a", &ContainerSpec::workload(id("drain-gap"), "gap.py", &[])).unwrap();
    let sleeper =
        ContainerSpec::new(id("drain-sleep"), &["sleep", "infinity"]).address([10, 77, 0, 51].into());
    cluster.lab.run_container("node-a", &sleeper).unwrap();
    let output = cluster.decamp("node-a", &["drain", "--to", "node-b"], MIGRATION).unwrap();
    println!("{}", output.text());
    assert_eq!(output.code, 0, "{}", output.text());
    assert!(output.text().contains("3 of 3 moved"), "{}", output.text());
    assert_eq!(running(&cluster, "node-a"), Vec::<String>::new());
    let mut there = running(&cluster, "node-b");
    there.sort();
    assert_eq!(there, ["drain-gap", "drain-redis", "drain-sleep"]);
    let client = cluster.lab.client().unwrap();
    assert_eq!(client.shell("redis-cli -h 10.77.0.50 ping").unwrap().trim(), "PONG");
    client.shell("ping -c 1 -W 5 10.77.0.51 || arping -c 1 -w 5 -I br0 10.77.0.51").unwrap();

    // Nothing is left to do, which is no failure.
    let output = cluster.decamp("node-a", &["drain", "--to", "node-b"], MIGRATION).unwrap();
    assert_eq!(output.code, 0, "{}", output.text());
}
