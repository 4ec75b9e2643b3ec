//! Where containers that arrived live on this host's disk, and what is kept of those that left.
//!
//! ```text
//! <state_dir>/containers/<id>/   bundle/{config.json,rootfs}  upper/  work/  volumes/<n>  arrived.json
//! <state_dir>/retained/<id>/     upper/  volumes/<n>                (left here, kept as seed for a return)
//!                                origin.json                        (where a bundle that was not ours has its files)
//! ```
//! Everything below these two folders is decamp's own and may be removed by it; nothing else is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MigrationError;
use crate::model::{ContainerId, HostId};
use crate::runtime::unmount_all_below;

/// Who brought it, and how its root file system is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arrived {
    /// The host it came from.
    pub from: HostId,
    /// The migration that brought it.
    pub migration: String,
    /// Network namespace made for it, and the host ends of its links.
    pub network: Option<String>,
    /// Host ends of its links.
    pub host_ends: Vec<String>,
}

/// Files of a container that left: tree number (0 the root file system, n the mount n - 1) → folder or file.
type Origin = BTreeMap<u32, PathBuf>;

/// Paths of one container on this host.
#[derive(Debug, Clone)]
pub struct Home {
    /// Folder of the living.
    pub root: PathBuf,
    /// Folder of what was kept.
    pub retained: PathBuf,
}

impl Home {
    /// Paths only; nothing is made.
    #[must_use]
    pub fn of(state_dir: &Path, id: &ContainerId) -> Self {
        Self {
            root: state_dir.join("containers").join(id.as_str()),
            retained: state_dir.join("retained").join(id.as_str()),
        }
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.root.join("bundle")
    }

    /// Mount point (or plain folder) of the root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// Writable layer.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    /// Overlay's scratch folder.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// A copied bind mount.
    #[must_use]
    pub fn volume(&self, index: u32) -> PathBuf {
        self.root.join("volumes").join(index.to_string())
    }

    /// Is this bundle one that decamp made?
    #[must_use]
    pub fn owns(&self, bundle: &Path) -> bool {
        bundle == self.bundle()
    }

    /// Makes the folders of an arriving container.
    ///
    /// # Errors
    /// The file system's; a folder that is there already is an error.
    pub fn create(&self) -> Result<(), MigrationError> {
        let above = self.root.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(above).map_err(MigrationError::io("create", above))?;
        std::fs::create_dir(&self.root).map_err(MigrationError::io("create", &self.root))?;
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        std::fs::set_permissions(&self.root, private)
            .map_err(MigrationError::io("set the mode of", &self.root))?;
        for path in [self.rootfs(), self.upper(), self.work(), self.root.join("volumes")] {
            std::fs::create_dir_all(&path).map_err(MigrationError::io("create", &path))?;
        }
        Ok(())
    }

    /// Remembers who brought it.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_arrived(&self, arrived: &Arrived) -> Result<(), MigrationError> {
        write_json(&self.root.join("arrived.json"), arrived)
    }

    /// Who brought it, if it came by migration.
    #[must_use]
    pub fn arrived(&self) -> Option<Arrived> {
        read_json(&self.root.join("arrived.json"))
    }

    /// Unmounts and removes everything of a container that does not live here (any more).
    ///
    /// # Errors
    /// The file system's or the kernel's.
    pub fn remove(&self) -> Result<(), MigrationError> {
        unmount_all_below(&self.root)?;
        remove_tree(&self.root)
    }

    /// The container left: keeps its files as seed for a return, removes the rest. `keep_bytes` is what may be kept.
    ///
    /// # Errors
    /// The file system's or the kernel's.
    pub fn depart(&self, keep: bool) -> Result<(), MigrationError> {
        unmount_all_below(&self.root)?;
        self.forget_retained()?;
        if keep {
            std::fs::create_dir_all(&self.retained).map_err(MigrationError::io("create", &self.retained))?;
            for name in ["upper", "volumes"] {
                let (from, to) = (self.root.join(name), self.retained.join(name));
                if from.exists() {
                    std::fs::rename(&from, &to).map_err(MigrationError::io("keep", &from))?;
                }
            }
        }
        remove_tree(&self.root)
    }

    /// A container left whose bundle is not ours: remembers where its files are.
    ///
    /// # Errors
    /// The file system's.
    pub fn depart_foreign(&self, origin: &BTreeMap<u32, PathBuf>) -> Result<(), MigrationError> {
        self.forget_retained()?;
        std::fs::create_dir_all(&self.retained).map_err(MigrationError::io("create", &self.retained))?;
        write_json(&self.retained.join("origin.json"), origin)
    }

    /// Folders where blocks of a tree may be found already.
    #[must_use]
    pub fn seeds(&self, tree: u32) -> Vec<PathBuf> {
        let origin: Origin = read_json(&self.retained.join("origin.json")).unwrap_or_default();
        let kept = match tree.checked_sub(1) {
            None => self.retained.join("upper"),
            Some(mount) => self.retained.join("volumes").join(mount.to_string()),
        };
        origin.get(&tree).cloned().into_iter().chain([kept]).filter(|path| path.exists()).collect()
    }

    /// The container is back (or gone for good): what was kept is not needed any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget_retained(&self) -> Result<(), MigrationError> {
        remove_tree(&self.retained)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), MigrationError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(std::io::Error::other);
    let write = bytes.and_then(|bytes| std::fs::write(path, bytes));
    write.map_err(MigrationError::io("write", path))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn remove_tree(path: &Path) -> Result<(), MigrationError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(MigrationError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_is_a_seed_for_the_return() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::of(dir.path(), &"c".try_into().unwrap());
        home.create().unwrap();
        assert!(home.create().is_err(), "a second arrival of the same name must not mix with the first");
        std::fs::write(home.upper().join("f"), "x").unwrap();
        assert!(home.seeds(0).is_empty());
        home.depart(true).unwrap();
        assert!(!home.root.exists());
        assert_eq!(std::fs::read_to_string(home.seeds(0)[0].join("f")).unwrap(), "x");
        home.depart_foreign(&BTreeMap::from([(1, dir.path().to_owned())])).unwrap();
        assert!(home.seeds(0).is_empty());
        assert_eq!(home.seeds(1), [dir.path()]);
    }
}
