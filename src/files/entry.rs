//! One entry of a tree, checked: what the wire says is believed only after it came through here.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::stat::{FileStat, SFlag};

use super::beneath::split;
use super::error::{FilesError, show};
use super::overlay::{is_label, travels};
use crate::model::Digest;
use crate::model::limits::{FILE_BLOCK, FILE_BYTES_MAX, PATH_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::rpc::v1::{FileEntry, Xattr, file_entry};

/// Longest name of one file (NAME_MAX, linux/limits.h), and of an extended attribute (XATTR_NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// Digest of a block of nothing but zeros. It never travels.
pub(super) const ZEROS: Digest = Digest([0; 32]);

/// File types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// From the type bits of lstat(2).
    pub(super) fn of(stat: &FileStat) -> Self {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Self::Directory,
            SFlag::S_IFLNK => Self::Symlink,
            SFlag::S_IFIFO => Self::Fifo,
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFCHR => Self::CharDevice,
            SFlag::S_IFBLK => Self::BlockDevice,
            _ => Self::File,
        }
    }

    pub(super) fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }

    fn wire(self) -> file_entry::Kind {
        match self {
            Self::File => file_entry::Kind::File,
            Self::Directory => file_entry::Kind::Directory,
            Self::Symlink => file_entry::Kind::Symlink,
            Self::Fifo => file_entry::Kind::Fifo,
            Self::Socket => file_entry::Kind::Socket,
            Self::CharDevice => file_entry::Kind::CharDevice,
            Self::BlockDevice => file_entry::Kind::BlockDevice,
        }
    }

    fn from_wire(kind: file_entry::Kind) -> Option<Self> {
        Some(match kind {
            file_entry::Kind::Unspecified => return None,
            file_entry::Kind::File => Self::File,
            file_entry::Kind::Directory => Self::Directory,
            file_entry::Kind::Symlink => Self::Symlink,
            file_entry::Kind::Fifo => Self::Fifo,
            file_entry::Kind::Socket => Self::Socket,
            file_entry::Kind::CharDevice => Self::CharDevice,
            file_entry::Kind::BlockDevice => Self::BlockDevice,
        })
    }
}

/// Name and value of an extended attribute.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// One entry of a tree. Paths are relative to the root, the root is "".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid, sticky; always 0o777 for a symbolic link, which has none.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    /// Ascending by name.
    pub(super) xattrs: Arc<[Attribute]>,
    /// Of regular files; 0 otherwise.
    pub(super) size: u64,
    pub(super) rdev: u64,
    pub(super) target: Vec<u8>,
    /// Not 0: one file with several names. The first name carries the content.
    pub(super) link_group: u64,
    pub(super) sparse: bool,
    pub(super) blocks: Arc<[Digest]>,
}

/// How many blocks a file of this size has.
pub(super) fn block_count(size: u64) -> u64 {
    size.div_ceil(FILE_BLOCK as u64)
}

/// Length of block number `block` of a file of `size` bytes; 0 past the end.
pub(super) fn block_len(size: u64, block: u64) -> usize {
    let rest = size.saturating_sub(block.saturating_mul(FILE_BLOCK as u64));
    usize::try_from(rest).map_or(FILE_BLOCK, |rest| rest.min(FILE_BLOCK))
}

