//! Peers that lie. Whatever they say, nothing outside the root changes, and the answer is an error with a reason.

use std::fs;

use tokio::io::DuplexStream;

use super::*;
use crate::files::content::block_digest;
use crate::model::limits::FILE_BLOCK;
use crate::protocol::frame::{FrameError, write_message};
use crate::rpc::v1::{
    FileBlock, FileEntry, FileNeed, FilesDone, ManifestPart, ManifestStep, NeedPart, Xattr, file_entry::Kind,
    manifest_step::Step,
};

fn entry(path: &str, kind: Kind) -> FileEntry {
    FileEntry { path: path.to_owned().into(), kind: kind.into(), mode: 0o755, ..FileEntry::default() }
}

fn file(path: &str, content: &[u8]) -> FileEntry {
    FileEntry {
        size: content.len() as u64,
        block_digests: content
            .chunks(FILE_BLOCK)
            .flat_map(|block| block_digest(block).0)
            .collect::<Vec<_>>()
            .into(),
        ..entry(path, Kind::File)
    }
}

fn link(path: &str, target: &str) -> FileEntry {
    FileEntry { symlink_target: target.to_owned().into(), mode: 0o777, ..entry(path, Kind::Symlink) }
}

fn root() -> FileEntry {
    entry("", Kind::Directory)
}

fn part(entries: Vec<FileEntry>) -> ManifestPart {
    ManifestPart { steps: entries.into_iter().map(|entry| step(Step::Entry(entry))).collect(), last: true }
}

fn step(step: Step) -> ManifestStep {
    ManifestStep { step: Some(step) }
}

/// A sink in a directory of its own, with something beside its root that must stay as it is.
struct Victim {
    dir: tempfile::TempDir,
    sink: TreeSink,
}

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "precious").unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "precious").unwrap();
        let sink = TreeSink::new(dir.path().join("root"), Vec::new());
        Self { dir, sink }
    }

    /// Sends manifest and blocks; gives the sink's verdict after checking that nothing outside was touched.
    async fn attack(
        &mut self,
        manifest: ManifestPart,
        blocks: Vec<FileBlock>,
    ) -> Result<FilesApplied, FilesError> {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let attacker = async {
            write_message(&mut near, &manifest).await.unwrap();
            let answer: Result<NeedPart, _> = read_message(&mut near).await;
            if answer.is_ok_and(|needs| needs.error.is_empty()) {
                for block in blocks {
                    let _ = write_message(&mut near, &block).await;
                }
                let _ = write_message(&mut near, &FilesDone { done: true }).await;
                let _: Result<FilesApplied, FrameError> = read_message(&mut near).await;
            }
            drop(near);
        };
        let hello = FilesHello { round: 1, last: true, ..FilesHello::default() };
        let sinking = async {
            let verdict = self.sink.receive_round(&mut far, hello).await;
            drop(far);
            verdict
        };
        let ((), verdict) = tokio::join!(attacker, sinking);
        assert_eq!(fs::read(self.dir.path().join("precious")).unwrap(), b"precious");
        assert_eq!(fs::read(self.dir.path().join("outside/file")).unwrap(), b"precious");
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "root");
        names.sort();
        assert_eq!(names, ["outside", "precious"]);
        assert_eq!(fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 1);
        verdict
    }
}

