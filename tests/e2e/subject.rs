//! A redis container that a client talks to over one connection, and what must be true of both after every failure: it runs
//! at the source, the connection goes on, nothing is left at the destination, and the next migration succeeds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use decamp::lab::{Background, Cluster};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{must_migrate, redis, running};

const SOURCE: &str = "node-a";
const DESTINATION: &str = "node-b";
const REPORT: &str = "/tmp/incr.json";
/// A destination whose link was cut notices after the idle timeout; then CRIU ends, then the files go.
const CLEAN_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What tests with killed agents and cut links add to every agent's configuration: a lost peer is noticed sooner, and a
/// return sends everything again, so that its rounds take as long as the first time.
pub(crate) const IMPATIENT: &str =
    "[quic]\nidle_timeout = \"2s\"\n[store]\nretain_memory = 0\nretain_disk = 0\n";

/// Everything of a container that may be found on a host, one line each. /run/netns is a mount from the first named network
/// namespace on and stays one, as with `ip netns`.
pub(crate) fn traces(cluster: &Cluster, host: &str, id: &str) -> BTreeSet<String> {
    let script = format!(
        "ls /run/runc 2>/dev/null | sed 's/^/runc /'
         ls /var/lib/decamp/containers 2>/dev/null | sed 's/^/files /'
         ls /run/decamp/migrations 2>/dev/null | sed 's/^/scratch /'
         ls /run/netns 2>/dev/null | sed 's/^/netns /'
         ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/link \\1/'
         awk '$5 != \"/run/netns\" {{print \"mount \" $5}}' /proc/self/mountinfo
         find /sys/fs/cgroup -type d -path '*{id}*' | sed 's/^/cgroup /'"
    );
    let host = cluster.host(host).unwrap();
    let mut found: BTreeSet<String> = host.shell(&script).unwrap().lines().map(str::to_owned).collect();
    for pid in host.pids_matching("") {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !line.is_empty() {
            found.insert(format!("process {}", String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Waits until a host looks as it did.
#[track_caller]
pub(crate) fn assert_traces(cluster: &Cluster, host: &str, id: &str, wanted: &BTreeSet<String>) {
    let until = Instant::now() + CLEAN_WITHIN;
    loop {
        let found = traces(cluster, host, id);
        if found == *wanted {
            return;
        }
        if Instant::now() > until {
            let more: Vec<_> = found.difference(wanted).collect();
            let fewer: Vec<_> = wanted.difference(&found).collect();
            panic!("left at {host}: {more:#?}\ngone: {fewer:#?}\n{}", cluster.agent_log(host));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until a process handles a signal, which would end it before (proc_pid_status(5), SigCgt).
fn wait_until_caught(process: &Background, signal: Signal) {
    let until = Instant::now() + ANSWER_WITHIN;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
        let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        if mask & (1 << (signal as i32 - 1)) != 0 {
            return;
        }
        assert!(Instant::now() < until, "{:?}", std::fs::read_to_string(process.log()));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The container, its client, and how the destination looked before.
pub(crate) struct Subject {
    pub(crate) id: String,
    client: Background,
    clean: BTreeSet<String>,
}

impl Subject {
    /// Starts both. The id must be unique among tests: cgroups of other labs are seen too.
    pub(crate) fn start(cluster: &Cluster, id: &str) -> Self {
        let clean = traces(cluster, DESTINATION, id);
        redis(cluster, SOURCE, id, 50);
        // Else an empty answer would pass for a clean destination.
        let here = traces(cluster, SOURCE, id);
        for kind in ["runc ", "netns ", "link v", "cgroup ", "process redis-server"] {
            assert!(here.iter().any(|trace| trace.starts_with(kind)), "no {kind:?} in {here:#?}");
        }
        let program = "/var/lib/decamp-lab/workloads/incr.py";
        let argv = ["python3", program, "10.77.0.50", "--report", REPORT, "--interval-ms", "4"];
        let client = cluster.lab.spawn("client", &argv, "incr.log").unwrap();
        wait_until_caught(&client, Signal::SIGUSR1);
        let subject = Self { id: id.to_owned(), client, clean };
        subject.assert_answered(cluster);
        subject
    }

    fn report(&self, cluster: &Cluster, last_unix: &mut f64) -> Value {
        let host = cluster.lab.client().unwrap();
        let until = Instant::now() + ANSWER_WITHIN;
        while Instant::now() < until {
            self.client.signal(Signal::SIGUSR1);
            std::thread::sleep(Duration::from_millis(50));
            let report: Value =
                host.read_file(REPORT).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
            let seconds = report["seconds"].as_f64().unwrap_or(0.0);
            if seconds > *last_unix {
                *last_unix = seconds;
                return report;
            }
        }
        panic!("the client does not report: {:?}", std::fs::read_to_string(self.client.log()));
    }

    /// The client's one connection is answered now, and never was broken.
    #[track_caller]
    pub(crate) fn assert_answered(&self, cluster: &Cluster) {
        let mut seen = 0.0;
        let until = Instant::now() + ANSWER_WITHIN;
        let first = loop {
            // The very first report may come before the first answer.
            let report = self.report(cluster, &mut seen);
            if !report["last_value"].is_null() || Instant::now() > until {
                break report;
            }
        };
        loop {
            let report = self.report(cluster, &mut seen);
            assert!(report["reason"].is_null() && report["reconnects"] == 0, "{report:#}");
            if report["last_value"].as_u64() > first["last_value"].as_u64() {
                return;
            }
            assert!(Instant::now() < until, "no more answers: {report:#}");
        }
    }

    /// After a failure, before the destination had a chance to clean up: the container runs here and is answered.
    #[track_caller]
    pub(crate) fn assert_goes_on(&self, cluster: &Cluster) {
        assert_eq!(running(cluster, SOURCE), [self.id.as_str()], "{}", cluster.agent_log(SOURCE));
        self.assert_answered(cluster);
    }

    /// After a failure: all that must hold, and the proof that nothing stale is left: there and back again.
    #[track_caller]
    pub(crate) fn assert_unharmed(&self, cluster: &Cluster) {
        self.assert_goes_on(cluster);
        assert_traces(cluster, DESTINATION, &self.id, &self.clean);
        must_migrate(cluster, SOURCE, &self.id, DESTINATION, &[]);
        assert_eq!(running(cluster, SOURCE), Vec::<String>::new());
        assert_eq!(running(cluster, DESTINATION), [self.id.as_str()]);
        self.assert_answered(cluster);
        must_migrate(cluster, DESTINATION, &self.id, SOURCE, &[]);
        self.assert_goes_on(cluster);
        assert_traces(cluster, DESTINATION, &self.id, &self.clean);
    }

    /// Ends the client; every answer that was due must have come.
    #[track_caller]
    pub(crate) fn finish(mut self, cluster: &Cluster) {
        self.client.signal(Signal::SIGTERM);
        let code = self.client.wait(Duration::from_secs(60)).unwrap();
        let report = cluster.lab.client().unwrap().read_file(REPORT).unwrap();
        assert_eq!(code, 0, "{}", String::from_utf8_lossy(&report));
    }
}
