//! What an operator asked for, checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::convergence::{NotConverging, Policy};
use super::host::Settings;
use crate::criu::TcpPolicy;
use crate::model::{ContainerId, HostId, limits};
use crate::pages::compress::Compression;
use crate::rpc::v1::{MigrateRequest, Reason};

/// Less than this is a mistyped unit.
const BANDWIDTH_MIN: u64 = 64 << 10;

/// How the memory travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Rounds while the container runs, then a short freeze.
    PreCopy,
    /// Freeze first, then send everything: the process state is kept, the downtime grows with memory.
    Cold,
}

impl Mode {
    /// The option's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreCopy => "precopy",
            Self::Cold => "cold",
        }
    }
}

/// What becomes of a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPolicy {
    /// The same path exists at the destination and holds the same.
    Shared,
    /// The contents travel.
    Copy,
    /// Another path at the destination.
    Map(PathBuf),
    /// Do not move a container that has it.
    Refuse,
}

impl MountPolicy {
    /// The option's word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Copy => "copy",
            Self::Map(_) => "map",
            Self::Refuse => "refuse",
        }
    }

    /// From a word and a path.
    ///
    /// # Errors
    /// An unknown word, or `map` without an absolute path.
    pub fn parse(word: &str, map_to: &str) -> Result<Self, Reason> {
        match word {
            "shared" => Ok(Self::Shared),
            "copy" => Ok(Self::Copy),
            "refuse" => Ok(Self::Refuse),
            "map" if map_to.starts_with('/') => Ok(Self::Map(map_to.into())),
            "map" => Err(bad(
                format!("a mount is mapped to {map_to:?}"),
                "give an absolute path at the destination",
            )),
            other => {
                Err(bad(format!("{other:?} is not a mount policy"), "use shared, copy, map:/PATH or refuse"))
            }
        }
    }
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which container.
    pub container: ContainerId,
    /// To which host.
    pub to: HostId,
    /// Where that host listens.
    pub address: SocketAddr,
    /// How.
    pub mode: Mode,
    /// When to stop copying.
    pub policy: Policy,
    /// Cap, bytes a second.
    pub bandwidth: Option<u64>,
    /// Connections.
    pub tcp: TcpPolicy,
    /// Mount point → policy.
    pub mounts: BTreeMap<String, MountPolicy>,
    /// Mount points that this request names, as opposed to the configuration.
    pub asked_mounts: Vec<String>,
    /// Of the whole migration.
    pub timeout: Duration,
    /// Page compression.
    pub compress: Compression,
}

fn bad(what: String, remedy: &str) -> Reason {
    Reason { code: "bad-option".to_owned(), what, evidence: String::new(), remedy: remedy.to_owned() }
}

fn mode(word: &str) -> Result<Mode, Reason> {
    match word {
        "" | "precopy" => Ok(Mode::PreCopy),
        "cold" => Ok(Mode::Cold),
        other => Err(bad(format!("--mode {other:?} is not a mode"), "use precopy or cold")),
    }
}

fn not_converging(word: &str, otherwise: NotConverging) -> Result<NotConverging, Reason> {
    match word {
        "" => Ok(otherwise),
        "cutover" => Ok(NotConverging::CutOver),
        "cancel" => Ok(NotConverging::Cancel),
        other => Err(bad(format!("--if-not-converging {other:?} is not a choice"), "use cutover or cancel")),
    }
}

fn compression(word: &str, otherwise: Compression) -> Result<Compression, Reason> {
    match word {
        "" => Ok(otherwise),
        "auto" => Ok(Compression::Auto),
        "on" => Ok(Compression::On),
        "off" => Ok(Compression::Off),
        other => Err(bad(format!("--compress {other:?} is not a choice"), "use auto, on or off")),
    }
}

impl Request {
    /// Checks everything and says everything that is wrong at once.
    ///
    /// # Errors
    /// Every complaint.
    pub fn check(asked: &MigrateRequest, settings: &Settings) -> Result<Self, Vec<Reason>> {
        let mut reasons = Vec::new();
        let mut complain = |reason: Reason| reasons.push(reason);
        let container = ContainerId::try_from(asked.container.as_str())
            .map_err(|e| complain(bad(e.to_string(), "see `decamp ls` for the containers of this host")));
        let to = settings.peer(&asked.to).map_err(&mut complain);
        let mode = mode(&asked.mode).map_err(&mut complain);
        let if_not_converging =
            not_converging(&asked.if_not_converging, settings.if_not_converging).map_err(&mut complain);
        let tcp = match asked.tcp.as_str() {
            "" => Ok(settings.tcp),
            word => TcpPolicy::parse(word).map_err(&mut complain),
        };
        let compress = compression(&asked.compress, settings.compress).map_err(&mut complain);
        let mut mounts = settings.mount_policies.clone();
        for mount in &asked.mounts {
            match MountPolicy::parse(&mount.policy, &mount.map_to) {
                Ok(policy) => drop(mounts.insert(mount.destination.clone(), policy)),
                Err(reason) => complain(reason),
            }
        }
        if (1..BANDWIDTH_MIN).contains(&asked.bandwidth_bytes_per_s) {
            let what =
                format!("--bandwidth of {} bytes a second would take for ever", asked.bandwidth_bytes_per_s);
            complain(bad(what, "give a rate with its unit, like 100MiB/s; at least 64KiB/s"));
        }
        let millis = |asked: u64, otherwise: Duration| match asked {
            0 => otherwise,
            ms => Duration::from_millis(ms),
        };
        let max_rounds = match asked.max_rounds {
            0 => settings.max_rounds,
            rounds => rounds,
        };
        match (container, to, mode, if_not_converging, tcp, compress) {
            (Ok(container), Ok((to, address)), Ok(mode), Ok(if_not_converging), Ok(tcp), Ok(compress))
                if reasons.is_empty() =>
            {
                Ok(Self {
                    container,
                    to,
                    address,
                    mode,
                    policy: Policy {
                        downtime_target: millis(asked.downtime_target_ms, settings.downtime_target),
                        max_rounds: max_rounds.min(limits::ROUNDS_MAX),
                        if_not_converging,
                    },
                    bandwidth: Some(asked.bandwidth_bytes_per_s).filter(|b| *b > 0).or(settings.bandwidth),
                    tcp,
                    mounts,
                    asked_mounts: asked.mounts.iter().map(|mount| mount.destination.clone()).collect(),
                    timeout: millis(asked.timeout_ms, settings.timeout),
                    compress,
                })
            }
            _ => Err(reasons),
        }
    }
}
