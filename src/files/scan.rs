//! A scan of the source's tree: walk, then digests of everything that may have changed.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;
use nix::unistd::fdatasync;

use super::beneath::Beneath;
use super::content::{Content, FileKey, block_buffer, hash_file};
use super::entry::{Entry, Kind};
use super::error::{Doing, FilesError, is_vanished, show};
use super::memory::{DIRTY_FOR, Memory, RECENT, before_now, shows_every_change};
use super::overlay::TreeKind;
use super::walk::{Node, Walk};

/// From this many recently changed files on, one sync of the file system is cheaper than one of each file.
const SYNC_EACH_MAX: usize = 128;
/// How often a file that changes while it is read is tried again in one round.
const TRIES: usize = 2;

/// Scans one tree again and again.
#[derive(Debug)]
pub(super) struct Scanner {
    root: PathBuf,
    kind: TreeKind,
    memory: Memory,
}

/// How files are written back before they are hashed (see [`super::memory`]).
#[derive(Debug, Clone, Copy)]
enum WriteBack {
    /// Not at all: the result is for this round only.
    No,
    /// All at once; files changed after this moment are uncertain.
    Done((i64, i64)),
    /// Each file before it is read.
    Each,
}

/// What was read of a file.
#[derive(Debug)]
struct Hashed {
    content: Content,
    /// Neither a hidden nor an unfinished change is possible.
    certain: bool,
}

impl Scanner {
    pub(super) fn new(root: PathBuf, kind: TreeKind) -> Self {
        Self { root, kind, memory: Memory::default() }
    }

    /// The tree's root.
    pub(super) fn open(&self) -> Result<Beneath, FilesError> {
        Beneath::open(&self.root)
    }

    /// The tree as it is now. `frozen`: nothing may change meanwhile. Blocks the thread.
    pub(super) fn scan(&mut self, frozen: bool) -> Result<Vec<Entry>, FilesError> {
        let mut at = self.open()?;
        let quiet_since = before_now(RECENT);
        let nodes = Walk { at: &mut at, kind: self.kind, memory: &self.memory, frozen, bare: false }.run()?;
        let root = at.handle().doing("open", b"")?;
        let shows = fstatfs(&root).is_ok_and(|fs| shows_every_change(fs.filesystem_type()));
        let write_back = if shows && !frozen { self.write_back(&at, &nodes) } else { WriteBack::No };

        let mut next = Memory::default();
        let mut groups: HashMap<u64, Option<bool>> = HashMap::new();
        let mut entries = Vec::with_capacity(nodes.len());
        let mut buffer = block_buffer();
        for mut node in nodes {
            let group = node.entry.link_group;
            if let Some(first) = groups.get(&group) {
                if let Some(sparse) = *first {
                    node.entry.sparse = sparse;
                    entries.push(node.entry);
                }
                continue;
            }
            let seen = node.key;
            let content = if node.entry.kind == Kind::File {
                let hashed = self.content(&mut at, &mut node, write_back, frozen, &mut buffer)?;
                let Some(hashed) = hashed else {
                    groups.extend((group != 0).then_some((group, None)));
                    continue;
                };
                node.entry.blocks = Arc::clone(&hashed.content.blocks);
                node.entry.sparse = hashed.content.sparse;
                hashed.certain.then_some(hashed.content)
            } else {
                None
            };
            groups.extend((group != 0).then_some((group, Some(node.entry.sparse))));
            if shows && node.key == seen && seen.ctime < quiet_since {
                next.insert(&node, content);
            }
            entries.push(node.entry);
        }
        self.memory = next;
        Ok(entries)
    }

