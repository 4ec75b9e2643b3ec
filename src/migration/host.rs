//! What every migration on this host shares.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::convergence::NotConverging;
use super::courtesy::Courtesy;
use super::pagers::Pagers;
use super::request::MountPolicy;
use crate::criu::TcpPolicy;
use crate::files::DigestCache;
use crate::hook::HookHub;
use crate::journal::Journal;
use crate::model::HostId;
use crate::pages::compress::Compression;
use crate::quic::Endpoint;
use crate::rpc::v1::{HostFacts, Reason};
use crate::runtime::Runc;
use crate::store::RetainedPages;

/// Capability: CRIU locks a container's network with nftables.
pub const NETWORK_LOCK_NFTABLES: &str = "network-lock-nftables";

/// Another host.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where its agent listens.
    pub address: SocketAddr,
}

/// The part of the configuration that migrations need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts by name.
    pub peers: BTreeMap<HostId, Peer>,
    /// Data streams of a migration.
    pub streams: u32,
    /// See [`super::convergence::Policy`].
    pub downtime_target: Duration,
    /// See [`super::convergence::Policy`].
    pub max_rounds: u32,
    /// See [`super::convergence::Policy`].
    pub if_not_converging: NotConverging,
    /// Cap of a migration, bytes a second.
    pub bandwidth: Option<u64>,
    /// Of a whole migration.
    pub timeout: Duration,
    /// Connections.
    pub tcp: TcpPolicy,
    /// Page compression.
    pub compress: Compression,
    /// Migrations at once, either way.
    pub max_concurrent: usize,
    /// Policies by mount point.
    pub mount_policies: BTreeMap<String, MountPolicy>,
    /// Host paths below which a shared or mapped mount may point, when we are the destination.
    pub allow_sources: Vec<PathBuf>,
    /// Folders below which base layers may lie, when we are the destination; empty: anywhere.
    pub bases: Vec<PathBuf>,
    /// Bridge for arriving containers; none: the one of the same name as at the source.
    pub bridge: Option<String>,
    /// Keep files of departed containers, up to so many bytes each.
    pub retain_disk: u64,
    /// Memory that arriving containers must leave free.
    pub reserve_memory: u64,
}

impl Settings {
    /// A peer by name.
    ///
    /// # Errors
    /// It is not configured.
    pub fn peer(&self, name: &str) -> Result<(HostId, SocketAddr), Reason> {
        let found = HostId::try_from(name).ok().and_then(|id| self.peers.get_key_value(&id));
        found.map(|(id, peer)| (id.clone(), peer.address)).ok_or_else(|| Reason {
            code: "unknown-host".to_owned(),
            what: format!("{name:?} is not a peer of this host"),
            evidence: match self.peers.keys().map(HostId::as_str).collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "no peers are configured".to_owned(),
                known => format!("configured peers: {known}"),
            },
            remedy: format!(
                "add [peers.{name}] with its address to the agent's configuration and restart the agent"
            ),
        })
    }
}

/// One agent's shared things.
#[derive(Debug)]
pub struct Host {
    /// Our name.
    pub id: HostId,
    /// Configuration.
    pub settings: Settings,
    /// The runtime.
    pub runc: Runc,
    /// What we are and can do.
    pub facts: HostFacts,
    /// Why this host cannot take part, when it cannot.
    pub problems: Vec<Reason>,
    /// Our own binary, for the hook link.
    pub program: PathBuf,
    /// For things in flight (tmpfs).
    pub run_dir: PathBuf,
    /// For things that stay.
    pub state_dir: PathBuf,
    /// What must survive a crash.
    pub journal: Journal,
    /// CRIU's hooks.
    pub hooks: HookHub,
    /// The data plane.
    pub endpoint: Endpoint,
    /// Who yields to whom.
    pub courtesy: Arc<Courtesy>,
    /// Containers whose memory is not all here yet.
    pub pagers: Pagers,
    /// Pages of containers that left.
    pub retained: Arc<RetainedPages>,
    /// Digests of base layers.
    pub digests: DigestCache,
    /// Fires when the agent stops.
    pub stopping: tokio_util::sync::CancellationToken,
    /// Memory promised to migrations in flight, bytes.
    pub memory_promised: AtomicU64,
}

impl Host {
    /// Can CRIU lock a container's network with nftables here?
    #[must_use]
    pub fn network_lock_nftables(&self) -> bool {
        self.facts.capabilities.iter().any(|word| word == NETWORK_LOCK_NFTABLES)
    }

    /// Memory that an arriving container may still have, bytes: what the kernel calls available, less what is promised and what
    /// must stay free.
    #[must_use]
    pub fn memory_available(&self) -> u64 {
        let available = procfs::Current::current().ok().and_then(|info: procfs::Meminfo| info.mem_available);
        available
            .unwrap_or(0)
            .saturating_sub(self.memory_promised.load(Ordering::Relaxed))
            .saturating_sub(self.settings.reserve_memory)
    }

    /// Room on the disk of the state folder, bytes.
    #[must_use]
    pub fn disk_available(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.state_dir).map_or(0, |s| s.blocks_available() * s.fragment_size())
    }

    /// Promises memory to a migration; given back when the guard is dropped.
    #[must_use]
    pub fn promise_memory(self: &Arc<Self>, bytes: u64) -> MemoryPromise {
        self.memory_promised.fetch_add(bytes, Ordering::Relaxed);
        MemoryPromise { host: Arc::clone(self), bytes }
    }
}

/// Memory promised to one migration.
#[derive(Debug)]
pub struct MemoryPromise {
    host: Arc<Host>,
    bytes: u64,
}

impl Drop for MemoryPromise {
    fn drop(&mut self) {
        self.host.memory_promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
