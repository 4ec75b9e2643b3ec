//! Options of `migrate` and `drain`, and the request they become.

use clap::{Args, ValueEnum};

use super::{AgentOptions, Destination, MountRule, MountWay, Telling};
use crate::human::{parse_millis, parse_rate};
use crate::model::{ContainerId, limits::ROUNDS_MAX};
use crate::rpc::v1::{MigrateRequest, MountPolicy};

/// `decamp migrate`
#[derive(Debug, Args)]
#[command(
    about = "Move one running container to another host",
    long_about = "Move one running container to another host, and show what happens.\n\n\
        The container runs on while its files and its memory are copied, round by round: each round sends what changed during \
        the one before. When the rest is small enough for the downtime target it is frozen, the rest is sent, it is restored \
        at the destination, and only when everything there is ready does the destination take over. If anything fails before, \
        the container is thawed at the source as if nothing had happened, connections included, and the destination forgets \
        it.\n\n\
        Ctrl-C asks the agent to cancel and goes on showing how it ends; a second Ctrl-C leaves, and the migration goes on \
        without you (`decamp watch` finds it again).",
    after_long_help = "\
Examples:
  decamp migrate redis --to node-b
  decamp migrate redis --to node-b --downtime-target 100ms --bandwidth 100MiB/s
  decamp migrate shop --to node-b --mount /data=copy --mount /etc/shop=shared
  decamp migrate shop --to node-b --mount /data=map:/srv/fast/shop
  decamp migrate batch --to node-b --mode cold
  decamp migrate redis --to node-b --json | jq -c 'select(.completed) | .completed.downtime_us'

Exit codes: see `decamp --help`."
)]
pub struct MigrateArgs {
    /// The container, as the runtime knows it (`decamp ls`)
    #[arg(value_name = "CONTAINER")]
    pub container: ContainerId,
    /// Where to, and how.
    #[command(flatten)]
    pub options: MoveOptions,
    /// How to tell it.
    #[command(flatten)]
    pub telling: Telling,
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
}

/// `decamp drain`
#[derive(Debug, Args)]
#[command(
    about = "Move all running containers to another host",
    long_about = "Move all running containers to another host, a few at a time. One that fails stays where it is and the others \
        go on; a table at the end says how each one ended. Containers that are paused or stopped are left alone.\n\n\
        Exits with 0 only if every one was moved, with 1 if any failed or was refused. Ctrl-C starts no more and asks to cancel \
        those in flight; a second Ctrl-C leaves.",
    after_long_help = "\
Examples:
  decamp drain --to node-b
  decamp drain --to node-b -j 4 --bandwidth 200MiB/s
  decamp drain --to node-b --tcp close --timeout 10m

Exit codes: see `decamp --help`."
)]
pub struct DrainArgs {
    /// How many at a time
    #[arg(short = 'j', long = "jobs", default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Where to, and how.
    #[command(flatten)]
    pub options: MoveOptions,
    /// How to tell it.
    #[command(flatten)]
    pub telling: Telling,
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
}

/// How to move.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Migration")]
pub struct MoveOptions {
    /// The destination: a peer's name from the agent's configuration, or ADDRESS:PORT
    #[arg(long, value_name = "HOST")]
    pub to: Destination,
    /// precopy copies while it runs; cold freezes first (longest downtime, fewest bytes)
    #[arg(long, value_enum, default_value_t = Mode::Precopy)]
    pub mode: Mode,
    /// Cut over when the freeze is expected to be this short [default: the agent's]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub downtime_target: Option<u64>,
    /// Copy at most this many rounds before deciding [default: the agent's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    pub max_rounds: Option<u32>,
    /// Cap for bulk transfer while the container runs, like 100MiB/s or 1Gbit/s [default: none]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub bandwidth: Option<u64>,
    /// Established connections: keep them, close them, or refuse to move a container that has any
    #[arg(long, value_enum, default_value_t = Tcp::Keep)]
    pub tcp: Tcp,
    /// When it dirties memory faster than it can be copied: freeze it all the same, or give up
    #[arg(long, value_enum, default_value_t = IfNotConverging::Cutover)]
    pub if_not_converging: IfNotConverging,
    /// What to do with a bind mount: DEST=shared, =copy, =refuse or =map:PATH; may be repeated
    #[arg(long = "mount", value_name = "DEST=WAY")]
    pub mounts: Vec<MountRule>,
    /// Compress pages: auto measures whether the link or the processor is slower
    #[arg(long, value_enum, default_value_t = OnOff::Auto)]
    pub compress: OnOff,
    /// Give up and roll back when the whole takes longer, like 30m [default: the agent's]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub timeout: Option<u64>,
}

/// `--mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Rounds while it runs, then a short freeze.
    Precopy,
    /// Freeze, copy, restore.
    Cold,
}

/// `--tcp`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tcp {
    /// They survive.
    Keep,
    /// Peers see them closed.
    Close,
    /// Do not move when there are any.
    Refuse,
}

/// `--if-not-converging`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IfNotConverging {
    /// Accept a longer freeze.
    Cutover,
    /// Stay at the source.
    Cancel,
}

/// `--compress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// By measurement.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The word of a value, as typed and as the agent reads it.
fn word<V: ValueEnum>(value: &V) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl MoveOptions {
    /// What the types cannot say: two rules for one mount.
    pub(super) fn check(&self) -> Result<(), String> {
        for (index, rule) in self.mounts.iter().enumerate() {
            if self.mounts[..index].iter().any(|earlier| earlier.destination == rule.destination) {
                return Err(format!("--mount {} is given twice; one rule per mount", rule.destination));
            }
        }
        Ok(())
    }

    /// The request for one container.
    #[must_use]
    pub fn request(&self, container: &str) -> MigrateRequest {
        MigrateRequest {
            container: container.to_owned(),
            to: self.to.to_string(),
            mode: word(&self.mode),
            downtime_target_ms: self.downtime_target.unwrap_or(0),
            max_rounds: self.max_rounds.unwrap_or(0),
            bandwidth_bytes_per_s: self.bandwidth.unwrap_or(0),
            tcp: word(&self.tcp),
            if_not_converging: word(&self.if_not_converging),
            mounts: self.mounts.iter().map(MountRule::to_policy).collect(),
            timeout_ms: self.timeout.unwrap_or(0),
            compress: word(&self.compress),
        }
    }
}

impl MountRule {
    fn to_policy(&self) -> MountPolicy {
        let (policy, map_to) = match &self.way {
            MountWay::Shared => ("shared", ""),
            MountWay::Copy => ("copy", ""),
            MountWay::Refuse => ("refuse", ""),
            MountWay::Map(path) => ("map", path.as_str()),
        };
        MountPolicy {
            destination: self.destination.clone(),
            policy: policy.to_owned(),
            map_to: map_to.to_owned(),
        }
    }
}
