//! Looks at the container before anything moves: what it is, what it needs, and everything that stands in the way, at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::request::{MountPolicy, Request};
use super::super::{Host, MigrationError};
use crate::criu::TcpPolicy;
use crate::files::{TreeKind, TreeSource, tree_bytes};
use crate::network::{self, Capture};
use crate::rpc::v1::{
    LayerDescriptor, MountDescriptor, NetworkDescriptor, Reason, RootfsDescriptor, network_descriptor,
    rootfs_descriptor,
};
use crate::runtime::{BindMount, Bundle, Container, RuntimeError, Status, overlay_at};

/// What was found.
pub(super) struct Inspection {
    pub(super) container: Container,
    pub(super) config_json: Vec<u8>,
    pub(super) rootfs: RootfsDescriptor,
    pub(super) mounts: Vec<MountDescriptor>,
    pub(super) network: NetworkDescriptor,
    pub(super) capture: Option<Capture>,
    pub(super) trees: Vec<Tree>,
    pub(super) memory_bytes: u64,
}

/// One tree of files that travels.
pub(super) struct Tree {
    /// 0: the root file system; n: the bind mount with index n - 1.
    pub(super) number: u32,
    pub(super) root: PathBuf,
    pub(super) source: TreeSource,
    pub(super) bytes: u64,
}

impl Inspection {
    pub(super) fn host_ends(&self) -> Vec<String> {
        let ends = self.capture.iter().flat_map(|capture| &capture.host_ends);
        ends.map(|end| end.name.clone()).collect()
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.trees.iter().map(|tree| tree.bytes).sum()
    }

    /// Where the trees lie, for finding them again when the container returns.
    pub(super) fn origin(&self) -> BTreeMap<u32, PathBuf> {
        self.trees.iter().map(|tree| (tree.number, tree.root.clone())).collect()
    }
}

fn reason(code: &str, what: String, evidence: String, remedy: &str) -> Reason {
    Reason { code: code.to_owned(), what, evidence, remedy: remedy.to_owned() }
}

pub(super) async fn inspect(host: &Host, request: &Request) -> Result<Inspection, MigrationError> {
    let container = find(host, request)?;
    let bundle = Bundle::read(&container.bundle)?;
    let mut reasons = host.problems.clone();
    reasons.extend(state_reasons(&container, &bundle));
    reasons.extend(connection_reasons(&container, request.tcp));
    let (rootfs, root_tree) = rootfs(host, &container).await?;
    let mut trees = vec![root_tree];
    let mut mounts = Vec::new();
    reasons.extend(unknown_mounts(request, &bundle));
    for (index, bind) in (0u32..).zip(bundle.bind_mounts()) {
        let (descriptor, tree, refused) = mount(request, index, &bind).await?;
        mounts.push(descriptor);
        trees.extend(tree);
        reasons.extend(refused);
    }
    let (network, capture) = match network(&bundle).await {
        Ok(found) => found,
        Err(network::NetworkError::Refused { reasons: odd }) => {
            reasons.extend(odd);
            (NetworkDescriptor::default(), None)
        }
        Err(error) => return Err(error.into()),
    };
    if !reasons.is_empty() {
        return Err(MigrationError::Refused { by: host.id.to_string(), reasons });
    }
    let memory_bytes = container.memory_bytes();
    let config_json = bundle.to_bytes()?;
    Ok(Inspection { container, config_json, rootfs, mounts, network, capture, trees, memory_bytes })
}

fn find(host: &Host, request: &Request) -> Result<Container, MigrationError> {
    let id = &request.container;
    match Container::read(&host.runc.root, id) {
        Err(RuntimeError::NotFound { root, .. }) => {
            let here: Vec<String> =
                Container::list(&root).into_iter().map(|container| container.id.to_string()).collect();
            let evidence = format!(
                "in {}: {}",
                root.display(),
                if here.is_empty() { "none".to_owned() } else { here.join(", ") }
            );
            let what = format!("there is no container {id} on {}", host.id);
            let reasons = vec![reason(
                "not-found",
                what,
                evidence,
                "see `decamp ls`, and `decamp history` for those that left",
            )];
            Err(MigrationError::Refused { by: host.id.to_string(), reasons })
        }
        read => Ok(read?),
    }
}

/// A mistyped mount point must not fall back to the default in silence.
fn unknown_mounts(request: &Request, bundle: &Bundle) -> Vec<Reason> {
    let known: Vec<String> = bundle.bind_mounts().into_iter().map(|bind| bind.destination).collect();
    let unknown = request.asked_mounts.iter().filter(|asked| !known.contains(asked));
    unknown
        .map(|asked| {
            let what = format!("{} has no bind mount at {asked}", request.container);
            reason("mount-unknown", what, format!("its bind mounts: {}", known.join(", ")), "correct --mount")
        })
        .collect()
}

fn state_reasons(container: &Container, bundle: &Bundle) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if container.status != Status::Running {
        reasons.push(reason(
            "not-running",
            format!("{} is {}", container.id, container.status.as_str()),
            format!("init pid {}, freezer {}", container.init_pid, container.freezer.path().display()),
            "start or resume it; a stopped container needs no live migration",
        ));
    }
    if bundle.terminal() {
        reasons.push(reason(
            "terminal",
            format!("{} has a terminal, whose other end stays on this host", container.id),
            "process.terminal is true in its config.json".to_owned(),
            "start it without a terminal",
        ));
    }
    let stopped: Vec<String> = container
        .pids()
        .into_iter()
        .filter(|pid| {
            let stat = procfs::process::Process::new(*pid).and_then(|process| process.stat());
            stat.is_ok_and(|stat| matches!(stat.state, 'T' | 't'))
        })
        .map(|pid| pid.to_string())
        .collect();
    if !stopped.is_empty() {
        reasons.push(reason(
            "task-stopped",
            "a process of the container is stopped by a signal or traced; a dump would wait for it for ever"
                .to_owned(),
            format!("pids {}", stopped.join(", ")),
            "continue it (kill -CONT) or detach the debugger",
        ));
    }
    reasons.extend(traced_reason(container));
    reasons
}

