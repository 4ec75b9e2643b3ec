//! `decamp bench`: what a migration costs, measured in a lab of its own, against the same container without memory and against
//! runc by hand, in the same run. This room decides what is moved, reads every clock and does the arithmetic; `decamp migrate`
//! moves. It never changes how decamp works: every number is one that an operator would get.
//!
//! ```text
//! open lab ─▶ warm-up round (not counted) ─▶ round 1 ─▶ … ─▶ round n ─▶ medians, ratios, goals ─▶ close
//!              └ each round, in an order that turns: start a fresh container ─▶ wait until it is filled ─▶ move it ─▶
//!                read ticker and client ─▶ verify every page ─▶ remove it
//! ```
//! A run whose content was not verified, or that failed, counts for nothing and fails the whole benchmark: a wrong migration is
//! often a fast one.

mod client;
mod copyrate;
mod error;
mod footprint;
mod hand;
mod migrate;
mod plan;
mod redis;
mod report;
mod statistics;
mod subject;
mod trip;

pub use error::BenchError;
pub use plan::{Mode, Options};
pub use report::{Goal, Report, lines};
pub use trip::{RedisNumbers, Run};

use crate::lab::{Cluster, LabOptions};
use plan::{Job, jobs};

/// Name of the lab.
const LAB: &str = "bench";
/// Nothing is kept from one run to the next: a return must not be cheaper than a first trip.
const AGENTS: &str = "[store]\nretain_memory = 0\nretain_disk = 0\n";

/// Measures downtime; `progress` gets a line now and then.
///
/// # Errors
/// The lab's. A run that fails or is not verified is no error: it is in [`Report::failures`].
pub fn downtime(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report, BenchError> {
    let cluster = Cluster::open_with(&LabOptions::new(LAB)?, progress, |_| AGENTS.to_owned())?;
    let mut bench = Bench { cluster, options, link_pages_per_s: None, number: 0 };
    let mut report = Report::new(options);
    for round in 0..=options.runs {
        let mut todo = jobs(options);
        // Whoever goes first finds the machine in another state than whoever goes last.
        let shift = usize::try_from(round).unwrap_or(0) % todo.len().max(1);
        if round > 0 {
            todo.rotate_left(shift);
        }
        let mut runs = Vec::new();
        for job in todo {
            match bench.run(job) {
                Ok(run) => {
                    progress(&run.line(round));
                    runs.push(run);
                }
                Err(error) => {
                    let what = format!("round {round}, {job}: {}", error::chain(&error));
                    progress(&what);
                    report.failures.push(what);
                }
            }
        }
        let copy_bytes_per_s = copyrate::measure()?;
        report.add(round, runs, copy_bytes_per_s);
    }
    report.link_pages_per_s = bench.link_pages_per_s;
    bench.cluster.lab.close()?;
    report.finish();
    Ok(report)
}

struct Bench<'a> {
    cluster: Cluster,
    options: &'a Options,
    /// Pages a second of the first round of the fastest idle migration so far.
    link_pages_per_s: Option<u64>,
    number: u32,
}

impl Bench<'_> {
    fn run(&mut self, job: Job) -> Result<Run, BenchError> {
        self.number += 1;
        let run = match job.mode {
            Mode::ByHand => hand::run(&self.cluster, self.number),
            Mode::RedisClosed | Mode::RedisOpen => redis::run(&self.cluster, job, self.number),
            Mode::Idle | Mode::Empty => trip::run(&self.cluster, job, 0, self.number),
            Mode::Writer25 | Mode::Writer50 => {
                let share = if job.mode == Mode::Writer25 { 4 } else { 2 };
                let link = self.link_pages_per_s.ok_or(BenchError::NoLinkRate)?;
                trip::run(&self.cluster, job, link / share, self.number)
            }
        }?;
        if job.mode == Mode::Idle && job.memory_mib >= self.options.reference_mib() {
            self.link_pages_per_s = self.link_pages_per_s.max(run.link_pages_per_s);
        }
        Ok(run)
    }
}
