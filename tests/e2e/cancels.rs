//! Operators who change their mind.

use std::time::Duration;

use crate::harness::{cluster_with, everything, trouble_criu, trouble_restores, wait_for_process, wrap_runc};
use crate::moving::Moving;
use crate::subject::{IMPATIENT, Subject};

#[test]
fn a_cancelled_migration_changes_nothing() {
    let mut cluster = cluster_with("cancel", |_| IMPATIENT.to_owned());
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "cancelled");
    let id = subject.id.as_str();
    let slow = ["--bandwidth", "2MiB/s"];

    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &slow);
    moving.until_in_memory_round();
    moving.interrupt();
    assert_eq!(moving.end().must_fail(4)["cancelled"], true);
    subject.assert_unharmed(&cluster);

    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &slow);
    moving.until_in_memory_round();
    let said = cluster.decamp("node-a", &["cancel", id], Duration::from_secs(20)).unwrap();
    assert_eq!(said.code, 0, "{}", everything(&said));
    assert_eq!(moving.end().must_fail(4)["cancelled"], true);
    subject.assert_unharmed(&cluster);

    // While both sides hold.
    trouble_criu(&cluster, "node-b", "sleep 1.27");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.27");
    trouble_restores(&cluster, "node-b", "");
    let said = cluster.decamp("node-a", &["cancel", id], Duration::from_secs(20)).unwrap();
    assert_eq!(said.code, 0, "{}", everything(&said));
    assert_eq!(moving.end().must_fail(4)["cancelled"], true);
    subject.assert_unharmed(&cluster);

    let said = cluster.decamp("node-a", &["cancel", id], Duration::from_secs(20)).unwrap();
    assert!(said.code != 0 && everything(&said).contains("no migration"), "{}", everything(&said));
    subject.finish(&cluster);
}
