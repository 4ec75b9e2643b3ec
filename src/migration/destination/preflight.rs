//! Before anything is accepted: everything that could stop this container from running here, found at once, each with what was
//! seen and what to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::Host;
use super::super::request::MountPolicy;
use crate::criu::TcpPolicy;
use crate::model::{ContainerId, Digest, PAGE_SIZE, limits};
use crate::network;
use crate::rpc::v1::{
    HostFacts, MountDescriptor, NetworkDescriptor, Offer, Reason, network_descriptor, rootfs_descriptor,
};
use crate::runtime::{Bundle, Container, OverlayMount};

/// CRIU's images beside pages, and what the page tables of the restored tasks take.
const MEMORY_MARGIN: u64 = 64 << 20;

/// What was found good, in this host's terms.
pub(super) struct Plan {
    pub(super) bundle: Bundle,
    /// `None`: a plain folder.
    pub(super) overlay: Option<OverlayMount>,
    /// Mount point → host path here. Copied mounts get theirs when the home is made.
    pub(super) fixed_sources: BTreeMap<String, PathBuf>,
    pub(super) copied: Vec<MountDescriptor>,
    pub(super) network: Option<NetworkDescriptor>,
    pub(super) tcp: TcpPolicy,
    pub(super) memory_budget: u64,
}

fn reason(code: &str, what: String, evidence: String, remedy: String) -> Reason {
    Reason { code: code.to_owned(), what, evidence, remedy }
}

/// Checks an offer.
///
/// # Errors
/// Every reason against it.
pub(super) async fn check(
    host: &Host,
    offer: &Offer,
    container: &ContainerId,
    taken: Option<&Reason>,
) -> Result<Plan, Vec<Reason>> {
    let mut reasons = host.problems.clone();
    reasons.extend(taken.cloned());
    reasons.extend(host_reasons(host, offer.host.as_ref()));
    reasons.extend(name_reasons(host, container));
    let (budget, room) = resource_reasons(host, offer);
    reasons.extend(room);
    let bundle = match Bundle::parse(&offer.config_json, PathBuf::from("config.json of the offer")) {
        Ok(bundle) if offer.config_json.len() <= limits::CONFIG_JSON_MAX => Some(bundle),
        Ok(_) => {
            reasons.push(reason(
                "config",
                "config.json is too large".to_owned(),
                String::new(),
                String::new(),
            ));
            None
        }
        Err(error) => {
            let text = super::super::error::chain(&error);
            reasons.push(reason("config", text, String::new(), "mend the bundle at the source".to_owned()));
            None
        }
    };
    if let Some(bundle) = &bundle {
        reasons.extend(bundle.hostile());
        reasons.extend(mount_list_reasons(bundle, &offer.mounts));
    }
    let overlay = match rootfs(host, offer).await {
        Ok(overlay) => overlay,
        Err(found) => {
            reasons.extend(found);
            None
        }
    };
    let mut fixed_sources = BTreeMap::new();
    let mut copied = Vec::new();
    for mount in &offer.mounts {
        match mount_source(host, mount) {
            Ok(Some(path)) => drop(fixed_sources.insert(mount.destination.clone(), path)),
            Ok(None) => copied.push(mount.clone()),
            Err(reason) => reasons.push(reason),
        }
    }
    let network = match network(host, offer).await {
        Ok(network) => network,
        Err(found) => {
            reasons.extend(found);
            None
        }
    };
    let tcp = match TcpPolicy::parse(&offer.tcp) {
        Ok(tcp) => tcp,
        Err(reason) => {
            reasons.push(reason);
            TcpPolicy::Keep
        }
    };
    match bundle {
        Some(bundle) if reasons.is_empty() => {
            Ok(Plan { bundle, overlay, fixed_sources, copied, network, tcp, memory_budget: budget })
        }
        _ => Err(reasons),
    }
}

