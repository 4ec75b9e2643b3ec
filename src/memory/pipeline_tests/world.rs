//! A real process, a destination over in-memory pipes, and an oracle that reads the process's memory in its own way.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::images::pagemap;
use crate::memory::scanner::{Plan, Reader, Source};
use crate::memory::{
    ContentHashTracker, Ledger, MemoryError, PagePlane, PlaneOptions, Process, RoundStats, Tracker, processes,
};
use crate::model::layout::{ObjectLayout, PE_LAZY, PE_PRESENT};
use crate::model::page::{ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::protocol::pace::Pacer;
use crate::store::assemble::{AssembleStats, assemble};
use crate::store::{PageStore, RetainedPages, StoreError, StreamStats, serve_page_stream};

/// A process of ours that owns memory and changes it on command.
pub(super) struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    pub(super) fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-c", include_str!("target.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(super) fn tell(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the target died of {command:?}");
        answer.trim().to_owned()
    }

    /// Maps memory; returns where.
    pub(super) fn map(&mut self, name: &str, pages: u64, kind: &str) -> PageRange {
        let address: u64 = self.tell(&format!("map {name} {pages} {kind}")).parse().unwrap();
        PageRange { first: PageIndex::of_address(address), count: pages }
    }

    pub(super) fn processes(&self) -> Vec<Process> {
        processes(self.pid()).unwrap()
    }

    pub(super) fn object(&self) -> ObjectId {
        ObjectId::Task(u32::try_from(self.pid()).unwrap())
    }

    /// As the freeze does: nothing runs until [`Target::thaw`].
    pub(super) fn freeze(&self) {
        for process in self.processes() {
            kill(Pid::from_raw(process.pid), Signal::SIGSTOP).unwrap();
            let stopped =
                || std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap().contains(") T ");
            while !stopped() {
                std::thread::yield_now();
            }
        }
    }

    pub(super) fn thaw(&self) {
        for process in self.processes() {
            kill(Pid::from_raw(process.pid), Signal::SIGCONT).unwrap();
        }
    }

    /// Bytes of its memory, through /proc/PID/mem and not the way the product reads.
    pub(super) fn memory(&self, pages: PageRange) -> Vec<u8> {
        read_memory(self.pid(), pages)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn read_memory(pid: i32, pages: PageRange) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(pages.count).unwrap() * PAGE_SIZE];
    File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut bytes, pages.first.address()).unwrap();
    bytes
}

/// A destination and the streams to it.
pub(super) struct World {
    pub(super) store: Arc<PageStore>,
    pub(super) plane: PagePlane,
    pub(super) tracker: Arc<dyn Tracker>,
    serving: Vec<JoinHandle<Result<StreamStats, StoreError>>>,
}

/// What a finished migration left.
pub(super) struct Arrived {
    pub(super) folder: tempfile::TempDir,
    pub(super) layouts: Vec<ObjectLayout>,
    pub(super) stats: AssembleStats,
}

