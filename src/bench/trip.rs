//! One run: a fresh container is started, filled, moved, asked, verified, removed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::client::Client;
use super::error::BenchError;
use super::footprint::{Footprint, wait_for_pagers};
use super::migrate::{DESTINATION, Migrated, SOURCE, migrate};
use super::plan::{Job, Mode};
use super::subject;
use crate::lab::Cluster;
use crate::model::ContainerId;

/// Time between the client's first request and the migration.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a background fill may take before the next run begins all the same.
const RESIDENT_WITHIN: Duration = Duration::from_secs(120);

/// What Redis served, by parts of a migration.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RedisNumbers {
    /// Commands a second before the migration; of a closed loop only.
    pub quiet_commands_per_s: Option<f64>,
    /// While memory was copied and Redis ran.
    pub precopy_commands_per_s: Option<f64>,
    /// From its first answer after the freeze until its memory was complete.
    pub fill_commands_per_s: Option<f64>,
    /// 99th percentile of latencies, from when a request was due, before the migration; of the fixed rate only.
    pub quiet_p99_us: Option<f64>,
    /// While memory was copied and Redis ran.
    pub precopy_p99_us: Option<f64>,
    /// From its first answer after the freeze until its memory was complete.
    pub fill_p99_us: Option<f64>,
}

/// What one run cost.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Number of the round; 0 is the warm-up, which is not reported.
    pub round: u32,
    /// "decamp" or "runc".
    pub tool: &'static str,
    /// Which container and load.
    pub mode: Mode,
    /// Its memory, without the program.
    pub memory_mib: u32,
    /// Pages that it wrote a second while it ran, measured; 0 for one that does not write.
    pub dirty_pages_per_s: u64,
    /// The longer of the two clocks below.
    pub downtime_ms: f64,
    /// From the freeze to the resume, by the agents' clocks.
    pub agents_downtime_ms: Option<f64>,
    /// Longest time that the ticker in the container did not run.
    pub ticker_gap_ms: f64,
    /// Longest time that a client outside, which sends every 2 ms, had no answer; `None`: there was no client.
    pub client_gap_ms: Option<f64>,
    /// From the request to the end, all clean-up included.
    pub total_ms: f64,
    /// Everything on the wire towards the destination.
    pub bytes_sent: u64,
    /// Downtime of the container without memory in the same round.
    pub floor_ms: Option<f64>,
    /// Every byte of its memory was compared after the move. A run that is not verified is never reported.
    pub verified: bool,
    /// Pages that CRIU never touched.
    pub pages_lazy: Option<u64>,
    /// From the resume until every page was there.
    pub resident_after_ms: Option<f64>,
    /// Speed of the background fill.
    pub fill_bytes_per_s: Option<u64>,
    /// Pages a second of the round that sent everything.
    pub link_pages_per_s: Option<u64>,
    /// Rounds of memory before the freeze.
    pub rounds: usize,
    /// Most anonymous memory of decamp's processes on one host, the page store apart.
    pub agent_memory_bytes: Option<u64>,
    /// Where the downtime went, as the agents tell it: microseconds by name.
    pub downtime_parts_us: BTreeMap<String, u64>,
    /// What Redis served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisNumbers>,
    /// One-minute load average after the run (proc_loadavg(5)).
    pub load_average: f64,
}

impl Run {
    /// One line of progress.
    pub(super) fn line(&self, round: u32) -> String {
        let warm = if round == 0 { " (warm-up)" } else { "" };
        let client = self.client_gap_ms.map_or_else(String::new, |ms| format!(", client {ms:.1} ms"));
        format!(
            "round {round}{warm}: {} {} {} MiB: downtime {:.1} ms{client}, total {:.0} ms, verified, load {:.1}",
            self.tool, self.mode, self.memory_mib, self.downtime_ms, self.total_ms, self.load_average
        )
    }

    /// From what decamp reported; the caller adds what others measured.
    pub(super) fn of(job: Job, migrated: &Migrated, ticker_gap_ms: f64) -> Self {
        let agents = migrated.ms("downtime_us");
        let rounds = migrated.summary["rounds"].as_array();
        let parts = migrated.summary["downtime_parts"].as_array().into_iter().flatten();
        let mut downtime_parts_us = BTreeMap::new();
        for part in parts {
            let name = part["name"].as_str().unwrap_or_default().to_owned();
            *downtime_parts_us.entry(name).or_default() += part["duration_us"].as_u64().unwrap_or(0);
        }
        Self {
            round: 0,
            tool: "decamp",
            mode: job.mode,
            memory_mib: job.memory_mib,
            dirty_pages_per_s: 0,
            downtime_ms: ticker_gap_ms.max(agents.unwrap_or(0.0)),
            agents_downtime_ms: agents,
            ticker_gap_ms,
            client_gap_ms: None,
            total_ms: migrated.ms("total_us").unwrap_or(migrated.span.1 - migrated.span.0),
            bytes_sent: migrated.number("bytes_sent").unwrap_or(0),
            floor_ms: None,
            verified: false,
            pages_lazy: migrated.number("pages_lazy"),
            resident_after_ms: migrated.ms("resident_after_us"),
            fill_bytes_per_s: migrated.number("fill_bytes_per_s"),
            link_pages_per_s: migrated.link_pages_per_s(),
            rounds: rounds.map_or(0, |rounds| rounds.iter().filter(|round| round["round"] != 0).count()),
            agent_memory_bytes: None,
            downtime_parts_us,
            redis: None,
            load_average: load_average(),
        }
    }
}

