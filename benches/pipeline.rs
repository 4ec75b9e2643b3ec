//! The page plane with a real process at one end: scanning an idle process, a whole first round into the store over in-memory
//! pipes, receiving alone, and assembling CRIU's images in /dev/shm. Bytes per second of the process's memory.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use decamp::memory::{ContentHashTracker, PagePlane, PlaneOptions, RoundStats, Tracker, processes};
use decamp::model::layout::{LayoutRun, ObjectLayout, PE_PRESENT};
use decamp::model::page::{Digest, ObjectId, PAGE_SIZE};
use decamp::pages::compress::Compression;
use decamp::pages::hash::{Root, digest_bytes};
use decamp::protocol::pace::Pacer;
use decamp::protocol::pages::{Codec, Pages, Run, RunKind};
use decamp::store::assemble::assemble;
use decamp::store::{PageStore, RetainedPages, serve_page_stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const BYTES: u64 = 128 << 20;
const STREAMS: usize = 2;

/// A process with `BYTES` of memory, half noise and half text, that does nothing.
struct Target(Child);

impl Target {
    fn start() -> Self {
        let program = format!(
            "import mmap, os, signal\n\
             m = mmap.mmap(-1, {BYTES}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
             for at in range(0, {BYTES}, 8192):\n\
             \x20   m[at:at + 4096] = os.urandom(4096)\n\
             \x20   m[at + 4096:at + 8192] = (b'%d is a line that a process keeps. ' % at * 200)[:4096]\n\
             print('ready', flush=True)\n\
             signal.pause()\n"
        );
        let mut child =
            Command::new("python3").args(["-c", &program]).stdout(Stdio::piped()).spawn().expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says ready");
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plane(runtime: &Runtime, compression: Compression) -> (PagePlane, Arc<PageStore>) {
    let _inside = runtime.enter();
    let store = Arc::new(PageStore::new(BYTES * 2));
    let retained = Arc::new(RetainedPages::new(0));
    let streams = (0..STREAMS).map(|_| {
        let (near, far) = tokio::io::duplex(4 << 20);
        tokio::spawn(serve_page_stream(far, Arc::clone(&store), Arc::clone(&retained)));
        near
    });
    let options = PlaneOptions { compression, ask_retained: false };
    (PagePlane::new(streams.collect(), Arc::new(Pacer::new(None)), options), store)
}

fn round(runtime: &Runtime, plane: &mut PagePlane, pid: i32, tracker: &Arc<dyn Tracker>) -> RoundStats {
    let processes = processes(pid).expect("the target lives");
    let round = plane.round(processes, Arc::clone(tracker), |_| {}, CancellationToken::new());
    runtime.block_on(round).expect("the round succeeds")
}

fn rounds(c: &mut Criterion, runtime: &Runtime) {
    let target = Target::start();
    let tracker: Arc<dyn Tracker> = Arc::new(ContentHashTracker::probe().expect("a kernel with pagemap"));
    let process = processes(target.pid()).expect("the target lives")[0];
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Bytes(BYTES)).sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("survey", |b| b.iter(|| tracker.survey(process)));
    let (mut idle, _store) = plane(runtime, Compression::Off);
    round(runtime, &mut idle, target.pid(), &tracker);
    group.bench_function("scan, hash, compare: idle round", |b| {
        b.iter(|| round(runtime, &mut idle, target.pid(), &tracker));
    });
    for (name, compression) in
        [("raw", Compression::Off), ("zstd", Compression::On), ("auto", Compression::Auto)]
    {
        group.bench_function(BenchmarkId::new("first round into the store", name), |b| {
            b.iter_batched(
                || plane(runtime, compression),
                |(mut plane, store)| {
                    round(runtime, &mut plane, target.pid(), &tracker);
                    (plane, store)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// `BYTES` of pages of one object as frames of 256 pages, and the digests of all.
fn frames() -> (Vec<Bytes>, Vec<Digest>) {
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut digests = Vec::new();
    let frames = (0..BYTES >> 20).map(|number| {
        let mut payload = vec![0; 1 << 20];
        noise.fill(&mut payload);
        let start = digests.len();
        digest_bytes(&payload, &mut digests);
        let pages = Pages {
            batch: number,
            object: ObjectId::Task(1),
            runs: vec![Run { first: number * 256, count: 256, kind: RunKind::Content }],
            known: Vec::new(),
            root: Root::of(&digests[start..]),
            codec: Codec::None,
            payload: Bytes::new(),
        };
        let mut frame = Vec::new();
        pages.encode_head(payload.len(), &mut frame);
        frame.extend_from_slice(&payload);
        Bytes::from(frame)
    });
    (frames.collect(), digests)
}

/// Sends all frames over one stream and waits for all answers.
async fn fill(store: &Arc<PageStore>, frames: &[Bytes]) {
    let (mut near, far) = tokio::io::duplex(4 << 20);
    let serving = tokio::spawn(serve_page_stream(far, Arc::clone(store), Arc::new(RetainedPages::new(0))));
    for frame in frames {
        near.write_all(frame).await.expect("it is read");
    }
    near.shutdown().await.expect("it is open");
    near.read_to_end(&mut Vec::new()).await.expect("it answers");
    serving.await.expect("no panic").expect("honest frames");
}

fn destination(c: &mut Criterion, runtime: &Runtime) {
    let (frames, digests) = frames();
    let mut group = c.benchmark_group("destination");
    group.throughput(Throughput::Bytes(BYTES)).sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("receive, verify, store: one stream", |b| {
        b.iter_batched(
            || Arc::new(PageStore::new(BYTES * 2)),
            |store| {
                runtime.block_on(fill(&store, &frames));
                store
            },
            BatchSize::PerIteration,
        );
    });
    let pages = u32::try_from(BYTES / PAGE_SIZE as u64).expect("a bench is small");
    let runs = vec![LayoutRun { first: 0, count: pages, flags: PE_PRESENT }];
    let layouts = [ObjectLayout { runs, root: Root::of(&digests), ..ObjectLayout::empty(ObjectId::Task(1)) }];
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("assemble, threads", threads), |b| {
            b.iter_batched(
                || {
                    let store = Arc::new(PageStore::new(BYTES * 2));
                    runtime.block_on(fill(&store, &frames));
                    (store, tempfile::tempdir_in("/dev/shm").expect("tmpfs"))
                },
                |(store, folder)| {
                    let never = AtomicBool::new(false);
                    assemble(&store, &layouts, folder.path(), 1, threads, &never)
                        .expect("every page is there");
                    (store, folder)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    let mut criterion = Criterion::default().configure_from_args();
    rounds(&mut criterion, &runtime);
    destination(&mut criterion, &runtime);
    criterion.final_summary();
}
