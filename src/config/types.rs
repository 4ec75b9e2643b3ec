//! The checked configuration: every field already has its type, its unit and a value that makes sense.
//!
//! Nothing here reads a file. The defaults live here and nowhere else; `config/agent.toml` is tested to equal them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::model::id::HostId;
use crate::telemetry::LogFormat;

/// What an agent was told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This host: the DNS name in its certificate.
    pub host: HostId,
    /// What must survive a restart: journal, retained checkpoints.
    pub state_dir: PathBuf,
    /// What need not survive a reboot: sockets, work folders.
    pub run_dir: PathBuf,
    /// Where operators reach the agent.
    pub control: Control,
    /// Where other agents reach it.
    pub quic: Quic,
    /// Who this host is and whom it believes.
    pub tls: Tls,
    /// The hosts it may migrate to, and those that may send to it.
    pub peers: BTreeMap<HostId, Peer>,
    /// Who may ask for migrations over TCP.
    pub operators: Operators,
    /// The programs that run and checkpoint containers.
    pub runtime: Runtime,
    /// Defaults of a migration; a request may override them.
    pub migration: Migration,
    /// Room for incoming and retained images.
    pub store: Store,
    /// What happens to a container's mounts.
    pub files: Files,
    /// How containers are connected.
    pub network: Network,
    /// Prometheus.
    pub metrics: Metrics,
    /// What is written to stderr.
    pub log: Log,
}

/// `[control]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// UNIX socket of the gRPC control plane; who may connect is who may write to it.
    pub socket: PathBuf,
    /// The same over TCP, only with mutual TLS; none means the UNIX socket alone.
    pub listen: Option<SocketAddr>,
}

/// `[quic]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quic {
    /// UDP address other agents connect to.
    pub listen: SocketAddr,
    /// Silence after which a connection counts as lost.
    pub idle_timeout: Duration,
    /// Data streams of one migration, 1 to [`STREAMS_MAX`](crate::model::limits::STREAMS_MAX).
    pub streams: u32,
}

/// `[tls]`, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Authority that signed every agent and operator.
    pub ca: PathBuf,
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its key. The mode of this file is checked where it is read.
    pub key: PathBuf,
}

/// `[peers.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// UDP address of its agent.
    pub address: SocketAddr,
    /// May it send containers here?
    pub receive: bool,
}

/// `[operators]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operators {
    /// Names in client certificates that may use the TCP control plane. Empty: nobody.
    pub allow: Vec<String>,
}

/// `[runtime]`; a program without a slash is looked up in PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The OCI runtime.
    pub runc: PathBuf,
    /// Its state folder, `runc --root`.
    pub root: PathBuf,
    /// CRIU.
    pub criu: PathBuf,
}

/// `[migration]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Freeze when the rest is expected to move in this time.
    pub downtime_target: Duration,
    /// Pre-copy rounds at most, 1 to [`ROUNDS_MAX`](crate::model::limits::ROUNDS_MAX).
    pub max_rounds: u32,
    /// Bytes per second before the freeze; none means as fast as the link goes.
    pub bandwidth: Option<u64>,
    /// From the request to the commit; then it is cancelled.
    pub timeout: Duration,
    /// When rounds stop helping.
    pub if_not_converging: IfNotConverging,
    /// Page compression.
    pub compress: Compress,
    /// Established TCP connections.
    pub tcp: Tcp,
    /// Migrations in flight at once on this host, both directions together.
    pub max_concurrent: u32,
    /// Nice value of the agent while it only copies rounds, 0 to 19.
    pub nice: i32,
}

/// What to do when memory is dirtied faster than it can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfNotConverging {
    /// Freeze anyway and accept a longer downtime.
    Cutover,
    /// Stay at the source.
    Cancel,
}

/// Page compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    /// When it pays.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Established TCP connections of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Carry them along.
    Keep,
    /// Restore them closed.
    Close,
    /// Do not move a container that has any.
    Refuse,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Bytes of pages of departed containers kept in memory, so that a return sends only what changed.
    pub retain_memory: u64,
    /// Bytes of files kept on disk of one departed container, for the same reason.
    pub retain_disk: u64,
    /// Bytes of memory that must stay free on the host: an offer that would go below is refused.
    pub reserve_memory: u64,
}

/// `[files]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Rules per mount; a mount without a rule follows the default of the files room.
    pub mount_policies: Vec<MountRule>,
    /// Folders of this host below which an arriving container's shared or mapped mounts may lie. Empty: none.
    pub allow_sources: Vec<PathBuf>,
    /// Folders below which base layers named by a peer may lie. Empty: anywhere.
    pub bases: Vec<PathBuf>,
}

/// One of `files.mount_policies`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRule {
    /// Where it is mounted inside the container.
    pub destination: PathBuf,
    /// What happens to it.
    pub policy: MountPolicy,
}

/// What happens to one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPolicy {
    /// Both hosts see the same storage: nothing is sent.
    Shared,
    /// Its content is copied.
    Copy,
    /// The destination mounts another folder of its own.
    Map {
        /// That folder.
        map_to: PathBuf,
    },
    /// Do not move a container that has it.
    Refuse,
}

/// `[network]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Bridge for arriving containers; none means the one of the same name as at the source.
    pub bridge: Option<String>,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// HTTP address Prometheus scrapes; none means no endpoint.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter, such as `info,decamp::migration=debug`.
    pub level: String,
    /// Lines for people or for collectors.
    pub format: LogFormat,
}

impl Config {
    /// Everything at its default, for this host. Only the host name has none.
    #[must_use]
    pub fn defaults(host: HostId) -> Self {
        Self {
            host,
            state_dir: "/var/lib/decamp".into(),
            run_dir: "/run/decamp".into(),
            control: Control { socket: "/run/decamp/agent.sock".into(), listen: None },
            quic: Quic {
                listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7626)),
                idle_timeout: Duration::from_secs(10),
                streams: 4,
            },
            tls: Tls {
                ca: "/etc/decamp/tls/ca.crt".into(),
                cert: "/etc/decamp/tls/host.crt".into(),
                key: "/etc/decamp/tls/host.key".into(),
            },
            peers: BTreeMap::new(),
            operators: Operators::default(),
            runtime: Runtime { runc: "runc".into(), root: "/run/runc".into(), criu: "criu".into() },
            migration: Migration {
                downtime_target: Duration::from_millis(300),
                max_rounds: 10,
                bandwidth: None,
                timeout: Duration::from_mins(30),
                if_not_converging: IfNotConverging::Cutover,
                compress: Compress::Auto,
                tcp: Tcp::Keep,
                max_concurrent: 4,
                nice: 15,
            },
            store: Store { retain_memory: 1 << 30, retain_disk: 10 << 30, reserve_memory: 256 << 20 },
            files: Files::default(),
            network: Network::default(),
            metrics: Metrics::default(),
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }
}