/// A task has one tracer at most (ptrace(2)), and CRIU must be it. A tracer inside the container could not be restored either.
fn traced_reason(container: &Container) -> Option<Reason> {
    let traced: Vec<String> = container
        .pids()
        .into_iter()
        .filter_map(|pid| {
            let status = procfs::process::Process::new(pid).and_then(|process| process.status()).ok()?;
            (status.tracerpid != 0).then(|| format!("pid {pid} by pid {}", status.tracerpid))
        })
        .collect();
    (!traced.is_empty()).then(|| {
        reason(
            "task-traced",
            "a process of the container is traced by a debugger or strace, and a dump must trace it itself"
                .to_owned(),
            format!("TracerPid in /proc/PID/status: {}", traced.join(", ")),
            "detach the tracer, or end it",
        )
    })
}

/// Established connections in the container's network namespace (proc(5): state 01 in /proc/PID/net/tcp).
fn connection_reasons(container: &Container, tcp: TcpPolicy) -> Vec<Reason> {
    if tcp != TcpPolicy::Refuse {
        return Vec::new();
    }
    let Ok(process) = procfs::process::Process::new(container.init_pid) else { return Vec::new() };
    let established = |entries: Vec<procfs::net::TcpNetEntry>| {
        entries.into_iter().filter(|e| e.state == procfs::net::TcpState::Established).count()
    };
    let count =
        established(process.tcp().unwrap_or_default()) + established(process.tcp6().unwrap_or_default());
    match count {
        0 => Vec::new(),
        count => vec![reason(
            "connections",
            format!("{} has {count} established TCP connections and --tcp refuse was asked", container.id),
            format!("/proc/{}/net/tcp and tcp6", container.init_pid),
            "use --tcp keep or --tcp close, or try when there are none",
        )],
    }
}

async fn rootfs(host: &Host, container: &Container) -> Result<(RootfsDescriptor, Tree), MigrationError> {
    let overlay = overlay_at(&container.rootfs)?;
    let (kind, root, layers, options) = match overlay {
        Some(overlay) => {
            let userxattr = overlay.options.iter().any(|option| option == "userxattr");
            let mut layers = Vec::new();
            for path in &overlay.lower {
                let digest = host.digests.digest(path).await?;
                layers.push(LayerDescriptor {
                    path: path.to_string_lossy().into_owned(),
                    digest: digest.0.to_vec().into(),
                });
            }
            (TreeKind::Upper { userxattr }, overlay.upper, layers, overlay.options)
        }
        None => (TreeKind::Tree, container.rootfs.clone(), Vec::new(), Vec::new()),
    };
    let bytes = tree_bytes(&root).await?;
    let descriptor = RootfsDescriptor {
        kind: match kind {
            TreeKind::Upper { .. } => rootfs_descriptor::Kind::Overlay.into(),
            TreeKind::Tree => rootfs_descriptor::Kind::Tree.into(),
        },
        layers,
        bytes,
        options,
    };
    let source = TreeSource::new(root.clone(), kind);
    Ok((descriptor, Tree { number: 0, root, source, bytes }))
}

async fn mount(
    request: &Request,
    index: u32,
    bind: &BindMount,
) -> Result<(MountDescriptor, Option<Tree>, Option<Reason>), MigrationError> {
    let policy = request.mounts.get(&bind.destination).cloned().unwrap_or(MountPolicy::Copy);
    let meta = std::fs::metadata(&bind.source)
        .map_err(MigrationError::io("look at the bind mount", &bind.source))?;
    let copied = policy == MountPolicy::Copy;
    let bytes = if copied { tree_bytes(&bind.source).await? } else { 0 };
    let descriptor = MountDescriptor {
        index,
        destination: bind.destination.clone(),
        source: bind.source.to_string_lossy().into_owned(),
        is_directory: meta.is_dir(),
        options: bind.options.clone(),
        policy: policy.as_str().to_owned(),
        map_to: match &policy {
            MountPolicy::Map(path) => path.to_string_lossy().into_owned(),
            _ => String::new(),
        },
        mode: std::os::unix::fs::MetadataExt::mode(&meta),
        uid: std::os::unix::fs::MetadataExt::uid(&meta),
        gid: std::os::unix::fs::MetadataExt::gid(&meta),
        bytes,
    };
    let refused = (policy == MountPolicy::Refuse).then(|| {
        reason(
            "mount-refused",
            format!("the bind mount at {} has the policy refuse", bind.destination),
            format!("its source is {}", bind.source.display()),
            "choose another policy: --mount DEST=shared, copy or map:/PATH",
        )
    });
    let tree = copied.then(|| Tree {
        number: index + 1,
        root: bind.source.clone(),
        source: TreeSource::new(bind.source.clone(), TreeKind::Tree),
        bytes,
    });
    Ok((descriptor, tree, refused))
}

async fn network(bundle: &Bundle) -> Result<(NetworkDescriptor, Option<Capture>), network::NetworkError> {
    let plain =
        |kind: network_descriptor::Kind| NetworkDescriptor { kind: kind.into(), ..Default::default() };
    if bundle.host_network() {
        return Ok((plain(network_descriptor::Kind::Host), None));
    }
    match bundle.network_namespace() {
        None => Ok((plain(network_descriptor::Kind::Loopback), None)),
        Some(path) => {
            let capture = network::capture(&path).await?;
            Ok((capture.descriptor.clone(), Some(capture)))
        }
    }
}
