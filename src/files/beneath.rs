//! Every access to a tree goes through here: paths are resolved beneath the root by the kernel (`openat2` with `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_XDEV`; openat2(2)), so a planted symbolic link or mount leads nowhere. The last part of a
//! path is only ever used with calls that do not follow links.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use super::error::{Doing, FilesError, show};

/// The kernel takes at most `PATH_MAX` bytes at a time; longer paths are opened in pieces.
const PIECE_BYTES_MAX: usize = 3000;

/// The root of a tree, held open. The root may be a directory or, for a single-file mount, a file.
#[derive(Debug)]
pub(super) struct Beneath {
    parent: Arc<OwnedFd>,
    name: Vec<u8>,
    root: Option<Arc<OwnedFd>>,
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

/// One name in an open directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
}

impl Place {
    /// For calls that have no *at form (extended attributes). The magic link leads to exactly our directory; the caller uses
    /// only calls that do not follow a link in the last part.
    pub(super) fn proc_path(&self) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        path.push(OsStr::from_bytes(&self.name));
        path
    }

    /// lstat(2).
    pub(super) fn stat(&self) -> Result<FileStat, Errno> {
        fstatat(&*self.dir, &self.name[..], AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

impl Beneath {
    /// Opens the parent of `root`; `root` itself need not exist yet. The path up to the root is ours and trusted.
    pub(super) fn open(root: &Path) -> Result<Self, FilesError> {
        let shown = root.as_os_str().as_bytes();
        let name = root.file_name().ok_or_else(|| FilesError::BadRoot { path: show(shown) })?;
        let parent = match root.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = openat(AT_FDCWD, parent, flags, Mode::empty()).doing("open the parent of", shown)?;
        Ok(Self { parent: Arc::new(parent), name: name.as_bytes().to_vec(), root: None, last: None })
    }

    /// Forgets open directories: needed after directories were removed or replaced.
    pub(super) fn forget(&mut self) {
        self.root = None;
        self.last = None;
    }

    /// Where the last part of `path` lives.
    pub(super) fn place(&mut self, path: &[u8]) -> Result<Place, Errno> {
        if path.is_empty() {
            return Ok(Place { dir: Arc::clone(&self.parent), name: self.name.clone() });
        }
        let (parent, name) = split(path);
        Ok(Place { dir: self.directory(parent)?, name: name.to_vec() })
    }

    /// A directory of the tree, for *at calls.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        let root = match &self.root {
            Some(root) => Arc::clone(root),
            // The root itself may be a mount point: only below it no mount is crossed.
            None => Arc::new(open_step(&self.parent, &self.name, OFlag::O_PATH | OFlag::O_DIRECTORY, false)?),
        };
        self.root = Some(Arc::clone(&root));
        if path.is_empty() {
            return Ok(root);
        }
        if let Some((known, fd)) = &self.last
            && known == path
        {
            return Ok(Arc::clone(fd));
        }
        let mut at = root;
        for piece in pieces(path) {
            at = Arc::new(open_step(&at, piece, OFlag::O_PATH | OFlag::O_DIRECTORY, true)?);
        }
        self.last = Some((path.to_vec(), Arc::clone(&at)));
        Ok(at)
    }

    /// Opens a regular file. Nothing else is ever opened: opening a device node can have effects of its own, and a container
    /// may put one (which its device cgroup does not let it use) where a file was a moment ago. `ESTALE` when it is no file.
    pub(super) fn open_file(&mut self, path: &[u8], flags: OFlag) -> Result<File, Errno> {
        let place = self.place(path)?;
        let handle = open_step(&place.dir, &place.name, OFlag::O_PATH | OFlag::O_NOFOLLOW, !path.is_empty())?;
        reopen(&handle, flags, &[SFlag::S_IFREG]).map(File::from)
    }

    /// The root itself, whatever it is, for fstatfs(2).
    pub(super) fn handle(&self) -> Result<OwnedFd, Errno> {
        open_step(&self.parent, &self.name, OFlag::O_PATH | OFlag::O_NOFOLLOW, false)
    }

    /// syncfs(2) on the file system of the root.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        syncfs(reopen(&self.handle()?, OFlag::O_RDONLY, &[SFlag::S_IFREG, SFlag::S_IFDIR])?)
    }

    /// Opens a regular file for reading without touching its access time where that is allowed.
    pub(super) fn read_file(&mut self, path: &[u8]) -> Result<File, Errno> {
        match self.open_file(path, OFlag::O_RDONLY | OFlag::O_NOATIME) {
            Err(Errno::EPERM) => self.open_file(path, OFlag::O_RDONLY),
            other => other,
        }
    }

    /// The names in a directory, and the directory for *at calls.
    pub(super) fn list(&mut self, path: &[u8]) -> Result<(Arc<OwnedFd>, Vec<Vec<u8>>), Errno> {
        let fd = self.directory(path)?;
        let mut reading = Dir::from_fd(open_step(&fd, b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, true)?)?;
        let mut names = Vec::new();
        for entry in reading.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok((fd, names))
    }

    /// Removes one name.
    pub(super) fn remove(&mut self, path: &[u8], is_directory: bool) -> Result<(), Errno> {
        let place = self.place(path)?;
        let flag = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(&*place.dir, &place.name[..], flag)
    }
}