impl World {
    pub(super) fn new(budget: u64, options: PlaneOptions, retained: &Arc<RetainedPages>) -> Self {
        let store = Arc::new(PageStore::new(budget));
        let (mut near, mut serving) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (source, destination) = tokio::io::duplex(256 * 1024);
            near.push(source);
            serving.push(tokio::spawn(serve_page_stream(
                destination,
                Arc::clone(&store),
                Arc::clone(retained),
            )));
        }
        let plane = PagePlane::new(near, Arc::new(Pacer::new(None)), options);
        Self { store, plane, tracker: Arc::new(ContentHashTracker::probe().unwrap()), serving }
    }

    pub(super) fn plain() -> Self {
        Self::new(1 << 30, PlaneOptions::default(), &Arc::new(RetainedPages::new(0)))
    }

    pub(super) async fn round(&mut self, target: &Target) -> Result<RoundStats, MemoryError> {
        let tracker = Arc::clone(&self.tracker);
        self.plane.round(target.processes(), tracker, |_| {}, CancellationToken::new()).await
    }

    /// Plays CRIU: delivers every populated page of the frozen target, object by object, in chunks of its pipe.
    pub(super) async fn last_pages(&mut self, target: &Target) -> (Vec<ObjectLayout>, RoundStats) {
        let plan = Plan::make(&target.processes(), &*self.tracker, &Ledger::default());
        for work in &plan.objects {
            self.plane.final_object(work.object).await.unwrap();
            for range in &work.ranges {
                for first in (range.first.0..range.end().0).step_by(100) {
                    let chunk =
                        PageRange { first: PageIndex(first), count: (range.end().0 - first).min(100) };
                    let (bytes, flags) = match &work.source {
                        Source::Process { process, .. } => {
                            (read_memory(process.pid, chunk), PE_PRESENT | PE_LAZY)
                        }
                        Source::SharedMemory { .. } => {
                            let mut reader = Reader::default();
                            reader.read(&work.source, &[chunk]).unwrap();
                            (reader.buffer, PE_PRESENT)
                        }
                    };
                    self.plane
                        .final_pages(work.object, chunk.first, flags, Bytes::from(bytes))
                        .await
                        .unwrap();
                }
            }
        }
        self.plane.finish_final().await.unwrap()
    }

    /// The last pages, the good end of all streams, and the images.
    pub(super) async fn arrive(mut self, target: &Target) -> (Arrived, RoundStats) {
        let (layouts, last) = self.last_pages(target).await;
        self.plane.close().await.unwrap();
        for stream in self.serving {
            stream.await.unwrap().unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let stats = assemble(&self.store, &layouts, folder.path(), 1, 2, &AtomicBool::new(false)).unwrap();
        assert_eq!(stats.pages_verified, layouts.iter().map(ObjectLayout::pages_present).sum::<u64>());
        (Arrived { folder, layouts, stats }, last)
    }

    /// Ends the streams without a final pass; what the destination's side says.
    pub(super) async fn ends(self) -> Vec<Result<StreamStats, StoreError>> {
        drop(self.plane);
        let mut out = Vec::new();
        for stream in self.serving {
            out.push(stream.await.unwrap());
        }
        out
    }
}

impl Arrived {
    /// The bytes of an object's pages, as CRIU would find them in the images.
    pub(super) fn pages(&self, object: ObjectId, pages: PageRange) -> Vec<Option<Vec<u8>>> {
        let path = self.folder.path().join(pagemap::pagemap_name(object));
        let (id, runs) = pagemap::read(&mut File::open(path).unwrap()).unwrap();
        let file = File::open(self.folder.path().join(pagemap::pages_name(id))).unwrap();
        let (mut at, mut out) = (0, vec![None; usize::try_from(pages.count).unwrap()]);
        for run in runs {
            for page in run.first..run.end() {
                if page >= pages.first.0 && page < pages.end().0 {
                    let mut bytes = vec![0; PAGE_SIZE];
                    file.read_exact_at(&mut bytes, at).unwrap();
                    out[usize::try_from(page - pages.first.0).unwrap()] = Some(bytes);
                }
                at += PAGE_SIZE as u64;
            }
        }
        assert_eq!(file.metadata().unwrap().len(), at, "as many bytes as the pagemap says");
        out
    }

    /// Every page in the images of every process equals the frozen process's memory.
    pub(super) fn assert_equal(&self, target: &Target) {
        for process in target.processes() {
            let object = ObjectId::Task(process.vpid);
            let layout = self.layouts.iter().find(|layout| layout.object == object).unwrap();
            for run in &layout.runs {
                let range = PageRange { first: PageIndex(run.first), count: u64::from(run.count) };
                let expected = read_memory(process.pid, range);
                for (place, page) in self.pages(object, range).into_iter().enumerate() {
                    let wanted = &expected[place * PAGE_SIZE..][..PAGE_SIZE];
                    assert!(page.as_deref() == Some(wanted), "{object} page {:#x}", run.first + place as u64);
                }
            }
        }
    }
}
