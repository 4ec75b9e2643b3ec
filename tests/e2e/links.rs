//! A link that is cut, in a memory round and while both sides hold.

use crate::harness::{cluster_with, trouble_criu, trouble_restores, wait_for_process, wrap_runc};
use crate::moving::Moving;
use crate::subject::{IMPATIENT, Subject};

#[test]
fn a_cut_link_leaves_the_container_at_the_source() {
    let mut cluster = cluster_with("link", |_| IMPATIENT.to_owned());
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "link-cut");
    let id = subject.id.as_str();

    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &["--bandwidth", "2MiB/s"]);
    moving.until_in_memory_round();
    cluster.lab.set_link("node-b", false).unwrap();
    moving.end().must_fail(1);
    subject.assert_goes_on(&cluster);
    cluster.lab.set_link("node-b", true).unwrap();
    subject.assert_unharmed(&cluster);

    trouble_criu(&cluster, "node-b", "sleep 1.26");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.26");
    cluster.lab.set_link("node-b", false).unwrap();
    trouble_restores(&cluster, "node-b", "");
    moving.end().must_fail(1);
    subject.assert_goes_on(&cluster);
    cluster.lab.set_link("node-b", true).unwrap();
    subject.assert_unharmed(&cluster);
    subject.finish(&cluster);
}
