//! Digests of trees that do not travel: the read-only layers below a container, named by what they hold so that two hosts can
//! tell whether theirs are equal.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::fstat;

use super::beneath::Beneath;
use super::content::FileKey;
use super::entry::{Entry, Kind};
use super::error::{Doing, FilesError, show};
use super::memory::{Memory, RECENT, before_now};
use super::overlay::{TreeKind, is_label};
use super::source::blocking;
use super::walk::{Node, Walk};
use crate::model::Digest;

/// Layers that one host keeps in mind.
const CACHED_MAX: usize = 1024;

/// Overlay's references to inodes of one host; everything else that overlay writes means the same anywhere.
const BOUND_TO_INODES: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"uuid", b"upper"];

/// BLAKE3 over the sorted tree: paths, types, modes, owners, sizes, contents, link targets, device numbers and extended
/// attributes (file capabilities and overlay's marks change what a container sees). Not: times, hard links, labels of security
/// modules, inode numbers. The tree must not change meanwhile.
///
/// # Errors
/// [`FilesError::Changed`] when a file changed while it was read; [`FilesError::Io`], [`FilesError::MountInside`].
pub async fn tree_digest(root: &Path) -> Result<Digest, FilesError> {
    let root = root.to_owned();
    blocking(move || digest_blocking(&root)).await
}

/// Bytes that the tree takes on disk (allocated blocks, hard links counted once).
///
/// # Errors
/// [`FilesError::Io`], [`FilesError::MountInside`].
pub async fn tree_bytes(root: &Path) -> Result<u64, FilesError> {
    let root = root.to_owned();
    blocking(move || {
        let (_, nodes) = look(&root, false, true)?;
        let files: HashMap<_, _> = nodes.iter().map(|node| (node.key.inode(), node.allocated)).collect();
        Ok(files.values().sum())
    })
    .await
}

fn look(root: &Path, frozen: bool, bare: bool) -> Result<(Beneath, Vec<Node>), FilesError> {
    // A layer may be named through a link; the tree itself is looked at without following any.
    let root = std::fs::canonicalize(root).doing("find", root.as_os_str().as_encoded_bytes())?;
    let mut at = Beneath::open(&root)?;
    let nodes = Walk { at: &mut at, kind: TreeKind::Tree, memory: &Memory::default(), frozen, bare }.run()?;
    Ok((at, nodes))
}

fn digest_blocking(root: &Path) -> Result<Digest, FilesError> {
    let (mut at, nodes) = look(root, true, false)?;
    let mut hasher = blake3::Hasher::new();
    let mut contents: HashMap<(u64, u64), Digest> = HashMap::new();
    for node in nodes {
        let content = match (node.entry.kind, contents.get(&node.key.inode())) {
            (Kind::File, Some(known)) => Some(*known),
            (Kind::File, None) => Some(content_digest(&mut at, &node)?),
            _ => None,
        };
        if let Some(digest) = content
            && node.nlink > 1
        {
            contents.insert(node.key.inode(), digest);
        }
        let entry = Entry {
            mtime_s: 0,
            mtime_ns: 0,
            link_group: 0,
            xattrs: node.entry.xattrs.iter().filter(|(name, _)| counts(name)).cloned().collect(),
            blocks: content.into_iter().collect(),
            ..node.entry
        };
        entry.digest_into(&mut hasher, b"");
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn counts(name: &[u8]) -> bool {
    let mark = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
    !is_label(name) && !mark.is_some_and(|mark| BOUND_TO_INODES.contains(&mark))
}

fn content_digest(at: &mut Beneath, node: &Node) -> Result<Digest, FilesError> {
    let path = &node.entry.path[..];
    let file = at.read_file(path).doing("open", path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).doing("read", path)?;
    let after = fstat(&file).doing("look at", path)?;
    if FileKey::of(&after) != node.key {
        return Err(FilesError::Changed { path: show(path) });
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Tree digests that are not computed again as long as no file of the tree looks different (path, inode, size, mode, owner,
/// modification and change time). For trees that nobody maps writable: see the `memory` module for what times cannot show.
#[derive(Debug, Default)]
pub struct DigestCache {
    /// Also a turnstile: two digests at once would only fight for the disk.
    known: tokio::sync::Mutex<HashMap<PathBuf, (Digest, Digest)>>,
}

impl DigestCache {
    /// An empty cache; it lives as long as the process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// [`tree_digest`], from the cache when nothing changed.
    ///
    /// # Errors
    /// As [`tree_digest`].
    pub async fn digest(&self, root: &Path) -> Result<Digest, FilesError> {
        let mut known = self.known.lock().await;
        let shared: Arc<Path> = Arc::from(root);
        let looked_at = Arc::clone(&shared);
        let (print, _) = blocking(move || fingerprint(&looked_at)).await?;
        if let Some((seen, digest)) = known.get(root)
            && *seen == print
        {
            return Ok(*digest);
        }
        let digest = tree_digest(root).await?;
        // Remembered only when the tree was at rest: unchanged while it was read, and for a while before.
        let (after, at_rest) = blocking(move || fingerprint(&shared)).await?;
        if after == print && at_rest {
            if known.len() >= CACHED_MAX {
                known.clear();
            }
            known.insert(root.to_owned(), (print, digest));
        }
        Ok(digest)
    }
}

/// A digest over what lstat(2) says about every file, and whether the newest change is old enough to be told from a later one.
fn fingerprint(root: &Path) -> Result<(Digest, bool), FilesError> {
    let quiet_since = before_now(RECENT);
    let (_, nodes) = look(root, true, true)?;
    let mut hasher = blake3::Hasher::new();
    let mut at_rest = true;
    for Node { entry, key, .. } in &nodes {
        hasher.update(&(entry.path.len() as u64).to_le_bytes());
        hasher.update(&entry.path);
        for number in [key.dev, key.ino, key.size, entry.rdev] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [entry.mode, entry.uid, entry.gid] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [key.mtime.0, key.mtime.1, key.ctime.0, key.ctime.1] {
            hasher.update(&number.to_le_bytes());
        }
        at_rest &= key.ctime < quiet_since;
    }
    Ok((Digest(*hasher.finalize().as_bytes()), at_rest))
}
