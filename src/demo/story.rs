//! The story, step by step: open, start, fill, move there, check, move back, check.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::interrupt::Interrupt;
use super::workload::{self, Counter};
use super::{Check, Container, DemoError, LAB, Trip};
use crate::human::{clean, duration_us};
use crate::lab::{BINARY_IN_HOST, Cluster, Host, LabOptions, SOCKET_IN_HOST, last_lines};
use crate::rpc::v1::control_client::ControlClient;
use crate::rpc::v1::{HistoryRequest, Summary};

/// One migration.
const DEADLINE: Duration = Duration::from_secs(600);
/// From node-a to node-b, and back.
const THERE: (&str, &str) = ("node-a", "node-b");
const BACK: (&str, &str) = ("node-b", "node-a");

struct Story<'a> {
    cluster: Cluster,
    interrupt: &'a Interrupt,
    progress: &'a mut dyn FnMut(&str),
    counter: Option<Counter>,
    migrations: u32,
}

/// Plays it; the lab is still open afterwards, and closed after an error.
pub(super) fn play(
    values_bytes: u64,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<(Vec<Container>, Cluster), DemoError> {
    progress("opening two simulated hosts, node-a and node-b, and one for a client");
    let cluster = Cluster::open(&LabOptions::new(LAB)?, progress)?;
    let mut story = Story { cluster, interrupt, progress, counter: None, migrations: 0 };
    let containers = story.tell(values_bytes).map_err(|error| {
        // Ctrl-C also ends the command that was just running: its error is only the consequence.
        interrupt.check().err().unwrap_or(error)
    })?;
    Ok((containers, story.cluster))
}

impl Story<'_> {
    fn say(&mut self, line: &str) -> Result<(), DemoError> {
        self.interrupt.check()?;
        (self.progress)(line);
        Ok(())
    }

    fn tell(&mut self, values_bytes: u64) -> Result<Vec<Container>, DemoError> {
        let mib = values_bytes.div_ceil(1 << 20).max(1).to_string();
        let client = self.cluster.lab.client()?;
        self.say("starting containers redis and tree on node-a")?;
        self.cluster.lab.run_container(THERE.0, &workload::redis())?;
        self.cluster.lab.run_container(THERE.0, &workload::tree())?;
        self.say(&format!("filling Redis with {mib} MiB of values that do not compress"))?;
        let keys = workload::fill(&client, &mib)?;
        self.say("a client begins to count: one INCR per millisecond, over one connection, until the end")?;
        self.counter = Some(Counter::start(&client)?);
        let (mut redis_checks, mut tree_checks) = (Vec::new(), Vec::new());
        let mut trips = Vec::new();
        for ((from, to), after) in [(THERE, "after the first trip"), (BACK, "after the return trip")] {
            for container in ["redis", "tree"] {
                trips.push(self.trip(container, from, to)?);
            }
            self.say("")?;
            self.say(&format!("checking every key and value of redis, everything in tree, {after}"))?;
            redis_checks.push(workload::check_values(&client, &mib, keys, after)?);
            let word = format!("on-{to}");
            tree_checks.extend(workload::verify_tree(&self.cluster.host(to)?, &word, after)?);
        }
        redis_checks.extend(self.stop_counting()?);
        self.say("")?;
        Ok(containers(trips, redis_checks, tree_checks))
    }

    fn stop_counting(&mut self) -> Result<Vec<Check>, DemoError> {
        let Some(mut counter) = self.counter.take() else { return Ok(Vec::new()) };
        let report = counter.end()?;
        counter.checks(&report)
    }

    /// Moves one container and reads every clock.
    fn trip(&mut self, container: &str, from: &str, to: &str) -> Result<Trip, DemoError> {
        self.say("")?;
        self.say(&format!("{from}$ decamp migrate {container} --to {to}"))?;
        let (source, destination) = (self.cluster.host(from)?, self.cluster.host(to)?);
        let began = unix_ms();
        self.migrate(&source, container, to)?;
        let span = (began, unix_ms());
        let summary = summary(&source, container)?;
        let inside_gap_us = workload::inside_gap(&destination, container, span)?;
        let has_client = container == "redis";
        let client_gap_us = match (&mut self.counter, has_client) {
            (Some(counter), true) => workload::longest_gap_us(&counter.report()?, "ms", span),
            _ => None,
        };
        let gap = |gap: Option<u64>| gap.map_or_else(|| "nothing".to_owned(), duration_us);
        let mut line = format!("  a ticker inside was still for {}", gap(inside_gap_us));
        if has_client {
            line.push_str(&format!(", the client waited {}", gap(client_gap_us)));
        }
        self.say(&line)?;
        Ok(Trip { summary, inside_gap_us, client_gap_us, has_client })
    }

    /// Runs `decamp migrate` on the source and tells what it prints while it prints it.
    fn migrate(&mut self, source: &Host, container: &str, to: &str) -> Result<(), DemoError> {
        self.migrations += 1;
        let log = format!("migrate-{}.log", self.migrations);
        let mut command = source.spawn(&[BINARY_IN_HOST, "migrate", container, "--to", to], &[], &log)?;
        let mut said = Tail::default();
        let until = Instant::now() + DEADLINE;
        let code = loop {
            let ended = command.ended()?;
            for line in said.new_lines(command.log(), ended.is_some()) {
                self.say(&format!("  {}", clean(&line)))?;
            }
            self.interrupt.check()?;
            match ended {
                Some(code) => break code,
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
                None => break command.wait(Duration::ZERO)?,
            }
        };
        if code == 0 {
            return Ok(());
        }
        Err(DemoError::Migration {
            container: container.to_owned(),
            from: source.name().to_owned(),
            to: to.to_owned(),
            code,
            log: last_lines(self.cluster.agent_log(source.name()).as_bytes(), 8),
        })
    }
}

