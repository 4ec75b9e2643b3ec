//! Random changes, round after round, must always end with equal trees.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::model::limits::FILE_BLOCK;

const NAMES: [&str; 6] = ["a", "b", "a-b", "a b", "c", "d"];

/// One change to a tree; paths may or may not exist, and a change that is not possible does nothing.
#[derive(Debug, Clone)]
enum Change {
    Write { path: String, offset: u64, len: usize, seed: u64 },
    Truncate { path: String, size: u64 },
    Directory(String),
    Symlink { path: String, target: String },
    Fifo(String),
    Whiteout(String),
    Remove(String),
    Rename { from: String, to: String },
    Link { from: String, to: String },
    Mode { path: String, mode: u32 },
    Owner { path: String, uid: u32 },
    Xattr { path: String, value: u8 },
    NoXattr(String),
    Time { path: String, ns: u32 },
    Round,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4).prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    let size = 0..(3 * FILE_BLOCK as u64);
    prop_oneof![
        6 => (path(), size.clone(), 0..200_000usize, 0..4u64)
            .prop_map(|(path, offset, len, seed)| Change::Write { path, offset, len, seed }),
        2 => (path(), size).prop_map(|(path, size)| Change::Truncate { path, size }),
        4 => path().prop_map(Change::Directory),
        1 => (path(), path()).prop_map(|(path, target)| Change::Symlink { path, target }),
        1 => path().prop_map(Change::Fifo),
        1 => path().prop_map(Change::Whiteout),
        3 => path().prop_map(Change::Remove),
        4 => (path(), path()).prop_map(|(from, to)| Change::Rename { from, to }),
        3 => (path(), path()).prop_map(|(from, to)| Change::Link { from, to }),
        1 => (path(), 0..0o10000u32).prop_map(|(path, mode)| Change::Mode { path, mode }),
        1 => (path(), 0..3u32).prop_map(|(path, uid)| Change::Owner { path, uid }),
        1 => (path(), any::<u8>()).prop_map(|(path, value)| Change::Xattr { path, value }),
        1 => path().prop_map(Change::NoXattr),
        1 => (path(), 0..1_000_000_000u32).prop_map(|(path, ns)| Change::Time { path, ns }),
        3 => Just(Change::Round),
    ]
}

/// Results are ignored: what is not possible does nothing.
fn apply(root: &Path, change: &Change) {
    use std::os::unix::fs::{lchown, symlink};
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file());
    match change {
        Change::Write { path, offset, len, seed } => {
            let path = root.join(path);
            let free = fs::symlink_metadata(&path).is_err();
            let mut options = fs::OpenOptions::new();
            if (free || is_file(&path))
                && let Ok(file) = options.write(true).create(true).truncate(false).open(&path)
            {
                file.write_all_at(&noise(*seed, *len), *offset).unwrap();
            }
        }
        Change::Truncate { path, size } => {
            let path = root.join(path);
            if is_file(&path) {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(*size).unwrap();
            }
        }
        Change::Directory(path) => drop(fs::create_dir_all(root.join(path))),
        Change::Symlink { path, target } => drop(symlink(target, root.join(path))),
        Change::Fifo(path) => {
            let _ = nix::unistd::mkfifo(&root.join(path), nix::sys::stat::Mode::S_IRUSR);
        }
        Change::Whiteout(path) => {
            let mode = nix::sys::stat::Mode::empty();
            let _ = nix::sys::stat::mknod(&root.join(path), nix::sys::stat::SFlag::S_IFCHR, mode, 0);
        }
        Change::Remove(path) => {
            let path = root.join(path);
            drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)));
        }
        Change::Rename { from, to } => drop(fs::rename(root.join(from), root.join(to))),
        Change::Link { from, to } => drop(fs::hard_link(root.join(from), root.join(to))),
        Change::Mode { path, mode } => {
            let path = root.join(path);
            if fs::symlink_metadata(&path).is_ok_and(|stat| !stat.is_symlink()) {
                chmod(&path, *mode);
            }
        }
        Change::Owner { path, uid } => drop(lchown(root.join(path), Some(*uid), Some(*uid))),
        Change::Xattr { path, value } => drop(xattr::set(root.join(path), "trusted.test", &[*value])),
        Change::NoXattr(path) => drop(xattr::remove(root.join(path), "trusted.test")),
        Change::Time { path, ns } => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, *ns);
            let path = root.join(path);
            if fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_file() || stat.is_dir()) {
                fs::File::open(path).unwrap().set_modified(time).unwrap();
            }
        }
        Change::Round => {}
    }
}

async fn run(place: &Path, changes: &[Change]) {
    let dir = tempfile::tempdir_in(place).unwrap();
    fs::create_dir(dir.path().join("from")).unwrap();
    let mut pair = Pair::within(dir, TreeKind::Tree);
    for change in changes {
        if let Change::Round = change {
            pair.round().await;
        }
        apply(&pair.from(), change);
    }
    pair.finish().await;
    // Nothing more to do.
    let stats = pair.finish().await;
    assert_eq!((stats.files_changed, stats.files_deleted), (0, 0));
}

fn run_in(place: &str, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(changes in prop::collection::vec(change(), 1..40))| {
        runtime.block_on(run(Path::new(place), &changes));
    });
}

#[test]
fn any_sequence_of_changes_ends_with_equal_trees_in_memory() {
    run_in("/dev/shm", 150);
}

#[test]
fn any_sequence_of_changes_ends_with_equal_trees_on_disk() {
    run_in(&std::env::temp_dir().to_string_lossy(), 30);
}
