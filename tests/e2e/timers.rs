//! Periodic timers that expire while the container is frozen go on afterwards; CRIU alone would lose them.

use crate::harness::{cluster, id, must_migrate};
use decamp::lab::ContainerSpec;

const TICKER: &str = r#"
import os, time
fd = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(fd, initial=0.02, interval=0.02)
n = 0
while True:
    n += int.from_bytes(os.read(fd, 8), "little")
    with open("/vol/n.new", "w") as f: f.write(str(n))
    os.rename("/vol/n.new", "/vol/n")
"#;

#[test]
fn a_periodic_timerfd_goes_on_after_the_move() {
    let cluster = cluster("timer");
    let spec = ContainerSpec::new(id("ticker"), &["python3", "-c", TICKER]).volume("vol", "/vol");
    cluster.lab.run_container("node-a", &spec).unwrap();
    let count = |host: &str, path: &str| -> u64 {
        let script = format!("for i in $(seq 50); do [ -s {path} ] && break; sleep 0.1; done; cat {path}");
        cluster.host(host).unwrap().shell(&script).unwrap().trim().parse().unwrap()
    };
    assert!(count("node-a", "/var/lib/decamp-lab-containers/ticker/volumes/vol/n") > 0);
    must_migrate(&cluster, "node-a", "ticker", "node-b", &[]);
    let there = "/var/lib/decamp/containers/ticker/volumes/0/n";
    let first = count("node-b", there);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let second = count("node-b", there);
    assert!(second > first + 10, "the timer stands still: {first} and a second later {second}");
}
