//! The metric families, and the endpoint Prometheus scrapes.
//!
//! Rooms count through the `metrics` facade with the names below; nothing is kept when no endpoint is served.

use std::net::SocketAddr;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use super::TelemetryError;

/// Migrations that ended, by `role` (source, destination) and `outcome`.
pub const MIGRATIONS: &str = "decamp_migrations_total";
/// Freeze to thaw as measured at the source, seconds, one sample a migration.
pub const DOWNTIME_SECONDS: &str = "decamp_downtime_seconds";
/// Bytes sent to other agents, by `kind`.
pub const BYTES_SENT: &str = "decamp_bytes_sent_total";
/// Migrations this agent takes part in now.
pub const MIGRATIONS_IN_FLIGHT: &str = "decamp_migrations_in_flight";
/// Memory pages handled, by `kind`.
pub const PAGES: &str = "decamp_pages_total";
/// From the resume until every page of an arrived container was installed, seconds, one sample a migration.
pub const RESIDENT_SECONDS: &str = "decamp_resident_seconds";
/// Containers that were stopped because their pager died before all their memory was there.
pub const PAGERS_LOST: &str = "decamp_pagers_lost_total";
/// Things that must never happen and were caught by a check, by `kind`: each is a bug of decamp.
pub const BUGS: &str = "decamp_bugs_total";

/// Upper bounds of downtime, seconds: dense where the default target of 300 ms lies.
const DOWNTIME_BUCKETS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Tells the installed recorder what each family means; without a recorder it does nothing.
pub fn describe() {
    use metrics::Unit;
    metrics::describe_counter!(MIGRATIONS, Unit::Count, "Migrations that ended, by role and outcome.");
    metrics::describe_histogram!(
        DOWNTIME_SECONDS,
        Unit::Seconds,
        "Time a container stood still, from freeze to thaw, seconds."
    );
    metrics::describe_counter!(BYTES_SENT, Unit::Bytes, "Bytes sent to other agents, by kind.");
    metrics::describe_gauge!(MIGRATIONS_IN_FLIGHT, Unit::Count, "Migrations this agent takes part in now.");
    metrics::describe_counter!(PAGES, Unit::Count, "Memory pages handled, by kind.");
    metrics::describe_histogram!(
        RESIDENT_SECONDS,
        Unit::Seconds,
        "Time from the resume until every page was installed, seconds."
    );
    metrics::describe_counter!(
        PAGERS_LOST,
        Unit::Count,
        "Containers stopped because their pager died before all their memory was there."
    );
    metrics::describe_counter!(BUGS, Unit::Count, "Faults of decamp that its own checks caught, by kind.");
}

fn builder() -> Result<PrometheusBuilder, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(DOWNTIME_SECONDS.to_owned()), &DOWNTIME_BUCKETS)
}

/// Serves the metrics of this process over HTTP on `listen`, and describes them. Must be called within a tokio
/// runtime, which then runs the endpoint until it ends. Without an address nothing is served and nothing counted.
///
/// # Errors
/// The address cannot be bound, or metrics are served already.
pub fn serve_metrics(listen: Option<SocketAddr>) -> Result<(), TelemetryError> {
    let Some(listen) = listen else { return Ok(()) };
    builder()
        .and_then(|builder| builder.with_http_listener(listen).install())
        .map_err(|source| TelemetryError::Metrics { listen, source })?;
    describe();
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn scrape(address: SocketAddr) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_family_is_scraped_with_its_meaning() {
        serve_metrics(None).unwrap();
        // Held while the exporter fails on it, so that the refusal is seen too.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(matches!(serve_metrics(Some(address)), Err(TelemetryError::Metrics { .. })));
        drop(taken);
        serve_metrics(Some(address)).unwrap();

        metrics::counter!(MIGRATIONS, "role" => "source", "outcome" => "completed").increment(1);
        metrics::histogram!(DOWNTIME_SECONDS).record(0.25);
        metrics::counter!(BYTES_SENT, "kind" => "pages").increment(4096);
        metrics::gauge!(MIGRATIONS_IN_FLIGHT).set(2.0);
        metrics::counter!(PAGES, "kind" => "sent").increment(1);
        metrics::histogram!(RESIDENT_SECONDS).record(0.25);
        metrics::counter!(PAGERS_LOST).increment(1);
        metrics::counter!(BUGS, "kind" => "page-missed").increment(1);

        let answer = scrape(address).await;
        for line in [
            r#"decamp_migrations_total{role="source",outcome="completed"} 1"#,
            r#"decamp_downtime_seconds_bucket{le="0.2"} 0"#,
            r#"decamp_downtime_seconds_bucket{le="0.3"} 1"#,
            r#"decamp_bytes_sent_total{kind="pages"} 4096"#,
            "decamp_migrations_in_flight 2",
            r#"decamp_pages_total{kind="sent"} 1"#,
        ] {
            assert!(answer.contains(line), "no {line} in\n{answer}");
        }
        for family in [
            MIGRATIONS,
            DOWNTIME_SECONDS,
            BYTES_SENT,
            MIGRATIONS_IN_FLIGHT,
            PAGES,
            RESIDENT_SECONDS,
            PAGERS_LOST,
            BUGS,
        ] {
            assert!(answer.contains(&format!("# HELP {family} ")), "no help for {family} in\n{answer}");
        }
    }
}
