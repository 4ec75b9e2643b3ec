//! A task, its memory as the store would hand it over, and a pager.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use decamp::model::page::{Digest, PAGE_SIZE, PageIndex, PageRange};
use decamp::pager::{LazyObject, Pager, PagerHandle, PagerSpec, PagerState};
use decamp::pages::hash::digest_bytes;
use decamp::sys::memfd::MemFile;

/// Longer than anything takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Content of 60 of every 64 pages, as `task.py` expects it.
pub(crate) fn content_of(page: u64) -> [u8; PAGE_SIZE] {
    let word = (page + 1).wrapping_mul(0x1_0000_0001).to_le_bytes();
    word.repeat(PAGE_SIZE / 8).try_into().unwrap()
}

/// The memory of a task, and a look at its file.
pub(crate) fn object(vpid: u32, base: u64, pages: u64) -> (LazyObject, MemFile) {
    let first = base / PAGE_SIZE as u64;
    let file = MemFile::create("pages").unwrap();
    let mut content = Vec::new();
    let digest_file = File::from(OwnedFd::from(MemFile::create("digests").unwrap()));
    for start in (0..pages).step_by(64) {
        let count = (pages - start).min(60);
        let mut bytes = Vec::new();
        for page in start..start + count {
            bytes.extend_from_slice(&content_of(page));
        }
        file.write_pages(first + start, &bytes).unwrap();
        let mut digests = Vec::<Digest>::new();
        digest_bytes(&bytes, &mut digests);
        let flat: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        digest_file.write_all_at(&flat, (first + start) * 32).unwrap();
        content.push(PageRange { first: PageIndex(first + start), count });
    }
    let look = MemFile::from(file.as_fd().try_clone_to_owned().unwrap());
    let object = LazyObject {
        vpid,
        mappings: vec![PageRange { first: PageIndex(first), count: pages }],
        content,
        file: file.into(),
        digests: digest_file.into(),
    };
    (object, look)
}

/// `task.py`.
pub(crate) struct Task {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) vpid: u32,
    pub(crate) base: u64,
    pub(crate) pages: u64,
}

impl Task {
    pub(crate) fn start(vpid: u32, pages: u64, work: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pager/task.py");
        let mut child = Command::new("python3")
            .args([script, &vpid.to_string(), &pages.to_string()])
            .arg(work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        Self { child, input, output, vpid, base: line.trim().parse().unwrap(), pages }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn say(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
    }

    /// The answer; empty when the task is dead, or waits for a page that never comes and is killed for it.
    pub(crate) fn hear(&mut self) -> String {
        use nix::poll::{PollFd, PollFlags, poll};
        let start = Instant::now();
        let mut ready = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
        // Signals of other tests' children interrupt it.
        while !poll(&mut ready, 1000u16).is_ok_and(|count| count > 0) {
            if start.elapsed() > PATIENCE {
                self.kill();
                break;
            }
        }
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.say(command);
        self.hear()
    }

    #[track_caller]
    pub(crate) fn must(&mut self, command: &str) {
        assert_eq!(self.ask(command), "ok", "{command}");
    }

    pub(crate) fn kill(&mut self) {
        let _gone = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn spec(dir: &Path) -> PagerSpec {
    PagerSpec {
        program: PathBuf::from(env!("CARGO_BIN_EXE_decamp")),
        folder: dir.to_owned(),
        work_dir: dir.to_owned(),
        state_file: dir.join("pager.json"),
    }
}

/// A pager that has the task's memory; the task has lent its userfaultfd but is not "restored".
pub(crate) async fn lent(dir: &Path, pages: u64) -> (PagerHandle, Task, MemFile) {
    let pager = Pager::spawn(spec(dir)).await.unwrap();
    let mut task = Task::start(42, pages, dir);
    let (object, look) = object(task.vpid, task.base, task.pages);
    pager.load(vec![object]).await.unwrap();
    task.must("lend");
    (pager, task, look)
}

/// Waits for a state.
pub(crate) async fn until(pager: &PagerHandle, test: impl Fn(&PagerState) -> bool) -> PagerState {
    let mut watch = pager.watch();
    let state = tokio::time::timeout(PATIENCE, watch.wait_for(test)).await;
    state.expect("the state came in time").expect("somebody watches").clone()
}

pub(crate) async fn resident(pager: &PagerHandle) {
    let end = until(pager, PagerState::is_final).await;
    assert!(matches!(end, PagerState::Resident { .. }), "{end:?}: {:?}", pager.report());
    let report = pager.report().unwrap();
    assert_eq!((report.pages_missing, report.pages_homeless), (0, 0));
}

/// Waits for something that nobody announces.
pub(crate) async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Keeper and worker of the pager in this folder.
pub(crate) fn processes(dir: &Path) -> (i32, i32) {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.starts_with("decamp-pager\0") && line.contains(&*dir.to_string_lossy()) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            found.push((pid, parent.unwrap_or(0)));
        }
    }
    let worker = found.iter().find(|(_, parent)| found.iter().any(|(pid, _)| pid == parent)).unwrap();
    (worker.1, worker.0)
}

pub(crate) fn sigkill(pid: i32) {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// A freezer cgroup of version 1 or 2, gone at the end.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn with(task: &Task) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
        let path = root.join(format!("decamp-pager-test-{}", task.pid()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("cgroup.procs"), task.pid().to_string()).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let start = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
