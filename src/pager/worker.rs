//! The worker's main thread: it talks to the agent and to CRIU, gives each address space to an owner, and decides how it all ends.
//! It is never in the way of a fault: owners and preparers do that work.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::convict::Convict;
use super::criu::{self, Word};
use super::keeper::Setup;
use super::object::Object;
use super::owner::{BUFFERS, Command, Owner, OwnerHandle};
use super::progress::Progress;
use super::report::{Ending, Report};
use super::space::Space;
use super::wire::{self, Answer, PagerState, Request};
use super::{PagerError, aftermath, prepare, socket};
use crate::model::limits::OBJECTS_MAX;
use crate::sys::memfd::MemFile;

/// Exit code: the end was bad, and everything that had to be done about it is done.
pub(super) const HANDLED: i32 = 3;
/// Connections of agents at once.
const CONNECTIONS_MAX: usize = 16;
/// A peer that stops in the middle of a message.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a failed restore can be asked about.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// How long we wait for an agent that has gone before CRIU came.
const ORPHANED_FOR: Duration = Duration::from_secs(300);
const PREPARERS: usize = 2;
const OWNERS_MAX: usize = 4;

enum Phase {
    Listening,
    Serving,
    Filling,
    Failed(String),
}

/// How the process ends.
enum End {
    Resident,
    Failed(String),
    Lost(String),
}

struct Worker<'a> {
    setup: &'a Setup,
    objects: HashMap<u32, Arc<Object>>,
    loaded: bool,
    phase: Phase,
    since: Instant,
    criu: Option<UnixStream>,
    agents: Vec<UnixStream>,
    owners: Vec<OwnerHandle>,
    /// Pages that each owner was given.
    burden: Vec<u64>,
    progress: Arc<Progress>,
}

/// The process. Never returns by a panic: unwinding would close descriptors.
pub(super) fn run(setup: &Setup) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("decamp-pager: {panic}");
        std::process::abort();
    }));
    let end = start(setup).and_then(|mut worker| worker.live());
    let (end, progress) = match end {
        Ok(end) => end,
        Err(error) => {
            eprintln!("decamp-pager: {error}");
            return ExitCode::FAILURE;
        }
    };
    conclude(setup, end, &progress)
}

fn conclude(setup: &Setup, end: (End, u64), progress: &Progress) -> ExitCode {
    let (end, after_ms) = end;
    let pages = (progress.missing(), progress.total());
    let (state, why) = match &end {
        End::Resident => (Ending::Resident, String::new()),
        End::Failed(why) => (Ending::Failed, why.clone()),
        End::Lost(why) => (Ending::Lost, why.clone()),
    };
    let mut report = Report::now(state, pages, why);
    report.faults = progress.faults();
    report.pages_homeless = progress.homeless();
    report.after_ms = after_ms;
    if matches!(end, End::Lost(_)) {
        aftermath::run(&setup.control, &setup.board, &report, &setup.state_file);
        std::process::exit(HANDLED);
    }
    if let Err(error) = report.write(&setup.state_file) {
        eprintln!("decamp-pager: cannot write {}: {error}", setup.state_file.display());
    }
    // Threads and what they hold end with the process; at this point every descriptor may be closed.
    std::process::exit(0);
}

fn start(setup: &Setup) -> Result<Worker<'_>, PagerError> {
    let progress = Arc::new(Progress::new().map_err(PagerError::io("make a bell"))?);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Preparing a page costs as much as installing it, or more.
    let owners = (cpus / 2).clamp(1, OWNERS_MAX);
    let (jobs, work) = sync_channel(owners * (BUFFERS + 1));
    let work = Arc::new(Mutex::new(work));
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    for _ in 0..PREPARERS {
        let (work, progress) = (Arc::clone(&work), Arc::clone(&progress));
        thread("preparer")
            .spawn(move || prepare::run(&work, &progress))
            .map_err(PagerError::io("start a thread"))?;
    }
    let mut handles = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "a few CPUs")]
    let share = cpus as f64 / owners as f64;
    for _ in 0..owners {
        let (owner, handle) = Owner::new(jobs.clone(), Arc::clone(&progress), share)
            .map_err(PagerError::io("make an epoll descriptor"))?;
        thread("owner").spawn(move || owner.run()).map_err(PagerError::io("start a thread"))?;
        handles.push(handle);
    }
    Ok(Worker {
        setup,
        objects: HashMap::new(),
        loaded: false,
        phase: Phase::Listening,
        since: Instant::now(),
        criu: None,
        agents: Vec::new(),
        burden: vec![0; handles.len()],
        owners: handles,
        progress,
    })
}

