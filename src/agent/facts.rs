//! What this host is and can do; what is missing becomes a reason that every migration is refused with.

use std::path::Path;

use crate::config::Config;
use crate::criu;
use crate::memory::MixedTracker;
use crate::migration::{NETWORK_LOCK_NFTABLES, chain};
use crate::model::{LAZY_PAGES, PAGE_SIZE, TRACKER_USERFAULTFD};
use crate::pager;
use crate::rpc::v1::{HostFacts, Reason};
use crate::runtime::Runc;

/// This program itself.
const PROGRAM: &str = "/proc/self/exe";

/// Looks once, at the start.
pub(super) async fn gather(config: &Config, runc: &Runc) -> (HostFacts, Vec<Reason>) {
    let mut problems = Vec::new();
    let mut problem = |code: &str, what: &str, evidence: String, remedy: &str| {
        problems.push(Reason {
            code: code.to_owned(),
            what: format!("{what} on {}", config.host),
            evidence,
            remedy: remedy.to_owned(),
        });
    };
    let criu_version = match criu::check(&config.runtime.criu).await {
        Ok(version) => version.to_string(),
        Err(error) => {
            problem(
                "criu",
                "CRIU is not usable",
                chain(&error),
                "install criu 4.2 or later, then restart the agent",
            );
            String::new()
        }
    };
    let runtime_version = match runc.version().await {
        Ok(version) => version,
        Err(error) => {
            problem("runtime", "runc is not usable", chain(&error), "install runc, then restart the agent");
            String::new()
        }
    };
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(0);
    if usize::try_from(page_size) != Ok(PAGE_SIZE) {
        problem(
            "page-size",
            "pages are not 4 KiB",
            format!("{page_size} bytes"),
            "use a kernel with 4 KiB pages",
        );
    }
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if let Err(error) = MixedTracker::probe(Path::new(PROGRAM)) {
        problem(
            "pagemap",
            "the kernel does not tell which pages a process has",
            chain(&error),
            "use a kernel with /proc/PID/pagemap, and run the agent as root",
        );
    }
    let capabilities = capabilities(config).await;
    let facts = HostFacts {
        host: config.host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel,
        page_size: u32::try_from(page_size).unwrap_or(0),
        criu_version,
        runtime_version,
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
        protocol_versions: crate::protocol::VERSIONS.to_vec(),
    };
    (facts, problems)
}

/// What works here beyond the least.
async fn capabilities(config: &Config) -> Vec<&'static str> {
    let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let cgroup = if cgroup_v2 { "cgroup-v2" } else { "cgroup-v1" };
    let mut found = vec!["tracker-content-hash", "zstd", "tcp-established", "file-rounds", cgroup];
    match MixedTracker::probe(Path::new(PROGRAM)) {
        Ok(tracker) if tracker.unavailable().is_none() => found.push(TRACKER_USERFAULTFD),
        Ok(tracker) => tracing::info!(why = tracker.unavailable(), "changed pages are found by hashing all"),
        Err(error) => tracing::debug!(%error, "told among the problems"),
    }
    match pager::probe() {
        Ok(()) => found.push(LAZY_PAGES),
        Err(error) => tracing::info!(%error, "containers arrive with all their pages, which takes longer"),
    }
    if criu::knows_nftables(&config.runtime.criu).await {
        found.push(NETWORK_LOCK_NFTABLES);
    }
    found
}