/// Lists, and a part of the reason for which each is refused.
fn bad_lists() -> Vec<(&'static str, Vec<FileEntry>)> {
    let big_xattr =
        |name: &str, len: usize| Xattr { name: name.to_owned().into(), value: vec![0; len].into() };
    vec![
        ("begin with the root", vec![]),
        ("begin with the root", vec![file("a", b"x")]),
        ("begin with the root", vec![link("", "/etc")]),
        ("empty part", vec![root(), file("../precious", b"x")]),
        ("empty part", vec![root(), file("/etc/passwd", b"x")]),
        ("empty part", vec![root(), file("a//b", b"x")]),
        ("empty part", vec![root(), file("./a", b"x")]),
        ("empty part", vec![root(), file("a/", b"x")]),
        ("zero byte", vec![root(), file("a\0b", b"x")]),
        ("zero byte", vec![root(), file(&"n".repeat(256), b"x")]),
        ("path is too long", vec![root(), file(&"n/".repeat(3000), b"x")]),
        ("not in order", vec![root(), file("b", b"x"), file("a", b"x")]),
        ("not in order", vec![root(), file("a", b"x"), file("a", b"y")]),
        ("not in order", vec![root(), root()]),
        ("directory is missing", vec![root(), file("a/b", b"x")]),
        ("not a directory", vec![root(), link("a", "../outside"), file("a/file", b"x")]),
        ("not a directory", vec![root(), file("a", b""), file("a/b", b"x")]),
        ("not a directory", vec![file("", b""), file("b", b"x")]),
        ("unknown type", vec![root(), entry("a", Kind::Unspecified)]),
        ("only a regular file", vec![root(), FileEntry { size: 1, ..entry("a", Kind::Directory) }]),
        ("too large", vec![root(), FileEntry { size: u64::MAX, ..entry("a", Kind::File) }]),
        ("number of block digests", vec![root(), FileEntry { size: 1 << 40, ..entry("a", Kind::File) }]),
        ("more block digests", vec![root(), FileEntry { size: 0, ..file("a", b"x") }]),
        (
            "more block digests",
            vec![root(), FileEntry { block_digests: vec![0; 31].into(), ..file("a", b"x") }],
        ),
        ("permission bits", vec![root(), FileEntry { mode: 0o100_644, ..file("a", b"x") }]),
        ("nanoseconds", vec![root(), FileEntry { mtime_ns: 1_000_000_000, ..file("a", b"x") }]),
        ("link target", vec![root(), link("a", "")]),
        ("link target", vec![root(), link("a", "x\0y")]),
        ("device number", vec![root(), FileEntry { rdev: 5, ..file("a", b"x") }]),
        ("one name", vec![root(), FileEntry { link_group: 5, ..entry("a", Kind::Directory) }]),
        (
            "does not travel",
            vec![root(), FileEntry { xattrs: vec![big_xattr("system.x", 1)], ..file("a", b"x") }],
        ),
        (
            "too many ext",
            vec![root(), FileEntry { xattrs: vec![big_xattr("user.x", 70_000)], ..file("a", b"x") }],
        ),
        (
            "not in order",
            vec![
                root(),
                FileEntry { xattrs: vec![big_xattr("user.x", 1), big_xattr("user.x", 2)], ..file("a", b"x") },
            ],
        ),
        (
            "different things",
            vec![
                root(),
                FileEntry { link_group: 5, ..file("a", b"x") },
                FileEntry { link_group: 5, mode: 0o4755, block_digests: vec![].into(), ..file("b", b"x") },
            ],
        ),
    ]
}

#[tokio::test]
async fn lists_that_break_the_rules_are_refused_before_anything_is_done() {
    for (why, entries) in bad_lists() {
        let mut victim = Victim::new();
        let shown = format!("{entries:?}");
        match victim.attack(part(entries), Vec::new()).await {
            Err(error @ FilesError::BadList { .. }) => {
                assert!(error.to_string().contains(why), "{why}: {error} {shown:.300}")
            }
            other => panic!("{why}: {other:?} {shown:.300}"),
        }
        assert!(!victim.dir.path().join("root").exists(), "{why}");
    }
}

#[tokio::test]
async fn steps_without_a_base_and_rounds_that_never_were_are_refused() {
    for wrong in [Step::Keep(1), Step::Skip(u32::MAX), Step::Digests(vec![0; 32].into())] {
        let manifest = ManifestPart { steps: vec![step(wrong)], last: true };
        let verdict = Victim::new().attack(manifest, Vec::new()).await;
        assert!(matches!(verdict, Err(FilesError::BadList { .. })), "{verdict:?}");
    }
    let mut victim = Victim::new();
    let (_near, mut far) = tokio::io::duplex(1024);
    let hello = FilesHello { round: 3, base_round: 2, ..FilesHello::default() };
    let verdict = victim.sink.receive_round(&mut far, hello).await;
    assert!(matches!(verdict, Err(FilesError::UnknownBase { base_round: 2, held: 0, .. })), "{verdict:?}");
}

