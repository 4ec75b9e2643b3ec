//! Trees are moved between real directories, as root, over an in-memory pipe, and compared by code that shares nothing with
//! what is tested.

mod hostile;
mod kinds;
mod layers;
mod overlay;
mod random;
mod rounds;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{FilesError, TreeKind, TreeSink, TreeSource};
use crate::protocol::frame::read_message;
use crate::protocol::pace::Pacer;
use crate::rpc::v1::{FileStats, FilesApplied, FilesHello};

/// Two directories beside each other, on disk.
struct Pair {
    dir: tempfile::TempDir,
    source: TreeSource,
    sink: TreeSink,
    round: u32,
}

impl Pair {
    fn new() -> Self {
        Self::of(TreeKind::Tree)
    }

    fn of(kind: TreeKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("from")).unwrap();
        Self::within(dir, kind)
    }

    fn within(dir: tempfile::TempDir, kind: TreeKind) -> Self {
        let source = TreeSource::new(dir.path().join("from"), kind);
        let sink = TreeSink::new(dir.path().join("to"), Vec::new());
        Self { dir, source, sink, round: 0 }
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    async fn try_round(
        &mut self,
        last: bool,
    ) -> (Result<FileStats, FilesError>, Result<FilesApplied, FilesError>) {
        self.round += 1;
        exchange(&mut self.source, &mut self.sink, self.round, last).await
    }

    async fn good_round(&mut self, last: bool) -> FileStats {
        match self.try_round(last).await {
            (Ok(stats), Ok(_)) => stats,
            failed => panic!("{failed:?}"),
        }
    }

    async fn round(&mut self) -> FileStats {
        self.good_round(false).await
    }

    /// A last round, and an independent look at the result.
    async fn finish(&mut self) -> FileStats {
        let stats = self.good_round(true).await;
        assert_same(&self.from(), &self.to());
        stats
    }
}

async fn exchange(
    source: &mut TreeSource,
    sink: &mut TreeSink,
    round: u32,
    last: bool,
) -> (Result<FileStats, FilesError>, Result<FilesApplied, FilesError>) {
    let (mut near, mut far) = tokio::io::duplex(64 << 10);
    let pacer = Pacer::new(None);
    let sending = async {
        let sent =
            source.send_round(&mut near, 0, round, last, &pacer, |done, total| assert!(done <= total)).await;
        drop(near);
        sent
    };
    let receiving = async {
        let hello: FilesHello = read_message(&mut far).await?;
        let applied = sink.receive_round(&mut far, hello).await;
        drop(far);
        applied
    };
    tokio::join!(sending, receiving)
}

/// What one file is.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    rdev: u64,
    content: Vec<u8>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First name of the same inode.
    first_name: Vec<u8>,
}

/// A whole tree, by relative path.
fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    visit(root, root, &mut seen);
    let mut first_names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (path, file) in &mut seen {
        let whole = if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) };
        let stat = std::fs::symlink_metadata(whole).unwrap();
        let whiteout = stat.file_type().is_char_device() && stat.rdev() == 0;
        if !stat.is_dir() && !whiteout {
            file.first_name = first_names.entry(stat.ino()).or_insert_with(|| path.clone()).clone();
        }
    }
    seen
}

fn visit(root: &Path, path: &Path, seen: &mut BTreeMap<Vec<u8>, Seen>) {
    let stat = std::fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let xattrs = xattr::list(path).unwrap().map(|name| {
        let value = xattr::get(path, &name).unwrap().unwrap();
        (name.into_vec(), value)
    });
    let file = Seen {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        size: if kind.is_dir() { 0 } else { stat.size() },
        rdev: stat.rdev(),
        content: if kind.is_file() { std::fs::read(path).unwrap() } else { Vec::new() },
        target: if kind.is_symlink() {
            std::fs::read_link(path).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        },
        xattrs: xattrs.collect(),
        first_name: Vec::new(),
    };
    seen.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), file);
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            visit(root, &entry.unwrap().path(), seen);
        }
    }
}

fn assert_same(from: &Path, to: &Path) {
    let (from, to) = (look(from), look(to));
    let names = |tree: &BTreeMap<Vec<u8>, Seen>| {
        tree.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&from), names(&to));
    for (path, file) in from {
        let other = &to[&path];
        let shown = path.escape_ascii();
        assert!(file.content == other.content, "content of {shown}");
        assert_eq!(
            Seen { content: Vec::new(), ..file },
            Seen { content: Vec::new(), ..copy(other) },
            "{shown}"
        );
    }
}

fn copy(seen: &Seen) -> Seen {
    Seen {
        content: Vec::new(),
        target: seen.target.clone(),
        xattrs: seen.xattrs.clone(),
        first_name: seen.first_name.clone(),
        ..*seen
    }
}

/// Bytes that do not compress and differ with the seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

fn mknod(path: &Path, kind: nix::sys::stat::SFlag, rdev: u64) {
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
    nix::sys::stat::mknod(path, kind, mode, rdev).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn write_at(path: &Path, offset: u64, data: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(data, offset).unwrap();
}

/// A name that is no UTF-8 and holds a newline.
fn odd_name() -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(b"odd \n\xff\xfe'\"\\ name".to_vec()))
}

/// A mount that goes away with the value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path, options: &str) -> Self {
        let flags = nix::mount::MsFlags::empty();
        let options = CString::new(options).unwrap();
        nix::mount::mount(Some(kind), at, Some(kind), flags, Some(options.as_c_str())).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