/// The one-minute load average; not a number when /proc does not say.
pub(super) fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// Moves a container while both hosts' memory is watched; returns once the container's memory is complete.
pub(super) fn watched(cluster: &Cluster, id: &ContainerId) -> Result<(Migrated, u64), BenchError> {
    let (source, destination) = (cluster.host(SOURCE)?, cluster.host(DESTINATION)?);
    let watches = [Footprint::watch(source)?, Footprint::watch(destination.clone())?];
    let migrated = migrate(cluster, id);
    wait_for_pagers(&destination, RESIDENT_WITHIN);
    let peak = watches.map(Footprint::peak_bytes).into_iter().max().unwrap_or(0);
    Ok((migrated?, peak))
}

/// Moves one container with memory.py.
pub(super) fn run(cluster: &Cluster, job: Job, pages_per_s: u64, number: u32) -> Result<Run, BenchError> {
    let (id, address) = subject::identity(job.mode.word(), number)?;
    let source = cluster.host(SOURCE)?;
    source.run_container(&subject::spec(id.clone(), job.memory_mib, pages_per_s).address(address))?;
    let moved = moved(cluster, job, &id, address, number);
    let removed = [SOURCE, DESTINATION].map(|host| subject::remove(&cluster.host(host)?, &id));
    let run = moved?;
    removed.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(run)
}

fn moved(
    cluster: &Cluster,
    job: Job,
    id: &ContainerId,
    address: std::net::Ipv4Addr,
    number: u32,
) -> Result<Run, BenchError> {
    let client = cluster.lab.client()?;
    subject::wait_until_filled(&cluster.host(SOURCE)?, id)?;
    let address_text = address.to_string();
    let cli = ["redis-cli", "-h", &address_text];
    let outside = Client::start(&client, "incr.py", address, number, &["--interval-ms", "2"])?;
    std::thread::sleep(SETTLE);
    let before = subject::ask(&client, &cli, "gap")?;
    let (migrated, peak) = watched(cluster, id)?;
    let after = subject::ask(&client, &cli, "gap")?;
    let outside = outside.end()?;
    let gap = subject::longest_gap_ms(&after, "real_ms", migrated.span);
    let gap = gap.ok_or_else(|| BenchError::silent("the ticker", "no gap began during the migration"))?;
    let mut run = Run::of(job, &migrated, gap);
    run.client_gap_ms = subject::longest_gap_ms(&outside, "ms", migrated.span);
    run.agent_memory_bytes = Some(peak);
    run.dirty_pages_per_s = written_per_s(&before, &after, gap);
    subject::verify(&client, &cli, job.memory_mib)?;
    run.verified = true;
    Ok(run)
}

/// Pages written a second between two reports, the freeze left out.
fn written_per_s(before: &Value, after: &Value, frozen_ms: f64) -> u64 {
    let number = |report: &Value, name: &str| report[name].as_f64().unwrap_or(0.0);
    let pages = number(after, "written") - number(before, "written");
    let ms = number(after, "unix_ms") - number(before, "unix_ms") - frozen_ms;
    if ms <= 0.0 {
        return 0;
    }
    // Duration makes whole microseconds of it, without a cast that could wrap.
    Duration::try_from_secs_f64(pages / ms * 1e-3)
        .map_or(0, |rate| u64::try_from(rate.as_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_rate_of_a_writer_leaves_the_freeze_out() {
        let before = json!({"written": 1000, "unix_ms": 0.0});
        let after = json!({"written": 21_000, "unix_ms": 2500.0});
        assert_eq!(written_per_s(&before, &after, 500.0), 10_000);
        assert_eq!(written_per_s(&after, &after, 0.0), 0);
    }

    #[test]
    fn a_summary_becomes_a_run() {
        let summary = json!({
            "downtime_us": 12_500, "total_us": 900_000, "bytes_sent": 77,
            "downtime_parts": [{"name": "dump", "duration_us": 5}, {"name": "dump", "duration_us": 6}],
            "rounds": [{"round": 1, "pages_raw": 900, "pages_compressed": 100, "duration_us": 500_000}, {"round": 0}],
        });
        let migrated = Migrated { span: (0.0, 1.0), precopy_unix_ms: 0.0, summary };
        let run = Run::of(Job { mode: Mode::Idle, memory_mib: 64 }, &migrated, 13.0);
        assert!((run.downtime_ms - 13.0).abs() < 1e-9 && (run.total_ms - 900.0).abs() < 1e-9);
        assert_eq!((run.rounds, run.link_pages_per_s, run.pages_lazy), (1, Some(2000), None));
        assert_eq!(run.downtime_parts_us["dump"], 11);
        assert!(!run.verified);
    }
}