impl Worker<'_> {
    fn live(&mut self) -> Result<((End, u64), Arc<Progress>), PagerError> {
        loop {
            if let Some(end) = self.turn()? {
                let after = match self.phase {
                    Phase::Filling => self.since.elapsed(),
                    _ => Duration::ZERO,
                };
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                return Ok(((end, after_ms), Arc::clone(&self.progress)));
            }
        }
    }

    fn turn(&mut self) -> Result<Option<End>, PagerError> {
        let ready = self.wait()?;
        if let Some(end) = self.ended() {
            return Ok(Some(end));
        }
        let missing = (self.progress.missing(), self.progress.total());
        self.setup.board.set_pages(missing.0, missing.1).map_err(PagerError::io("write the board"))?;
        if ready.criu_listener
            && let Ok((stream, _)) = self.setup.criu.accept()
            && socket::is_root(&stream)
        {
            stream.set_read_timeout(Some(PATIENCE)).map_err(PagerError::io("bound CRIU's time"))?;
            self.criu = Some(stream);
            self.enter(Phase::Serving);
        }
        if ready.criu {
            self.hear_criu();
        }
        for index in ready.agents.into_iter().rev() {
            if let Some(end) = self.hear_agent(index) {
                return Ok(Some(end));
            }
        }
        if ready.control
            && let Ok((stream, _)) = self.setup.control.accept()
            && socket::is_root(&stream)
            && stream.set_read_timeout(Some(PATIENCE)).is_ok()
        {
            if self.agents.len() == CONNECTIONS_MAX {
                self.agents.remove(0);
            }
            self.agents.push(stream);
        }
        Ok(None)
    }

    /// Sleeps until something can be read, a bell rings or it is time to look.
    fn wait(&self) -> Result<Ready, PagerError> {
        let timeout: u16 = match self.phase {
            Phase::Serving | Phase::Filling => 20,
            Phase::Listening | Phase::Failed(_) => 1000,
        };
        let input = PollFlags::POLLIN;
        let mut fds = vec![
            PollFd::new(self.progress.bell.as_fd(), input),
            PollFd::new(self.setup.control.as_fd(), input),
        ];
        let listens = self.loaded && matches!(self.phase, Phase::Listening);
        // CRIU comes once. Before everything is loaded it waits in the listener's queue, which it does not notice.
        if listens {
            fds.push(PollFd::new(self.setup.criu.as_fd(), input));
        }
        fds.extend(self.criu.iter().map(|stream| PollFd::new(stream.as_fd(), input)));
        let first_agent = fds.len();
        fds.extend(self.agents.iter().map(|stream| PollFd::new(stream.as_fd(), input)));
        match poll(&mut fds, PollTimeout::from(timeout)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(PagerError::io("wait")(errno)),
        }
        let readable = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        let ready = Ready {
            control: readable(1),
            criu_listener: listens && readable(2),
            criu: self.criu.is_some() && readable(first_agent - 1),
            agents: (0..self.agents.len()).filter(|at| readable(first_agent + at)).collect(),
        };
        let _count = self.progress.bell.read();
        Ok(ready)
    }

    fn ended(&self) -> Option<End> {
        if let Some(why) = self.progress.why() {
            return Some(End::Lost(why));
        }
        match &self.phase {
            Phase::Filling if self.progress.is_over() => Some(End::Resident),
            Phase::Failed(why) if self.since.elapsed() > FAILED_FOR => Some(End::Failed(why.clone())),
            Phase::Listening if self.agents.is_empty() && self.since.elapsed() > ORPHANED_FOR => {
                Some(End::Failed("nobody asked for anything".to_owned()))
            }
            _ => None,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    fn hear_criu(&mut self) {
        let Some(stream) = &self.criu else { return };
        let finished = matches!(self.phase, Phase::Filling);
        match criu::listen(stream) {
            Ok(Word::Process(vpid, uffd)) if !finished => {
                let space = Space::new(uffd, self.objects.remove(&vpid));
                let pages = space.remaining.count();
                self.progress.opened(pages);
                let lightest = (0..self.owners.len()).min_by_key(|at| self.burden[*at]).unwrap_or(0);
                self.burden[lightest] += pages + 1;
                self.owners[lightest].tell(Command::Serve(Box::new(space)));
            }
            Ok(Word::Zombie) if !finished => {}
            Ok(Word::Finished) if !finished => {
                if let Some(vpid) = self.objects.keys().min() {
                    // Its memory would be given to nobody, and somebody would read zeros.
                    self.progress.break_with(format!("CRIU restored no process {vpid}"));
                    return;
                }
                self.enter(Phase::Filling);
                for owner in &self.owners {
                    owner.tell(Command::Restored);
                }
            }
            Ok(Word::HungUp) if finished => self.criu = None,
            Ok(Word::HungUp) => self.fail("CRIU hung up before the restore was complete".to_owned()),
            Ok(word) => self.progress.break_with(format!("CRIU said {word:?} after its end")),
            Err(error) => self.fail(format!("{error}")),
        }
    }

    /// No task has run: CRIU and the agent destroy what was restored, and nothing is touched here.
    fn fail(&mut self, why: String) {
        self.criu = None;
        self.enter(Phase::Failed(why));
    }

    fn hear_agent(&mut self, index: usize) -> Option<End> {
        let request = wire::receive(&self.agents[index]);
        let (request, fds) = match request {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.agents.remove(index);
                return None;
            }
            Err(error) => {
                eprintln!("decamp-pager: an agent was not understood: {error}");
                self.agents.remove(index);
                return None;
            }
        };
        let abort = matches!(request, Request::Abort);
        let answer = self.obey(request, fds).unwrap_or_else(|error| Answer::No(error.to_string()));
        let agreed = matches!(answer, Answer::Ok);
        if wire::answer(&self.agents[index], &answer).is_err() {
            self.agents.remove(index);
        }
        (abort && agreed).then(|| End::Failed("given up by the agent".to_owned()))
    }

    fn obey(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, PagerError> {
        match request {
            Request::Status => return Ok(Answer::State(self.state())),
            Request::Load { vpid, mappings, content } => self.load(vpid, [mappings, content], fds)?,
            Request::Loaded => self.loaded = true,
            Request::Release { freezer, init_pid } => self
                .setup
                .board
                .set_convict(&Convict::new(freezer, init_pid))
                .map_err(PagerError::io("remember the container"))?,
            Request::Abort if self.setup.board.convict().is_some() => {
                return Ok(Answer::No("the container runs".to_owned()));
            }
            Request::Abort => {}
        }
        Ok(Answer::Ok)
    }

    fn load(&mut self, vpid: u32, counts: [u64; 2], fds: Vec<OwnedFd>) -> Result<(), PagerError> {
        let wrong = |what: &str| Err(PagerError::Malformed(what.to_owned()));
        let Ok([table, pages, digests]) = <[OwnedFd; 3]>::try_from(fds) else {
            return wrong("a process is three descriptors");
        };
        if self.loaded || self.objects.len() == OBJECTS_MAX {
            return wrong("no more processes are taken");
        }
        let [mappings, content] = wire::read_ranges(&File::from(table), counts)?;
        let object = Object::new(&mappings, &content, MemFile::from(pages), File::from(digests))?;
        if object.pages() > 0 && self.objects.insert(vpid, Arc::new(object)).is_some() {
            return wrong("the process was loaded before");
        }
        Ok(())
    }

    fn state(&self) -> PagerState {
        let pages_missing = self.progress.missing();
        match &self.phase {
            Phase::Listening => PagerState::Listening,
            Phase::Serving => PagerState::Serving { pages_missing },
            Phase::Filling => PagerState::Filling { pages_missing, pages_total: self.progress.total() },
            Phase::Failed(why) => PagerState::Failed(why.clone()),
        }
    }
}

/// What can be read.
struct Ready {
    control: bool,
    criu_listener: bool,
    criu: bool,
    agents: Vec<usize>,
}
