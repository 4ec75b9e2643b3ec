//! The owner of some address spaces: the only thread that reads their events and installs pages in them.
//!
//! ```text
//!            ┌──────────────────────────────────────────────────────────────┐
//!  epoll ──▶ │ events ─▶ faults ─▶ 16 KiB around one fault ─▶ 32 KiB of fill │ ─▶ again
//!            └──────────────────────────────────────────────────────────────┘
//! ```
//! So a fault waits for at most one step of the fill. When something goes wrong the thread stops with everything in its
//! hands, descriptors included: whoever touches a missing page then waits, and never sees a zero.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::object::{Object, Scratch};
use super::pace::Pace;
use super::prepare::{CHUNK, Doorbell, Job, Prepared, Request};
use super::progress::Progress;
use super::remaining::Piece;
use super::space::{Landed, Space, mismatch};
use crate::model::page::{PAGE_SIZE, PageIndex, PageRange};
use crate::sys::priority::set_thread;

/// Pages of the fill that are installed between two looks at the faults: 32 KiB. Less would cost more per page.
const STEP: u64 = 8;
/// Chunks of one owner that are being prepared or wait to be installed.
pub(super) const BUFFERS: usize = 8;
/// The doorbell's name in epoll; spaces count from 0.
const BELL: u64 = u64::MAX;
/// Niceness of an owner: a fault is a container that stands still.
const NICE: i32 = -10;
/// How long the memory limit may stand in the way before we give up.
const FULL_MAX: Duration = Duration::from_secs(60);

/// What the main thread tells an owner.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve this one too.
    Serve(Box<Space>),
    /// CRIU has finished: the layout is final, the fill may begin.
    Restored,
}

/// The main thread's hold on an owner.
#[derive(Debug)]
pub(super) struct OwnerHandle {
    pub(super) commands: SyncSender<Command>,
    pub(super) bell: Arc<Doorbell>,
}

impl OwnerHandle {
    pub(super) fn tell(&self, command: Command) {
        // Owners live as long as the process.
        if self.commands.send(command).is_ok() {
            self.bell.ring();
        }
    }
}

pub(super) struct Owner {
    spaces: HashMap<u64, Space>,
    next_id: u64,
    epoll: Epoll,
    bell: Arc<Doorbell>,
    commands: Receiver<Command>,
    jobs: SyncSender<Job>,
    answer: SyncSender<Prepared>,
    prepared: Receiver<Prepared>,
    /// The chunk being installed, and how many of its pages are done.
    chunk: Option<(Prepared, u64)>,
    buffers: Vec<Vec<u8>>,
    /// Spaces to fill, the current one first.
    order: VecDeque<u64>,
    restored: bool,
    pace: Pace,
    scratch: Scratch,
    full_since: Option<Instant>,
    progress: Arc<Progress>,
}

