//! Hosts that are separate machines in every way that matters, and the ways to hurt them.

use std::time::Duration;

use decamp::lab::{ContainerSpec, Lab, LabError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{id, one_at_a_time, open, options, start_redis};

#[test]
fn hosts_are_separate_and_the_shared_tree_is_read_only() {
    let _one = one_at_a_time();
    let lab = open("sep");
    let hosts = lab.hosts();
    let [a, b] = hosts.as_slice() else { panic!("two hosts were asked for") };
    for host in [a, b] {
        assert_eq!(host.exec(&["hostname"]).unwrap().trim(), host.name());
        assert!(host.shell("touch /usr/bin/x").is_err(), "the shared tree can be written to");
        // PID 1 of its own, and nothing of the outer system.
        assert!(host.exec(&["ps", "-e", "-o", "pid="]).unwrap().lines().count() < 6);
        assert_eq!(host.shell("ip -o link | wc -l").unwrap().trim(), "3");
        assert_eq!(host.exec(&["decamp", "--version"]).unwrap().split_whitespace().next(), Some("decamp"));
    }
    a.write_file("/etc/decamp/deep/secret", b"only here", 0o600).unwrap();
    assert_eq!(a.shell("stat -c %a /etc/decamp/deep/secret").unwrap().trim(), "600");
    assert_eq!(a.read_file("/etc/decamp/deep/secret").unwrap(), b"only here");
    assert!(b.read_file("/etc/decamp/deep/secret").is_err());
    a.write_file("/tmp/empty", b"", 0o644).unwrap();
    assert_eq!(a.read_file("/tmp/empty").unwrap(), b"");
    // The same container id on both hosts: v1 cgroups are shared by the machine, so this fails without parents of their own.
    for (host, last) in [(a, 60), (b, 61)] {
        let spec = ContainerSpec::new(id("same"), &["sleep", "1000"]).address([10, 77, 0, last].into());
        host.run_container(&spec).unwrap();
    }
    a.delete_container(&id("same")).unwrap();
    assert_eq!(b.exec(&["runc", "list", "-q"]).unwrap().trim(), "same");
    assert_eq!(b.pids_matching("sleep 1000").len(), 1);
    lab.close().unwrap();
}

#[test]
fn a_container_that_cannot_start_says_why_and_leaves_nothing_on_the_host() {
    let _one = one_at_a_time();
    let lab = open("bad");
    let host = lab.host("node-a").unwrap();
    let mut spec = ContainerSpec::new(id("broken"), &["/no/such/program"]).address([10, 77, 0, 70].into());
    let error = host.run_container(&spec).unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    assert_eq!(host.shell("runc list -q; ip netns; ls /var/lib/decamp-lab-containers").unwrap(), "");
    assert_eq!(host.shell("ip -o link | wc -l").unwrap().trim(), "3");
    spec.address = Some([10, 77, 0, 11].into());
    assert!(matches!(host.run_container(&spec), Err(LabError::BadInput { .. })));
    lab.close().unwrap();
}

#[test]
fn links_can_be_limited_cut_and_mended() {
    let _one = one_at_a_time();
    let mut asked = options("link");
    asked.rate_bits = Some(100_000_000);
    let lab = Lab::open(&asked, &mut |_| ()).unwrap();
    let (a, client) = (lab.host("node-a").unwrap(), lab.client().unwrap());
    assert!(a.shell("tc qdisc show dev eth0").unwrap().contains("tbf"));
    lab.set_rate("node-a", None).unwrap();
    assert!(!a.shell("tc qdisc show dev eth0").unwrap().contains("tbf"));
    let reach = ["arping", "-q", "-f", "-w", "15", "-I", "br0", "10.77.0.10"];
    client.exec(&reach).unwrap();
    lab.set_link("node-a", false).unwrap();
    let unreachable = client.exec_with(
        &["arping", "-q", "-c", "1", "-w", "1", "-I", "br0", "10.77.0.10"],
        b"",
        Duration::from_secs(20),
    );
    assert_ne!(unreachable.unwrap().code, 0);
    lab.set_link("node-a", true).unwrap();
    client.exec(&reach).unwrap();
    // Redis in a container is reached over IPv6 as well, where there is IPv6.
    start_redis(&a, &client);
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        assert_eq!(client.shell("redis-cli -h fd00:77::1:32 ping").unwrap().trim(), "PONG");
    }
    lab.close().unwrap();
}

#[test]
fn deadlines_signals_and_power_cuts() {
    let _one = one_at_a_time();
    let lab = open("die");
    let host = lab.host("node-a").unwrap();
    let late = host.exec_with(&["sleep", "1001"], b"", Duration::from_millis(300));
    assert!(matches!(late, Err(LabError::Deadline { .. })), "{late:?}");
    assert!(host.pids_matching("sleep 1001").is_empty(), "the late command is still there");
    assert_eq!(host.exec_with(&["sh", "-c", "exit 7"], b"", Duration::from_secs(20)).unwrap().code, 7);
    assert_eq!(host.exec_with(&["no-such-program"], b"", Duration::from_secs(20)).unwrap().code, 127);

    let mut sleeper = host.spawn(&["sleep", "1002"], &[], "sleeper.log").unwrap();
    assert_eq!(host.pids_matching("sleep 1002"), [sleeper.pid()]);
    assert_eq!(sleeper.ended().unwrap(), None);
    sleeper.signal(Signal::SIGTERM);
    assert_eq!(sleeper.wait(Duration::from_secs(20)).unwrap(), 128 + 15);
    drop(host.spawn(&["sleep", "1003"], &[], "sleeper.log").unwrap());
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        host.pids_matching("sleep 1003").is_empty()
    });
    assert!(gone, "a dropped background command lives on");

    // A power cut: everything on that host is gone, the others go on.
    start_redis(&host, &lab.client().unwrap());
    kill(Pid::from_raw(host.init_pid()), Signal::SIGKILL).unwrap();
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !host.alive() && host.pids_matching("").is_empty()
    });
    assert!(gone);
    assert!(matches!(host.exec(&["true"]), Err(LabError::HostDown { .. })));
    lab.exec("node-b", &["true"]).unwrap();
    assert!(matches!(lab.host("node-z"), Err(LabError::NoSuchHost { .. })));
    lab.close().unwrap();
}

#[test]
fn an_agent_that_does_not_start_shows_the_end_of_its_log() {
    let _one = one_at_a_time();
    let mut lab = open("agent");
    let error = lab.start_agent("node-a", "this is = not a configuration").unwrap_err().to_string();
    assert!(error.contains("the agent on node-a") && error.contains("exit code"), "{error}");
    assert!(error.lines().count() > 1 || error.len() > 80, "the log is not shown: {error}");
    assert_eq!(lab.agent_pid("node-a"), None);
    lab.close().unwrap();
}
