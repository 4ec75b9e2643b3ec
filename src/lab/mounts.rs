//! The mount tree of a lab host.
//!
//! The root is a plain read-only bind mount of the shared root file system, not an overlay: CRIU finds a mapped file by the
//! device and inode that stat(2) gives, and over an overlay those are not the ones in `/proc/PID/map_files`
//! (criu/files-reg.c). Everything that a host writes is a tmpfs of its own. After pivot_root(2) nothing of the outer system
//! can be seen, because a container's dump would stumble over it.
//!
//! Must never write into the shared tree.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::{Deserialize, Serialize};

use super::cgroup::hierarchies;
use super::entry::BINARY_IN_HOST;
use super::error::{Doing, LabError};

/// Where containers of the lab keep bundle, upper directory and volumes, inside a host.
pub const CONTAINERS_DIR: &str = "/var/lib/decamp-lab-containers";
/// Where every host sees the read-only base of the containers' root file systems.
pub const BASE_IN_HOST: &str = "/var/lib/decamp-lab/base";
/// Where every host sees the workload programs.
pub const WORKLOADS_IN_HOST: &str = "/var/lib/decamp-lab/workloads";

/// Folders that are a tmpfs of the host's own, with their modes.
pub(super) const WRITABLE: &[(&str, u32)] = &[
    ("run", 0o755),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("var/log", 0o755),
    ("var/lib/decamp", 0o700),
    ("var/lib/decamp-lab-containers", 0o755),
    ("etc/decamp", 0o755),
    ("etc/criu", 0o755),
    ("root", 0o700),
];
/// Folders that must exist in the shared tree as mount points beside [`WRITABLE`].
pub(super) const MOUNT_DIRS: &[&str] =
    &["proc", "sys", "dev", "var/lib/decamp-lab/base", "var/lib/decamp-lab/workloads"];
/// Files that must exist in the shared tree as mount points.
pub(super) const MOUNT_FILES: &[&str] =
    &["usr/local/bin/decamp", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Where the parts of a host come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Places {
    /// The shared root file system.
    pub(super) rootfs: PathBuf,
    /// The shared base of containers.
    pub(super) base: PathBuf,
    /// The decamp binary.
    pub(super) decamp: PathBuf,
    /// Workload programs.
    pub(super) workloads: PathBuf,
    /// An empty folder to build the tree at.
    pub(super) staging: PathBuf,
    /// Text of /etc/hosts.
    pub(super) hosts_file: String,
}

const NONE: Option<&str> = None;

/// No mount made from here on is seen outside this namespace, nor the other way.
pub(super) fn make_private() -> Result<(), LabError> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).doing(|| "make mounts private")
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), LabError> {
    let what = || format!("bind {} to {}", from.display(), to.display());
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).doing(what)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, to, NONE, flags, NONE).doing(what)?;
    }
    Ok(())
}

fn fresh(kind: &str, to: &Path, options: &str) -> Result<(), LabError> {
    let options = (!options.is_empty()).then_some(options);
    mount(Some(kind), to, Some(kind), MsFlags::empty(), options)
        .doing(|| format!("mount {kind} at {} ({})", to.display(), options.unwrap_or("no options")))
}

/// Builds the tree of a host in the caller's own mount namespace and moves into it.
pub(super) fn build(name: &str, places: &Places) -> Result<(), LabError> {
    make_private()?;
    let root = places.staging.as_path();
    bind(&places.rootfs, root, true)?;
    fresh("proc", &root.join("proc"), "")?;
    fresh("sysfs", &root.join("sys"), "")?;
    for (dir, mode) in WRITABLE {
        fresh("tmpfs", &root.join(dir), &format!("mode={mode:o}"))?;
    }
    devices(&root.join("dev"))?;
    cgroups(&root.join("sys/fs/cgroup"))?;
    bind(&places.base, &root.join(BASE_IN_HOST.trim_start_matches('/')), true)?;
    bind(&places.workloads, &root.join(WORKLOADS_IN_HOST.trim_start_matches('/')), true)?;
    bind(&places.decamp, &root.join(BINARY_IN_HOST.trim_start_matches('/')), true)?;
    identity(root, name, &places.hosts_file)?;
    std::env::set_current_dir(root).doing(|| "go to the new root")?;
    // The old root ends up below the new one at the same place, and is let go (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".").doing(|| "change the root")?;
    umount2(".", MntFlags::MNT_DETACH).doing(|| "let go of the outer file systems")?;
    std::env::set_current_dir("/").doing(|| "go to the new root")
}

