//! Looks at every file of a tree without reading content.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::FileStat;

use super::beneath::{Beneath, Place, join};
use super::content::FileKey;
use super::entry::{Attribute, Entry, Kind};
use super::error::{Doing, FilesError, is_vanished, show};
use super::memory::Memory;
use super::overlay::{TreeKind, Verdict, judge, merged_names};
use crate::model::limits::{FILE_BYTES_MAX, PATH_BYTES_MAX, TREE_ENTRIES_MAX, XATTRS_BYTES_MAX};

/// One file as lstat(2) sees it; the entry has no block digests yet.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) entry: Entry,
    pub(super) key: FileKey,
    pub(super) nlink: u64,
    /// Bytes that it takes on disk.
    pub(super) allocated: u64,
    /// Overlay's nlink mark.
    pub(super) links_below: Option<Vec<u8>>,
}

impl Node {
    /// Takes over what a newer lstat(2) says about a regular file.
    pub(super) fn refresh(&mut self, stat: &FileStat) {
        self.key = FileKey::of(stat);
        self.nlink = stat.st_nlink;
        self.entry.mode = stat.st_mode & 0o7777;
        (self.entry.uid, self.entry.gid) = (stat.st_uid, stat.st_gid);
        (self.entry.mtime_s, self.entry.mtime_ns) = mtime(stat);
        self.entry.size = self.key.size;
    }
}

/// Walks a tree.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) at: &'a mut Beneath,
    pub(super) kind: TreeKind,
    /// Attributes of files that are remembered are not read again.
    pub(super) memory: &'a Memory,
    /// The tree stands still: a file that vanishes is an error.
    pub(super) frozen: bool,
    /// Only what lstat(2) says: no extended attributes, no link targets.
    pub(super) bare: bool,
}

impl Walk<'_> {
    /// All files, sorted by path, link groups numbered.
    pub(super) fn run(mut self) -> Result<Vec<Node>, FilesError> {
        let root = self.at.place(b"").doing("find", b"")?;
        let mut nodes = vec![self.node(&root, Vec::new())?];
        if nodes[0].entry.kind == Kind::Symlink {
            return Err(FilesError::BadRoot { path: show(&root.name) });
        }
        let mut pending = Vec::new();
        if nodes[0].entry.kind == Kind::Directory {
            pending.push(Vec::new());
        }
        while let Some(directory) = pending.pop() {
            self.directory(&directory, &mut nodes, &mut pending)?;
        }
        nodes.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        // A rename during the walk can show one name twice.
        nodes.dedup_by(|later, kept| later.entry.path == kept.entry.path);
        group_links(&mut nodes);
        check_links_below(&nodes)?;
        Ok(nodes)
    }

    fn directory(
        &mut self,
        path: &[u8],
        nodes: &mut Vec<Node>,
        pending: &mut Vec<Vec<u8>>,
    ) -> Result<(), FilesError> {
        let (dir, names) = match self.at.list(path) {
            Err(Errno::EXDEV) => return Err(FilesError::MountInside { path: show(path) }),
            Err(error) if !self.frozen && !path.is_empty() && is_vanished(&error.into()) => return Ok(()),
            other => other.doing("list", path)?,
        };
        for name in names {
            let below = join(path, &name);
            if below.len() > PATH_BYTES_MAX {
                return Err(too_large("the length of the path", &below, below.len(), PATH_BYTES_MAX));
            }
            let place = Place { dir: Arc::clone(&dir), name };
            let node = match self.node(&place, below) {
                Err(error) if !self.frozen && error.is_vanished() => continue,
                other => other?,
            };
            if node.entry.kind == Kind::Directory {
                pending.push(node.entry.path.clone());
            }
            nodes.push(node);
            if nodes.len() > TREE_ENTRIES_MAX {
                return Err(too_large("the number of files", b"", nodes.len(), TREE_ENTRIES_MAX));
            }
        }
        Ok(())
    }

    fn node(&self, place: &Place, path: Vec<u8>) -> Result<Node, FilesError> {
        let stat = place.stat().doing("look at", &path)?;
        let key = FileKey::of(&stat);
        let kind = Kind::of(&stat);
        let (mtime_s, mtime_ns) = mtime(&stat);
        if kind == Kind::File && key.size > FILE_BYTES_MAX {
            return Err(FilesError::TooLarge {
                what: "the size",
                path: show(&path),
                have: key.size,
                max: FILE_BYTES_MAX,
            });
        }
        let (xattrs, links_below, target) = match self.memory.get(&key) {
            Some(known) => (Arc::clone(&known.xattrs), known.links_below.clone(), known.target.clone()),
            None if self.bare => (Arc::from([]), None, Vec::new()),
            None => {
                let (xattrs, links_below) = self.xattrs(place, &path)?;
                let target = match kind {
                    Kind::Symlink => readlinkat(&*place.dir, &place.name[..])
                        .doing("read the link", &path)?
                        .as_bytes()
                        .to_vec(),
                    _ => Vec::new(),
                };
                (xattrs.into(), links_below, target)
            }
        };
        let entry = Entry {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s,
            mtime_ns,
            xattrs,
            size: if kind == Kind::File { key.size } else { 0 },
            rdev: if kind.is_device() { stat.st_rdev } else { 0 },
            target,
            link_group: 0,
            sparse: false,
            blocks: Arc::from([]),
        };
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        Ok(Node { entry, key, nlink: stat.st_nlink, allocated, links_below })
    }

    fn xattrs(&self, place: &Place, path: &[u8]) -> Result<(Vec<Attribute>, Option<Vec<u8>>), FilesError> {
        let file = place.proc_path();
        let names = match xattr::list(&file) {
            // The file system has none.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => return Ok((Vec::new(), None)),
            other => other.doing("list the extended attributes of", path)?,
        };
        let (mut carried, mut links_below, mut bytes) = (Vec::new(), None, 0);
        for name in names {
            let verdict = judge(self.kind, name.as_bytes());
            if verdict == Verdict::Drop {
                continue;
            }
            if let Verdict::Refuse(why) = verdict {
                let xattr = name.to_string_lossy().into_owned();
                return Err(FilesError::OverlayFeature { path: show(path), xattr, why });
            }
            // Gone since it was listed.
            let Some(value) = xattr::get(&file, &name).doing("read an extended attribute of", path)? else {
                continue;
            };
            bytes += name.len() + value.len();
            if bytes > XATTRS_BYTES_MAX {
                return Err(too_large(
                    "the length of the extended attributes",
                    path,
                    bytes,
                    XATTRS_BYTES_MAX,
                ));
            }
            match verdict {
                Verdict::LinksBelow => links_below = Some(value),
                _ => carried.push((name.as_bytes().to_vec(), value)),
            }
        }
        carried.sort();
        Ok((carried, links_below))
    }
}

