//! The upper directory of a real overlay mount is moved and mounted again.

use std::fs;

use super::*;

const UPPER: TreeKind = TreeKind::Upper { userxattr: false };

/// One lower layer, shared by two overlay mounts: 1 over the source's upper directory, 2 over the destination's.
struct Hosts {
    pair: Pair,
    lower: PathBuf,
}

impl Hosts {
    fn new() -> Self {
        let pair = Pair::of(UPPER);
        let lower = pair.dir.path().join("lower");
        fs::create_dir_all(lower.join("etc/deep")).unwrap();
        fs::create_dir_all(lower.join("var/log")).unwrap();
        for name in ["etc/a", "etc/b", "etc/deep/c", "var/log/d", "top"] {
            fs::write(lower.join(name), name.repeat(100)).unwrap();
        }
        for name in ["work-1", "work-2", "merged-1", "merged-2"] {
            fs::create_dir(pair.dir.path().join(name)).unwrap();
        }
        Self { pair, lower }
    }

    fn mount(&self, number: u32, options: &str) -> (Mounted, PathBuf) {
        let dir = self.pair.dir.path();
        let upper = if number == 1 { self.pair.from() } else { self.pair.to() };
        let merged = dir.join(format!("merged-{number}"));
        let work = dir.join(format!("work-{number}"));
        let all = format!(
            "lowerdir={},upperdir={},workdir={}{options}",
            self.lower.display(),
            upper.display(),
            work.display()
        );
        (Mounted::new("overlay", &merged, &all), merged)
    }
}

fn use_it(merged: &Path) {
    fs::write(merged.join("etc/a"), "rewritten").unwrap();
    fs::remove_file(merged.join("etc/b")).unwrap();
    fs::remove_file(merged.join("top")).unwrap();
    fs::remove_dir_all(merged.join("var/log")).unwrap();
    fs::create_dir(merged.join("var/log")).unwrap();
    fs::write(merged.join("var/log/new"), "fresh in an opaque directory").unwrap();
    chmod(&merged.join("etc/deep"), 0o700);
    fs::write(merged.join("etc/added"), noise(1, 200_000)).unwrap();
    fs::hard_link(merged.join("etc/added"), merged.join("etc/added-2")).unwrap();
    xattr::set(merged.join("etc/added"), "user.overlay.redirect", b"a name that a container may use")
        .unwrap();
}

#[tokio::test]
async fn a_moved_upper_directory_gives_the_same_merged_view() {
    let mut hosts = Hosts::new();
    let (first, merged) = hosts.mount(1, "");
    use_it(&merged);
    hosts.pair.round().await;
    fs::write(merged.join("etc/a"), "rewritten again").unwrap();
    fs::remove_file(merged.join("etc/deep/c")).unwrap();
    assert!(hosts.pair.good_round(true).await.bytes_sent < 5000);
    let upper = look(&hosts.pair.to());
    assert!(upper[&b"var/log"[..]].xattrs.contains_key(&b"trusted.overlay.opaque"[..]));
    assert!(upper.values().all(|file| !file.xattrs.contains_key(&b"trusted.overlay.origin"[..])));
    let (second, moved) = hosts.mount(2, "");
    assert_same(&merged, &moved);
    // It is a working upper directory, not only a readable one.
    fs::write(moved.join("etc/b"), "back again").unwrap();
    fs::remove_dir_all(moved.join("var/log")).unwrap();
    drop((first, second));
}

#[tokio::test]
async fn features_that_tie_an_upper_directory_to_its_host_are_refused() {
    type Case = (&'static str, fn(&Path), &'static str);
    let cases: [Case; 2] = [
        (
            ",redirect_dir=on",
            |merged| fs::rename(merged.join("etc"), merged.join("renamed")).unwrap(),
            "redirect",
        ),
        (",metacopy=on,redirect_dir=on", |merged| chmod(&merged.join("top"), 0o600), "metacopy"),
    ];
    for (options, change, mark) in cases {
        let mut hosts = Hosts::new();
        let (_mounted, merged) = hosts.mount(1, options);
        change(&merged);
        let (sent, applied) = hosts.pair.try_round(false).await;
        let Err(FilesError::OverlayFeature { path, xattr, .. }) = sent else { panic!("{options}: {sent:?}") };
        assert!(
            xattr.ends_with(mark) && (path.contains("renamed") || path.contains("top")),
            "{xattr} {path}"
        );
        applied.unwrap_err();
    }
}

#[tokio::test]
async fn a_hard_link_half_below_is_refused_and_a_whole_one_moves() {
    let mut hosts = Hosts::new();
    fs::hard_link(hosts.lower.join("etc/a"), hosts.lower.join("etc/a-2")).unwrap();
    let (_mounted, merged) = hosts.mount(1, ",index=on");
    write_at(&merged.join("etc/a"), 0, b"changed");
    assert_eq!(&fs::read(merged.join("etc/a-2")).unwrap()[..7], b"changed");
    let (sent, _) = hosts.pair.try_round(false).await;
    assert!(
        matches!(sent, Err(FilesError::OverlayFeature { ref xattr, .. }) if xattr.ends_with("nlink")),
        "{sent:?}"
    );
    write_at(&merged.join("etc/a-2"), 0, b"CHANGED");
    hosts.pair.good_round(true).await;
    let (_second, moved) = hosts.mount(2, "");
    assert_eq!(&fs::read(moved.join("etc/a")).unwrap()[..7], b"CHANGED");
    assert_same(&merged, &moved);
}

#[tokio::test]
async fn an_overlay_with_user_marks_moves() {
    let mut hosts = Hosts::new();
    hosts.pair.source = TreeSource::new(hosts.pair.from(), TreeKind::Upper { userxattr: true });
    let (_mounted, merged) = hosts.mount(1, ",userxattr");
    fs::remove_dir_all(merged.join("var/log")).unwrap();
    fs::create_dir(merged.join("var/log")).unwrap();
    fs::write(merged.join("etc/a"), "rewritten").unwrap();
    hosts.pair.good_round(true).await;
    let (_second, moved) = hosts.mount(2, ",userxattr");
    assert_same(&merged, &moved);
    assert!(!moved.join("var/log/d").exists());
}
