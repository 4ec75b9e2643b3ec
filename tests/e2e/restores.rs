//! Restores that CRIU cannot finish.

use crate::harness::{cluster, trouble_restores, wrap_runc};
use crate::moving::Moving;
use crate::subject::Subject;

#[test]
fn a_restore_that_fails_leaves_the_container_at_the_source() {
    let mut cluster = cluster("restore");
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "restore-fails");
    // CRIU cannot begin; CRIU has made processes already and then misses what is in their memory.
    for trouble in ["rm $images/inventory.img", "rm $images/mm-1.img"] {
        trouble_restores(&cluster, "node-b", trouble);
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
