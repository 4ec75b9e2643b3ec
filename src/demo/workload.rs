//! The two containers and the client, and what they say about themselves. Nothing here knows of migrations.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Check, DemoError};
use crate::lab::{Background, ContainerSpec, Host, Volume, WORKLOADS_IN_HOST};
use crate::model::ContainerId;

/// Where Redis is reached, wherever it runs.
pub(super) const REDIS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// How long filling, checking or verifying may take.
const DEADLINE: Duration = Duration::from_secs(300);
/// The client's report, on its host.
const REPORT: &str = "/tmp/incr.json";

/// Redis with a ticker beside it.
pub(super) fn redis() -> ContainerSpec {
    let mut spec = ContainerSpec::redis(id("redis"), REDIS);
    spec.volumes.push(Volume {
        source: WORKLOADS_IN_HOST.into(),
        destination: "/workloads".into(),
        read_only: true,
    });
    with_ticker(spec, "/data/gap.json")
}

/// A process tree with pipes, sockets, timers, shared memory, files of every kind; and a ticker.
pub(super) fn tree() -> ContainerSpec {
    with_ticker(ContainerSpec::workload(id("tree"), "tree.py", &[]).tmpfs("/scratch"), "/vol/gap.json")
}

fn id(name: &str) -> ContainerId {
    name.try_into().expect("a short word is a container id")
}

/// Starts a program that wakes every millisecond before the container's own.
fn with_ticker(mut spec: ContainerSpec, status: &str) -> ContainerSpec {
    let script = format!("python3 -u /workloads/gap.py --status {status} & exec \"$@\"");
    spec.args.splice(0..0, ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]);
    spec
}

/// A file of a container that runs on `host`, wherever that keeps it.
fn read_inside(host: &Host, container: &str, path: &str) -> Result<Vec<u8>, DemoError> {
    let argv = ["runc", "exec", container, "cat", path];
    let output = host.exec_with(&argv, b"", DEADLINE)?;
    if output.code != 0 {
        output.clone().success(&format!("reading {path} in {container}"))?;
    }
    Ok(output.stdout)
}

/// The longest gap of a report that began within a span of unix milliseconds, microseconds.
pub(super) fn longest_gap_us(report: &Value, length: &str, span: (f64, f64)) -> Option<u64> {
    let gaps = report["gaps"].as_array()?.iter();
    let inside =
        gaps.filter(|gap| gap["from_unix_ms"].as_f64().is_some_and(|at| at >= span.0 && at <= span.1));
    let longest_ms = inside.filter_map(|gap| gap[length].as_f64()).fold(0.0, f64::max);
    // Whole microseconds of something below an hour: an integer that f64 holds exactly.
    (longest_ms > 0.0)
        .then(|| Duration::from_secs_f64(longest_ms / 1e3).as_micros().try_into().ok())
        .flatten()
}

