//! The lab itself: hosts that are separate, a network between them, containers that CRIU can dump and restore, and nothing
//! left behind, whatever ends it. Needs root; builds the root file system if this machine has none.
#![allow(clippy::unwrap_used, reason = "a test's way to fail")]

mod hosts;
mod leftovers;
mod workloads;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decamp::lab::{ContainerSpec, Host, Lab, LabOptions};
use decamp::model::ContainerId;

/// One lab at a time: the leftovers are looked for on the whole machine.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options(name: &str) -> LabOptions {
    let mut options = LabOptions::new(&format!("{name}-{}", std::process::id())).unwrap();
    options.decamp = PathBuf::from(env!("CARGO_BIN_EXE_decamp"));
    options
}

fn open(name: &str) -> Lab {
    Lab::open(&options(name), &mut |line| eprintln!("{line}")).unwrap()
}

fn id(text: &str) -> ContainerId {
    ContainerId::try_from(text).unwrap()
}

fn start_redis(host: &Host, client: &Host) -> ContainerSpec {
    let spec = ContainerSpec::redis(id("redis"), [10, 77, 0, 50].into());
    host.run_container(&spec).unwrap();
    client
        .shell("for i in $(seq 100); do redis-cli -h 10.77.0.50 ping && exit 0; sleep 0.05; done; exit 1")
        .unwrap();
    spec
}

#[test]
fn redis_survives_checkpoint_and_restore_with_its_connection() {
    let _one = one_at_a_time();
    let lab = open("cr");
    let (host, client) = (lab.host("node-a").unwrap(), lab.client().unwrap());
    let spec = start_redis(&host, &client);
    // One connection that is open before, during and after: it waits for a file that says that the restore is done.
    let script = "(echo INCR n; echo INCR n; until test -e /tmp/restored; do sleep 0.05; done; echo INCR n; sleep 1) \
                  | redis-cli -h 10.77.0.50 > /tmp/answers 2>&1";
    let mut session = client.spawn(&["sh", "-c", script], &[], "session.log").unwrap();
    client.shell("until test $(wc -l < /tmp/answers) = 2; do sleep 0.02; done").unwrap();
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
    client.shell("touch /tmp/restored").unwrap();
    assert_eq!(session.wait(Duration::from_secs(60)).unwrap(), 0);
    assert_eq!(String::from_utf8(client.read_file("/tmp/answers").unwrap()).unwrap(), "1\n2\n3\n");
    lab.delete_container("node-a", &spec.id).unwrap();
    assert!(host.pids_matching("redis-server").is_empty());
    lab.close().unwrap();
}
