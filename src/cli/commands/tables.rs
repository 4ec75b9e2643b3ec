//! Answers as tables for people. Pure.

use crate::cli::complaint::reason_lines;
use crate::human::{Column, Paint, Style, Table, bytes, clean, count, duration_us, instant_ms};
use crate::model::PAGE_SIZE;
use crate::rpc::v1::{ContainerInfo, HistoryEntry, HistoryReply, InfoReply, ListReply};

/// `decamp ls`
pub(super) fn containers(reply: &ListReply, style: Style) -> Vec<String> {
    if reply.containers.is_empty() {
        return vec!["no containers on this host".to_owned()];
    }
    let mut table = Table::new(&[
        Column::text("CONTAINER"),
        Column::text("STATUS"),
        Column::number("MEMORY"),
        Column::number("PROCESSES"),
        Column::number("PID"),
        Column::text("PAGES"),
        Column::text("ARRIVED FROM"),
        Column::text("MOVING"),
    ]);
    for container in &reply.containers {
        table.painted_row(container_row(container));
    }
    table.lines(style)
}

fn container_row(container: &ContainerInfo) -> [(String, Option<Paint>); 8] {
    let running = container.status == "running";
    let known = |number: u64, text: String| if number == 0 { "-".to_owned() } else { text };
    [
        (container.id.clone(), Some(Paint::Strong)),
        (container.status.clone(), Some(if running { Paint::Good } else { Paint::Faint })),
        (known(container.memory_bytes, bytes(container.memory_bytes)), None),
        (known(container.processes.into(), container.processes.to_string()), None),
        (known(container.init_pid.into(), container.init_pid.to_string()), None),
        memory_state(container),
        (container.arrived_from.clone(), None),
        (container.migration_id.clone(), Some(Paint::Warn)),
    ]
}

/// Is all of its memory here?
fn memory_state(container: &ContainerInfo) -> (String, Option<Paint>) {
    let missing = bytes(container.pages_missing.saturating_mul(PAGE_SIZE as u64));
    match container.memory_state.as_str() {
        "filling" => (format!("{missing} to come"), Some(Paint::Warn)),
        "lost" => (format!("lost ({missing} missing)"), Some(Paint::Bad)),
        other => (other.to_owned(), None),
    }
}

/// `decamp history`
pub(super) fn history(reply: &HistoryReply, style: Style) -> Vec<String> {
    if reply.entries.is_empty() {
        return vec!["no finished migrations".to_owned()];
    }
    let mut table = Table::new(&[
        Column::text("FINISHED (UTC)"),
        Column::text("CONTAINER"),
        Column::text("FROM"),
        Column::text("TO"),
        Column::text("OUTCOME"),
        Column::number("DOWNTIME"),
        Column::number("TOTAL"),
        Column::number("ON THE WIRE"),
        Column::text("WHY"),
    ]);
    for entry in &reply.entries {
        table.painted_row(history_row(entry));
    }
    table.lines(style)
}

fn history_row(entry: &HistoryEntry) -> [(String, Option<Paint>); 9] {
    let paint = match entry.outcome.as_str() {
        "completed" => Paint::Good,
        "in-doubt" => Paint::Warn,
        _ => Paint::Bad,
    };
    let of_summary = |text: fn(&crate::rpc::v1::Summary) -> String| {
        (entry.summary.as_ref().map_or_else(String::new, text), None)
    };
    let why = entry.failure.as_ref().map_or_else(String::new, |failure| {
        let reasons =
            || failure.reasons.iter().map(|reason| reason.what.as_str()).collect::<Vec<_>>().join("; ");
        if failure.message.is_empty() { reasons() } else { failure.message.clone() }
    });
    [
        (instant_ms(entry.finished_unix_ms), None),
        (entry.container.clone(), Some(Paint::Strong)),
        (entry.source.clone(), None),
        (entry.destination.clone(), None),
        (entry.outcome.clone(), Some(paint)),
        of_summary(|summary| duration_us(summary.downtime_us)),
        of_summary(|summary| duration_us(summary.total_us)),
        of_summary(|summary| bytes(summary.bytes_sent)),
        (why, None),
    ]
}