#[tokio::test]
async fn blocks_that_were_not_asked_for_or_lie_are_refused() {
    let content = noise(1, FILE_BLOCK + 10);
    let good = |number: u32| FileBlock {
        entry: 1,
        block: number,
        data: content.chunks(FILE_BLOCK).nth(number as usize).unwrap().to_vec().into(),
        ..FileBlock::default()
    };
    let bomb = zstd::bulk::compress(&vec![7; 64 << 20], 1).unwrap();
    let cases: Vec<(&str, Vec<FileBlock>)> = vec![
        ("another block", vec![good(1)]),
        ("another block", vec![FileBlock { entry: 0, ..good(0) }]),
        ("another block", vec![good(0), good(0)]),
        ("length", vec![FileBlock { data: vec![1].into(), ..good(0) }]),
        ("length", vec![FileBlock { uncompressed_len: u32::MAX, ..good(0) }]),
        ("decompressed", vec![FileBlock { uncompressed_len: 131_072, ..good(0) }]),
        ("decompressed", vec![FileBlock { uncompressed_len: 131_072, data: bomb.into(), ..good(0) }]),
        ("digest", vec![FileBlock { data: noise(2, FILE_BLOCK).into(), ..good(0) }]),
        ("changed during", vec![FileBlock { changed: true, ..good(0) }, good(1)]),
    ];
    for (why, blocks) in cases {
        let mut victim = Victim::new();
        let error = victim.attack(part(vec![root(), file("a", &content)]), blocks).await.unwrap_err();
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    let mut victim = Victim::new();
    victim.attack(part(vec![root(), file("a", &content)]), vec![good(0), good(1)]).await.unwrap();
    assert_eq!(fs::read(victim.dir.path().join("root/a")).unwrap(), content);
    // One block too many is no FilesDone.
    let error = victim.attack(part(vec![root(), file("a", &content)]), vec![good(0)]).await.unwrap_err();
    assert!(matches!(error, FilesError::Stream(_)), "{error:?}");
}

#[tokio::test]
async fn links_planted_in_an_earlier_round_lead_nowhere() {
    let mut victim = Victim::new();
    victim
        .attack(part(vec![root(), link("a", "../outside"), link("f", "../precious")]), Vec::new())
        .await
        .unwrap();
    let data = FileBlock { entry: 2, data: b"evil".to_vec().into(), ..FileBlock::default() };
    let manifest =
        part(vec![root(), entry("a", Kind::Directory), file("a/file", b"evil"), link("f", "../precious")]);
    victim.attack(manifest, vec![data]).await.unwrap();
    assert_eq!(fs::read(victim.dir.path().join("root/a/file")).unwrap(), b"evil");
    let data = FileBlock { entry: 1, data: b"more".to_vec().into(), ..FileBlock::default() };
    victim.attack(part(vec![root(), file("f", b"more")]), vec![data]).await.unwrap();
    assert_eq!(fs::read(victim.dir.path().join("root/f")).unwrap(), b"more");
}

#[tokio::test]
async fn a_link_planted_behind_the_sinks_back_leads_nowhere() {
    let mut victim = Victim::new();
    let dirs = || vec![root(), entry("a", Kind::Directory)];
    victim.attack(part(dirs()), Vec::new()).await.unwrap();
    let inside = victim.dir.path().join("root/a");
    let (mut near, mut far) = tokio::io::duplex(1 << 20);
    let attacker = async {
        let mut entries = dirs();
        entries.push(file("a/file", b"evil"));
        write_message(&mut near, &part(entries)).await.unwrap();
        let needs: NeedPart = read_message(&mut near).await.unwrap();
        assert_eq!(needs.needs.len(), 1);
        fs::rename(&inside, victim.dir.path().join("root/b")).unwrap();
        std::os::unix::fs::symlink("../outside", &inside).unwrap();
        let block = FileBlock { entry: 2, data: b"evil".to_vec().into(), ..FileBlock::default() };
        write_message(&mut near, &block).await.unwrap();
        write_message(&mut near, &FilesDone { done: true }).await.unwrap();
        let applied: FilesApplied = read_message(&mut near).await.unwrap();
        assert!(!applied.error.is_empty());
    };
    let hello = FilesHello { round: 2, ..FilesHello::default() };
    let (verdict, ()) = tokio::join!(victim.sink.receive_round(&mut far, hello), attacker);
    assert!(matches!(verdict, Err(FilesError::Io { .. })), "{verdict:?}");
    assert_eq!(fs::read(victim.dir.path().join("outside/file")).unwrap(), b"precious");
}

/// A destination that answers what it is told to.
async fn answer(far: &mut DuplexStream, needs: NeedPart, applied: FilesApplied) {
    let _: FilesHello = read_message(far).await.unwrap();
    loop {
        let part: ManifestPart = read_message(far).await.unwrap();
        if part.last {
            break;
        }
    }
    let count: u32 = needs.needs.iter().map(|need| need.blocks.min(10)).sum();
    write_message(far, &needs).await.unwrap();
    for _ in 0..count {
        if read_message::<_, FileBlock>(far).await.is_err() {
            return;
        }
    }
    let _ = write_message(far, &applied).await;
}

async fn source_against(
    needs: Vec<FileNeed>,
    error: &str,
    applied: FilesApplied,
) -> Result<FileStats, FilesError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(1, FILE_BLOCK + 1)).unwrap();
    fs::write(dir.path().join("b"), "").unwrap();
    let mut source = TreeSource::new(dir.path().to_owned(), TreeKind::Tree);
    let (mut near, mut far) = tokio::io::duplex(1 << 20);
    let pacer = Pacer::new(None);
    let needs = NeedPart { needs, last: true, error: error.to_owned() };
    let sending = async {
        let sent = source.send_round(&mut near, 0, 1, true, &pacer, |_, _| {}).await;
        drop(near);
        sent
    };
    tokio::join!(sending, answer(&mut far, needs, applied)).0
}

