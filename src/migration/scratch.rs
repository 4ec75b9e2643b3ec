//! The folder of one migration in flight: a tmpfs that only root can enter, so that memory images never touch a disk and vanish
//! with one unmount, on every path.
//!
//! ```text
//! <run_dir>/migrations/<id>/        tmpfs, 0700
//!     images/       CRIU's image files
//!     kept/         images that the runtime or CRIU look at before the others are there, as they arrived
//!     work/         logs of CRIU and the runtime
//!     decamp-hook   link to this binary
//!     criu.conf     this migration's configuration
//!     hide.plan     what CRIU is not shown, and the object that does it
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{MigrationError, gate};
use crate::criu::{CriuConfig, Lock, TcpPolicy};
use crate::hook::{ENV_SOCKET, ENV_TOKEN};
use crate::model::MigrationId;
use crate::runtime::{mount_private_tmpfs, unmount_all_below};

/// Made at the start, removed on drop.
#[derive(Debug)]
pub(super) struct Scratch {
    root: PathBuf,
}

/// What CRIU and its hooks are told.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    /// Our own binary.
    pub(super) program: &'a Path,
    /// Connections.
    pub(super) tcp: TcpPolicy,
    /// The network.
    pub(super) lock: Lock,
    /// Where the hooks find the agent.
    pub(super) hook_socket: &'a Path,
    /// What they show there.
    pub(super) token: &'a str,
}

fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("migrations")
}

impl Scratch {
    /// Makes and mounts it.
    ///
    /// # Errors
    /// The file system's or the kernel's.
    pub(super) fn create(run_dir: &Path, migration: &MigrationId) -> Result<Self, MigrationError> {
        let root = folder(run_dir).join(migration.as_str());
        std::fs::create_dir_all(&root).map_err(MigrationError::io("create", &root))?;
        mount_private_tmpfs(&root)?;
        let scratch = Self { root };
        for path in [scratch.images(), scratch.kept(), scratch.work()] {
            std::fs::create_dir(&path).map_err(MigrationError::io("create", &path))?;
        }
        Ok(scratch)
    }

    /// All of it.
    #[must_use]
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// CRIU's image files.
    #[must_use]
    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Images that must not lie in [`Scratch::images`] before a restore that waits there may go on.
    #[must_use]
    pub(super) fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// Logs.
    #[must_use]
    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Writes CRIU's configuration; returns the environment that the runtime is started with.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn criu_environment(
        &self,
        with: &Setup<'_>,
    ) -> Result<Vec<(&'static str, OsString)>, MigrationError> {
        let config = CriuConfig::install(&self.root, with.program, with.tcp, with.lock)
            .map_err(MigrationError::io("write CRIU's configuration in", &self.root))?;
        Ok(vec![
            ("CRIU_CONFIG_FILE", config.into_os_string()),
            (ENV_SOCKET, with.hook_socket.as_os_str().to_owned()),
            (ENV_TOKEN, OsString::from(with.token)),
        ])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

fn remove(root: &Path) {
    gate::release(&root.join("images"));
    if let Err(error) = unmount_all_below(root) {
        tracing::error!(path = %root.display(), %error, "a migration's tmpfs is left mounted");
        return;
    }
    if let Err(error) = std::fs::remove_dir(root) {
        tracing::error!(path = %root.display(), %error, "a migration's folder is left");
    }
}

/// Removes what an agent that crashed left. Called before any migration starts.
pub(super) fn sweep(run_dir: &Path) {
    let left = std::fs::read_dir(folder(run_dir)).into_iter().flatten().flatten();
    for entry in left {
        tracing::warn!(path = %entry.path().display(), "removing what an earlier agent left");
        remove(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let id = MigrationId::fresh();
        let scratch = Scratch::create(dir.path(), &id).unwrap();
        let environment = scratch
            .criu_environment(&Setup {
                program: Path::new("/bin/true"),
                tcp: TcpPolicy::Keep,
                lock: Lock::Usual,
                hook_socket: Path::new("/run/x.sock"),
                token: "secret",
            })
            .unwrap();
        assert!(Path::new(&environment[0].1).exists());
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&scratch.root).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
        drop(scratch);
        assert_eq!(std::fs::read_dir(folder(dir.path())).unwrap().count(), 0);
        std::mem::forget(Scratch::create(dir.path(), &id).unwrap());
        sweep(dir.path());
        assert_eq!(std::fs::read_dir(folder(dir.path())).unwrap().count(), 0);
    }
}
