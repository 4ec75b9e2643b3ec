//! The root file system of lab hosts, and the base of their containers: built once, kept, checked at every use.
//!
//! ```text
//! DIR/lock                 held while building, so that two builds never race
//! DIR/debs/                downloaded packages: an interrupted build goes on from here
//! DIR/building/            a build under way; found at the next start it is thrown away
//! DIR/tree-RECIPE/rootfs   what hosts see as /            (RECIPE: digest of everything that decides the content)
//! DIR/tree-RECIPE/base     what containers see as /       (a trimmed copy: few files, because agents compute its digest)
//! ```
//! Debian testing has the tools that a lab needs: CRIU before 4.2 fails on kernels from 6.16 (SO_PASSCRED on inet sockets),
//! so the stable release's packages are of no use. The mirror is the one this machine's own apt is configured for.
//!
//! Must never write outside DIR, and never into a tree that is finished.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::entry;
use super::error::{Doing, LabError};
use super::mounts::{MOUNT_DIRS, MOUNT_FILES, WRITABLE};
use super::process::{last_lines, run};

/// Overrides where the trees are kept.
pub const DIR_VARIABLE: &str = "DECAMP_LAB_DIR";
/// Where the trees are kept otherwise.
pub const DIR_DEFAULT: &str = "/var/lib/decamp/lab";
/// The oldest CRIU that works on current kernels.
pub const CRIU_MIN: (u32, u32) = (4, 2);

const SUITE: &str = "forky";
/// An older debootstrap has no script of that name; testing is bootstrapped like unstable.
const SCRIPT: &str = "/usr/share/debootstrap/scripts/sid";
/// Packages beyond the minimal system. libcriu2: crun loads it. python3: the workloads.
const PACKAGES: &str = "criu,libcriu2,runc,crun,redis-server,redis-tools,python3,iproute2,iputils-arping,procps,nftables,\
iptables,kmod,ca-certificates,attr,acl";
/// What a container's base takes from the host's tree.
const BASE_TAKES: &[&str] = &["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc"];
/// And what it leaves: nothing in a container uses these, and each file costs time in every digest.
const BASE_LEAVES: &[&str] = &[
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/xtables",
    "usr/lib/systemd",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/criu",
    "usr/sbin/criu",
    "usr/sbin/runc",
    "usr/bin/crun",
    "etc/ssl",
];
/// Folders that exist in a container's root.
const BASE_DIRS: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "root",
    "home",
    "srv",
    "var/tmp",
    "var/log",
    "var/lib/redis",
    "vol",
    "data",
];
/// Changed by hand when the code below changes what a tree contains.
const RECIPE_EDITION: u32 = 1;

const BUILD_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// The finished trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trees {
    /// Root file system of hosts; read only.
    pub rootfs: PathBuf,
    /// Root file system of containers; read only, the lower layer of their overlay.
    pub base: PathBuf,
}

/// Where trees are kept: [`DIR_VARIABLE`] or [`DIR_DEFAULT`].
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os(DIR_VARIABLE).map_or_else(|| PathBuf::from(DIR_DEFAULT), PathBuf::from)
}

fn recipe() -> String {
    let mut all = blake3::Hasher::new();
    let lists = [BASE_TAKES, BASE_LEAVES, BASE_DIRS, MOUNT_DIRS, MOUNT_FILES];
    all.update(format!("{RECIPE_EDITION} {SUITE} {PACKAGES} {lists:?} {WRITABLE:?}").as_bytes());
    all.finalize().to_hex()[..12].to_owned()
}

/// The trees, built if this machine does not have them yet (two to five minutes), checked in any case.
///
/// `decamp` is the binary whose hidden commands run the build in namespaces of its own; `progress` gets a line now and then.
///
/// # Errors
/// debootstrap missing or failing, no Debian mirror in apt's configuration, or a finished tree whose CRIU is too old.
pub fn ensure(decamp: &Path, progress: &mut dyn FnMut(&str)) -> Result<Trees, LabError> {
    ensure_in(&directory(), decamp, progress)
}

fn ensure_in(dir: &Path, decamp: &Path, progress: &mut dyn FnMut(&str)) -> Result<Trees, LabError> {
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Err(LabError::NotRoot { uid: uid.as_raw() });
    }
    let tree = dir.join(format!("tree-{}", recipe()));
    let trees = Trees { rootfs: tree.join("rootfs"), base: tree.join("base") };
    if !tree.exists() {
        fs::create_dir_all(dir).doing(|| format!("make {}", dir.display()))?;
        let _lock = lock(&dir.join("lock"), progress)?;
        if !tree.exists() {
            let started = Instant::now();
            build(dir, decamp, progress)?;
            let building = dir.join("building");
            fs::rename(&building, &tree).doing(|| format!("move {} into place", building.display()))?;
            progress(&format!("root file system ready after {} s", started.elapsed().as_secs()));
        }
    }
    check(&trees)?;
    Ok(trees)
}

