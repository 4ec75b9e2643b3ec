//! What a benchmark ends with: every run, medians, ratios under names that say what they are, and whether each goal is met. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::{Mode, Options};
use super::statistics::{median, percentile};
use super::trip::{RedisNumbers, Run};
use crate::human::{Column, Paint, Style, Table};

/// What decamp's processes may take whatever the container's size, and the share of it beyond, bytes and percent.
const MEMORY_FIXED: u64 = 64 << 20;
const MEMORY_SHARE: u64 = 100;

/// A ratio, and what it must be.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// What was measured; `None`: not measured in this benchmark.
    pub value: Option<f64>,
    /// "at most" or "at least".
    pub sense: &'static str,
    /// Of what.
    pub limit: f64,
    /// Whether it is met; `None`: not measured.
    pub met: Option<bool>,
}

/// Runs of one kind, together.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Tool, mode and memory.
    pub tool: &'static str,
    /// Which container and load.
    pub mode: Mode,
    /// Its memory.
    pub memory_mib: u32,
    /// How many runs.
    pub runs: usize,
    /// Median of the downtime.
    pub downtime_ms: f64,
    /// The smallest.
    pub downtime_min_ms: f64,
    /// The 95th percentile.
    pub downtime_p95_ms: f64,
    /// Median of the client's gap.
    pub client_gap_ms: Option<f64>,
    /// Median of the whole migration's time.
    pub total_ms: f64,
    /// Median of what crossed the wire.
    pub bytes_sent: f64,
    /// Median of the time until all memory was there.
    pub resident_after_ms: Option<f64>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Rounds that count.
    pub rounds: u32,
    /// Setting of transparent huge pages, and the load average at the end.
    pub transparent_hugepage: String,
    /// One-minute load average when the benchmark began.
    pub load_average_before: f64,
    /// Optimised build or not: numbers of a debug build say nothing.
    pub optimised_build: bool,
    /// Pages a second that an idle migration carried; what the writers' rates are shares of.
    pub link_pages_per_s: Option<u64>,
    /// Every run that counts.
    pub runs: Vec<Run>,
    /// A plain loop of UFFDIO_COPY, one value a round, bytes a second.
    pub uffdio_copy_bytes_per_s: Vec<u64>,
    /// Medians.
    pub groups: Vec<Group>,
    /// Ratios by name.
    pub summary: BTreeMap<&'static str, Option<f64>>,
    /// The same with their goals.
    pub goals: BTreeMap<&'static str, Goal>,
    /// Runs that failed or were not verified. Not empty: the benchmark failed.
    pub failures: Vec<String>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        let thp = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let setting = thp.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
        Self {
            rounds: options.runs,
            transparent_hugepage: setting,
            load_average_before: super::trip::load_average(),
            optimised_build: !cfg!(debug_assertions),
            link_pages_per_s: None,
            runs: Vec::new(),
            uffdio_copy_bytes_per_s: Vec::new(),
            groups: Vec::new(),
            summary: BTreeMap::new(),
            goals: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Adds a round; the warm-up is forgotten.
    pub(super) fn add(&mut self, round: u32, mut runs: Vec<Run>, copy_bytes_per_s: u64) {
        if round == 0 {
            return;
        }
        let floor = runs.iter().find(|run| run.mode == Mode::Empty).map(|run| run.downtime_ms);
        for run in &mut runs {
            run.round = round;
            run.floor_ms = floor;
        }
        self.runs.append(&mut runs);
        self.uffdio_copy_bytes_per_s.push(copy_bytes_per_s);
    }

    /// Does the arithmetic.
    pub(super) fn finish(&mut self) {
        self.groups = groups(&self.runs);
        let goals = ratios(self).into_iter().map(|(name, value, sense, limit)| {
            let met = value.map(|value| if sense == "at most" { value <= limit } else { value >= limit });
            (name, Goal { value, sense, limit, met })
        });
        self.goals = goals.collect();
        self.summary = self.goals.iter().map(|(name, goal)| (*name, goal.value)).collect();
    }

    fn downtime(&self, mode: Mode, memory_mib: u32) -> Option<f64> {
        let group = self.groups.iter().find(|group| group.mode == mode && group.memory_mib == memory_mib);
        group.map(|group| group.downtime_ms)
    }

    fn writer(&self, mode: Mode) -> Option<f64> {
        let group = self.groups.iter().find(|group| group.mode == mode)?;
        Some(group.downtime_ms / self.downtime(Mode::Idle, group.memory_mib)?)
    }

    /// The median over runs of a quotient of two of Redis's numbers.
    fn redis(
        &self,
        above: fn(&RedisNumbers) -> Option<f64>,
        below: fn(&RedisNumbers) -> Option<f64>,
    ) -> Option<f64> {
        let quotients = self.runs.iter().filter_map(|run| {
            let numbers = run.redis.as_ref()?;
            Some(above(numbers)? / below(numbers)?)
        });
        median(&quotients.collect::<Vec<_>>())
    }

    fn fill(&self) -> Option<f64> {
        let idle = self.runs.iter().filter(|run| run.mode == Mode::Idle);
        // A fill that is over in no time says nothing about its speed.
        let largest = idle.clone().map(|run| run.memory_mib).max()?;
        let rates =
            idle.filter(|run| run.memory_mib == largest).filter_map(|run| run.fill_bytes_per_s.map(float));
        let copies: Vec<f64> = self.uffdio_copy_bytes_per_s.iter().copied().map(float).collect();
        Some(median(&rates.collect::<Vec<_>>())? / median(&copies)?)
    }

    fn agent_memory(&self) -> Option<f64> {
        let shares = self.runs.iter().filter_map(|run| {
            let allowed = MEMORY_FIXED + (u64::from(run.memory_mib) << 20) / MEMORY_SHARE;
            Some(float(run.agent_memory_bytes?) / float(allowed))
        });
        shares.reduce(f64::max)
    }
}

