//! Rounds: what is sent again, what is found here, and what happens under concurrent writers.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::model::limits::FILE_BLOCK;

#[tokio::test]
async fn only_the_blocks_that_changed_are_sent() {
    let mut pair = Pair::new();
    let log = pair.from().join("log");
    fs::write(&log, noise(1, 40 * FILE_BLOCK + 10)).unwrap();
    let first = pair.round().await;
    assert!(first.bytes_sent > 40 * FILE_BLOCK as u64);
    write_at(&log, 40 * FILE_BLOCK as u64 + 10, &noise(2, 100));
    let appended = pair.round().await;
    assert!(appended.bytes_sent < 5000, "{}", appended.bytes_sent);
    assert_eq!(appended.bytes_known, 40 * FILE_BLOCK as u64);
    write_at(&log, 3 * FILE_BLOCK as u64, b"in the middle");
    let middle = pair.round().await;
    assert!(middle.bytes_sent < FILE_BLOCK as u64 + 5000, "{}", middle.bytes_sent);
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(2 * FILE_BLOCK as u64 + 1).unwrap();
    let cut = pair.finish().await;
    assert!(cut.bytes_sent < 5000, "{}", cut.bytes_sent);
}

#[tokio::test]
async fn text_is_compressed_and_noise_is_not() {
    let mut pair = Pair::new();
    fs::write(pair.from().join("text"), "the same line again\n".repeat(50_000)).unwrap();
    let text = pair.round().await;
    assert!(text.bytes_sent < text.bytes_total / 20);
    fs::write(pair.from().join("noise"), noise(1, 1_000_000)).unwrap();
    let noise = pair.finish().await;
    assert!((1_000_000..1_010_000).contains(&noise.bytes_sent), "{}", noise.bytes_sent);
}

#[tokio::test]
async fn renamed_and_copied_files_are_found_here() {
    let mut pair = Pair::new();
    let from = pair.from();
    fs::create_dir(from.join("logs")).unwrap();
    for n in 0..5 {
        fs::write(from.join(format!("logs/{n}")), noise(n, 500_000)).unwrap();
    }
    pair.round().await;
    fs::rename(from.join("logs"), from.join("archive")).unwrap();
    fs::copy(from.join("archive/3"), from.join("copy")).unwrap();
    // A rotation: every name gets the content of the name before.
    for n in (0..4).rev() {
        fs::rename(from.join(format!("archive/{n}")), from.join(format!("archive/{}", n + 1))).unwrap();
    }
    let stats = pair.round().await;
    assert!(stats.bytes_sent < 10_000, "{}", stats.bytes_sent);
    fs::remove_dir_all(from.join("archive")).unwrap();
    let stats = pair.finish().await;
    assert_eq!(stats.files_deleted, 5);
}

#[tokio::test]
async fn an_earlier_visits_copy_is_used() {
    let mut pair = Pair::new();
    let from = pair.from();
    fs::create_dir(from.join("data")).unwrap();
    for n in 0..20 {
        fs::write(from.join(format!("data/{n}")), noise(n, 300_000)).unwrap();
    }
    pair.finish().await;
    write_at(&from.join("data/7"), 0, b"news");
    fs::remove_file(from.join("data/8")).unwrap();

    // The same root again, by someone who knows nothing about it.
    fs::write(pair.to().join("data/left-over"), "x").unwrap();
    pair.source = TreeSource::new(from.clone(), TreeKind::Tree);
    pair.sink = TreeSink::new(pair.to(), Vec::new());
    let again = pair.finish().await;
    assert!(again.bytes_sent < 180_000, "{}", again.bytes_sent);
    assert_eq!(again.files_deleted, 2);

    // As a seed beside a fresh root; a seed with wrong content, or none at all, does no harm.
    let seed = pair.dir.path().join("seed");
    fs::rename(pair.to(), &seed).unwrap();
    write_at(&seed.join("data/9"), 0, b"spoiled");
    fs::remove_file(seed.join("data/10")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", seed.join("data/10")).unwrap();
    let seed_before = look(&seed);
    pair.source = TreeSource::new(from, TreeKind::Tree);
    pair.sink = TreeSink::new(pair.to(), vec![pair.dir.path().join("missing"), seed.clone()]);
    let seeded = pair.finish().await;
    assert!(seeded.bytes_sent < 131_072 + 300_000 + 20_000, "{}", seeded.bytes_sent);
    assert_eq!(seed_before, look(&seed));
}

#[tokio::test]
async fn a_copy_made_of_hard_links_to_another_tree_is_not_written_through() {
    let mut pair = Pair::new();
    fs::write(pair.from().join("file"), "new content").unwrap();
    let outside = pair.dir.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    fs::create_dir(pair.to()).unwrap();
    fs::hard_link(&outside, pair.to().join("file")).unwrap();
    pair.finish().await;
    assert_eq!(fs::read(outside).unwrap(), b"precious");
}

#[tokio::test]
async fn a_change_within_the_same_clock_tick_is_seen() {
    let mut pair = Pair::new();
    let file = pair.from().join("file");
    fs::write(&file, "aaaa").unwrap();
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    for n in 0..20 {
        pair.round().await;
        // Same size, same modification time; the change time moves by less than the clock's tick, if at all.
        write_at(&file, 0, format!("{n:04}").as_bytes());
        fs::File::open(&file).unwrap().set_modified(time).unwrap();
    }
    pair.finish().await;
}

/// Stores through a mapping, without a system call that would set times. In a child: the crate itself has no unsafe code here.
const MAPPER: &str = "
import mmap, sys, os
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0)
m[0:1] = b'1'
print('ready', flush=True)
for line in sys.stdin:
    m[100:104] = line.strip().encode()
    print('done', flush=True)
