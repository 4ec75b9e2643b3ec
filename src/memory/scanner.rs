//! One round's reading: a plan made from the trackers' surveys, and threads that read, test, hash and compare piece by piece and
//! queue what differs. Blocking code; the queue's bound is what slows it down.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tokio::sync::mpsc;

use super::batch::{BatchBuilder, Work};
use super::hidden_pass::difference;
use super::ledger::Ledger;
use super::mapping::Backing;
use super::pipeline::Shared;
use super::process::Process;
use super::stats::Counters;
use super::tracker::{Survey, Tracker};
use crate::model::layout::push_merged;
use crate::model::limits::FORGET_RANGES_MAX;
use crate::model::page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::hash::{ZERO_DIGEST, digest_many};
use crate::pages::zero::is_zero;
use crate::sys::process_vm;

/// Pages read at once: 1 MiB, which is still in the second-level cache when it is hashed.
const PIECE_PAGES: u64 = 256;
/// Ranges read at once: scattered pages make short iovecs, and 256 are where longer lists gain no more.
pub(super) const PIECE_RANGES: usize = 256;

/// Where an object's bytes are read.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Through a thread of this process. `stopped`: its mappings cannot change, and what it may not read itself is read all the
    /// same.
    Process { process: Process, task: i32, stopped: bool },
    /// Through a mapping of it (/proc/PID/map_files), by file offset: reading a hole through the mapping would fill it.
    SharedMemory { path: PathBuf, inode: u64 },
}

/// What a round reads of one object.
#[derive(Debug)]
pub(super) struct ObjectWork {
    pub(super) object: ObjectId,
    pub(super) source: Source,
    pub(super) ranges: Vec<PageRange>,
}

/// What a round reads, and what it found gone.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) objects: Vec<ObjectWork>,
    pub(super) forget: Vec<(ObjectId, Vec<PageRange>)>,
    pub(super) pages_total: u64,
    /// Pages that exist, are not held by the destination, and were not named by the tracker.
    pub(super) pages_missed: u64,
    /// Objects that exist but could not be looked at: nothing of theirs is forgotten.
    unseen: HashSet<ObjectId>,
    /// A process could not be looked at, so that nobody knows which shared memory it maps.
    shared_unseen: bool,
    cursor: Mutex<Cursor>,
}

#[derive(Debug, Default)]
struct Cursor {
    object: usize,
    range: usize,
    /// Pages of the range that are handed out.
    done: u64,
}

impl Plan {
    /// Looks at all processes. One that cannot be looked at is left out, and then nothing that might be its own is forgotten.
    pub(super) fn make(processes: &[Process], tracker: &dyn Tracker, ledger: &Ledger) -> Self {
        let mut plan = Self::default();
        let mut populated: HashMap<ObjectId, Vec<PageRange>> = HashMap::new();
        for process in processes {
            match tracker.survey(*process) {
                Ok(survey) => plan.add(*process, &survey, &mut populated),
                Err(error) => {
                    tracing::debug!(pid = process.pid, %error, "process left out of this round");
                    plan.unseen.insert(ObjectId::Task(process.vpid));
                    plan.shared_unseen = true;
                }
            }
        }
        for object in ledger.known_objects() {
            let shared_and_uncertain = matches!(object, ObjectId::Shmem(_)) && plan.shared_unseen;
            if !plan.unseen.contains(&object) && !shared_and_uncertain {
                let now = populated.get(&object).map_or(&[][..], Vec::as_slice);
                let gone = ledger.keep_only(object, now);
                plan.forget.extend(gone.chunks(FORGET_RANGES_MAX).map(|part| (object, part.to_vec())));
            }
        }
        plan.pages_total = plan.objects.iter().flat_map(|work| &work.ranges).map(|range| range.count).sum();
        plan
    }

    /// What is to be read of the mappings of one stopped process that CRIU was not shown: what the tracker names, and what exists
    /// without being held by the destination.
    pub(super) fn of_hidden(
        process: Process,
        hidden: &[PageRange],
        survey: &Survey,
        ledger: &Ledger,
    ) -> Self {
        let object = ObjectId::Task(process.vpid);
        let (mut exists, mut named) = (Vec::new(), Vec::new());
        for mapped in &survey.mappings {
            mapped.populated.iter().for_each(|range| push_merged(&mut exists, *range));
            let candidates = mapped.candidates.as_ref().unwrap_or(&mapped.populated);
            candidates.iter().for_each(|range| push_merged(&mut named, *range));
        }
        let gone = ledger.keep_only_within(object, hidden, &exists);
        let missed = difference(&difference(&exists, &named), &ledger.held(object, hidden));
        let pages_missed = missed.iter().map(|range| range.count).sum();
        let mut ranges: Vec<PageRange> = named.into_iter().chain(missed).collect();
        ranges.sort_unstable_by_key(|range| range.first);
        let pages_total = ranges.iter().map(|range| range.count).sum();
        Self {
            objects: vec![ObjectWork {
                object,
                source: Source::Process { process, task: survey.task, stopped: true },
                ranges,
            }],
            forget: gone.chunks(FORGET_RANGES_MAX).map(|part| (object, part.to_vec())).collect(),
            pages_total,
            pages_missed,
            ..Self::default()
        }
    }