/// Lines of a file that grows.
#[derive(Debug, Default)]
struct Tail {
    at: u64,
    rest: String,
}

impl Tail {
    /// Whole lines since the last call; at the `end` also one without a line feed.
    fn new_lines(&mut self, path: &Path, end: bool) -> Vec<String> {
        let mut new = Vec::new();
        let read = std::fs::File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut new)
        });
        // A log that cannot be read now is read the next time.
        self.at += read.map_or(0, |length| length as u64);
        self.rest.push_str(&String::from_utf8_lossy(&new));
        let whole = if end { self.rest.len() } else { self.rest.rfind('\n').map_or(0, |at| at + 1) };
        let lines = self.rest[..whole].lines().map(str::to_owned).collect();
        self.rest.drain(..whole);
        lines
    }
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// What the newest migration of a container cost, from the history of its source's agent.
fn summary(source: &Host, container: &str) -> Result<Summary, DemoError> {
    let failed = |why: String| DemoError::NoSummary {
        host: source.name().to_owned(),
        container: container.to_owned(),
        why,
    };
    let socket = source.outer_path(SOCKET_IN_HOST);
    let asked = async {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // Only the authority of requests; the connector decides where bytes go.
        let endpoint = Endpoint::from_static("http://agent.invalid").timeout(Duration::from_secs(30));
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(|error| failed(error.to_string()))?;
        let reply = ControlClient::new(channel).history(HistoryRequest { limit: 20 }).await;
        reply.map_err(|status| failed(status.to_string()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let entries = runtime.map_err(|error| failed(error.to_string()))?.block_on(asked)?.into_inner().entries;
    let newest = entries
        .into_iter()
        .find(|entry| entry.container == container && entry.role == "source" && entry.outcome == "completed");
    newest
        .and_then(|entry| entry.summary)
        .ok_or_else(|| failed("no completed migration in its history".into()))
}

/// Pairs trips with checks. Trips are in the order redis, tree, redis, tree.
fn containers(trips: Vec<Trip>, redis_checks: Vec<Check>, tree_checks: Vec<Check>) -> Vec<Container> {
    let Ok([redis, tree, redis_back, tree_back]) = <[Trip; 4]>::try_from(trips) else { return Vec::new() };
    vec![
        Container { name: "redis".into(), first: redis, back: redis_back, checks: redis_checks },
        Container { name: "tree".into(), first: tree, back: tree_back, checks: tree_checks },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_log_is_told_in_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut tail = Tail::default();
        assert!(tail.new_lines(&path, false).is_empty());
        std::fs::write(&path, "one\ntw").unwrap();
        assert_eq!(tail.new_lines(&path, false), ["one"]);
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        assert_eq!(tail.new_lines(&path, false), ["two"]);
        assert_eq!(tail.new_lines(&path, true), ["thr"]);
    }
}