fn open_step(at: &OwnedFd, path: &[u8], flags: OFlag, stay_in_mount: bool) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    if stay_in_mount {
        resolve |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    openat2(at, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

/// Opens what an `O_PATH` handle stands for, if it is of one of these types.
fn reopen(handle: &OwnedFd, flags: OFlag, types: &[SFlag]) -> Result<OwnedFd, Errno> {
    let kind = SFlag::from_bits_truncate(fstat(handle)?.st_mode & SFlag::S_IFMT.bits());
    if !types.contains(&kind) {
        return Err(Errno::ESTALE);
    }
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    openat(AT_FDCWD, path.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
}

/// Parent and last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Directory and name as one relative path.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    path.extend_from_slice(parent);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

fn pieces(path: &[u8]) -> Vec<&[u8]> {
    let mut rest = path;
    let mut found = Vec::new();
    while rest.len() > PIECE_BYTES_MAX {
        let Some(cut) = rest[..PIECE_BYTES_MAX].iter().rposition(|byte| *byte == b'/') else { break };
        found.push(&rest[..cut]);
        rest = &rest[cut + 1..];
    }
    found.push(rest);
    found
}

/// Removes the tree `name` beneath the directory `owned`, which is ours. Follows no link, enters no other mount; a tree that is
/// already gone is fine. Blocking work runs on its own thread.
///
/// # Errors
/// [`FilesError::MountInside`] before anything is removed when something is mounted inside; [`FilesError::Io`].
pub async fn remove_tree(owned: &Path, name: &OsStr) -> Result<(), FilesError> {
    if name.as_bytes().contains(&b'/') || name == "." || name == ".." || name.is_empty() {
        return Err(FilesError::BadRoot { path: show(name.as_bytes()) });
    }
    let root = owned.join(name);
    tokio::task::spawn_blocking(move || remove_blocking(&root)).await.map_err(FilesError::Interrupted)?
}

fn remove_blocking(root: &Path) -> Result<(), FilesError> {
    let mut at = Beneath::open(root)?;
    let stat = match at.place(b"").and_then(|place| place.stat()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other.doing("look at", root.as_os_str().as_bytes())?,
    };
    let mut found = vec![(Vec::new(), is_directory(&stat))];
    let mut next = 0;
    while let Some((path, directory)) = found.get(next).cloned() {
        next += 1;
        if !directory {
            continue;
        }
        let (fd, names) = match at.list(&path) {
            Err(Errno::EXDEV) => return Err(FilesError::MountInside { path: show(&path) }),
            other => other.doing("list", &path)?,
        };
        for name in names {
            let place = Place { dir: Arc::clone(&fd), name };
            let stat = place.stat().doing("look at", &place.name)?;
            found.push((join(&path, &place.name), is_directory(&stat)));
        }
    }
    // Breadth first puts every parent before its children.
    for (path, directory) in found.iter().rev() {
        at.remove(path, *directory).doing("remove", path)?;
    }
    Ok(())
}

/// Whether lstat(2) saw a directory.
pub(super) fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("file")).unwrap();
        let mut at = Beneath::open(&root).unwrap();
        assert!(at.place(b"up/new").is_err());
        assert!(at.read_file(b"up/outside").is_err());
        assert_eq!(at.read_file(b"file").unwrap_err(), Errno::ESTALE);
        assert!(at.place(b"../new").is_err());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        // A device number that no driver has: opening it would say ENXIO.
        for (name, kind) in
            [("device", SFlag::S_IFCHR), ("fifo", SFlag::S_IFIFO), ("socket", SFlag::S_IFSOCK)]
        {
            nix::sys::stat::mknod(&root.join(name), kind, Mode::S_IRUSR, 0xfff_ff00).unwrap();
            let mut at = Beneath::open(&root).unwrap();
            assert_eq!(at.read_file(name.as_bytes()).unwrap_err(), Errno::ESTALE, "{name}");
        }
        Beneath::open(&root).unwrap().sync().unwrap();
    }

    #[test]
    fn long_paths_are_opened_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut at = Beneath::open(&root).unwrap();
        let mut path = Vec::new();
        for _ in 0..19 {
            path = join(&path, &[b'd'; 200]);
            let place = at.place(&path).unwrap();
            nix::sys::stat::mkdirat(&*place.dir, &place.name[..], Mode::S_IRWXU).unwrap();
        }
        assert!(path.len() > PIECE_BYTES_MAX);
        at.forget();
        at.directory(&path).unwrap();
        remove_blocking(&root).unwrap();
        assert!(!root.exists());
    }

    #[tokio::test]
    async fn removing_a_tree_spares_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("../../outside", root.join("a/link")).unwrap();
        remove_tree(dir.path(), OsStr::new("root")).await.unwrap();
        assert!(!root.exists());
        assert!(outside.join("kept").exists());
        remove_tree(dir.path(), OsStr::new("root")).await.unwrap();
        for bad in ["..", ".", "", "a/b"] {
            assert!(remove_tree(dir.path(), OsStr::new(bad)).await.is_err(), "{bad:?}");
        }
    }
}
