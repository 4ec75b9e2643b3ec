//! Everything that makes a file itself.

use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};

use nix::sys::stat::SFlag;

use super::*;

/// POSIX ACL, version 2 (include/uapi/linux/posix_acl_xattr.h): user::rw-, user:1234:rwx, group::r--, mask::rwx, other::---.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1234), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// File capabilities, version 2 (include/uapi/linux/capability.h): cap_net_raw, permitted and effective.
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn populate(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::write(root.join("dir/plain"), noise(1, 300_000)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("dir").join(odd_name()), "odd").unwrap();
    // Sorts between "dir" and what lies in it.
    fs::write(root.join("dir-file"), "x").unwrap();
    fs::write(root.join("suid"), "#!/bin/true").unwrap();
    chown(root.join("suid"), Some(1000), Some(1001)).unwrap();
    chmod(&root.join("suid"), 0o6755);
    fs::write(root.join("caps"), "binary").unwrap();
    chown(root.join("caps"), Some(5), Some(6)).unwrap();
    xattr::set(root.join("caps"), "security.capability", &capability()).unwrap();
    fs::write(root.join("acl"), "x").unwrap();
    xattr::set(root.join("acl"), "system.posix_acl_access", &acl()).unwrap();
    xattr::set(root.join("dir"), "system.posix_acl_default", &acl()).unwrap();
    // Made under the default ACL: has one of its own, and the directory made before has not.
    fs::write(root.join("dir/inherits"), "x").unwrap();
    xattr::set(root.join("dir/sub"), "user.note", b"\0\xffvalue").unwrap();
    xattr::set(root.join("empty"), "trusted.note", b"").unwrap();
    symlink("no/such/target", root.join("dangling")).unwrap();
    lchown(root.join("dangling"), Some(7), Some(8)).unwrap();
    symlink("/etc/passwd", root.join("dir/sub/absolute")).unwrap();
    fs::hard_link(root.join("dir/plain"), root.join("a-link")).unwrap();
    fs::hard_link(root.join("dangling"), root.join("dir/sub/linked-link")).unwrap();
    mknod(&root.join("null"), SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3));
    mknod(&root.join("block"), SFlag::S_IFBLK, nix::sys::stat::makedev(7, 200));
    mknod(&root.join("fifo"), SFlag::S_IFIFO, 0);
    mknod(&root.join("socket"), SFlag::S_IFSOCK, 0);
    mknod(&root.join("whiteout"), SFlag::S_IFCHR, 0);
    fs::hard_link(root.join("whiteout"), root.join("whiteout-2")).unwrap();
    chmod(&root.join("fifo"), 0o4711);
    chmod(&root.join("dir/sub"), 0o3777);
    fs::write(root.join("old"), "x").unwrap();
    let old = std::time::UNIX_EPOCH - std::time::Duration::new(1000, 999_999_999);
    fs::File::open(root.join("old")).unwrap().set_modified(old).unwrap();
    let new = std::time::UNIX_EPOCH + std::time::Duration::new(4_000_000_000, 1);
    fs::File::open(root.join("dir/sub")).unwrap().set_modified(new).unwrap();
}

#[tokio::test]
async fn every_kind_of_file_arrives_as_it_was() {
    let mut pair = Pair::new();
    populate(&pair.from());
    let first = pair.round().await;
    assert_same(&pair.from(), &pair.to());
    assert_eq!(first.bytes_known, 0);
    let last = pair.finish().await;
    assert_eq!((last.files_changed, last.files_deleted), (0, 0));
    assert_eq!(last.bytes_known, last.bytes_total);
    assert!(last.bytes_sent < 200, "an unchanged tree cost {} bytes", last.bytes_sent);
    pair.sink.sync().await.unwrap();
}

#[tokio::test]
async fn every_kind_can_become_every_other_kind() {
    const KINDS: usize = 8;
    fn make(path: &Path, kind: usize) {
        match kind {
            0 => fs::write(path, noise(3, 1000)).unwrap(),
            1 => {
                fs::create_dir_all(path.join("below/deep")).unwrap();
                fs::write(path.join("below/file"), "x").unwrap();
            }
            2 => symlink("../elsewhere", path).unwrap(),
            3 => mknod(path, SFlag::S_IFIFO, 0),
            4 => mknod(path, SFlag::S_IFSOCK, 0),
            5 => mknod(path, SFlag::S_IFCHR, 0),
            6 => mknod(path, SFlag::S_IFBLK, 77),
            _ => {}
        }
    }
    let mut pair = Pair::new();
    let from = pair.from();
    for step in 1..KINDS {
        let _ = fs::remove_dir_all(&from);
        fs::create_dir(&from).unwrap();
        for kind in 0..KINDS {
            make(&from.join(format!("{kind}")), (kind * step + step) % KINDS);
        }
        pair.finish().await;
    }
}

