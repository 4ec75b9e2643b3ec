//! Reading what agents and workloads said: JSON in, numbers out.

use serde_json::Value;

use crate::rpc::v1::{RoundStats, Summary};

/// The summary in the last line of `decamp migrate --json`; `None` when the migration did not complete.
pub(super) fn summary(output: &str) -> Option<Summary> {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let completed = lines.rev().find_map(|event| event.get("completed").cloned())?;
    let number = |key: &str| completed[key].as_u64().unwrap_or(0);
    let text = |key: &str| completed[key].as_str().unwrap_or_default().to_owned();
    Some(Summary {
        migration_id: text("migration_id"),
        container: text("container"),
        source: text("source"),
        destination: text("destination"),
        mode: text("mode"),
        downtime_us: number("downtime_us"),
        total_us: number("total_us"),
        bytes_sent: number("bytes_sent"),
        memory_bytes_sent: number("memory_bytes_sent"),
        file_bytes_sent: number("file_bytes_sent"),
        image_bytes_sent: number("image_bytes_sent"),
        pages_total: number("pages_total"),
        pages_verified: number("pages_verified"),
        rounds: vec![RoundStats::default(); completed["rounds"].as_array().map_or(0, Vec::len)],
        ..Default::default()
    })
}

/// A span of wall-clock time, milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) from_ms: f64,
    pub(super) to_ms: f64,
}

/// The longest gap that began within a span, microseconds, from a list of gaps with `from_unix_ms` and a length in `field`.
pub(super) fn longest_gap_us(report: &Value, field: &str, span: Span) -> Option<u64> {
    let gaps = report["gaps"].as_array()?;
    let within = gaps.iter().filter(|gap| {
        gap["from_unix_ms"].as_f64().is_some_and(|from| from >= span.from_ms && from <= span.to_ms)
    });
    let longest = within
        .filter_map(|gap| gap[field].as_f64())
        .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))))?;
    std::time::Duration::try_from_secs_f64(longest / 1e3)
        .ok()
        .and_then(|gap| u64::try_from(gap.as_micros()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_completed_event_counts() {
        let output = "{\"phase\":{}}\nnoise\n{\"migration_id\":\"m\",\"completed\":{\"container\":\"c\",\"downtime_us\":7}}\n";
        let summary = summary(output).unwrap();
        assert_eq!((summary.container.as_str(), summary.downtime_us), ("c", 7));
        assert!(super::summary("{\"failed\":{}}").is_none());
    }

    #[test]
    fn only_gaps_of_the_trip_count() {
        let report = serde_json::json!({"gaps": [
            {"ms": 900.0, "from_unix_ms": 10.0}, {"ms": 40.5, "from_unix_ms": 120.0}, {"ms": 3.0, "from_unix_ms": 130.0}]});
        let span = Span { from_ms: 100.0, to_ms: 200.0 };
        assert_eq!(longest_gap_us(&report, "ms", span), Some(40_500));
        assert_eq!(longest_gap_us(&report, "ms", Span { from_ms: 500.0, to_ms: 600.0 }), None);
    }
}
