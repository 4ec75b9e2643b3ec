//! What is remembered about files between rounds, so that what did not change is not read again.
//!
//! Remembering is only safe when the next change is certain to be seen. Three things can hide one:
//!
//! 1. Two changes within one tick of the kernel's coarse clock get the same change time. So a file that was changed less than
//!    [`RECENT`] before the look at it is not remembered.
//! 2. A store through a shared mapping sets the change time only when the page was clean; later stores to the same dirty page
//!    leave no trace until the page is written back (mm/memory.c, `do_wp_page`; `folio_mkclean` at write-back). So a file that
//!    changed within [`DIRTY_FOR`] is written back before it is hashed, and is only remembered when it did not change since.
//!    For files older than that the kernel's flusher (dirty_expire_centisecs, 30 s) has done it long ago.
//! 3. File systems without write-back (tmpfs) never see stores through a mapping that is already there. On them, and on those
//!    that are not known to keep rule 2, nothing is remembered: everything is hashed in every round.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC};

use super::content::{Content, FileKey};
use super::entry::Attribute;
use super::walk::Node;

/// A change this short before a look may share its time stamp with a change after it.
pub(super) const RECENT: Duration = Duration::from_secs(2);
/// Pages can be dirty, and mapped writable, at most this long after the change time was set.
pub(super) const DIRTY_FOR: Duration = Duration::from_secs(3600);

/// Whether changes to files on this file system always show in their change time, shared mappings included.
pub(super) fn shows_every_change(kind: FsType) -> bool {
    [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC].contains(&kind)
}

/// A moment `ago` before now, in the form of file times.
pub(super) fn before_now(ago: Duration) -> (i64, i64) {
    SystemTime::now().checked_sub(ago).map_or((0, 0), of_time)
}

fn of_time(time: SystemTime) -> (i64, i64) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), i64::from(since.subsec_nanos()))
}

#[derive(Debug)]
pub(super) struct Remembered {
    key: FileKey,
    pub(super) xattrs: Arc<[Attribute]>,
    pub(super) target: Vec<u8>,
    pub(super) links_below: Option<Vec<u8>>,
    content: Option<Content>,
}

/// What is known about files, by inode.
#[derive(Debug, Default)]
pub(super) struct Memory {
    files: HashMap<(u64, u64), Remembered>,
}

impl Memory {
    /// Everything known about a file that looks like this.
    pub(super) fn get(&self, key: &FileKey) -> Option<&Remembered> {
        self.files.get(&key.inode()).filter(|known| known.key == *key)
    }

    /// The content of a file that looks like this.
    pub(super) fn content(&self, key: &FileKey) -> Option<&Content> {
        self.get(key)?.content.as_ref()
    }

    /// Remembers a file as it was seen.
    pub(super) fn insert(&mut self, node: &Node, content: Option<Content>) {
        let known = Remembered {
            key: node.key,
            xattrs: Arc::clone(&node.entry.xattrs),
            target: node.entry.target.clone(),
            links_below: node.links_below.clone(),
            content,
        };
        self.files.insert(node.key.inode(), known);
    }

    /// We are about to change this file ourselves.
    pub(super) fn forget(&mut self, inode: (u64, u64)) {
        self.files.remove(&inode);
    }
}