    /// About how many pieces there are.
    pub(super) fn pieces(&self) -> usize {
        usize::try_from(self.pages_total / PIECE_PAGES).unwrap_or(usize::MAX)
    }

    fn add(&mut self, process: Process, survey: &Survey, populated: &mut HashMap<ObjectId, Vec<PageRange>>) {
        let object = ObjectId::Task(process.vpid);
        let (mut exists, mut ranges) = (Vec::new(), Vec::new());
        for mapped in &survey.mappings {
            if let Backing::Shared { inode } = mapped.mapping.backing {
                self.add_shared(survey.task, mapped.mapping.pages, inode, populated);
                continue;
            }
            mapped.populated.iter().for_each(|range| push_merged(&mut exists, *range));
            let candidates = mapped.candidates.as_ref().unwrap_or(&mapped.populated);
            candidates.iter().for_each(|range| push_merged(&mut ranges, *range));
        }
        let source = Source::Process { process, task: survey.task, stopped: false };
        self.objects.push(ObjectWork { object, source, ranges });
        populated.insert(object, exists);
    }

    /// Shared memory is read once for a round, whoever maps it.
    fn add_shared(
        &mut self,
        task: i32,
        mapping: PageRange,
        inode: u64,
        populated: &mut HashMap<ObjectId, Vec<PageRange>>,
    ) {
        let object = ObjectId::Shmem(inode);
        if populated.contains_key(&object) {
            return;
        }
        let (start, end) = (mapping.first.address(), mapping.end().address());
        let path = PathBuf::from(format!("/proc/{task}/map_files/{start:x}-{end:x}"));
        match open_shared(&path, inode).and_then(|file| data_ranges(&file)) {
            Ok(ranges) => {
                populated.insert(object, ranges.clone());
                self.objects.push(ObjectWork {
                    object,
                    source: Source::SharedMemory { path, inode },
                    ranges,
                });
            }
            Err(error) => {
                tracing::debug!(%object, %error, "shared memory left to the final pass");
                self.unseen.insert(object);
            }
        }
    }

    /// The next piece: number of its object, and what to read.
    pub(super) fn next_piece(&self, runs: &mut Vec<PageRange>) -> Option<usize> {
        runs.clear();
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        while runs.is_empty() {
            let work = self.objects.get(cursor.object)?;
            let mut room = PIECE_PAGES;
            while room > 0 && runs.len() < PIECE_RANGES {
                let Some(range) = work.ranges.get(cursor.range) else { break };
                let count = (range.count - cursor.done).min(room);
                runs.push(PageRange { first: PageIndex(range.first.0 + cursor.done), count });
                room -= count;
                cursor.done += count;
                if cursor.done == range.count {
                    (cursor.range, cursor.done) = (cursor.range + 1, 0);
                }
            }
            if runs.is_empty() {
                *cursor = Cursor { object: cursor.object + 1, range: 0, done: 0 };
            } else {
                return Some(cursor.object);
            }
        }
        None
    }
}

fn open_shared(path: &PathBuf, inode: u64) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.ino() == inode {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "another object is mapped there now"))
}

/// Where a file has data (lseek(2), SEEK_DATA).
fn data_ranges(file: &File) -> io::Result<Vec<PageRange>> {
    let page = PAGE_SIZE as i64;
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start / page,
            Err(Errno::ENXIO) => return Ok(ranges),
            Err(e) => return Err(e.into()),
        };
        let end = lseek(file, start * page, Whence::SeekHole)?;
        at = end;
        let (first, end) = (start.unsigned_abs(), end.unsigned_abs().div_ceil(PAGE_SIZE as u64));
        if end <= first {
            return Ok(ranges);
        }
        push_merged(&mut ranges, PageRange { first: PageIndex(first), count: end - first });
    }
}

/// Reads pieces of objects; keeps buffers, and the last file, between them.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) buffer: Vec<u8>,
    /// Pages of the piece that could not be read, ascending.
    pub(super) missing: Vec<usize>,
    open: Option<(PathBuf, File)>,
}

impl Reader {
    /// Reads `runs` into the buffer, one after the other.
    pub(super) fn read(&mut self, source: &Source, runs: &[PageRange]) -> io::Result<()> {
        let pages: u64 = runs.iter().map(|run| run.count).sum();
        let length = usize::try_from(pages).expect("a piece is small") * PAGE_SIZE;
        self.buffer.resize(length, 0);
        match source {
            Source::Process { task, stopped, .. } => {
                process_vm::read_pages(*task, runs, &mut self.buffer, &mut self.missing)?;
                if *stopped && !self.missing.is_empty() {
                    process_vm::read_protected(*task, runs, &mut self.buffer, &mut self.missing)?;
                }
                Ok(())
            }
            Source::SharedMemory { path, inode } => self.read_shared(path, *inode, runs),
        }
    }

