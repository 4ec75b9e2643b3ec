//! Agents that are killed in the middle: the container goes on where it was, and the next agent finds and removes the rest.

use std::time::Duration;

use decamp::lab::Cluster;
use nix::sys::signal::Signal;

use crate::harness::{cluster_with, trouble_criu, trouble_restores, wait_for_process, wrap_runc};
use crate::moving::Moving;
use crate::subject::{IMPATIENT, Subject};

/// Slow enough for rounds that can be hit: redis has some 6 MiB to send.
const SLOW: [&str; 2] = ["--bandwidth", "2MiB/s"];

fn kill(cluster: &mut Cluster, host: &str) {
    cluster.lab.kill_agent(host, Signal::SIGKILL).unwrap();
}

/// The source gives up and the container goes on before the destination is back; then the new agent there cleans up.
fn destination_returns(cluster: &mut Cluster, subject: &Subject, moving: Moving) {
    let failed = moving.end().must_fail(1);
    assert!(failed["state_now"].as_str().unwrap().contains("runs on node-a"), "{failed:#}");
    subject.assert_goes_on(cluster);
    cluster.lab.restart_agent("node-b").unwrap();
    subject.assert_unharmed(cluster);
}

#[test]
fn the_destination_is_killed_before_the_freeze() {
    let mut cluster = cluster_with("kill-early", |_| IMPATIENT.to_owned());
    let subject = Subject::start(&cluster, "kill-early");
    let id = subject.id.as_str();

    // An agent that has just started knows no digest of the base image: answering takes it a while.
    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    moving.until_phase("negotiating");
    std::thread::sleep(Duration::from_millis(100));
    kill(&mut cluster, "node-b");
    destination_returns(&mut cluster, &subject, moving);

    let volume = format!("/var/lib/decamp/containers/{id}/volumes/0/large");
    cluster.host("node-a").unwrap().shell(&format!("head -c 8M /dev/urandom > {volume}")).unwrap();
    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &SLOW);
    moving.until("some bytes of files", |e| e["file_progress"]["bytes_done"].as_u64() > Some(0));
    kill(&mut cluster, "node-b");
    cluster.host("node-a").unwrap().shell(&format!("rm {volume}")).unwrap();
    destination_returns(&mut cluster, &subject, moving);

    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &SLOW);
    moving.until_in_memory_round();
    kill(&mut cluster, "node-b");
    destination_returns(&mut cluster, &subject, moving);
    subject.finish(&cluster);
}

#[test]
fn the_destination_is_killed_in_the_restore_and_at_the_hold() {
    let mut cluster = cluster_with("kill-held", |_| IMPATIENT.to_owned());
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "kill-held");
    let id = subject.id.as_str();

    // The runtime outlives its agent, starts CRIU afterwards, and finds neither images nor agent.
    trouble_restores(&cluster, "node-b", "sleep 1.23");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.23");
    kill(&mut cluster, "node-b");
    trouble_restores(&cluster, "node-b", "");
    destination_returns(&mut cluster, &subject, moving);

    // The same, but the new agent is there before CRIU has begun.
    trouble_restores(&cluster, "node-b", "sleep 1.24");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.24");
    trouble_restores(&cluster, "node-b", "");
    cluster.lab.restart_agent("node-b").unwrap();
    destination_returns(&mut cluster, &subject, moving);

    // CRIU is there and waits for its images, which the source, stopped, cannot send.
    trouble_restores(&cluster, "node-b", "sleep 0.9");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 0.9");
    cluster.lab.kill_agent("node-a", Signal::SIGSTOP).unwrap();
    wait_for_process(&cluster, "node-b", "criu: restore");
    kill(&mut cluster, "node-b");
    cluster.lab.kill_agent("node-a", Signal::SIGCONT).unwrap();
    trouble_restores(&cluster, "node-b", "");
    destination_returns(&mut cluster, &subject, moving);

    // CRIU has its images.
    trouble_criu(&cluster, "node-b", "sleep 1.29");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.29");
    kill(&mut cluster, "node-b");
    trouble_restores(&cluster, "node-b", "");
    destination_returns(&mut cluster, &subject, moving);

    // Everything is restored and held; the source, stopped, cannot commit.
    trouble_criu(&cluster, "node-b", "sleep 0.5");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 0.5");
    cluster.lab.kill_agent("node-a", Signal::SIGSTOP).unwrap();
    wait_for_process(&cluster, "node-b", "decamp-hook");
    kill(&mut cluster, "node-b");
    trouble_restores(&cluster, "node-b", "");
    // The vote may be with the source already: it commits then, gets no answer, and asks until there is an agent that knows.
    cluster.lab.kill_agent("node-a", Signal::SIGCONT).unwrap();
    cluster.lab.restart_agent("node-b").unwrap();
    destination_returns(&mut cluster, &subject, moving);
    subject.finish(&cluster);
}

#[test]
fn the_source_is_killed_in_a_round_and_at_the_hold() {
    let mut cluster = cluster_with("kill-source", |_| IMPATIENT.to_owned());
    wrap_runc(&mut cluster, "node-b");
    let subject = Subject::start(&cluster, "kill-source");
    let id = subject.id.as_str();
    let returns = |cluster: &mut Cluster, moving: Moving| {
        // Nobody tells the operator how it ended.
        let ended = moving.end();
        assert_eq!(ended.code, 6, "{}", ended.text);
        subject.assert_goes_on(cluster);
        cluster.lab.restart_agent("node-a").unwrap();
        let listed = cluster.decamp("node-a", &["ls"], Duration::from_secs(10)).unwrap();
        assert!(listed.code == 0 && listed.text().contains(id), "{}", listed.text());
        subject.assert_unharmed(cluster);
    };

    let mut moving = Moving::start(&cluster, "node-a", id, "node-b", &SLOW);
    moving.until_in_memory_round();
    kill(&mut cluster, "node-a");
    returns(&mut cluster, moving);

    trouble_criu(&cluster, "node-b", "sleep 1.25");
    let moving = Moving::start(&cluster, "node-a", id, "node-b", &[]);
    wait_for_process(&cluster, "node-b", "sleep 1.25");
    kill(&mut cluster, "node-a");
    trouble_restores(&cluster, "node-b", "");
    returns(&mut cluster, moving);
    subject.finish(&cluster);
}
