//! A cluster for one test, and what tests ask of it.

use std::time::Duration;

use decamp::lab::{Cluster, ContainerSpec, LabOptions, Output};
use decamp::model::ContainerId;

/// How long one migration in a test may take.
pub(crate) const MIGRATION: Duration = Duration::from_secs(300);

/// Opens two hosts with agents; the name makes the lab unique among tests that run at once.
pub(crate) fn cluster(name: &str) -> Cluster {
    cluster_with(name, |_| String::new())
}

/// The same with more configuration.
pub(crate) fn cluster_with(name: &str, more: impl Fn(&str) -> String) -> Cluster {
    let mut options = LabOptions::new(&format!("e2e-{name}")).unwrap();
    options.decamp = env!("CARGO_BIN_EXE_decamp").into();
    Cluster::open_with(&options, &mut |line| eprintln!("{line}"), more).unwrap()
}

pub(crate) fn id(name: &str) -> ContainerId {
    name.try_into().unwrap()
}

/// Starts redis at an address of the lab.
pub(crate) fn redis(cluster: &Cluster, host: &str, name: &str, last_octet: u8) -> ContainerSpec {
    let spec = ContainerSpec::redis(id(name), [10, 77, 0, last_octet].into());
    cluster.lab.run_container(host, &spec).unwrap();
    let client = cluster.lab.client().unwrap();
    let ping = format!(
        "for i in $(seq 100); do redis-cli -h 10.77.0.{last_octet} ping && exit; sleep 0.1; done; exit 1"
    );
    client.shell(&ping).unwrap();
    spec
}

/// What a command printed, on both streams.
pub(crate) fn everything(output: &Output) -> String {
    output.text() + &String::from_utf8_lossy(&output.stderr)
}

/// `decamp migrate`; returns exit code and everything it printed.
pub(crate) fn migrate(
    cluster: &Cluster,
    from: &str,
    container: &str,
    to: &str,
    more: &[&str],
) -> (i32, String) {
    let mut args = vec!["migrate", container, "--to", to];
    args.extend(more);
    let output = cluster.decamp(from, &args, MIGRATION).unwrap();
    (output.code, everything(&output))
}

/// Migrates and insists that it succeeds.
pub(crate) fn must_migrate(
    cluster: &Cluster,
    from: &str,
    container: &str,
    to: &str,
    more: &[&str],
) -> String {
    let (code, text) = migrate(cluster, from, container, to, more);
    if code != 0 {
        let logs = format!("--- {from}\n{}\n--- {to}\n{}", cluster.agent_log(from), cluster.agent_log(to));
        panic!("migrate {container} {from} -> {to} ended with {code}:\n{text}\n{logs}");
    }
    text
}

/// Names of the containers that run on a host.
pub(crate) fn running(cluster: &Cluster, host: &str) -> Vec<String> {
    let text = cluster.lab.exec(host, &["runc", "list", "-f", "json"]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let all = list.as_array().cloned().unwrap_or_default();
    all.iter().filter(|c| c["status"] == "running").map(|c| c["id"].as_str().unwrap().to_owned()).collect()
}

/// Restarts an agent with a changed configuration.
pub(crate) fn reconfigure(cluster: &mut Cluster, host: &str, change: impl FnOnce(String) -> String) {
    let old = cluster.host(host).unwrap().read_file(cluster.config_path()).unwrap();
    let new = change(String::from_utf8(old).unwrap());
    cluster.lab.start_agent(host, &new).unwrap();
}

/// What runc does between the agent and a restore; a file tells the wrapper what.
const WRAPPER: &str = r#"#!/bin/sh
images=
previous=
for word in "$@"; do
    [ "$previous" = --image-path ] && images=$word
    [ "$word" = restore ] && restore=1
    previous=$word
done
if [ -n "$restore" ] && [ -e /run/restore-trouble ]; then . /run/restore-trouble; fi
exec runc "$@"
"#;

/// Puts a wrapper between the agent and runc.
pub(crate) fn wrap_runc(cluster: &mut Cluster, host: &str) {
    cluster.lab.write_file(host, "/etc/decamp/runc", WRAPPER.as_bytes(), 0o755).unwrap();
    reconfigure(cluster, host, |text| text + "[runtime]\nrunc = \"/etc/decamp/runc\"\n");
}

/// What the wrapper shall do before the next restores begin, which is when the source's dump does; nothing: no trouble.
pub(crate) fn trouble_restores(cluster: &Cluster, host: &str, script: &str) {
    cluster.lab.write_file(host, "/run/restore-trouble", script.as_bytes(), 0o644).unwrap();
}

/// What CRIU's next restores shall do when all images are there and before any process is made: a hook of CRIU's own, which
/// finds the images in `$CRTOOLS_IMAGE_DIR`.
pub(crate) fn trouble_criu(cluster: &Cluster, host: &str, script: &str) {
    let hook = format!(
        "cat > /run/restore-hook <<'END'\n#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = pre-restore ] || exit 0\n{script}\nEND\n\
         chmod +x /run/restore-hook\necho 'action-script /run/restore-hook' >> \"$CRIU_CONFIG_FILE\"\n"
    );
    trouble_restores(cluster, host, &hook);
}

/// Waits until a process whose command line contains this runs on a host.
pub(crate) fn wait_for_process(cluster: &Cluster, host: &str, pattern: &str) -> i32 {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < until {
        if let Some(pid) = cluster.host(host).unwrap().pids_matching(pattern).first() {
            return *pid;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("no process {pattern:?} on {host}\n{}", cluster.agent_log(host));
}
