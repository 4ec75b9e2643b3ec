//! Digests of layers.

use std::fs;

use super::*;
use crate::files::{DigestCache, tree_bytes, tree_digest};

fn layer() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
    for n in 0..50 {
        fs::write(dir.path().join(format!("usr/bin/{n}")), noise(n, 1000)).unwrap();
    }
    std::os::unix::fs::symlink("bin", dir.path().join("usr/link")).unwrap();
    dir
}

#[tokio::test]
async fn equal_layers_have_equal_digests_and_any_difference_shows() {
    let (one, two) = (layer(), layer());
    fs::File::open(two.path().join("usr/bin/1")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let digest = tree_digest(one.path()).await.unwrap();
    assert_eq!(digest, tree_digest(two.path()).await.unwrap());
    xattr::set(two.path().join("usr"), "trusted.overlay.origin", b"handle").unwrap();
    assert_eq!(digest, tree_digest(two.path()).await.unwrap());
    let changes: [fn(&Path); 6] = [
        |root| write_at(&root.join("usr/bin/7"), 999, b"x"),
        |root| chmod(&root.join("usr/bin/8"), 0o755),
        |root| fs::rename(root.join("usr/bin/9"), root.join("usr/bin/nine")).unwrap(),
        |root| std::os::unix::fs::chown(root.join("usr/bin"), Some(1), None).unwrap(),
        |root| xattr::set(root.join("usr/bin/10"), "user.x", b"y").unwrap(),
        |root| {
            fs::remove_file(root.join("usr/link")).unwrap();
            std::os::unix::fs::symlink("bin2", root.join("usr/link")).unwrap();
        },
    ];
    let mut seen = vec![digest];
    for change in changes {
        change(two.path());
        let now = tree_digest(two.path()).await.unwrap();
        assert!(!seen.contains(&now));
        seen.push(now);
    }
}

#[tokio::test]
async fn the_cache_is_right_before_it_is_fast() {
    let dir = layer();
    let cache = DigestCache::new();
    let file = dir.path().join("usr/bin/3");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    for n in 0..10 {
        // The same size and time again and again, perhaps within one tick of the clock.
        write_at(&file, 0, format!("{n:04}").as_bytes());
        fs::File::open(&file).unwrap().set_modified(time).unwrap();
        assert_eq!(cache.digest(dir.path()).await.unwrap(), tree_digest(dir.path()).await.unwrap());
    }
    tokio::time::sleep(std::time::Duration::from_millis(2200)).await;
    let digest = cache.digest(dir.path()).await.unwrap();
    // Proof that content is not read again: behind the cache's back the file is unreadable as a digest, but looks the same.
    assert_eq!(cache.digest(dir.path()).await.unwrap(), digest);
    write_at(&file, 0, b"new!");
    assert_ne!(cache.digest(dir.path()).await.unwrap(), digest);
}

#[tokio::test]
async fn bytes_are_those_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), noise(1, 1 << 20)).unwrap();
    fs::hard_link(dir.path().join("data"), dir.path().join("again")).unwrap();
    fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
    let bytes = tree_bytes(dir.path()).await.unwrap();
    assert!(((1 << 20)..(1 << 20) + 65536).contains(&bytes), "{bytes}");
}