/// What the ticker in a container saw as its longest pause.
pub(super) fn inside_gap(host: &Host, container: &str, span: (f64, f64)) -> Result<Option<u64>, DemoError> {
    let path = if container == "redis" { "/data/gap.json" } else { "/vol/gap.json" };
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let report: Value = serde_json::from_slice(&read_inside(host, container, path)?).unwrap_or_default();
        // A report from before the end of the migration does not know its pause yet.
        if report["unix_ms"].as_f64().is_some_and(|at| at > span.1) || Instant::now() >= until {
            return Ok(longest_gap_us(&report, "real_ms", span));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a workload on the client host; its last line is JSON, whatever its exit code.
fn tool(client: &Host, program: &str, args: &[&str]) -> Result<Value, DemoError> {
    let (path, address) = (format!("{WORKLOADS_IN_HOST}/{program}"), REDIS.to_string());
    let argv: Vec<&str> = ["python3", &path, &address].into_iter().chain(args.iter().copied()).collect();
    let output = client.exec_with(&argv, b"", DEADLINE)?;
    let text = output.text();
    let last = text.lines().next_back().unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(value) => Ok(value),
        Err(error) => {
            output.success(program)?;
            Err(DemoError::Workload { what: program.to_owned(), why: error.to_string() })
        }
    }
}

/// Waits for Redis, then fills it; returns the number of keys.
pub(super) fn fill(client: &Host, mib: &str) -> Result<u64, DemoError> {
    client.shell(&format!(
        "for i in $(seq 100); do redis-cli -h {REDIS} ping >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1"
    ))?;
    let filled = tool(client, "fill_redis.py", &["--mib", mib])?;
    let missing = || DemoError::Workload { what: "fill_redis.py".into(), why: filled.to_string() };
    filled["keys"].as_u64().ok_or_else(missing)
}

/// Reads every key back and compares every byte.
pub(super) fn check_values(client: &Host, mib: &str, keys: u64, after: &str) -> Result<Check, DemoError> {
    // One key is the client's counter.
    let said = tool(client, "check_redis.py", &["--mib", mib, "--other-keys", "1"])?;
    let found = if said["ok"] == true { said["keys"].as_u64().unwrap_or(0) } else { 0 };
    let detail = match said["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => format!("{} compared", crate::human::bytes(said["bytes"].as_u64().unwrap_or(0))),
    };
    Ok(Check { name: format!("keys and values, {after}"), expected: keys, found, detail })
}

/// The client that counts.
#[derive(Debug)]
pub(super) struct Counter {
    process: Background,
    host: Host,
}

impl Counter {
    /// Starts it.
    pub(super) fn start(client: &Host) -> Result<Self, DemoError> {
        let program = format!("{WORKLOADS_IN_HOST}/incr.py");
        let argv = ["python3", "-u", &program, &REDIS.to_string(), "--report", REPORT];
        Ok(Self { process: client.spawn(&argv, &[], "incr.log")?, host: client.clone() })
    }

    /// Its report so far.
    pub(super) fn report(&mut self) -> Result<Value, DemoError> {
        self.host.shell(&format!("rm -f {REPORT}"))?;
        self.process.signal(Signal::SIGUSR1);
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && self.process.ended()?.is_none() {
            if let Ok(report) = std::fs::read(self.host.outer_path(REPORT)) {
                return Self::parse(&report);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end()
    }

    /// Lets it take the answers that are due, and ends it.
    pub(super) fn end(&mut self) -> Result<Value, DemoError> {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(Duration::from_secs(60))?;
        Self::parse(&self.host.read_file(REPORT)?)
    }

    fn parse(report: &[u8]) -> Result<Value, DemoError> {
        let bad =
            |error: serde_json::Error| DemoError::Workload { what: "incr.py".into(), why: error.to_string() };
        serde_json::from_slice(report).map_err(bad)
    }

    /// What its last report proves, together with the counter as Redis has it.
    pub(super) fn checks(&self, report: &Value) -> Result<Vec<Check>, DemoError> {
        let number = |key: &str| report[key].as_u64().unwrap_or(0);
        let asked = self.host.exec(&["redis-cli", "-h", &REDIS.to_string(), "get", "counter"])?;
        let check = |name: &str, expected: u64, found: u64, detail: &str| Check {
            name: name.to_owned(),
            expected,
            found,
            detail: detail.to_owned(),
        };
        let reason = report["reason"].as_str().unwrap_or("each the one before plus one");
        let answers = if report["ok"] == true { number("replies") } else { 0 };
        Ok(vec![
            check("INCR answers, in order", number("sent"), answers, reason),
            check("INCR counter in Redis", number("last_value"), asked.trim().parse().unwrap_or(0), ""),
            check("connections the client needed", 1, 1 + number("reconnects"), "one, all the time"),
        ])
    }
}

/// Has the process tree check everything it has, and says what it found.
pub(super) fn verify_tree(host: &Host, word: &str, after: &str) -> Result<Vec<Check>, DemoError> {
    let script = format!("printf %s {word} > /vol/verify");
    host.exec(&["runc", "exec", "tree", "sh", "-c", &script])?;
    let until = Instant::now() + Duration::from_secs(60);
    let mut said = Value::Null;
    while Instant::now() < until {
        let read =
            |path| read_inside(host, "tree", path).ok().and_then(|json| serde_json::from_slice(&json).ok());
        said =
            read("/vol/report.json").filter(|report: &Value| report["token"] == word).unwrap_or(Value::Null);
        if !said.is_null() {
            break;
        }
        let status: Value = read("/vol/status.json").unwrap_or(Value::Null);
        if status["ok"] == false {
            said = status;
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let ok = said["ok"] == true;
    let detail = match said["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None if ok => String::new(),
        None => "no report within 60 s".to_owned(),
    };
    let check = |name: &str, keys: &[&str]| {
        let count: u64 = keys.iter().map(|key| said[key].as_u64().unwrap_or(0)).sum();
        let name = format!("{name}, {after}");
        Check { name, expected: count.max(1), found: if ok { count } else { 0 }, detail: detail.clone() }
    };
    Ok(vec![
        check("memory pages re-read", &["pages_checked"]),
        check("messages: pipe, TCP, UNIX", &["pipe", "tcp", "unix"]),
        check("timer expiries", &["alarm", "timerfd"]),
        check("lines of appended file", &["appended"]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gap_counts_for_the_trip_in_which_it_began() {
        let report = json!({"gaps": [
            {"real_ms": 900.5, "from_unix_ms": 5000.0},
            {"real_ms": 300.25, "from_unix_ms": 1500.0},
            {"real_ms": 20.0, "from_unix_ms": 1600.0},
        ]});
        assert_eq!(longest_gap_us(&report, "real_ms", (1000.0, 2000.0)), Some(300_250));
        assert_eq!(longest_gap_us(&report, "real_ms", (4000.0, 6000.0)), Some(900_500));
        assert_eq!(longest_gap_us(&report, "real_ms", (7000.0, 8000.0)), None);
        assert_eq!(longest_gap_us(&Value::Null, "real_ms", (0.0, 9e9)), None);
    }
}