    fn read_shared(&mut self, path: &PathBuf, inode: u64, runs: &[PageRange]) -> io::Result<()> {
        self.missing.clear();
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            self.open = Some((path.clone(), open_shared(path, inode)?));
        }
        let Some((_, file)) = &self.open else { return Err(io::ErrorKind::NotFound.into()) };
        let mut at = 0;
        for run in runs {
            let length = usize::try_from(run.count).expect("a piece is small") * PAGE_SIZE;
            let room = &mut self.buffer[at * PAGE_SIZE..][..length];
            let mut done = 0;
            while done < length {
                match file.read_at(&mut room[done..], run.first.address() + done as u64) {
                    // The file became shorter.
                    Ok(0) => break,
                    Ok(read) => done += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.missing.extend(at + done / PAGE_SIZE..at + length / PAGE_SIZE);
            at += length / PAGE_SIZE;
        }
        Ok(())
    }
}

/// Tests and hashes pages side by side: the digest of each, in order.
#[derive(Debug, Default)]
pub(super) struct Digester {
    places: Vec<usize>,
    computed: Vec<Digest>,
}

impl Digester {
    /// One digest for each page of `bytes`.
    pub(super) fn digest(&mut self, bytes: &[u8], out: &mut Vec<Digest>) {
        let pages = bytes.as_chunks::<PAGE_SIZE>().0;
        out.clear();
        out.resize(pages.len(), ZERO_DIGEST);
        self.places.clear();
        self.computed.clear();
        // In groups, so that a page is still in the first-level cache when it is hashed.
        let mut group: Vec<&[u8; PAGE_SIZE]> = Vec::with_capacity(16);
        for (place, page) in pages.iter().enumerate() {
            if !is_zero(page) {
                self.places.push(place);
                group.push(page);
                if group.len() == 16 {
                    digest_many(&group, &mut self.computed);
                    group.clear();
                }
            }
        }
        digest_many(&group, &mut self.computed);
        for (place, digest) in self.places.iter().zip(&self.computed) {
            out[*place] = *digest;
        }
    }
}

/// One scanner thread: takes pieces until none is left, `stop` is set, or nobody listens any more.
pub(super) fn scan(
    plan: &Plan,
    tracker: &dyn Tracker,
    shared: &Shared,
    queue: &mpsc::Sender<Work>,
    stop: &AtomicBool,
) {
    let mut reader = Reader::default();
    let mut digester = Digester::default();
    let (mut runs, mut digests, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut builder: Option<BatchBuilder> = None;
    while let Some(number) = plan.next_piece(&mut runs) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let work = &plan.objects[number];
        if let Err(error) = reader.read(&work.source, &runs) {
            // Gone in mid-scan: its end is no failure of ours, and the final pass has what is left.
            tracing::debug!(object = %work.object, %error, "pages left to the next round");
            for run in &runs {
                skip(tracker, &work.source, *run, shared);
            }
            continue;
        }
        digester.digest(&reader.buffer, &mut digests);
        entries.clear();
        entries
            .extend(runs.iter().flat_map(|run| run.iter()).map(|page| page.0).zip(digests.iter().copied()));
        Counters::add(&shared.counters.scanned, entries.len() as u64);
        for place in &reader.missing {
            let page = PageRange { first: PageIndex(entries[*place].0), count: 1 };
            skip(tracker, &work.source, page, shared);
        }
        let mut differing = Vec::new();
        shared.ledger.differing(work.object, &entries, |place| differing.push(place));
        if !reader.missing.is_empty() {
            differing.retain(|place| reader.missing.binary_search(place).is_err());
        }
        Counters::add(&shared.counters.dirty, differing.len() as u64);
        for place in differing {
            if builder.as_ref().is_some_and(|open| open.object() != work.object || open.is_full())
                && !flush(&mut builder, shared, queue)
            {
                return;
            }
            let open = builder.get_or_insert_with(|| BatchBuilder::new(work.object, shared.pool.take()));
            let (page, digest) = entries[place];
            let bytes = &reader.buffer[place * PAGE_SIZE..][..PAGE_SIZE];
            open.push(page, digest, (digest != ZERO_DIGEST).then_some(bytes));
        }
    }
    flush(&mut builder, shared, queue);
}

fn skip(tracker: &dyn Tracker, source: &Source, pages: PageRange, shared: &Shared) {
    Counters::add(&shared.counters.unread, pages.count);
    if let Source::Process { process, .. } = source {
        tracker.not_read(*process, pages);
    }
}

/// Queues the batch; false when nobody takes it.
fn flush(builder: &mut Option<BatchBuilder>, shared: &Shared, queue: &mpsc::Sender<Work>) -> bool {
    let Some(batch) = builder.take().and_then(BatchBuilder::finish) else { return true };
    shared.outstanding.add();
    queue.blocking_send(Work::Pages(batch)).is_ok()
}
