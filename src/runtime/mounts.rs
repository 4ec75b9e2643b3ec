//! Mounts that a restore needs, and what a running container's root file system is made of.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use procfs::process::Process;

use super::RuntimeError;

/// An overlay mount as mountinfo tells it (kernel: Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayMount {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Options that change what the layers mean.
    pub options: Vec<String>,
}

const SEMANTIC_OPTIONS: [&str; 6] =
    ["userxattr", "metacopy", "redirect_dir", "xino", "nfs_export", "volatile"];

fn mount_table() -> Result<Vec<procfs::process::MountInfo>, RuntimeError> {
    let fail = |error: procfs::ProcError| RuntimeError::Io {
        doing: "read",
        path: PathBuf::from("/proc/self/mountinfo"),
        source: std::io::Error::other(error),
    };
    Ok(Process::myself().map_err(fail)?.mountinfo().map_err(fail)?.0)
}

/// The overlay mounted exactly at this path, topmost mount first; `None` when the path is not an overlay's mount point.
///
/// # Errors
/// The mount table cannot be read.
pub fn overlay_at(path: &Path) -> Result<Option<OverlayMount>, RuntimeError> {
    let canonical = path.canonicalize().map_err(RuntimeError::io("resolve", path))?;
    let Some(found) = mount_table()?.into_iter().rev().find(|m| m.mount_point == canonical) else {
        return Ok(None);
    };
    if found.fs_type != "overlay" {
        return Ok(None);
    }
    let option = |name: &str| found.super_options.get(name).cloned().flatten();
    let (Some(lower), Some(upper)) = (option("lowerdir"), option("upperdir")) else { return Ok(None) };
    let options = SEMANTIC_OPTIONS
        .iter()
        .filter_map(|name| {
            found.super_options.get(*name).map(|value| match value {
                Some(value) => format!("{name}={value}"),
                None => (*name).to_owned(),
            })
        })
        .collect();
    let lower = lower.split(':').map(PathBuf::from).collect();
    Ok(Some(OverlayMount { lower, upper: PathBuf::from(upper), options }))
}

/// Binds `source` at `target`, where something else is bound that nobody uses.
///
/// # Errors
/// The kernel's.
pub fn replace_bind(target: &Path, source: &Path) -> Result<(), RuntimeError> {
    umount2(target, MntFlags::MNT_DETACH)
        .map_err(|errno| RuntimeError::io("unmount", target)(errno.into()))?;
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| RuntimeError::io("mount", target)(errno.into()))
}

/// Mounts an overlay. Colons and commas in paths would be read as separators and are refused.
///
/// # Errors
/// A path that cannot be said, or the kernel's refusal.
pub fn mount_overlay(overlay: &OverlayMount, work: &Path, at: &Path) -> Result<(), RuntimeError> {
    let say = |path: &Path| -> Result<String, RuntimeError> {
        let text = path.to_str().filter(|text| !text.contains([':', ',', '\\']));
        text.map(str::to_owned).ok_or_else(|| RuntimeError::Malformed {
            path: path.to_owned(),
            what: "an overlay layer's path must not contain a colon, comma or backslash".to_owned(),
        })
    };
    let lower: Result<Vec<String>, RuntimeError> = overlay.lower.iter().map(|path| say(path)).collect();
    let mut data =
        format!("lowerdir={},upperdir={},workdir={}", lower?.join(":"), say(&overlay.upper)?, say(work)?);
    for option in overlay.options.iter().filter(|o| SEMANTIC_OPTIONS.iter().any(|known| o.starts_with(known)))
    {
        data.push(',');
        data.push_str(option);
    }
    mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(data.as_str())).map_err(|source| {
        RuntimeError::Mount { doing: "mount the container's root file system", path: at.to_owned(), source }
    })
}

/// A tmpfs only root can enter, for memory images: they never touch a disk.
///
/// # Errors
/// The kernel's refusal.
pub fn mount_private_tmpfs(at: &Path) -> Result<(), RuntimeError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("decamp"), at, Some("tmpfs"), flags, Some("mode=0700,size=100%")).map_err(|source| {
        RuntimeError::Mount { doing: "mount a tmpfs for images", path: at.to_owned(), source }
    })
}

/// Unmounts everything mounted at or below a path, deepest first. Nothing there is fine.
///
/// # Errors
/// The mount table cannot be read, or the kernel refuses.
pub fn unmount_all_below(path: &Path) -> Result<(), RuntimeError> {
    let Ok(canonical) = path.canonicalize() else { return Ok(()) };
    for found in mount_table()?.into_iter().rev().filter(|m| m.mount_point.starts_with(&canonical)) {
        umount2(&found.mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|source| {
            RuntimeError::Mount { doing: "unmount", path: found.mount_point.clone(), source }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_mounted_read_back_and_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("top");
        std::fs::create_dir(&root).unwrap();
        mount_private_tmpfs(&root).unwrap();
        let sub = |name: &str| {
            let path = root.join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work, at) = (sub("lower"), sub("upper"), sub("work"), sub("at"));
        std::fs::write(lower.join("base"), "b").unwrap();
        let overlay = OverlayMount { lower: vec![lower], upper: upper.clone(), options: Vec::new() };
        mount_overlay(&overlay, &work, &at).unwrap();
        std::fs::write(at.join("new"), "n").unwrap();
        assert!(at.join("base").exists() && upper.join("new").exists());
        let seen = overlay_at(&at).unwrap().unwrap();
        assert_eq!((seen.lower, seen.upper), (overlay.lower, overlay.upper));
        assert_eq!(overlay_at(&upper).unwrap(), None);
        unmount_all_below(&root).unwrap();
        assert!(!root.join("at").exists());
    }

    #[test]
    fn a_path_with_a_colon_is_refused() {
        let overlay = OverlayMount { lower: vec!["/a:b".into()], upper: "/u".into(), options: Vec::new() };
        let error = mount_overlay(&overlay, Path::new("/w"), Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("colon"), "{error}");
    }
}