/// A lock file held until the value is dropped, or this process ends.
fn lock(path: &Path, progress: &mut dyn FnMut(&str)) -> Result<Flock<File>, LabError> {
    let doing = || format!("lock {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(path).doing(doing)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::Error::EWOULDBLOCK)) => {
            progress("another process is building the root file system: waiting for it");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).doing(doing)
        }
        Err((_, e)) => Err(e).doing(doing),
    }
}

fn build(dir: &Path, decamp: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    let building = dir.join("building");
    if building.exists() {
        progress("an interrupted build was found: starting again");
        fs::remove_dir_all(&building).doing(|| format!("remove {}", building.display()))?;
    }
    let (rootfs, debs) = (building.join("rootfs"), dir.join("debs"));
    for made in [&rootfs, &debs] {
        fs::create_dir_all(made).doing(|| format!("make {}", made.display()))?;
    }
    debootstrap(&rootfs, &debs, decamp, progress)?;
    progress("preparing the trees");
    // Nothing may look for a package manager's files in a host; they are a third of the tree.
    for dropped in
        ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"]
    {
        remove(&rootfs.join(dropped))?;
    }
    mount_points(&rootfs)?;
    copy_base(&rootfs, &building.join("base"))?;
    // Only an aid for the next attempt; the build is done.
    remove(&debs)
}

fn remove(path: &Path) -> Result<(), LabError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.doing(|| format!("remove {}", path.display()))
}

/// The mirror of Debian's main archive that this machine's apt uses.
fn mirror() -> Result<String, LabError> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    let listed = run(command, b"", Duration::from_secs(60), "apt-get indextargets")?
        .success("apt-get indextargets")?;
    listed.lines().find_map(|l| l.strip_prefix("Debian|Debian|")).map(str::to_owned).ok_or_else(|| {
        LabError::BadInput {
            what: "apt's configuration".into(),
            why: "it names no mirror of Debian's main archive, or `apt-get update` was never run".into(),
        }
    })
}

fn debootstrap(
    rootfs: &Path,
    debs: &Path,
    decamp: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), LabError> {
    let missing = LabError::ProgramMissing {
        program: "debootstrap",
        remedy: "run deploy/setup.sh, or apt-get install debootstrap",
    };
    let program = ["/usr/sbin/debootstrap", "/sbin/debootstrap"].into_iter().find(|p| Path::new(p).exists());
    let program = program.ok_or(missing)?;
    let mirror = mirror()?;
    progress(&format!(
        "building a Debian {SUITE} root file system; this happens once and takes some minutes"
    ));
    let mut child = Command::new(decamp)
        .args([entry::COMMAND, "sandbox", program, "--variant=minbase"])
        .args([format!("--include={PACKAGES}"), format!("--cache-dir={}", debs.display()), SUITE.to_owned()])
        .arg(rootfs)
        .args([mirror.as_str(), SCRIPT])
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("start {program}"))?;
    let complaints = child.stderr.take().map(|mut stream| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What could be read is what will be shown.
            let _ = stream.read_to_end(&mut text);
            text
        })
    });
    let mut log = String::new();
    let in_time = child.stdout.take().is_none_or(|out| follow(out, &mut log, progress));
    if !in_time {
        child.kill().doing(|| "stop debootstrap")?;
        child.wait().doing(|| "wait for debootstrap")?;
        return Err(LabError::Deadline { what: "debootstrap".into(), deadline: BUILD_DEADLINE });
    }
    let status = child.wait().doing(|| "wait for debootstrap")?;
    if status.success() {
        return Ok(());
    }
    // The log that explains a failing package is in the tree, which the next attempt throws away.
    log.push_str(&fs::read_to_string(rootfs.join("debootstrap/debootstrap.log")).unwrap_or_default());
    log.push_str(&String::from_utf8_lossy(&complaints.and_then(|c| c.join().ok()).unwrap_or_default()));
    Err(LabError::Failed {
        what: "debootstrap".into(),
        status: status.to_string(),
        tail: last_lines(log.as_bytes(), 15),
    })
}

/// Passes on what is worth seeing of debootstrap's messages; false when it is not done in time.
fn follow(out: impl Read + Send + 'static, log: &mut String, progress: &mut dyn FnMut(&str)) -> bool {
    let until = Instant::now() + BUILD_DEADLINE;
    let (say, said) = sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    let steps = ["I: Checking component", "I: Extracting base", "I: Unpacking the", "I: Configuring the"];
    let mut fetched = 0;
    loop {
        let line = match said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        };
        fetched += u32::from(line.starts_with("I: Retrieving"));
        if line.starts_with("I: Retrieving") && fetched % 25 == 0 {
            progress(&format!("{fetched} packages fetched"));
        } else if steps.iter().any(|p| line.starts_with(p)) {
            progress(line.trim_start_matches("I: ").trim_end_matches('.'));
        }
        log.push_str(&line);
        log.push('\n');
    }
}

