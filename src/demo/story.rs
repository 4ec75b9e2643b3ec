//! The story itself.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::interrupt::Interrupt;
use super::measured::{Span, longest_gap_us, summary};
use super::{Check, Container, Trip};
use crate::human::{bytes, duration_us};
use crate::lab::{
    Background, Cluster, ContainerSpec, Host, LabError, LabOptions, Output, Volume, WORKLOADS_IN_HOST,
};
use crate::model::ContainerId;
use crate::model::id::BadName;

const LAB: &str = "demo";
const REDIS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
const CLIENT_REPORT: &str = "/tmp/incr.json";
const STEP_WITHIN: Duration = Duration::from_secs(300);

/// The story could not be told to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Ctrl-C.
    #[error("it was interrupted; the lab is removed")]
    Interrupted,
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
    /// A step failed.
    #[error("{what} failed: {said}")]
    Step {
        /// Which.
        what: String,
        /// What it said.
        said: String,
    },
}

fn failed(what: impl Into<String>, said: impl Into<String>) -> DemoError {
    DemoError::Step { what: what.into(), said: said.into() }
}

struct Story<'a> {
    cluster: Cluster,
    client: Host,
    mib: u64,
    interrupt: Interrupt,
    progress: &'a mut dyn FnMut(&str),
}

/// Plays the demo; `keep` leaves the lab open until Ctrl-C.
///
/// # Errors
/// A step that did not work. The lab is taken down in any case.
pub fn run(
    values_bytes: u64,
    keep: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Container>, DemoError> {
    let interrupt = Interrupt::listen()?;
    progress("opening two hosts, node-a and node-b, and a client beside them");
    let cluster = Cluster::open(&LabOptions::new(LAB)?, progress)?;
    let client = cluster.lab.client()?;
    let mut story =
        Story { cluster, client, mib: values_bytes.div_ceil(1 << 20).max(1), interrupt, progress };
    // A command that Ctrl-C ended is not what went wrong.
    let told = story.tell().or_else(|error| story.interrupt.check().and(Err(error)));
    if keep {
        (story.progress)(
            "the lab stays: look with `decamp lab exec node-a -- decamp ls`; Ctrl-C ends it and removes everything",
        );
        story.interrupt.wait();
    }
    told
}

/// The ticker that measures the container's own gap runs beside the workload.
fn with_ticker(mut spec: ContainerSpec, status: &str) -> ContainerSpec {
    let script = format!("python3 -u /workloads/gap.py --status {status} & exec \"$@\"");
    let shell = ["sh", "-c", &script, "sh"].map(str::to_owned);
    spec.args = shell.into_iter().chain(spec.args).collect();
    if !spec.volumes.iter().any(|volume| volume.destination == "/workloads") {
        let source = WORKLOADS_IN_HOST.into();
        spec.volumes.push(Volume { source, destination: "/workloads".into(), read_only: true });
    }
    spec
}

fn now_ms() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() * 1e3
}