    /// Decides how to write back, and does it when it is done at once.
    fn write_back(&self, at: &Beneath, nodes: &[Node]) -> WriteBack {
        let (long_ago, just_now) = (before_now(DIRTY_FOR), before_now(RECENT));
        let young = |key: &FileKey| key.ctime >= long_ago && key.ctime < just_now;
        let files = nodes.iter().filter(|node| node.entry.kind == Kind::File && young(&node.key));
        if files.filter(|node| self.memory.content(&node.key).is_none()).count() <= SYNC_EACH_MAX {
            return WriteBack::Each;
        }
        let synced = at.sync();
        if synced.is_ok() { WriteBack::Done(just_now) } else { WriteBack::Each }
    }

    /// Digests of a file: remembered or read. `None`: the file is gone, which the next round will tell.
    fn content(
        &self,
        at: &mut Beneath,
        node: &mut Node,
        write_back: WriteBack,
        frozen: bool,
        buffer: &mut [u8],
    ) -> Result<Option<Hashed>, FilesError> {
        if let Some(content) = self.memory.content(&node.key) {
            return Ok(Some(Hashed { content: content.clone(), certain: true }));
        }
        let path = node.entry.path.clone();
        let changed = || FilesError::Changed { path: show(&path) };
        let mut last_try = None;
        for _ in 0..TRIES {
            let file = match at.read_file(&path) {
                Err(Errno::EXDEV) => return Err(FilesError::MountInside { path: show(&path) }),
                Err(error) if !frozen && is_vanished(&error.into()) => return Ok(None),
                other => other.doing("open", &path)?,
            };
            let quiet_since = written_back(&file, node, write_back);
            let before = fstat(&file).doing("look at", &path)?;
            let key = FileKey::of(&before);
            if key.inode() != node.key.inode() || (frozen && key != node.key) {
                return if frozen { Err(changed()) } else { Ok(None) };
            }
            node.refresh(&before);
            let content = hash_file(&file, key.size, buffer).doing("read", &path)?;
            let after = fstat(&file).doing("look at", &path)?;
            if FileKey::of(&after) == key {
                return Ok(Some(Hashed { content, certain: key.ctime < quiet_since }));
            }
            if frozen {
                return Err(changed());
            }
            last_try = Some(Hashed { content, certain: false });
        }
        Ok(last_try)
    }
}

/// Writes a file back where that is needed; says before which moment its last change must lie to be certain.
fn written_back(file: &File, node: &Node, write_back: WriteBack) -> (i64, i64) {
    let long_ago = before_now(DIRTY_FOR);
    match write_back {
        WriteBack::Done(moment) => moment,
        WriteBack::Each => {
            let just_now = before_now(RECENT);
            let needed = node.key.ctime >= long_ago && node.key.ctime < just_now;
            if needed && fdatasync(file).is_ok() { just_now } else { long_ago }
        }
        WriteBack::No => long_ago,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that this thread has read so far (proc_pid_io(5)).
    fn bytes_read() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    fn scan_cost(scanner: &mut Scanner, frozen: bool) -> u64 {
        let before = bytes_read();
        scanner.scan(frozen).unwrap();
        bytes_read() - before
    }

    #[test]
    fn files_at_rest_are_read_once_and_files_just_written_again() {
        const SIZE: usize = 4 << 20;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), vec![7; SIZE]).unwrap();
        let mut scanner = Scanner::new(dir.path().to_owned(), TreeKind::Tree);
        for _ in 0..2 {
            assert!(
                scan_cost(&mut scanner, false) >= SIZE as u64,
                "a file that was just written was trusted"
            );
        }
        std::thread::sleep(RECENT + std::time::Duration::from_millis(200));
        assert!(scan_cost(&mut scanner, false) >= SIZE as u64);
        assert!(scan_cost(&mut scanner, false) < SIZE as u64 / 2);
        assert!(scan_cost(&mut scanner, true) < SIZE as u64 / 2);
        xattr::set(dir.path().join("file"), "user.note", b"x").unwrap();
        assert!(scan_cost(&mut scanner, true) >= SIZE as u64);
        assert_eq!(scanner.scan(true).unwrap()[1].xattrs.len(), 1);
    }
}