#[tokio::test]
async fn a_destination_that_lies_is_found_out() {
    let need = |entry, first_block, blocks| FileNeed { entry, first_block, blocks };
    for wrong in [
        vec![need(9, 0, 1)],
        vec![need(1, 0, 3)],
        vec![need(1, u32::MAX, u32::MAX)],
        vec![need(1, 0, 0)],
        vec![need(2, 0, 1)],
        vec![need(0, 0, 1)],
        vec![need(1, 1, 1), need(1, 0, 1)],
        vec![need(1, 0, 2), need(1, 1, 1)],
    ] {
        let verdict = source_against(wrong.clone(), "", FilesApplied::default()).await;
        assert!(matches!(verdict, Err(FilesError::BadList { .. })), "{wrong:?}: {verdict:?}");
    }
    let verdict = source_against(vec![need(1, 0, 2)], "", FilesApplied::default()).await;
    assert!(matches!(verdict, Err(FilesError::DigestDiffers)), "{verdict:?}");
    let verdict = source_against(Vec::new(), "no room", FilesApplied::default()).await;
    assert!(
        matches!(verdict, Err(FilesError::Refused { ref message }) if message == "no room"),
        "{verdict:?}"
    );
    let refused = FilesApplied { error: "disk full".to_owned(), ..FilesApplied::default() };
    let verdict = source_against(vec![need(1, 0, 1)], "", refused).await;
    assert!(
        matches!(verdict, Err(FilesError::Refused { ref message }) if message == "disk full"),
        "{verdict:?}"
    );
}