fn host_reasons(host: &Host, theirs: Option<&HostFacts>) -> Vec<Reason> {
    let Some(theirs) = theirs else {
        return vec![reason(
            "protocol",
            "the offer says nothing about its host".to_owned(),
            String::new(),
            String::new(),
        )];
    };
    let ours = &host.facts;
    let mut reasons = Vec::new();
    let mut differ = |code: &str, what: &str, here: String, there: String, remedy: &str| {
        if here != there {
            let evidence = format!("{}: {here}, {}: {there}", ours.host, theirs.host);
            reasons.push(reason(code, format!("the hosts differ in {what}"), evidence, remedy.to_owned()));
        }
    };
    differ(
        "arch",
        "architecture",
        ours.arch.clone(),
        theirs.arch.clone(),
        "move it to a host of the same kind",
    );
    let page = |facts: &HostFacts| facts.page_size.to_string();
    differ("page-size", "page size", page(ours), page(theirs), "move it to a host with the same page size");
    let series = |version: &str| version.split('.').take(2).collect::<Vec<_>>().join(".");
    differ(
        "criu-version",
        "CRIU's version",
        series(&ours.criu_version),
        series(&theirs.criu_version),
        "install the same CRIU release on both hosts",
    );
    if !theirs.protocol_versions.iter().any(|version| crate::protocol::VERSIONS.contains(version)) {
        reasons.push(reason(
            "protocol-version",
            "the hosts have no protocol version in common".to_owned(),
            format!("here {:?}, there {:?}", crate::protocol::VERSIONS, theirs.protocol_versions),
            "upgrade the older decamp".to_owned(),
        ));
    }
    reasons
}

fn name_reasons(host: &Host, container: &ContainerId) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Ok(existing) = Container::read(&host.runc.root, container) {
        reasons.push(reason(
            "name-taken",
            format!("a container named {container} exists on {} already", host.id),
            format!("it is {}, bundle {}", existing.status.as_str(), existing.bundle.display()),
            format!("remove it there (runc delete {container}) or rename one of the two"),
        ));
    }
    let home = super::home(host, container);
    if home.root.exists() {
        reasons.push(reason(
            "folder-taken",
            format!("{} has files of a container named {container}", host.id),
            home.root.display().to_string(),
            "if nothing needs them any more: unmount bundle/rootfs in that folder, then remove the folder"
                .to_owned(),
        ));
    }
    reasons
}

fn resource_reasons(host: &Host, offer: &Offer) -> (u64, Vec<Reason>) {
    let mut reasons = Vec::new();
    // Once in the page store and the images, once in the restored tasks.
    let budget = offer.memory_bytes.saturating_mul(2).saturating_add(MEMORY_MARGIN);
    let available = host.memory_available();
    let mib = |bytes: u64| bytes >> 20;
    if budget > available {
        reasons.push(reason(
            "memory",
            format!("{} has not enough free memory", host.id),
            format!("{} MiB are needed while it arrives, {} MiB are free", mib(budget), mib(available)),
            "free memory there, or choose another host".to_owned(),
        ));
    }
    let disk = host.disk_available();
    if offer.disk_bytes > disk {
        reasons.push(reason(
            "disk",
            format!("{} has not enough room for the container's files", host.id),
            format!(
                "{} MiB are needed, {} MiB are free below {}",
                mib(offer.disk_bytes),
                mib(disk),
                host.state_dir.display()
            ),
            "free room there, or choose another host".to_owned(),
        ));
    }
    let rounded = (offer.memory_bytes / PAGE_SIZE as u64 + 1) * PAGE_SIZE as u64;
    // Growth while it is copied; the store says so clearly if even that is not enough.
    (rounded.saturating_add(rounded / 2).saturating_add(256 << 20), reasons)
}