/// Files that differ from host to host, kept in the host's /run and bound over the shared ones.
fn identity(root: &Path, name: &str, hosts: &str) -> Result<(), LabError> {
    let dir = root.join("run/decamp-lab-etc");
    fs::create_dir(&dir).doing(|| format!("make {}", dir.display()))?;
    for (file, text) in [("hosts", hosts), ("hostname", &format!("{name}\n")), ("resolv.conf", "")] {
        let from = dir.join(file);
        fs::write(&from, text).doing(|| format!("write {}", from.display()))?;
        bind(&from, &root.join("etc").join(file), false)?;
    }
    Ok(())
}

/// A private /dev with real nodes: CRIU compares device numbers, and a container's runtime binds them.
fn devices(dev: &Path) -> Result<(), LabError> {
    fresh("tmpfs", dev, "mode=755")?;
    let fixed: [(&str, u64, u64); 9] = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("kmsg", 1, 11),
        ("tty", 5, 0),
        ("net/tun", 10, 200),
        ("fuse", 10, 229),
    ];
    for dir in ["pts", "shm", "net", "mqueue"] {
        fs::create_dir(dev.join(dir)).doing(|| format!("make /dev/{dir}"))?;
    }
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    let uffd = misc.lines().find_map(|l| l.trim().strip_suffix(" userfaultfd")?.trim().parse().ok());
    let nodes = fixed.into_iter().chain(uffd.map(|minor| ("userfaultfd", 10, minor)));
    for (node, major, minor) in nodes {
        let path = dev.join(node);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .doing(|| format!("make /dev/{node}"))?;
        // mknod(2) applies the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .doing(|| format!("open up /dev/{node}"))?;
    }
    fresh("devpts", &dev.join("pts"), "newinstance,ptmxmode=0666,mode=620,gid=5")?;
    fresh("tmpfs", &dev.join("shm"), "mode=1777")?;
    fresh("mqueue", &dev.join("mqueue"), "")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    links
        .into_iter()
        .try_for_each(|(to, name)| symlink(to, dev.join(name)).doing(|| format!("link /dev/{name}")))
}

/// The machine's hierarchies, mounted anew: what is seen is rooted at the host's own cgroup namespace.
fn cgroups(at: &Path) -> Result<(), LabError> {
    let all = hierarchies()?;
    if all.iter().all(|h| h.v1.is_none()) {
        return fresh("cgroup2", at, "");
    }
    fresh("tmpfs", at, "mode=755")?;
    for h in all {
        let (kind, dir, options) = match &h.v1 {
            None => ("cgroup2", "unified".to_owned(), String::new()),
            Some(named) if named.starts_with("name=") => {
                ("cgroup", named.trim_start_matches("name=").to_owned(), format!("none,{named}"))
            }
            Some(controllers) => ("cgroup", controllers.clone(), controllers.clone()),
        };
        let dir_path = at.join(&dir);
        fs::create_dir(&dir_path).doing(|| format!("make {}", dir_path.display()))?;
        fresh(kind, &dir_path, &options)?;
        for single in dir.split(',').filter(|s| *s != dir) {
            symlink(&dir, at.join(single)).doing(|| format!("link cgroup {single}"))?;
        }
    }
    Ok(())
}
