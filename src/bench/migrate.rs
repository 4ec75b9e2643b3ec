//! One `decamp migrate`, and what its events and its summary tell.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::error::BenchError;
use crate::lab::{BINARY_IN_HOST, Cluster, last_lines};
use crate::model::ContainerId;

/// Source and destination of every move.
pub(super) const SOURCE: &str = "node-a";
pub(super) const DESTINATION: &str = "node-b";
/// One migration.
const DEADLINE: Duration = Duration::from_secs(600);

/// A migration that succeeded.
#[derive(Debug)]
pub(super) struct Migrated {
    /// Wall clock before and after the command, unix milliseconds.
    pub(super) span: (f64, f64),
    /// When the first round of memory began, unix milliseconds.
    pub(super) precopy_unix_ms: f64,
    /// The `completed` event.
    pub(super) summary: Value,
}

pub(super) fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// Moves a container.
pub(super) fn migrate(cluster: &Cluster, id: &ContainerId) -> Result<Migrated, BenchError> {
    let began = unix_ms();
    let argv = [BINARY_IN_HOST, "migrate", id.as_str(), "--to", DESTINATION, "--json"];
    let output = cluster.host(SOURCE)?.exec_with(&argv, b"", DEADLINE)?;
    let span = (began, unix_ms());
    let text = output.text();
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let completed = events.iter().find(|event| event["completed"].is_object());
    let (Some(completed), 0) = (completed, output.code) else {
        let failed = events.iter().rev().find_map(|event| event["failed"]["message"].as_str());
        let last = failed.map_or_else(|| last_lines(&output.stderr, 4), str::to_owned);
        return Err(BenchError::Migration { container: id.to_string(), code: output.code, last });
    };
    let precopy = events.iter().find(|event| event["phase"]["phase"] == "pre-copy");
    let precopy_unix_ms = precopy.and_then(|event| event["unix_ms"].as_f64()).unwrap_or(began);
    Ok(Migrated { span, precopy_unix_ms, summary: completed["completed"].clone() })
}

impl Migrated {
    /// A number of the summary; `None` when this version does not report it, or has nothing to report.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.summary[name].as_u64().filter(|number| *number > 0)
    }

    /// A time of the summary, milliseconds.
    pub(super) fn ms(&self, name: &str) -> Option<f64> {
        // Microseconds below a month: an f64 holds them exactly.
        self.number(name).map(|us| Duration::from_micros(us).as_secs_f64() * 1e3)
    }

    /// Pages a second of the first round, which sends everything.
    pub(super) fn link_pages_per_s(&self) -> Option<u64> {
        let first = self.summary["rounds"].as_array()?.iter().find(|round| round["round"] == 1)?;
        let pages = first["pages_raw"].as_u64()? + first["pages_compressed"].as_u64()?;
        Some(pages * 1_000_000 / first["duration_us"].as_u64().filter(|us| *us > 0)?)
    }
}
