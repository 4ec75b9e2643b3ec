//! The last page of the demo: what every trip cost by three clocks, what the return trip saved, what the workloads checked, and
//! one verdict. Pure: numbers in, text and verdict out.
//!
//! The verdict is strict: a clock that was not read, a workload that checked nothing and a page that was not verified count as
//! failures, because a demo that skips its checks proves nothing.

use crate::human::{Column, Paint, Style, Table, bytes, clean, duration_us, percent};
use crate::rpc::v1::Summary;

/// One move of one container.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Trip {
    /// What the agents measured.
    pub summary: Summary,
    /// Longest silence that a ticker inside the container saw around the freeze, microseconds; `None`: not read.
    pub inside_gap_us: Option<u64>,
    /// Longest silence that a client outside saw, microseconds; `None`: nobody outside talks to this container.
    pub client_gap_us: Option<u64>,
    /// Whether a client outside was meant to measure.
    pub has_client: bool,
}

/// Something a workload checked about itself: keys, counters, bytes, files, descriptors.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Check {
    /// What: "keys", "INCR counter", "appended file", ...
    pub name: String,
    /// How many should be right.
    pub expected: u64,
    /// How many were found right.
    pub found: u64,
    /// What else there is to say; the first difference, when it failed.
    pub detail: String,
}

impl Check {
    /// All were right, and there was something to check.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.expected > 0 && self.found == self.expected
    }
}

/// One container's part in the demo.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Container {
    /// Its id.
    pub name: String,
    /// There.
    pub first: Trip,
    /// And back.
    pub back: Trip,
    /// What its workload checked at the end.
    pub checks: Vec<Check>,
}

/// The last page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Lines for people.
    pub lines: Vec<String>,
    /// Every failure in words; empty: passed.
    pub failures: Vec<String>,
}

