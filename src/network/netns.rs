//! Network namespaces by name, made and removed as `ip netns` does it, and work done inside one.
//!
//! A thread's network namespace is a property of that thread. Work inside a container's namespace therefore runs on a thread
//! of its own that enters, works and ends; a worker of the async runtime must never be moved, because it would take whatever
//! task comes next with it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::error::NetworkError;
use super::netlink::Net;

/// Where ip(8) keeps named namespaces.
pub(super) const NETNS_DIR: &str = "/run/netns";
/// The namespace of the calling thread; `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::Namespace { doing, path, source }
}

/// The file of the namespace called `name`.
pub(super) fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Opens a namespace by path, to be entered or handed to netlink.
pub(super) fn open(path: &Path) -> Result<Arc<File>, NetworkError> {
    File::open(path).map(Arc::new).map_err(failed("opening", path))
}

/// Runs `work` on a new thread inside `netns` and waits for its end.
///
/// # Errors
/// When the thread cannot be started, cannot enter, or dies.
pub(super) async fn run_inside<T: Send + 'static>(
    netns: Arc<File>,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    on_thread(move || {
        enter(&netns)?;
        work()
    })
    .await
}

/// Like [`run_inside`], for netlink work: the thread has an async runtime and a netlink socket of its own.
pub(super) async fn netlink_inside<T: Send + 'static>(
    netns: Arc<File>,
    work: impl AsyncFnOnce(Net) -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    run_inside(netns, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| NetworkError::Thread { doing: "starting a runtime on", source })?;
        runtime.block_on(async { work(Net::open()?).await })
    })
    .await
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || drop(sender.send(work())))
        .map_err(|source| NetworkError::Thread { doing: "starting", source })?;
    receiver
        .await
        .map_err(|_| NetworkError::Thread { doing: "waiting for", source: io::Error::other("it panicked") })?
}

/// Moves the calling thread into `netns`: only ever called on threads that this room started.
pub(super) fn enter(netns: &File) -> Result<(), NetworkError> {
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetworkError::Thread { doing: "entering with", source: errno.into() })
}

/// Makes a namespace called `name`, as `ip netns add` does (iproute2, `ip/ipnetns.c`, `netns_add`): the directory is a shared
/// mount, so that the namespace's own mount reaches every mount namespace that sees the directory, and an unmount too.
///
/// # Errors
/// `EEXIST` when the name is taken; whatever was made is taken back on any other failure.
pub(super) async fn create(name: &str) -> Result<Arc<File>, NetworkError> {
    let path = path_of(name);
    on_thread(move || {
        share_directory()?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o0)
            .open(&path)
            .map_err(failed("creating the file of", &path))?;
        let made = (|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed("making", &path)(errno.into()))?;
            mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| failed("mounting", &path)(errno.into()))?;
            open(&path)
        })();
        if made.is_err()
            && let Err(error) = unmount(&path)
        {
            tracing::warn!(%error, "cleaning up after a namespace that could not be made");
        }
        made
    })
    .await
}

fn share_directory() -> Result<(), NetworkError> {
    let directory = Path::new(NETNS_DIR);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(failed("creating the directory of", directory))?;
    let locked = File::open(directory).map_err(failed("opening the directory of", directory))?;
    // ip(8) takes the same lock: two processes that make the mount at once would stack two.
    let _lock = Flock::lock(locked, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("locking the directory of", directory)(errno.into()))?;
    let share =
        || mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Ok(()) => return Ok(()),
        // Not a mount point yet.
        Err(Errno::EINVAL) => {}
        Err(errno) => return Err(failed("sharing the directory of", directory)(errno.into())),
    }
    mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| failed("mounting the directory of", directory)(errno.into()))?;
    share().map_err(|errno| failed("sharing the directory of", directory)(errno.into()))
}

/// Takes the name away: unmounts and unlinks. The namespace itself lives on while a process, a socket or an open file is in it.
/// Nothing there is success.
pub(super) fn unmount(path: &Path) -> Result<(), NetworkError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: a plain file, left by somebody who got no further.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(failed("unmounting", path)(errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unlinking", path)(error)),
        _ => Ok(()),
    }
}

/// Names of all namespaces in [`NETNS_DIR`], at most `max` of them.
pub(super) fn names(max: usize) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(max).collect()
}