impl Story<'_> {
    /// Tells the next step, unless somebody wants no next step.
    fn say(&mut self, line: &str) -> Result<(), DemoError> {
        self.interrupt.check()?;
        (self.progress)(line);
        Ok(())
    }

    fn tell(&mut self) -> Result<Vec<Container>, DemoError> {
        let redis: ContainerId = "redis".try_into()?;
        let tree: ContainerId = "tree".try_into()?;
        self.say("starting redis, and a process tree with everything that is hard to move, on node-a")?;
        let spec = with_ticker(ContainerSpec::redis(redis, REDIS), "/data/gap.json");
        self.cluster.lab.run_container("node-a", &spec)?;
        let spec = ContainerSpec::workload(tree, "tree.py", &["--pages", "4096"]).tmpfs("/scratch");
        self.cluster.lab.run_container("node-a", &with_ticker(spec, "/vol/gap.json"))?;
        self.wait_for_redis()?;
        self.say(&format!("filling redis with {} MiB that cannot be compressed", self.mib))?;
        self.workload("fill_redis.py", &["--mib".to_owned(), self.mib.to_string()])?;
        self.say("a client on a third machine now INCRs a key every millisecond, on one connection")?;
        let argv = [
            "python3",
            &format!("{WORKLOADS_IN_HOST}/incr.py"),
            &REDIS.to_string(),
            "--report",
            CLIENT_REPORT,
        ];
        let mut incr = self.client.spawn(&argv, &[], "incr.log")?;
        std::thread::sleep(Duration::from_secs(1));
        let there = self.trip(&incr, "node-a", "node-b")?;
        let back = self.trip(&incr, "node-b", "node-a")?;
        self.say("stopping the client and reading what everybody counted")?;
        let checks = [self.redis_checks(&mut incr)?, self.tree_checks("node-a")?];
        let names = ["redis", "tree"];
        let trips = there.into_iter().zip(back).zip(checks).zip(names);
        Ok(trips
            .map(|(((first, back), checks), name)| Container { name: name.to_owned(), first, back, checks })
            .collect())
    }

    fn wait_for_redis(&self) -> Result<(), DemoError> {
        let until = Instant::now() + Duration::from_secs(20);
        let ping = format!("redis-cli -h {REDIS} ping");
        while !self.client.shell(&ping).is_ok_and(|said| said.trim() == "PONG") {
            if Instant::now() > until {
                return Err(failed("starting redis", "it does not answer"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Runs a redis workload on the client; returns its JSON line.
    fn workload(&self, program: &str, more: &[String]) -> Result<Value, DemoError> {
        let mut argv =
            vec!["python3".to_owned(), format!("{WORKLOADS_IN_HOST}/{program}"), REDIS.to_string()];
        argv.extend_from_slice(more);
        let output: Output = self.client.exec_with(&argv, b"", STEP_WITHIN)?;
        let said = output.success(program)?;
        serde_json::from_str(said.lines().last().unwrap_or_default())
            .map_err(|error| failed(program, error.to_string()))
    }

    /// Moves both containers and checks them there.
    fn trip(&mut self, incr: &Background, from: &str, to: &str) -> Result<Vec<Trip>, DemoError> {
        let redis = self.migrate("redis", from, to)?;
        let tree = self.migrate("tree", from, to)?;
        std::thread::sleep(Duration::from_millis(500));
        incr.signal(Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(500));
        let client: Value = self.json(&self.client.read_file(CLIENT_REPORT)?, "the client's report")?;
        self.say(&format!("checking every key and every byte on {to}"))?;
        self.check_keys()?;
        self.tree_checks(to)?;
        let mut trips = Vec::new();
        for (name, status, (summary, span)) in
            [("redis", "/data/gap.json", redis), ("tree", "/vol/gap.json", tree)]
        {
            let inside = self.inside(to, name, &format!("cat {status}"))?;
            let ticker: Value = self.json(inside.as_bytes(), "the ticker's report")?;
            let has_client = name == "redis";
            trips.push(Trip {
                summary,
                inside_gap_us: longest_gap_us(&ticker, "real_ms", span),
                client_gap_us: if has_client { longest_gap_us(&client, "ms", span) } else { None },
                has_client,
            });
        }
        Ok(trips)
    }

    fn json(&self, bytes: &[u8], what: &str) -> Result<Value, DemoError> {
        serde_json::from_slice(bytes).map_err(|error| failed(format!("reading {what}"), error.to_string()))
    }

    fn migrate(
        &mut self,
        name: &str,
        from: &str,
        to: &str,
    ) -> Result<(crate::rpc::v1::Summary, Span), DemoError> {
        self.say(&format!("moving {name} from {from} to {to}: decamp migrate {name} --to {to}"))?;
        let from_ms = now_ms();
        let output = self.cluster.decamp(from, &["migrate", name, "--to", to, "--json"], STEP_WITHIN)?;
        let text = output.text();
        let Some(summary) = summary(&text).filter(|_| output.code == 0) else {
            let last = text.lines().last().unwrap_or_default().to_owned();
            return Err(failed(
                format!("moving {name} to {to}"),
                format!("exit code {}, {last}", output.code),
            ));
        };
        let (downtime, sent) = (duration_us(summary.downtime_us), bytes(summary.bytes_sent));
        self.say(&format!("    {name} runs on {to}: downtime {downtime}, {sent} on the wire"))?;
        // The client's answers that were due in the freeze come a moment after it.
        Ok((summary, Span { from_ms, to_ms: now_ms() + 200.0 }))
    }

    /// Runs a script inside a container.
    fn inside(&self, host: &str, container: &str, script: &str) -> Result<String, DemoError> {
        Ok(self.cluster.lab.exec(host, &["runc", "exec", container, "sh", "-ec", script])?)
    }

    fn check_keys(&self) -> Result<Value, DemoError> {
        let more = ["--mib".to_owned(), self.mib.to_string(), "--other-keys".to_owned(), "1".to_owned()];
        self.workload("check_redis.py", &more)
    }

    fn redis_checks(&mut self, incr: &mut Background) -> Result<Vec<Check>, DemoError> {
        incr.signal(Signal::SIGTERM);
        let code = incr.wait(Duration::from_secs(60))?;
        let client = self.json(&self.client.read_file(CLIENT_REPORT)?, "the client's report")?;
        let number = |key: &str| client[key].as_u64().unwrap_or(0);
        let counter = self.client.shell(&format!("redis-cli -h {REDIS} get counter"))?;
        let keys = self.check_keys()?;
        let expected_keys = (self.mib << 20).div_ceil(16_384);
        let reason = client["reason"].as_str().unwrap_or_default();
        let one = |name: &str, expected: u64, found: u64, detail: String| Check {
            name: name.to_owned(),
            expected,
            found,
            detail,
        };
        Ok(vec![
            one("keys and values", expected_keys, keys["keys"].as_u64().unwrap_or(0), String::new()),
            one("INCRs answered in order", number("sent"), number("replies"), reason.to_owned()),
            one("counter", number("last_value"), counter.trim().parse().unwrap_or(0), String::new()),
            one(
                "connections",
                1,
                u64::from(code == 0 && number("reconnects") == 0),
                "of the client, never broken".to_owned(),
            ),
        ])
    }

    /// Asks the process tree to check everything, and waits for its report.
    fn tree_checks(&self, host: &str) -> Result<Vec<Check>, DemoError> {
        let token = format!("t{}", now_ms());
        let script = format!(
            "echo {token} > /vol/verify; for i in $(seq 300); do grep -q {token} /vol/report.json 2>/dev/null && break; \
             grep -q '\"ok\": false' /vol/status.json && break; sleep 0.1; done; cat /vol/report.json || cat /vol/status.json"
        );
        let report =
            self.json(self.inside(host, "tree", &script)?.as_bytes(), "the process tree's report")?;
        if report["token"].as_str() != Some(&token) || report["ok"] != true {
            return Err(failed(format!("the process tree's own check on {host}"), report.to_string()));
        }
        let number = |key: &str| report[key].as_u64().unwrap_or(0);
        let all = ["pipe", "tcp", "unix", "timerfd", "worker_pages", "appended"];
        let counted = all.iter().map(|key| (key, number(key))).filter(|(_, count)| *count > 0);
        let detail = counted.map(|(key, count)| format!("{key} {count}")).collect::<Vec<_>>().join(", ");
        Ok(vec![Check { name: "memory, files, sockets, timers".to_owned(), expected: 1, found: 1, detail }])
    }
}