impl Report {
    /// Nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Judges the demo and lays it out.
#[must_use]
pub fn report(containers: &[Container], style: Style) -> Report {
    let mut failures = Vec::new();
    if containers.is_empty() {
        failures.push("nothing was moved".to_owned());
    }
    for container in containers {
        judge(container, &mut failures);
    }
    let mut lines = trips(containers).lines(style);
    lines.push(String::new());
    lines.extend(containers.iter().map(savings));
    lines.push(String::new());
    lines.extend(checks(containers, style).lines(style));
    lines.push(String::new());
    lines.extend(verdict(containers, &failures, style));
    Report { lines, failures }
}

fn judge(container: &Container, failures: &mut Vec<String>) {
    let name = clean(&container.name);
    let mut fail = |what: String| failures.push(format!("{name}: {what}"));
    for (which, trip) in [("first trip", &container.first), ("return trip", &container.back)] {
        let summary = &trip.summary;
        if summary.downtime_us == 0 {
            fail(format!("{which}: the agents measured no downtime"));
        }
        if trip.inside_gap_us.is_none() {
            fail(format!("{which}: the ticker inside was not read"));
        }
        if trip.has_client && trip.client_gap_us.is_none() {
            fail(format!("{which}: the client outside measured no gap"));
        }
        if summary.pages_total == 0 || summary.pages_verified != summary.pages_total {
            let (verified, total) = (summary.pages_verified, summary.pages_total);
            fail(format!("{which}: {verified} of {total} pages were verified at the destination"));
        }
    }
    let (first, back) = (&container.first.summary, &container.back.summary);
    if first.source != back.destination
        || first.destination != back.source
        || first.source == first.destination
    {
        fail("the return trip did not go back to where the first began".to_owned());
    }
    if back.bytes_sent >= first.bytes_sent {
        let (back, first) = (bytes(back.bytes_sent), bytes(first.bytes_sent));
        fail(format!("the return trip sent {back}, not less than the first trip's {first}"));
    }
    if container.checks.is_empty() {
        fail("its workload checked nothing".to_owned());
    }
    for check in container.checks.iter().filter(|check| !check.passed()) {
        let detail =
            if check.detail.is_empty() { String::new() } else { format!(" ({})", clean(&check.detail)) };
        fail(format!("{}: {} of {} right{detail}", clean(&check.name), check.found, check.expected));
    }
}

fn trips(containers: &[Container]) -> Table {
    let mut table = Table::new(&[
        Column::text("CONTAINER"),
        Column::text("FROM"),
        Column::text("TO"),
        Column::number("DOWNTIME"),
        Column::number("INSIDE"),
        Column::number("CLIENT"),
        Column::number("TOTAL"),
        Column::number("ROUNDS"),
        Column::number("ON THE WIRE"),
        Column::number("PAGES VERIFIED"),
    ]);
    for container in containers {
        for trip in [&container.first, &container.back] {
            let summary = &trip.summary;
            let gap = |gap: Option<u64>, wanted: bool| match gap {
                Some(us) => (duration_us(us), None),
                None if wanted => ("not read".to_owned(), Some(Paint::Bad)),
                None => ("-".to_owned(), Some(Paint::Faint)),
            };
            table.painted_row([
                (container.name.clone(), Some(Paint::Label)),
                (summary.source.clone(), None),
                (summary.destination.clone(), None),
                (duration_us(summary.downtime_us), Some(Paint::Strong)),
                gap(trip.inside_gap_us, true),
                gap(trip.client_gap_us, trip.has_client),
                (duration_us(summary.total_us), None),
                (summary.rounds.iter().filter(|round| round.round > 0).count().to_string(), None),
                (bytes(summary.bytes_sent), None),
                (format!("{} of {}", summary.pages_verified, summary.pages_total), None),
            ]);
        }
    }
    table
}

fn savings(container: &Container) -> String {
    let (first, back) = (container.first.summary.bytes_sent, container.back.summary.bytes_sent);
    let share = percent(back, first);
    let name = clean(&container.name);
    format!("{name}: first trip {}, return trip {} ({share} of it)", bytes(first), bytes(back))
}

fn checks(containers: &[Container], style: Style) -> Table {
    let mut table = Table::new(&[
        Column::text("CONTAINER"),
        Column::text("CHECK"),
        Column::number("EXPECTED"),
        Column::number("RIGHT"),
        Column::text("RESULT"),
        Column::text("DETAIL"),
    ]);
    for container in containers {
        for check in &container.checks {
            let (result, paint) = if check.passed() {
                (style.glyphs.pass, Paint::Good)
            } else {
                (style.glyphs.fail, Paint::Bad)
            };
            table.painted_row([
                (container.name.clone(), Some(Paint::Label)),
                (check.name.clone(), None),
                (check.expected.to_string(), None),
                (check.found.to_string(), None),
                (result.to_owned(), Some(paint)),
                (check.detail.clone(), Some(Paint::Faint)),
            ]);
        }
    }
    table
}

fn verdict(containers: &[Container], failures: &[String], style: Style) -> Vec<String> {
    if failures.is_empty() {
        let checks: usize = containers.iter().map(|container| container.checks.len()).sum();
        let moved = match containers.len() {
            1 => "1 container".to_owned(),
            n => format!("{n} containers"),
        };
        let text = format!("demo passed: {moved} moved there and back, all {checks} checks passed");
        return vec![style.paint(Paint::Good, &text)];
    }
    let heading = format!("demo FAILED: {} of its conditions do not hold", failures.len());
    let mut lines = vec![style.paint(Paint::Bad, &heading)];
    lines.extend(failures.iter().map(|failure| format!("  {failure}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trip(source: &str, destination: &str, bytes_sent: u64) -> Trip {
        let summary = Summary {
            source: source.into(),
            destination: destination.into(),
            downtime_us: 82_000,
            total_us: 2_900_000,
            bytes_sent,
            pages_total: 65_536,
            pages_verified: 65_536,
            ..Summary::default()
        };
        Trip { summary, inside_gap_us: Some(84_000), client_gap_us: Some(85_000), has_client: true }
    }

    fn check(name: &str, expected: u64, found: u64) -> Check {
        Check { name: name.into(), expected, found, detail: String::new() }
    }

    fn redis() -> Container {
        Container {
            name: "redis".into(),
            first: trip("node-a", "node-b", 300 << 20),
            back: trip("node-b", "node-a", 9 << 20),
            checks: vec![check("keys", 200_000, 200_000), check("INCR counter", 5_321, 5_321)],
        }
    }

    #[test]
    fn a_good_demo_passes_and_shows_all_three_clocks() {
        let good = report(&[redis()], Style::PLAIN);
        assert!(good.passed(), "{:?}", good.failures);
        let wanted = [
            "CONTAINER  FROM    TO      DOWNTIME  INSIDE  CLIENT   TOTAL  ROUNDS  ON THE WIRE  PAGES VERIFIED",
            "redis      node-a  node-b     82 ms   84 ms   85 ms  2.90 s       0      300 MiB  65536 of 65536",
            "redis      node-b  node-a     82 ms   84 ms   85 ms  2.90 s       0     9.00 MiB  65536 of 65536",
            "",
            "redis: first trip 300 MiB, return trip 9.00 MiB (3 % of it)",
            "",
            "CONTAINER  CHECK         EXPECTED   RIGHT  RESULT  DETAIL",
            "redis      keys            200000  200000  ok",
            "redis      INCR counter      5321    5321  ok",
            "",
            "demo passed: 1 container moved there and back, all 2 checks passed",
        ];
        assert_eq!(good.lines, wanted);
    }

    #[test]
    fn every_condition_can_fail_alone() {
        type Spoil = fn(&mut Container);
        let spoilt: [(&str, Spoil); 11] = [
            ("keys: 199999 of 200000 right", |c| c.checks[0].found -= 1),
            ("keys: 200001 of 200000 right", |c| c.checks[0].found += 1),
            ("keys: 0 of 0 right", |c| c.checks[0] = check("keys", 0, 0)),
            ("its workload checked nothing", |c| c.checks.clear()),
            ("first trip: the agents measured no downtime", |c| c.first.summary.downtime_us = 0),
            ("return trip: the ticker inside was not read", |c| c.back.inside_gap_us = None),
            ("first trip: the client outside measured no gap", |c| c.first.client_gap_us = None),
            ("return trip: 65535 of 65536 pages were verified", |c| c.back.summary.pages_verified -= 1),
            ("the return trip did not go back", |c| c.back.summary.destination = "node-c".into()),
            ("the return trip sent 300 MiB, not less", |c| {
                c.back.summary.bytes_sent = c.first.summary.bytes_sent
            }),
            ("keys: 1 of 200000 right (key:7 differs)", |c| {
                c.checks[0].found = 1;
                c.checks[0].detail = "key:7 differs".into();
            }),
        ];
        for (failure, spoil) in spoilt {
            let mut container = redis();
            spoil(&mut container);
            let report = report(&[container], Style::PLAIN);
            assert_eq!(report.failures.len(), 1, "{failure}: {:?}", report.failures);
            assert!(
                report.failures[0].starts_with("redis: ") && report.failures[0].contains(failure),
                "{report:#?}"
            );
            assert!(report.lines.iter().any(|line| line.starts_with("demo FAILED: 1 ")), "{report:#?}");
        }
        assert!(!report(&[], Style::PLAIN).passed());
    }

    #[test]
    fn a_container_without_a_client_needs_no_client_gap() {
        let mut tree = redis();
        for trip in [&mut tree.first, &mut tree.back] {
            (trip.has_client, trip.client_gap_us) = (false, None);
        }
        let report = report(&[tree], Style::PLAIN);
        assert!(report.passed() && report.lines[1].contains("      -  "), "{report:#?}");
    }
}
