//! Restores that CRIU cannot finish.

use std::time::Duration;

use decamp::lab::Cluster;

use crate::harness::{cluster, everything, trouble_criu, trouble_restores, wait_for_process, wrap_runc};
use crate::moving::Moving;
use crate::subject::Subject;

#[test]
fn a_restore_that_fails_leaves_the_container_at_the_source() {
    let mut cluster = cluster("restore");
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "restore-fails");
    // CRIU cannot begin; CRIU has made processes already and then misses what is in their memory.
    let cannot_begin: fn(&Cluster) =
        |cluster| trouble_restores(cluster, "node-b", "rm $images/inventory.img");
    let misses_memory: fn(&Cluster) =
        |cluster| trouble_criu(cluster, "node-b", "rm $CRTOOLS_IMAGE_DIR/mm-1.img");
    for trouble in [cannot_begin, misses_memory] {
        trouble(&cluster);
        let ended = Moving::start(&cluster, "node-a", &subject.id, "node-b", &[]).end();
        let failed = ended.must_fail(1);
        println!("{failed:#}");
        assert_eq!((&failed["host"], &failed["phase"]), (&"node-b".into(), &"cut-over".into()), "{failed:#}");
        assert!(failed["message"].as_str().unwrap().contains("the restore failed"), "{failed:#}");
        assert!(!failed["log_lines"].as_array().unwrap().is_empty(), "{failed:#}");
        trouble_restores(&cluster, "node-b", "");
        subject.assert_unharmed(&cluster);
    }
    subject.finish(&cluster);
}

#[test]
fn a_restore_that_hangs_is_ended_and_leaves_nothing() {
    let mut cluster = cluster("hang");
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "restore-hangs");
    // CRIU's restorer waits for ever for pages that are not in the file.
    trouble_criu(&cluster, "node-b", "truncate -s 4096 $CRTOOLS_IMAGE_DIR/pages-1.img; sleep 0.28");
    let moving = Moving::start(&cluster, "node-a", &subject.id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 0.28");
    std::thread::sleep(Duration::from_secs(1));
    let said = cluster.decamp("node-a", &["cancel", &subject.id], Duration::from_secs(20)).unwrap();
    assert_eq!(said.code, 0, "{}", everything(&said));
    assert_eq!(moving.end().must_fail(4)["cancelled"], true);
    trouble_restores(&cluster, "node-b", "");
    subject.assert_unharmed(&cluster);
    subject.finish(&cluster);
}
