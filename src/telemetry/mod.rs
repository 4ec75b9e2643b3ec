//! Logs and metrics: where they go, and what each metric family means.
//!
//! Logs go to stderr, metrics to whoever scrapes the address given. It must never name another room, decide what is
//! logged beyond the filter, or put a container's content into a line.

mod metrics;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use metrics::{
    BUGS, BYTES_SENT, DOWNTIME_SECONDS, MIGRATIONS, MIGRATIONS_IN_FLIGHT, PAGERS_LOST, PAGES,
    RESIDENT_SECONDS, describe, serve_metrics,
};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: one line, with colours on a terminal.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Why logs or metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("reading log filter {filter:?}")]
    Filter {
        /// What was given.
        filter: String,
        /// The part that is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else was first in this process.
    #[error("installing the log subscriber")]
    Logs {
        /// What tracing said.
        #[source]
        source: tracing_subscriber::util::TryInitError,
    },
    /// The address is taken, or a recorder is already there.
    #[error("serving metrics at {listen}")]
    Metrics {
        /// The address.
        listen: std::net::SocketAddr,
        /// What the exporter said.
        #[source]
        source: metrics_exporter_prometheus::BuildError,
    },
}

/// Whether a text is a filter: `info`, or directives such as `info,decamp::migration=debug`.
///
/// # Errors
/// It is empty, or some directive is wrong.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

/// Sends this process's log lines to stderr, colourless when that is not a terminal. Lines of the `log` crate, which
/// some libraries write, are included.
///
/// # Errors
/// The filter is wrong, or logs were set up before.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = parse_filter(filter)?;
    let logs = |source| TelemetryError::Logs { source };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init().map_err(logs)
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init().map_err(logs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_they_are_used() {
        for good in ["info", "warn,decamp::migration=debug", "off"] {
            check_filter(good).expect(good);
        }
        for bad in ["decamp=loud", "info,,=,", "a=b=c"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn logs_are_set_up_once() {
        init_logs("info", LogFormat::Json).expect("nothing in this process was first");
        assert!(matches!(init_logs("info", LogFormat::Text), Err(TelemetryError::Logs { .. })));
    }
}