impl Owner {
    /// The owner and the handle to it; `run` belongs on a thread of its own. `cpus`: its share of the machine.
    pub(super) fn new(
        jobs: SyncSender<Job>,
        progress: Arc<Progress>,
        cpus: f64,
    ) -> nix::Result<(Self, OwnerHandle)> {
        let bell = Arc::new(Doorbell::new()?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell.event.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let (tell, commands) = sync_channel(64);
        let (answer, prepared) = sync_channel(BUFFERS);
        let handle = OwnerHandle { commands: tell, bell: Arc::clone(&bell) };
        let buffers = (0..BUFFERS).map(|_| vec![0; chunk_bytes(CHUNK)]).collect();
        let owner = Self {
            spaces: HashMap::new(),
            next_id: 0,
            epoll,
            bell,
            commands,
            jobs,
            answer,
            prepared,
            chunk: None,
            buffers,
            order: VecDeque::new(),
            restored: false,
            pace: Pace::new(Instant::now(), cpus),
            scratch: Scratch::default(),
            full_since: None,
            progress,
        };
        Ok((owner, handle))
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        // Without CAP_SYS_NICE it stays as it is: faults are then a little slower.
        let _refused = set_thread(0, NICE);
        while !self.progress.is_broken() {
            if let Err(why) = self.turn() {
                self.progress.break_with(why);
            }
        }
        // Dropping the spaces would close their descriptors, and the kernel would show zero pages.
        loop {
            std::thread::park();
        }
    }

    fn turn(&mut self) -> Result<(), String> {
        self.listen()?;
        let mut calm = true;
        let waiting: Vec<u64> =
            self.spaces.iter().filter(|(_, space)| !space.faults.is_empty()).map(|(id, _)| *id).collect();
        for id in waiting {
            calm &= self.serve_faults(id)?;
        }
        if !calm {
            // The thread whose event was read has to run before the kernel lets us in again.
            std::thread::sleep(Duration::from_micros(20));
            return Ok(());
        }
        if let Some(id) = self.spaces.iter().find(|(_, space)| !space.around.is_empty()).map(|(id, _)| *id) {
            return self.serve_around(id);
        }
        self.request()?;
        self.fill()?;
        self.finish()
    }

    /// Reads what has come, and sleeps when there is nothing to do.
    fn listen(&mut self) -> Result<(), String> {
        self.take_commands()?;
        let mut events = [EpollEvent::empty(); 16];
        let mut timeout = self.idle_for();
        if timeout > 0 {
            self.bell.before_sleep();
            self.take_commands()?;
            self.take_prepared();
            timeout = self.idle_for();
        }
        let timeout = EpollTimeout::from(timeout);
        let got = match self.epoll.wait(&mut events, timeout) {
            Ok(got) => got,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(format!("cannot wait for faults: {errno}")),
        };
        self.bell.after_sleep();
        for event in &events[..got] {
            if event.data() != BELL {
                self.read(event.data())?;
            }
        }
        Ok(())
    }

    /// Milliseconds that nothing has to be done, unless something comes.
    fn idle_for(&self) -> u16 {
        let has = |test: fn(&Space) -> bool| self.spaces.values().any(test);
        if has(|space| !space.faults.is_empty() || !space.around.is_empty()) {
            return 0;
        }
        let now = Instant::now();
        let due = if self.chunk.is_some() {
            self.pace.next()
        } else if self.restored && has(|space| space.remaining.count() > 0) {
            self.pace.latest()
        } else {
            return 1000;
        };
        let wait = due.saturating_duration_since(now);
        if wait.is_zero() { 0 } else { u16::try_from(wait.as_millis() + 1).unwrap_or(1000).min(1000) }
    }

    fn take_commands(&mut self) -> Result<(), String> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Serve(space) => self.adopt(*space)?,
                Command::Restored => self.restored = true,
            }
        }
        Ok(())
    }

    fn take_prepared(&mut self) {
        if self.chunk.is_none() {
            self.chunk = self.prepared.try_recv().ok().map(|chunk| (chunk, 0));
        }
    }

    fn adopt(&mut self, space: Space) -> Result<(), String> {
        let id = self.next_id;
        self.next_id += 1;
        self.epoll
            .add(space.uffd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id))
            .map_err(|errno| format!("cannot watch a userfaultfd: {errno}"))?;
        self.order.push_back(id);
        self.spaces.insert(id, space);
        Ok(())
    }

    /// Reads everything that one descriptor has to say.
    fn read(&mut self, id: u64) -> Result<(), String> {
        let mut events = Vec::new();
        loop {
            let Some(space) = self.spaces.get_mut(&id) else { return Ok(()) };
            let more = space.uffd.read(&mut events).map_err(|e| format!("cannot read a userfaultfd: {e}"))?;
            let mut children = Vec::new();
            let before = space.remaining.count();
            for event in events.drain(..) {
                children.extend(space.note(event)?);
            }
            self.progress.settled(before - space.remaining.count());
            for child in children {
                self.progress.opened(child.remaining.count());
                self.adopt(child)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Answers the faults of a space; false when the kernel wants an event read first.
    fn serve_faults(&mut self, id: u64) -> Result<bool, String> {
        let Some(space) = self.spaces.get_mut(&id) else { return Ok(true) };
        let before = space.remaining.count();
        let faults = std::mem::take(&mut space.faults);
        let mut landed = Landed::Done;
        for (page, write) in faults {
            if matches!(landed, Landed::Done) {
                landed = space.serve(page, write, &mut self.scratch);
                self.progress.fault();
            }
            if !matches!(landed, Landed::Done) {
                space.faults.push((page, write));
            }
        }
        self.progress.settled(before - space.remaining.count());
        self.conclude(id, landed)
    }

    fn serve_around(&mut self, id: u64) -> Result<(), String> {
        let Some(space) = self.spaces.get_mut(&id) else { return Ok(()) };
        let before = space.remaining.count();
        let landed = space.serve_around(&mut self.scratch);
        self.progress.settled(before - space.remaining.count());
        self.conclude(id, landed).map(drop)
    }

    /// True when it is done.
    fn conclude(&mut self, id: u64, landed: Landed) -> Result<bool, String> {
        match landed {
            Landed::Done => self.full_since = None,
            Landed::Changing => {
                self.read(id)?;
                return Ok(false);
            }
            Landed::Full => {
                let since = *self.full_since.get_or_insert_with(Instant::now);
                if since.elapsed() > FULL_MAX {
                    return Err(format!("the container's memory limit left no room for {FULL_MAX:?}"));
                }
                std::thread::sleep(Duration::from_millis(1));
                return Ok(false);
            }
            Landed::Gone => {
                if let Some(space) = self.spaces.get_mut(&id) {
                    self.progress.settled(space.remaining.count());
                    space.forget_all();
                }
            }
            Landed::Broken(why) => return Err(why),
        }
        Ok(true)
    }

    /// Hands free buffers to the preparers.
    fn request(&mut self) -> Result<(), String> {
        if !self.restored {
            return Ok(());
        }
        while !self.buffers.is_empty() {
            let Some((id, piece)) = self.next_piece() else { return Ok(()) };
            let Some(space) = self.spaces.get_mut(&id) else { return Ok(()) };
            let (Some(object), Some(bytes)) = (&space.object, self.buffers.pop()) else {
                return Err("missing pages without an object".to_owned());
            };
            space.requested += 1;
            let (answer, bell) = (self.answer.clone(), Arc::clone(&self.bell));
            let read = Request { space: id, piece, object: Arc::clone(object), bytes, answer, bell };
            let spent = spent(space, &self.progress);
            // The channel has room for every buffer, so this does not block.
            self.jobs
                .send(Job { spent, read: Some(read) })
                .map_err(|_| "the preparers are gone".to_owned())?;
        }
        Ok(())
    }

    /// The next missing pages that nobody prepares.
    fn next_piece(&mut self) -> Option<(u64, Piece)> {
        for _ in 0..self.order.len() {
            let id = *self.order.front()?;
            if let Some(space) = self.spaces.get_mut(&id) {
                let mut next = space.remaining.next(space.cursor);
                if next.is_none() && space.requested == 0 {
                    next = space.remaining.next(0);
                }
                if let Some(piece) = next {
                    let count = piece.count.min(CHUNK);
                    space.cursor = piece.place + count;
                    return Some((id, Piece { count, ..piece }));
                }
            }
            self.order.rotate_left(1);
        }
        None
    }

    /// Installs one step of the fill, if one is due.
    fn fill(&mut self) -> Result<(), String> {
        self.take_prepared();
        let now = Instant::now();
        if self.chunk.is_none() && self.restored && now >= self.pace.latest() {
            self.prepare_ourselves(now)?;
        }
        let Some((chunk, done)) = &mut self.chunk else { return Ok(()) };
        if self.pace.next() > now {
            return Ok(());
        }
        let id = chunk.space;
        let count = STEP.min(chunk.piece.count - *done);
        let step = Piece { place: chunk.piece.place + *done, origin: chunk.piece.origin + *done, count };
        let skip = chunk_bytes(*done);
        let mut landed = Landed::Done;
        if let Some(space) = self.spaces.get_mut(&id) {
            if let Some(why) = refused(space, chunk, step, *done) {
                return Err(why);
            }
            let before = space.remaining.count();
            landed = space.install(step, &chunk.bytes[skip..skip + chunk_bytes(count)], true);
            self.progress.settled(before - space.remaining.count());
        }
        if !self.conclude(id, landed)? {
            std::thread::sleep(Duration::from_micros(20));
            return Ok(());
        }
        let Some((chunk, done)) = &mut self.chunk else { return Ok(()) };
        *done += count;
        if *done == chunk.piece.count {
            self.pace.installed(Instant::now(), chunk_bytes(*done), chunk.waited_ns, chunk.ran_ns);
            self.recycle();
        }
        Ok(())
    }

    fn recycle(&mut self) {
        let Some((chunk, _)) = self.chunk.take() else { return };
        self.buffers.push(chunk.bytes);
        if let Some(space) = self.spaces.get_mut(&chunk.space) {
            space.requested -= 1;
        }
    }

    /// The preparers get no CPU: one chunk by our own hand, so that the fill ends whatever else the machine does.
    fn prepare_ourselves(&mut self, now: Instant) -> Result<(), String> {
        let missing = self.spaces.iter().find_map(|(id, space)| Some((*id, space.remaining.next(0)?)));
        let Some((id, piece)) = missing else { return Ok(()) };
        let Some(space) = self.spaces.get_mut(&id) else { return Ok(()) };
        let piece = Piece { count: piece.count.min(STEP), ..piece };
        let mut bytes = vec![0; chunk_bytes(piece.count)];
        space.read(piece.origin, &mut bytes, &mut self.scratch)?;
        let before = space.remaining.count();
        let landed = space.install(piece, &bytes, true);
        self.progress.settled(before - space.remaining.count());
        self.pace.installed(now, bytes.len(), 1, 1);
        self.conclude(id, landed).map(drop)
    }

    /// Closes the descriptors of spaces in which nothing is missing: from then on they cost nothing.
    fn finish(&mut self) -> Result<(), String> {
        if !self.restored {
            return Ok(());
        }
        let done = |space: &Space| space.remaining.count() == 0 && space.requested == 0;
        let complete: Vec<u64> =
            self.spaces.iter().filter(|(_, space)| done(space)).map(|(id, _)| *id).collect();
        for id in complete {
            let Some(mut space) = self.spaces.remove(&id) else { continue };
            let last = spent(&mut space, &self.progress);
            if !last.is_empty() {
                self.jobs
                    .send(Job { spent: last, read: None })
                    .map_err(|_| "the preparers are gone".to_owned())?;
            }
            self.order.retain(|other| *other != id);
            // A descriptor that is closed leaves epoll by itself; whoever waits in it is woken and finds its page.
            self.progress.closed(space.homeless);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("spaces", &self.spaces.len()).finish_non_exhaustive()
    }
}

fn chunk_bytes(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(0) * PAGE_SIZE
}

/// What of the object can be given back by now.
fn spent(space: &mut Space, progress: &Progress) -> Vec<(Arc<Object>, PageRange)> {
    let Some(object) = &space.object else { return Vec::new() };
    progress.to_punch(space.spent.len());
    std::mem::take(&mut space.spent).into_iter().map(|pages| (Arc::clone(object), pages)).collect()
}

/// Why a step must not be installed: a page that is still missing could not be read or is not what was sent.
fn refused(space: &Space, chunk: &Prepared, step: Piece, done: u64) -> Option<String> {
    let parts = space.remaining.still(step);
    if let (Some(why), false) = (&chunk.error, parts.is_empty()) {
        return Some(why.clone());
    }
    let bad = chunk.bad.iter().map(|at| chunk.piece.place + *at as u64);
    let bad = bad.filter(|page| *page >= chunk.piece.place + done);
    let mut wrong =
        bad.filter(|page| parts.iter().any(|part| (part.place..part.place + part.count).contains(page)));
    wrong.next().map(|page| mismatch(PageIndex(chunk.piece.origin + (page - chunk.piece.place)).0))
}