fn mtime(stat: &FileStat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

fn too_large(what: &'static str, path: &[u8], have: usize, max: usize) -> FilesError {
    FilesError::TooLarge { what, path: show(path), have: have as u64, max: max as u64 }
}

/// Names of one inode get one number, in the order of their first names; its other names tell what the first one tells.
fn group_links(nodes: &mut [Node]) {
    let is_linked =
        |node: &Node| node.nlink > 1 && node.entry.kind != Kind::Directory && !node.entry.is_whiteout();
    let mut names: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| is_linked(node)) {
        names.entry(node.key.inode()).or_default().push(at);
    }
    for members in names.values().filter(|members| members.len() > 1) {
        // An inode number is a good group number: it is the same in the next round, so the entries stay the same, too. A tree
        // lies in one mount; should a file system still give two inodes one number, the device number tells them apart.
        let mut first = nodes[members[0]].clone();
        first.entry.link_group = (first.key.ino ^ first.key.dev.rotate_left(40)).max(1);
        for at in members {
            let path = std::mem::take(&mut nodes[*at].entry.path);
            nodes[*at] = first.clone();
            nodes[*at].entry.path = path;
        }
    }
}

/// With overlay's `index=on`, a hard link that was copied up for one name is found through the index for the others. The index
/// does not travel, so every name must be in the upper directory; otherwise the others would show old content.
fn check_links_below(nodes: &[Node]) -> Result<(), FilesError> {
    let mut names: HashMap<(u64, u64), u64> = HashMap::new();
    for node in nodes.iter().filter(|node| node.links_below.is_some()) {
        *names.entry(node.key.inode()).or_default() += 1;
    }
    for node in nodes {
        if let Some(mark) = &node.links_below
            && merged_names(mark, node.nlink) != names.get(&node.key.inode()).copied()
        {
            return Err(FilesError::OverlayFeature {
                path: show(&node.entry.path),
                xattr: "overlay.nlink".to_owned(),
                why: "the file has more names below, joined by index=on; mount with index=off",
            });
        }
    }
    Ok(())
}