#[tokio::test]
async fn holes_stay_holes_and_full_files_stay_full() {
    let mut pair = Pair::new();
    let path = pair.from().join("sparse");
    write_at(&path, 0, b"begin");
    write_at(&path, 5_000_000, &noise(1, 10_000));
    write_at(&path, (64 << 20) - 1, b"e");
    fs::write(pair.from().join("zeros"), vec![0; 1 << 20]).unwrap();
    let all_hole = pair.from().join("all-hole");
    fs::File::create(&all_hole).unwrap().set_len(3 << 30).unwrap();
    let blocks = |path: PathBuf| fs::metadata(path).unwrap().blocks() * 512;
    let stats = { pair.good_round(true).await };
    assert!(stats.bytes_sent < 3_000_000, "{}", stats.bytes_sent);
    assert!(blocks(pair.to().join("sparse")) <= blocks(path.clone()) + 16384);
    assert_eq!(blocks(pair.to().join("all-hole")), 0);
    assert!(blocks(pair.to().join("zeros")) >= 1 << 20);
    // What was data becomes a hole, and a hole becomes data.
    fs::remove_file(&all_hole).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(5_000_000).unwrap();
    file.set_len(64 << 20).unwrap();
    write_at(&path, 1 << 20, &noise(2, 4096));
    pair.finish().await;
    assert!(blocks(pair.to().join("sparse")) <= blocks(path) + 16384);
}

#[tokio::test]
async fn a_single_file_can_be_the_whole_tree() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("from"), noise(1, 200_000)).unwrap();
    chmod(&dir.path().join("from"), 0o600);
    let mut pair = Pair::within(dir, TreeKind::Tree);
    pair.round().await;
    write_at(&pair.from(), 199_999, b"changed");
    pair.finish().await;
}

#[tokio::test]
async fn other_names_of_a_file_come_and_go() {
    let mut pair = Pair::new();
    let from = pair.from();
    fs::write(from.join("b"), noise(1, 200_000)).unwrap();
    fs::hard_link(from.join("b"), from.join("c")).unwrap();
    pair.finish().await;
    // A new first name; one of three is cut loose with content of its own.
    fs::hard_link(from.join("b"), from.join("a")).unwrap();
    pair.finish().await;
    fs::remove_file(from.join("b")).unwrap();
    fs::write(from.join("b"), noise(1, 200_000)).unwrap();
    pair.finish().await;
    write_at(&from.join("c"), 7, b"seen under both names");
    pair.finish().await;
    fs::remove_file(from.join("a")).unwrap();
    fs::hard_link(from.join("b"), from.join("a")).unwrap();
    chmod(&from.join("a"), 0o4755);
    pair.finish().await;
    // Two separate files with equal content become one, then two again.
    fs::remove_file(from.join("c")).unwrap();
    fs::hard_link(from.join("b"), from.join("c")).unwrap();
    pair.finish().await;
    fs::remove_file(from.join("a")).unwrap();
    fs::copy(from.join("b"), from.join("a")).unwrap();
    pair.finish().await;
}

#[tokio::test]
async fn a_mount_inside_the_tree_is_refused() {
    let mut pair = Pair::new();
    fs::create_dir(pair.from().join("inside")).unwrap();
    let mounted = Mounted::new("tmpfs", &pair.from().join("inside"), "size=1m");
    let (sent, applied) = pair.try_round(false).await;
    assert!(matches!(sent, Err(FilesError::MountInside { ref path }) if path.contains("inside")), "{sent:?}");
    applied.unwrap_err();
    drop(mounted);
    pair.finish().await;
}

#[tokio::test]
async fn a_tree_may_itself_be_a_mount_and_its_directory_deep() {
    let mut pair = Pair::new();
    let _mounted = Mounted::new("tmpfs", &pair.from(), "size=8m");
    let mut deep = pair.from();
    for _ in 0..15 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("x"), "deep").unwrap();
    assert_eq!(pair.good_round(true).await.entries, 17);
    assert_eq!(fs::read(pair.to().join(deep.strip_prefix(pair.from()).unwrap()).join("x")).unwrap(), b"deep");
}