async fn rootfs(host: &Host, offer: &Offer) -> Result<Option<OverlayMount>, Vec<Reason>> {
    let Some(rootfs) = &offer.rootfs else {
        return Err(vec![reason(
            "rootfs",
            "the offer has no root file system".to_owned(),
            String::new(),
            String::new(),
        )]);
    };
    match rootfs.kind() {
        rootfs_descriptor::Kind::Tree => return Ok(None),
        rootfs_descriptor::Kind::Overlay => {}
        rootfs_descriptor::Kind::Unspecified => {
            let what = "the root file system is of a kind that this version does not know".to_owned();
            return Err(vec![reason("rootfs", what, String::new(), "upgrade decamp here".to_owned())]);
        }
    }
    let mut reasons = Vec::new();
    let mut lower = Vec::new();
    for layer in &rootfs.layers {
        let path = PathBuf::from(&layer.path);
        match layer_digest(host, &path).await {
            Ok(digest) if layer.digest[..] == digest.0 => lower.push(path),
            Ok(digest) => reasons.push(reason(
                "base-differs",
                format!("the base image {} differs between the hosts", path.display()),
                format!("digest here {digest:?}, at the source {:?}", Digest::from_slice(&layer.digest)),
                format!("put the same image below {} on both hosts", path.display()),
            )),
            Err(why) => reasons.push(reason(
                "base-missing",
                format!("the base image {} is not on {}", path.display(), host.id),
                why,
                format!("put the image there, at {}", path.display()),
            )),
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let upper = PathBuf::new();
    Ok(Some(OverlayMount { lower, upper, options: rootfs.options.clone() }))
}

async fn layer_digest(host: &Host, path: &Path) -> Result<Digest, String> {
    if !allowed(path, &host.settings.bases, true) {
        return Err(format!("{} is not below a folder that [files] bases allows", path.display()));
    }
    host.digests.digest(path).await.map_err(|error| super::super::error::chain(&error))
}

/// Is a path that a peer named, taken literally and with every link resolved, below a folder that the operator allowed?
fn allowed(path: &Path, below: &[PathBuf], empty_allows: bool) -> bool {
    let plain =
        path.is_absolute() && !path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if !plain {
        return false;
    }
    if below.is_empty() {
        return empty_allows;
    }
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    below.iter().any(|folder| {
        path.starts_with(folder)
            && resolved.starts_with(folder.canonicalize().unwrap_or_else(|_| folder.clone()))
    })
}

fn mount_list_reasons(bundle: &Bundle, mounts: &[MountDescriptor]) -> Vec<Reason> {
    let named: Vec<String> = bundle.bind_mounts().into_iter().map(|bind| bind.destination).collect();
    let described: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    let indexed = mounts.iter().zip(0u32..).all(|(mount, index)| mount.index == index);
    if indexed && named.iter().map(String::as_str).eq(described.iter().copied()) {
        return Vec::new();
    }
    vec![reason(
        "protocol",
        "the offer's mounts are not those of its config.json".to_owned(),
        format!("config.json: {named:?}, offer: {described:?}"),
        "run the same version of decamp on both hosts".to_owned(),
    )]
}

/// Where a mount's source is here; `None`: its contents travel.
fn mount_source(host: &Host, mount: &MountDescriptor) -> Result<Option<PathBuf>, Reason> {
    let path = match MountPolicy::parse(&mount.policy, &mount.map_to)? {
        MountPolicy::Copy => return Ok(None),
        MountPolicy::Shared => PathBuf::from(&mount.source),
        MountPolicy::Map(path) => path,
        MountPolicy::Refuse => {
            return Err(reason(
                "mount-refused",
                format!("the bind mount at {} has the policy refuse", mount.destination),
                format!("its source is {} at the source host", mount.source),
                "choose another policy for it".to_owned(),
            ));
        }
    };
    if !allowed(&path, &host.settings.allow_sources, false) {
        return Err(reason(
            "mount-not-allowed",
            format!("{} may not be mounted into arriving containers", path.display()),
            format!(
                "the bind mount at {}, policy {}; [files] allow_sources does not name it",
                mount.destination, mount.policy
            ),
            format!(
                "add a folder above it to allow_sources on {}, or use --mount {}=copy",
                host.id, mount.destination
            ),
        ));
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() == mount.is_directory => Ok(Some(path)),
        Ok(_) => Err(reason(
            "mount-source-kind",
            format!("{} is a folder on one host and a file on the other", path.display()),
            format!("the bind mount at {}", mount.destination),
            "make them alike, or map the mount elsewhere".to_owned(),
        )),
        Err(error) => Err(reason(
            "mount-source-missing",
            format!("{} does not exist on {}", path.display(), host.id),
            format!("the bind mount at {}, policy {}: {error}", mount.destination, mount.policy),
            format!("create it there, or use --mount {}=copy", mount.destination),
        )),
    }
}

async fn network(host: &Host, offer: &Offer) -> Result<Option<NetworkDescriptor>, Vec<Reason>> {
    let Some(descriptor) = &offer.network else { return Ok(None) };
    match descriptor.kind() {
        network_descriptor::Kind::Named => {
            let reasons = network::check(descriptor, host.settings.bridge.as_deref()).await;
            if reasons.is_empty() { Ok(Some(descriptor.clone())) } else { Err(reasons) }
        }
        network_descriptor::Kind::Loopback | network_descriptor::Kind::Host => Ok(None),
        network_descriptor::Kind::Unspecified => Err(vec![reason(
            "network-kind",
            "the container's network is of a kind that this version does not know".to_owned(),
            String::new(),
            "upgrade decamp here".to_owned(),
        )]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_never_chooses_a_host_path() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("data");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink("/etc", inside.join("link")).unwrap();
        let below = vec![inside.clone()];
        assert!(allowed(&inside, &below, false));
        assert!(allowed(&inside.join("sub"), &below, false));
        assert!(!allowed(&inside.join("link"), &below, false), "a link must not lead out");
        assert!(!allowed(&inside.join("../x"), &below, false));
        assert!(!allowed(Path::new("/etc"), &below, false));
        assert!(!allowed(Path::new("/etc"), &[], false));
        assert!(!allowed(Path::new("relative"), &[], true));
    }
}