/// `decamp info`
pub(super) fn info(reply: &InfoReply, style: Style) -> Vec<String> {
    let versions: Vec<String> = reply.protocol_versions.iter().map(ToString::to_string).collect();
    let or_none = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let facts = [
        ("host", reply.host.clone()),
        ("decamp", format!("{}, protocol {}", reply.version, versions.join(", "))),
        ("kernel", reply.kernel.clone()),
        ("criu", reply.criu_version.clone()),
        ("runtime", reply.runtime_version.clone()),
        ("listens on", reply.listen.clone()),
        ("peers", or_none(&reply.peers)),
        ("can do", or_none(&reply.capabilities)),
        ("free memory", bytes(reply.memory_available_bytes)),
        ("free disk", bytes(reply.disk_available_bytes)),
        (
            "kept pages",
            format!(
                "{} (content of earlier visitors, so that it need not be sent again)",
                count(reply.retained_pages)
            ),
        ),
        ("in flight", format!("{} migrations", reply.migrations_in_flight)),
    ];
    let mut lines: Vec<String> = facts
        .iter()
        .map(|(label, text)| {
            format!("{} {}", style.paint(Paint::Label, &format!("{label:<12}")), or_unknown(text))
        })
        .collect();
    if !reply.problems.is_empty() {
        let heading = format!("{:<12}", "problems");
        lines.push(style.paint(Paint::Bad, heading.trim_end()));
        for (index, reason) in reply.problems.iter().enumerate() {
            lines.extend(reason_lines(index + 1, reason, style));
        }
    }
    lines
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { "not known".to_owned() } else { clean(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::{Failure, Reason, Summary};

    #[test]
    fn containers_as_a_table() {
        let redis = ContainerInfo {
            id: "redis".into(),
            status: "running".into(),
            init_pid: 42,
            memory_bytes: 1 << 30,
            processes: 3,
            arrived_from: "node-b".into(),
            memory_state: "filling".into(),
            pages_missing: 512,
            ..ContainerInfo::default()
        };
        let old = ContainerInfo { id: "old".into(), status: "stopped".into(), ..ContainerInfo::default() };
        let lines = containers(&ListReply { containers: vec![redis, old] }, Style::PLAIN);
        let wanted = [
            "CONTAINER  STATUS     MEMORY  PROCESSES  PID  PAGES             ARRIVED FROM  MOVING",
            "redis      running  1.00 GiB          3   42  2.00 MiB to come  node-b",
            "old        stopped         -          -    -",
        ];
        assert_eq!(lines, wanted);
        assert_eq!(containers(&ListReply::default(), Style::PLAIN), ["no containers on this host"]);
    }

    #[test]
    fn history_as_a_table() {
        let done = HistoryEntry {
            container: "redis".into(),
            source: "a".into(),
            destination: "b".into(),
            outcome: "completed".into(),
            finished_unix_ms: 1_000,
            summary: Some(Summary {
                downtime_us: 82_000,
                total_us: 2_900_000,
                bytes_sent: 1 << 20,
                ..Summary::default()
            }),
            ..HistoryEntry::default()
        };
        let reasons = vec![Reason { what: "no room".into(), ..Reason::default() }];
        let failure = Some(Failure { reasons, ..Failure::default() });
        let aborted = HistoryEntry { outcome: "aborted".into(), failure, summary: None, ..done.clone() };
        let lines = history(&HistoryReply { entries: vec![done, aborted] }, Style::PLAIN);
        let wanted = [
            "FINISHED (UTC)       CONTAINER  FROM  TO  OUTCOME    DOWNTIME   TOTAL  ON THE WIRE  WHY",
            "1970-01-01 00:00:01  redis      a     b   completed     82 ms  2.90 s     1.00 MiB",
            "1970-01-01 00:00:01  redis      a     b   aborted                                   no room",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn info_lists_problems_with_their_remedy() {
        let problem = Reason {
            code: "criu-old".into(),
            what: "criu is 3.17".into(),
            remedy: "install 4.2".into(),
            ..Reason::default()
        };
        let reply = InfoReply { host: "node-a".into(), problems: vec![problem], ..InfoReply::default() };
        let text = info(&reply, Style::PLAIN).join("\n");
        assert!(text.starts_with("host         node-a\n"), "{text}");
        assert!(
            text.ends_with("problems\n  1. criu is 3.17 [criu-old]\n     remedy    install 4.2"),
            "{text}"
        );
    }
}
