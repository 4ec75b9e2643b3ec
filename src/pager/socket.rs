//! UNIX sockets at paths of any length, for root only.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};

/// `folder/name` for bind(2) and connect(2), which take 107 bytes of path: through /proc, by a descriptor of the folder. The
/// descriptor must live as long as the path is used.
pub(super) fn short(folder: &Path, name: &str) -> io::Result<(std::fs::File, PathBuf)> {
    let folder = std::fs::File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// A socket with mode 0600, in place of a dead one.
pub(super) fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let (_folder, path) = short(folder, name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Is the peer root (SO_PEERCRED, unix(7))? Between bind and chmod the socket has the mode of our umask.
pub(super) fn is_root(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}