/// Counts and sizes below 2^53, which an f64 holds exactly; a larger one would only be rounded.
#[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than 53 bits")]
fn float(number: u64) -> f64 {
    number as f64
}

type Ratio = (&'static str, Option<f64>, &'static str, f64);

fn ratios(report: &Report) -> Vec<Ratio> {
    let over = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
    let idle = |mib| report.downtime(Mode::Idle, mib);
    let floor = report.downtime(Mode::Empty, 0);
    vec![
        ("ratio_2048_64", over(idle(2048), idle(64)), "at most", 1.2),
        ("ratio_1024_floor", over(idle(1024), floor), "at most", 1.3),
        ("ratio_writer_25_idle", report.writer(Mode::Writer25), "at most", 1.5),
        ("ratio_writer_50_idle", report.writer(Mode::Writer50), "at most", 2.0),
        ("ratio_floor_runc_by_hand", over(floor, report.downtime(Mode::ByHand, 0)), "at most", 0.6),
        (
            "redis_throughput_precopy_quiet",
            report.redis(|redis| redis.precopy_commands_per_s, |redis| redis.quiet_commands_per_s),
            "at least",
            0.9,
        ),
        (
            "redis_p99_precopy_quiet",
            report.redis(|redis| redis.precopy_p99_us, |redis| redis.quiet_p99_us),
            "at most",
            2.0,
        ),
        (
            "redis_p99_fill_quiet",
            report.redis(|redis| redis.fill_p99_us, |redis| redis.quiet_p99_us),
            "at most",
            3.0,
        ),
        ("ratio_fill_uffdio_copy", report.fill(), "at least", 0.75),
        ("ratio_agent_memory_allowed", report.agent_memory(), "at most", 1.0),
    ]
}