impl Entry {
    /// A whiteout: overlay's mark for "deleted". The kernel makes them all hard links of one inode, so they have no identity.
    pub(super) fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == 0
    }

    /// The message, without block digests.
    pub(super) fn to_wire(&self) -> FileEntry {
        FileEntry {
            path: self.path.clone().into(),
            kind: self.kind.wire().into(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime_s: self.mtime_s,
            mtime_ns: self.mtime_ns,
            xattrs: self
                .xattrs
                .iter()
                .map(|(name, value)| Xattr { name: name.clone().into(), value: value.clone().into() })
                .collect(),
            size: self.size,
            rdev: self.rdev,
            symlink_target: self.target.clone().into(),
            link_group: self.link_group,
            block_digests: Bytes::new(),
            sparse: self.sparse,
        }
    }

    /// Everything of the message but its block digests, each field checked by itself.
    pub(super) fn from_wire(wire: &FileEntry) -> Result<Self, FilesError> {
        let bad = |why| FilesError::BadList { why, path: show(&wire.path) };
        check_path(&wire.path).map_err(bad)?;
        let kind = Kind::from_wire(wire.kind()).ok_or_else(|| bad("unknown type of file"))?;
        if wire.mode > 0o7777 {
            return Err(bad("mode has more than permission bits"));
        }
        if wire.mtime_ns >= 1_000_000_000 {
            return Err(bad("modification time has more than a second of nanoseconds"));
        }
        if kind != Kind::File && (wire.size != 0 || wire.sparse) {
            return Err(bad("only a regular file has a size"));
        }
        if wire.size > FILE_BYTES_MAX {
            return Err(bad("the file is too large"));
        }
        let target = &wire.symlink_target;
        if (kind == Kind::Symlink) == target.is_empty()
            || target.len() >= PATH_BYTES_MAX
            || target.contains(&0)
        {
            return Err(bad("symbolic link target is missing, misplaced or unusable"));
        }
        if wire.rdev != 0 && !kind.is_device() {
            return Err(bad("only a device has a device number"));
        }
        if wire.link_group != 0 && kind == Kind::Directory {
            return Err(bad("a directory has one name"));
        }
        check_xattrs(&wire.xattrs).map_err(bad)?;
        Ok(Self {
            path: wire.path.to_vec(),
            kind,
            mode: wire.mode,
            uid: wire.uid,
            gid: wire.gid,
            mtime_s: wire.mtime_s,
            mtime_ns: wire.mtime_ns,
            xattrs: wire.xattrs.iter().map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec())).collect(),
            size: wire.size,
            rdev: wire.rdev,
            target: wire.symlink_target.to_vec(),
            link_group: wire.link_group,
            sparse: wire.sparse,
            blocks: Arc::from([]),
        })
    }

    /// Which property other than content differs, if any.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let carried = |entry: &Self| {
            entry.xattrs.iter().filter(|(name, _)| !is_label(name)).cloned().collect::<Vec<_>>()
        };
        let pairs = [
            ("type", self.kind != other.kind),
            ("mode", self.mode != other.mode),
            ("owner", (self.uid, self.gid) != (other.uid, other.gid)),
            ("size", self.size != other.size),
            ("device number", self.rdev != other.rdev),
            ("link target", self.target != other.target),
            ("modification time", (self.mtime_s, self.mtime_ns) != (other.mtime_s, other.mtime_ns)),
            ("extended attributes", self.xattrs != other.xattrs && carried(self) != carried(other)),
        ];
        pairs.iter().find(|(_, differs)| *differs).map(|(what, _)| *what)
    }

    /// Feeds everything that must arrive into a digest. `leader` is the first name of the entry's link group.
    pub(super) fn digest_into(&self, hasher: &mut blake3::Hasher, leader: &[u8]) {
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&self.path);
        field(&[self.kind.wire() as u8]);
        for number in [self.mode, self.uid, self.gid, self.mtime_ns] {
            field(&number.to_le_bytes());
        }
        field(&self.mtime_s.to_le_bytes());
        for number in [self.size, self.rdev] {
            field(&number.to_le_bytes());
        }
        field(&self.target);
        field(leader);
        for (name, value) in self.xattrs.iter().filter(|(name, _)| !is_label(name)) {
            field(name);
            field(value);
        }
        field(b"");
        for block in self.blocks.iter() {
            field(&block.0);
        }
    }
}

/// Digest of a whole manifest: equal for two trees when they are equal in everything that travels.
pub(super) fn manifest_digest(entries: &[Entry]) -> Digest {
    let mut leaders: HashMap<u64, &[u8]> = HashMap::new();
    let mut hasher = blake3::Hasher::new();
    for entry in entries {
        let leader = match entry.link_group {
            0 => &b""[..],
            group => leaders.entry(group).or_insert(&entry.path),
        };
        entry.digest_into(&mut hasher, leader);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The rules for a path: relative, plain parts, within bounds. "" is the root.
fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_BYTES_MAX {
        return Err("the path is too long");
    }
    for part in path.split(|byte| *byte == b'/') {
        if part.is_empty() || part == b"." || part == b".." {
            return Err("the path has an empty part, \".\" or \"..\"");
        }
        if part.len() > NAME_BYTES_MAX || part.contains(&0) {
            return Err("a part of the path is too long or has a zero byte");
        }
    }
    Ok(())
}

fn check_xattrs(xattrs: &[Xattr]) -> Result<(), &'static str> {
    let mut bytes = 0;
    let mut before: &[u8] = b"";
    for xattr in xattrs {
        let name = &xattr.name[..];
        if name.len() > NAME_BYTES_MAX || name.contains(&0) || !travels(name) {
            return Err("an extended attribute has a name that does not travel");
        }
        if name <= before {
            return Err("extended attributes are not in order");
        }
        before = name;
        bytes += name.len() + xattr.value.len();
    }
    if bytes > XATTRS_BYTES_MAX {
        return Err("there are too many extended attributes");
    }
    Ok(())
}

/// Checks what single entries cannot tell: order, parents, link groups, number of digests.
pub(super) fn check_tree(entries: &[Entry]) -> Result<(), FilesError> {
    let mut leaders: HashMap<u64, &Entry> = HashMap::new();
    let mut parent: &Entry = match entries.first() {
        Some(root) if root.path.is_empty() && root.kind != Kind::Symlink => root,
        _ => return Err(FilesError::BadList { why: "it does not begin with the root", path: show(b"") }),
    };
    for (at, entry) in entries.iter().enumerate() {
        let bad = |why| FilesError::BadList { why, path: show(&entry.path) };
        if at > 0 {
            if entry.path <= entries[at - 1].path {
                return Err(bad("names are not in order"));
            }
            let (above, _) = split(&entry.path);
            if parent.path != above {
                let found = entries[..at].binary_search_by(|known| known.path[..].cmp(above));
                parent = &entries[found.map_err(|_| bad("its directory is missing"))?];
            }
            if parent.kind != Kind::Directory {
                return Err(bad("what it lies in is not a directory"));
            }
        }
        let mut blocks = block_count(entry.size);
        if entry.link_group != 0 {
            if let Some(leader) = leaders.get(&entry.link_group) {
                blocks = 0;
                if leader.difference(entry).is_some() || leader.sparse != entry.sparse {
                    return Err(bad("names of one file tell different things"));
                }
            } else {
                leaders.insert(entry.link_group, entry);
            }
        }
        if entry.blocks.len() as u64 != blocks {
            return Err(bad("the number of block digests does not fit the size"));
        }
    }
    Ok(())
}