fn mount_points(rootfs: &Path) -> Result<(), LabError> {
    for dir in MOUNT_DIRS.iter().chain(WRITABLE.iter().map(|(dir, _)| dir)) {
        let path = rootfs.join(dir);
        fs::create_dir_all(&path).doing(|| format!("make {}", path.display()))?;
    }
    for file in MOUNT_FILES {
        let path = rootfs.join(file);
        remove(&path)?;
        fs::write(&path, "").doing(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

/// A trimmed copy of the host's tree for containers.
fn copy_base(rootfs: &Path, base: &Path) -> Result<(), LabError> {
    for dir in BASE_TAKES {
        let to = base.join(dir);
        let parent = to.parent().unwrap_or(base);
        fs::create_dir_all(parent).doing(|| format!("make {}", parent.display()))?;
        let mut command = Command::new("cp");
        command.arg("-a").arg(rootfs.join(dir)).arg(&to);
        run(command, b"", Duration::from_secs(600), "cp")?
            .success(&format!("copying {dir} to the containers' base"))?;
    }
    for dir in BASE_LEAVES {
        remove(&base.join(dir))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        let path = base.join(link);
        std::os::unix::fs::symlink(format!("usr/{link}"), &path)
            .doing(|| format!("link {}", path.display()))?;
    }
    for dir in BASE_DIRS {
        let path = base.join(dir);
        fs::create_dir_all(&path).doing(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

/// Cheap checks at every use: a tree that was tampered with shall fail here, not in the middle of a migration.
fn check(trees: &Trees) -> Result<(), LabError> {
    let bad = |why: String| LabError::Rootfs { path: trees.rootfs.clone(), why };
    for program in [
        "runc",
        "crun",
        "redis-server",
        "redis-cli",
        "python3",
        "ip",
        "tc",
        "arping",
        "nft",
        "iptables",
        "ps",
    ] {
        let found = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|d| trees.rootfs.join(d).join(program).symlink_metadata().is_ok());
        if !found {
            return Err(bad(format!("{program} is missing")));
        }
    }
    for program in ["usr/bin/redis-server", "usr/bin/python3", "usr/bin/sh"] {
        if trees.base.join(program).symlink_metadata().is_err() {
            return Err(bad(format!("{program} is missing in the containers' base beside it")));
        }
    }
    let mut command = Command::new("/usr/sbin/chroot");
    command.arg(&trees.rootfs).args(["criu", "--version"]);
    let said = run(command, b"", Duration::from_secs(30), "criu --version")?.success("criu --version")?;
    match criu_version(&said) {
        Some(version) if version >= CRIU_MIN => Ok(()),
        Some((major, minor)) => {
            Err(bad(format!("its criu is {major}.{minor}, but {}.{} is needed", CRIU_MIN.0, CRIU_MIN.1)))
        }
        None => Err(bad(format!("its criu does not say its version: {:?}", last_lines(said.as_bytes(), 2)))),
    }
}

fn criu_version(said: &str) -> Option<(u32, u32)> {
    let version = said.lines().find_map(|l| l.strip_prefix("Version:"))?.trim();
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_versions_are_read() {
        assert_eq!(criu_version("Version: 4.2.1\nGitID: v4.2.1\n"), Some((4, 2)));
        assert_eq!(criu_version("Version: 5.0\n"), Some((5, 0)));
        assert_eq!(criu_version("criu: not found"), None);
        assert!(criu_version("Version: 4.1.1").unwrap() < CRIU_MIN);
    }

    #[test]
    fn a_failed_build_leaves_no_tree_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        // What a killed build leaves.
        fs::create_dir_all(dir.path().join("building/rootfs/etc")).unwrap();
        let mut lines = Vec::new();
        // A "decamp" that cannot build anything.
        let failed = ensure_in(dir.path(), Path::new("/bin/false"), &mut |l| lines.push(l.to_owned()));
        assert!(
            matches!(failed, Err(LabError::Failed { .. } | LabError::ProgramMissing { .. })),
            "{failed:?}"
        );
        assert!(lines[0].contains("interrupted"), "{lines:?}");
        assert!(!dir.path().join(format!("tree-{}", recipe())).exists());
    }

    #[test]
    fn a_tree_without_the_tools_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join(format!("tree-{}", recipe()));
        fs::create_dir_all(tree.join("rootfs/usr/bin")).unwrap();
        let refused = ensure_in(dir.path(), Path::new("/bin/false"), &mut |_| ());
        assert!(refused.unwrap_err().to_string().contains("runc is missing"));
    }
}