fn groups(runs: &[Run]) -> Vec<Group> {
    let mut kinds: Vec<(&'static str, Mode, u32)> = Vec::new();
    for run in runs {
        let kind = (run.tool, run.mode, run.memory_mib);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let place = |mode: Mode| Mode::ALL.iter().position(|other| *other == mode);
    kinds.sort_by_key(|(_, mode, memory_mib)| (place(*mode), *memory_mib));
    kinds.into_iter().filter_map(|kind| group(runs, kind)).collect()
}

fn group(runs: &[Run], (tool, mode, memory_mib): (&'static str, Mode, u32)) -> Option<Group> {
    let own: Vec<&Run> = runs.iter().filter(|run| run.mode == mode && run.memory_mib == memory_mib).collect();
    let all = |value: fn(&Run) -> f64| own.iter().map(|run| value(run)).collect::<Vec<_>>();
    let some = |value: fn(&Run) -> Option<f64>| own.iter().filter_map(|run| value(run)).collect::<Vec<_>>();
    let downtimes = all(|run| run.downtime_ms);
    Some(Group {
        tool,
        mode,
        memory_mib,
        runs: own.len(),
        downtime_ms: median(&downtimes)?,
        downtime_min_ms: downtimes.iter().copied().reduce(f64::min)?,
        downtime_p95_ms: percentile(&downtimes, 95)?,
        client_gap_ms: median(&some(|run| run.client_gap_ms)),
        total_ms: median(&all(|run| run.total_ms))?,
        bytes_sent: median(&all(|run| float(run.bytes_sent)))?,
        resident_after_ms: median(&some(|run| run.resident_after_ms)),
    })
}

/// The report for people.
#[must_use]
pub fn lines(report: &Report, style: Style) -> Vec<String> {
    let mut lines = medians(report).lines(style);
    lines.push(String::new());
    lines.extend(verdicts(report, style).lines(style));
    if !report.optimised_build {
        lines.push("this is not an optimised build: these numbers say nothing about decamp".to_owned());
    }
    if !report.failures.is_empty() {
        let heading =
            format!("{} runs failed or were not verified; they count for nothing:", report.failures.len());
        lines.push(style.paint(Paint::Bad, &heading));
        lines.extend(report.failures.iter().map(|failure| format!("  {failure}")));
    }
    lines
}

fn medians(report: &Report) -> Table {
    let number = Column::number;
    let mut table = Table::new(&[
        Column::text("TOOL"),
        Column::text("CONTAINER"),
        number("MIB"),
        number("RUNS"),
        number("DOWNTIME"),
        number("LEAST"),
        number("P95"),
        number("CLIENT"),
        number("RESIDENT"),
        number("TOTAL"),
        number("ON THE WIRE"),
    ]);
    let ms = |value: f64| format!("{value:.1} ms");
    let maybe = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), ms);
    for group in &report.groups {
        table.row([
            group.tool.to_owned(),
            group.mode.to_string(),
            group.memory_mib.to_string(),
            group.runs.to_string(),
            ms(group.downtime_ms),
            ms(group.downtime_min_ms),
            ms(group.downtime_p95_ms),
            maybe(group.client_gap_ms),
            maybe(group.resident_after_ms),
            format!("{:.0} ms", group.total_ms),
            format!("{:.1} MiB", group.bytes_sent / f64::from(1 << 20)),
        ]);
    }
    table
}

fn verdicts(report: &Report, style: Style) -> Table {
    let mut table = Table::new(&[
        Column::text("RATIO"),
        Column::number("MEASURED"),
        Column::text("GOAL"),
        Column::text("MET"),
    ]);
    for (name, goal) in &report.goals {
        let (met, paint) = match goal.met {
            Some(true) => (style.glyphs.pass, Paint::Good),
            Some(false) => (style.glyphs.fail, Paint::Bad),
            None => ("not measured", Paint::Faint),
        };
        table.painted_row([
            ((*name).to_owned(), None),
            (goal.value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")), Some(Paint::Strong)),
            (format!("{} {}", goal.sense, goal.limit), None),
            (met.to_owned(), Some(paint)),
        ]);
    }
    table
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
