//! The lab itself: hosts that are separate, a network between them, containers that CRIU can dump and restore, and nothing
//! left behind, whatever ends it. Needs root; builds the root file system if this machine has none.

use std::path::PathBuf;

use std::time::Duration;

use decamp::lab::{ContainerSpec, Lab, LabOptions};
use decamp::model::ContainerId;

fn options(name: &str) -> LabOptions {
    let mut options = LabOptions::new(&format!("{name}-{}", std::process::id())).unwrap();
    options.decamp = PathBuf::from(env!("CARGO_BIN_EXE_decamp"));
    options.workloads = Some(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/workloads")));
    options
}

fn open(name: &str) -> Lab {
    Lab::open(&options(name), &mut |line| eprintln!("{line}")).unwrap()
}

fn id(text: &str) -> ContainerId {
    ContainerId::try_from(text).unwrap()
}

#[test]
fn redis_survives_checkpoint_and_restore_with_its_connection() {
    let lab = open("cr");
    let spec = ContainerSpec::redis(id("redis"), [10, 77, 0, 50].into());
    lab.run_container("node-a", &spec).unwrap();
    let client = lab.client().unwrap();
    let wait = "for i in $(seq 100); do redis-cli -h 10.77.0.50 ping && exit 0; sleep 0.05; done; exit 1";
    client.shell(wait).unwrap();
    // One connection that is open before, during and after.
    let script = "(echo INCR n; echo INCR n; sleep 4; echo INCR n; sleep 0.5) | redis-cli -h 10.77.0.50 > /tmp/answers 2>&1";
    let mut session = client.spawn(&["sh", "-c", script], &[], "session.log").unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let host = lab.host("node-a").unwrap();
    let dir = "/var/lib/decamp/images";
    let criu = format!(
        "mkdir -p {dir}/work; echo skip-in-flight > /etc/criu/runc.conf
         runc --log /tmp/runc.log checkpoint --tcp-established --file-locks --image-path {dir} --work-path {dir}/work redis \
            || {{ tail -50 /tmp/runc.log {dir}/work/dump.log; exit 1; }}
         test $(runc list -q | wc -l) = 0
         runc --log /tmp/runc.log restore -d --tcp-established --file-locks --image-path {dir} --work-path {dir}/work \
            --bundle {bundle} redis </dev/null >/dev/null 2>&1 || {{ tail -50 /tmp/runc.log {dir}/work/restore.log; exit 1; }}",
        bundle = spec.bundle()
    );
    host.shell(&criu).unwrap();
    assert_eq!(session.wait(Duration::from_secs(30)).unwrap(), 0);
    assert_eq!(String::from_utf8(client.read_file("/tmp/answers").unwrap()).unwrap(), "1\n2\n3\n");
    lab.delete_container("node-a", &spec.id).unwrap();
    assert!(host.pids_matching("redis-server").is_empty());
    lab.close().unwrap();
}