";

struct Mapper {
    child: std::process::Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl Mapper {
    fn new(file: &Path) -> Self {
        use std::process::{Command, Stdio};
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut mapper = Self { child, answers };
        mapper.answer();
        mapper
    }

    fn answer(&mut self) {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.answers, &mut line).unwrap();
        assert!(!line.is_empty(), "the mapping process died");
    }

    fn store(&mut self, word: &str) {
        use std::io::Write;
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
        self.answer();
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

async fn stores_are_seen(mut pair: Pair) {
    let file = pair.from().join("mapped");
    fs::write(&file, noise(1, 300_000)).unwrap();
    let mut mapper = Mapper::new(&file);
    // Old enough to be remembered, young enough to be dirty still.
    tokio::time::sleep(std::time::Duration::from_millis(2300)).await;
    pair.round().await;
    mapper.store("one!");
    pair.round().await;
    mapper.store("two!");
    pair.finish().await;
    assert_eq!(&fs::read(pair.to().join("mapped")).unwrap()[100..104], b"two!");
}

#[tokio::test]
async fn stores_through_a_mapping_are_seen_on_disk() {
    stores_are_seen(Pair::new()).await;
}

#[tokio::test]
async fn stores_through_a_mapping_are_seen_in_memory() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("from")).unwrap();
    stores_are_seen(Pair::within(dir, TreeKind::Tree)).await;
}

/// Changes a tree as fast as it can until told to stop.
fn disturb(root: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            let file = root.join(format!("f{}", n % 7));
            match n % 5 {
                0 => write_at(&file, (n * 7919) % 400_000, &noise(n, 5000)),
                1 => fs::write(&file, noise(n, usize::try_from(n * 31 % 300_000).unwrap())).unwrap(),
                2 => drop(fs::rename(&file, root.join(format!("f{}", (n + 1) % 7)))),
                3 => {
                    let _ = fs::create_dir_all(root.join(format!("d{}/e", n % 3)));
                    let _ = fs::write(root.join(format!("d{}/e/f", n % 3)), noise(n, 10));
                }
                _ => {
                    let _ = fs::remove_file(&file);
                    let _ = fs::remove_dir_all(root.join(format!("d{}", n % 3)));
                }
            }
        }
        n
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_under_writers_end_exact_when_the_tree_stands_still() {
    let mut pair = Pair::new();
    fs::write(pair.from().join("large"), noise(99, 20 << 20)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = disturb(pair.from(), Arc::clone(&stop));
    for _ in 0..8 {
        pair.round().await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 20);
    let last = pair.finish().await;
    assert!(last.bytes_sent < 10 << 20, "the large file was sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_the_last_round_is_an_error() {
    let mut pair = Pair::new();
    pair.round().await;
    fs::write(pair.from().join("busy"), noise(1, 64 << 20)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, busy) = (Arc::clone(&stop), pair.from().join("busy"));
    let writer = std::thread::spawn(move || {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            write_at(&busy, (n * 104_729) % (63 << 20), &noise(n, 100_000));
        }
    });
    let (sent, applied) = pair.try_round(true).await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(matches!(sent, Err(FilesError::Changed { ref path }) if path.contains("busy")), "{sent:?}");
    applied.unwrap_err();
    // And a later last round repairs it.
    pair.finish().await;
}

#[tokio::test]
async fn a_round_that_broke_off_is_made_good() {
    let mut pair = Pair::new();
    fs::write(pair.from().join("large"), noise(5, 8 << 20)).unwrap();
    pair.round().await;
    write_at(&pair.from().join("large"), 0, &noise(6, 4 << 20));
    let (mut near, mut far) = tokio::io::duplex(4096);
    let pacer = Pacer::new(None);
    let half = tokio::sync::Notify::new();
    let progress = |done: u64, total: u64| {
        if done * 2 > total {
            half.notify_one();
        }
    };
    {
        let sending = pair.source.send_round(&mut near, 0, 2, false, &pacer, progress);
        let receiving = async {
            let hello: FilesHello = read_message(&mut far).await.unwrap();
            pair.sink.receive_round(&mut far, hello).await
        };
        tokio::select! {
            biased;
            () = half.notified() => {}
            _ = async { tokio::join!(sending, receiving) } => panic!("the round did not break off"),
        }
    }
    drop((near, far));
    // Somebody meddles with what was received.
    write_at(&pair.to().join("large"), 5 << 20, b"spoiled");
    pair.round = 2;
    pair.finish().await;
}

#[tokio::test]
async fn a_spoiled_destination_is_not_called_equal() {
    let mut pair = Pair::new();
    fs::write(pair.from().join("file"), noise(5, 300_000)).unwrap();
    pair.round().await;
    write_at(&pair.to().join("file"), 100, b"spoiled");
    chmod(&pair.to().join("file"), 0o777);
    let (sent, applied) = pair.try_round(true).await;
    assert!(
        matches!(applied, Err(FilesError::Differs { ref path, .. }) if path.contains("file")),
        "{applied:?}"
    );
    assert!(matches!(sent, Err(FilesError::Refused { ref message }) if message.contains("file")), "{sent:?}");
    // Both sides begin anew after an error, and put it right.
    pair.finish().await;
}
