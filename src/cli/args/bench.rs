//! `decamp bench`: what may be measured.

use clap::{Args, Subcommand};

use crate::bench::{Mode, Options};

/// Rounds that count when nothing is said, and with `--quick`.
const RUNS: u32 = 11;
const RUNS_QUICK: u32 = 3;

/// `decamp bench`
#[derive(Debug, Args)]
#[command(
    about = "Measure what migrations cost on this machine, in a lab of its own (needs root)",
    long_about = "Measures what migrations cost, in a lab of its own: containers of several sizes, idle and writing, the same \
        container without memory, the same moved by `runc checkpoint` and `runc restore` by hand, and Redis under load. The \
        kinds take turns, one round after the other, so that what disturbs this machine disturbs all of them; what is reported \
        are medians and their ratios. Every byte is compared after every move.\n\n\
        Use an optimised build (`cargo build --release`) on a machine that does nothing else. Exits with 7 if a migration \
        failed or a content was wrong.",
    after_long_help = "\
Examples:
  decamp bench downtime
  decamp bench downtime --quick --only idle,empty --mib 64,1024
  decamp bench downtime --json | jq .summary"
)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How long containers stand still, and what surrounds it
    Downtime(DowntimeArgs),
}

/// `decamp bench downtime`
#[derive(Debug, Args)]
pub struct DowntimeArgs {
    /// Rounds that count; one more, before them, does not [default: 11, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: Option<u32>,
    /// Three rounds, and a smaller Redis
    #[arg(long)]
    pub quick: bool,
    /// Sizes of the idle containers in MiB, separated by commas
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_values_t = [64, 1024, 2048], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub mib: Vec<u32>,
    /// Only these, separated by commas: idle, empty, by-hand, writer-25, writer-50, redis-closed, redis-open
    #[arg(long, value_name = "MODES", value_delimiter = ',', value_parser = Mode::parse)]
    pub only: Vec<Mode>,
    /// Print one JSON document; progress goes to standard error
    #[arg(long)]
    pub json: bool,
}

impl DowntimeArgs {
    /// What the bench room is asked for.
    #[must_use]
    pub fn options(&self) -> Options {
        let mut modes = if self.only.is_empty() { Mode::ALL.to_vec() } else { self.only.clone() };
        // A writer's rate is a share of what an idle container's migration shows.
        if modes.iter().any(|mode| matches!(mode, Mode::Writer25 | Mode::Writer50)) {
            modes.push(Mode::Idle);
        }
        Options {
            runs: self.runs.unwrap_or(if self.quick { RUNS_QUICK } else { RUNS }),
            memory_mib: self.mib.clone(),
            redis_mib: if self.quick { 256 } else { 512 },
            modes,
        }
    }
}
