//! The agent's side: starts a pager, loads it, watches it. Dropping the handle changes nothing for the pager.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::report::{Ending, Report};
use super::wire::{self, Answer, PagerState, Request};
use super::{CONTROL_SOCKET, PAGER_NAME, PagerError, socket};
use crate::model::page::PageRange;
use crate::sys::memfd::MemFile;
use crate::sys::passing;

/// How long the process may take to start.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How often the state is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Attempts to find the keeper when the worker does not answer, one per [`LOOK_EVERY`].
const LOOKS_MAX: u32 = 100;

/// The memory of one process.
#[derive(Debug)]
pub struct LazyObject {
    /// Its pid in the container.
    pub vpid: u32,
    /// The whole mappings that CRIU did not see, ascending. Their pages that are not in `content` are zero.
    pub mappings: Vec<PageRange>,
    /// Pages with bytes, ascending.
    pub content: Vec<PageRange>,
    /// Sparse file in memory (memfd_create(2)) with each page at its address. The pager punches out what it has installed.
    pub file: OwnedFd,
    /// The BLAKE3 digest of each page of `content`, at its page's number times 32 in a sparse file.
    pub digests: OwnedFd,
}

/// How to start a pager.
#[derive(Debug, Clone)]
pub struct PagerSpec {
    /// The `decamp` binary.
    pub program: PathBuf,
    /// For `pager.sock` and `pager.log`.
    pub folder: PathBuf,
    /// CRIU's work folder, for `lazy-pages.socket`.
    pub work_dir: PathBuf,
    /// Where it says how it ended.
    pub state_file: PathBuf,
}

/// Starts pagers.
#[derive(Debug)]
pub struct Pager;

/// A pager that was started, by us or by an agent before us.
#[derive(Debug)]
pub struct PagerHandle {
    folder: PathBuf,
    state_file: PathBuf,
    state: watch::Receiver<PagerState>,
}

impl Pager {
    /// Starts keeper and worker; when this returns, both sockets listen.
    ///
    /// # Errors
    /// The program cannot be started, or says what is wrong in `pager.log`.
    pub async fn spawn(spec: PagerSpec) -> Result<PagerHandle, PagerError> {
        match std::fs::remove_file(&spec.state_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(PagerError::io("remove an old report")(error));
            }
            _ => {}
        }
        let log = File::create(spec.folder.join("pager.log")).map_err(PagerError::io("create pager.log"))?;
        let mut child = tokio::process::Command::new(&spec.program)
            .arg0(PAGER_NAME)
            .args([&spec.folder, &spec.work_dir, &spec.state_file])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(PagerError::io("start the pager"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let mut out = BufReader::new(out.take(64));
            tokio::time::timeout(READY_WITHIN, out.read_line(&mut line))
                .await
                .map_err(|_| PagerError::Silent(READY_WITHIN))?
                .map_err(PagerError::io("hear from the pager"))?;
        }
        // So that no zombie remains; the process itself does not depend on us.
        tokio::spawn(async move { child.wait().await });
        if line != "ready\n" {
            let log = std::fs::read_to_string(spec.folder.join("pager.log")).unwrap_or_default();
            return Err(PagerError::Refused(log.trim_end().to_owned()));
        }
        PagerHandle::reconnect(spec.folder, spec.state_file).await
    }
}

impl PagerHandle {
    /// The pager in this folder, whatever state it is in.
    ///
    /// # Errors
    /// [`PagerError::Gone`] when there is none and none has left a report.
    pub async fn reconnect(folder: PathBuf, state_file: PathBuf) -> Result<Self, PagerError> {
        let mut link = Link::new(folder.clone(), state_file.clone());
        let first = link.look().await.ok_or(PagerError::Gone)?;
        let (sender, state) = watch::channel(first);
        tokio::spawn(follow(link, sender));
        Ok(Self { folder, state_file, state })
    }

    /// Its state, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<PagerState> {
        self.state.clone()
    }

    /// Hands over the memory. After this CRIU may be started, or may have been: it is listened to from here on. Once only.
    ///
    /// # Errors
    /// The pager refuses what makes no sense.
    pub async fn load(&self, objects: Vec<LazyObject>) -> Result<(), PagerError> {
        for object in objects {
            let table = MemFile::create("decamp-ranges").map_err(PagerError::io("make a file in memory"))?;
            wire::write_ranges(table.as_fd(), [&object.mappings, &object.content])
                .map_err(PagerError::io("write the ranges"))?;
            let request = Request::Load {
                vpid: object.vpid,
                mappings: object.mappings.len() as u64,
                content: object.content.len() as u64,
            };
            let fds = [table.as_fd(), object.file.as_fd(), object.digests.as_fd()];
            self.order(&request, &fds).await?;
        }
        self.order(&Request::Loaded, &[]).await
    }

    /// The container is about to run: from now on, if its memory cannot be completed, the pager kills everything in this
    /// freezer's cgroup (version 1 or 2) and its init. Call it before the first task runs.
    ///
    /// # Errors
    /// [`PagerError::Gone`] and [`PagerError::Refused`]: the container must not run. Ok when everything is there already.
    pub async fn release_to_container(&self, freezer: &Path, init_pid: i32) -> Result<(), PagerError> {
        let request = Request::Release { freezer: freezer.to_owned(), init_pid };
        match self.order(&request, &[]).await {
            Err(_) if self.report().is_some_and(|report| report.state == Ending::Resident) => Ok(()),
            result => result,
        }
    }

    /// Before the container runs: the pager drops everything and ends. Half-restored tasks are killed by others, before or after.
    ///
    /// # Errors
    /// The container runs already.
    pub async fn abort(&self) -> Result<(), PagerError> {
        match self.order(&Request::Abort, &[]).await {
            Err(PagerError::Gone) => Ok(()),
            result => result,
        }
    }

    /// The report, once there is one.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        Report::read(&self.state_file).ok()
    }

    async fn order(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
        let mut stream = connect(&self.folder).await?;
        match ask(&mut stream, request, fds).await? {
            Answer::Ok => Ok(()),
            Answer::No(why) => Err(PagerError::Refused(why)),
            Answer::State(state) => Err(PagerError::Refused(format!("it is {state:?}"))),
        }
    }
}

/// A connection for looking at the state, made anew as needed.
struct Link {
    folder: PathBuf,
    state_file: PathBuf,
    stream: Option<UnixStream>,
}

impl Link {
    fn new(folder: PathBuf, state_file: PathBuf) -> Self {
        Self { folder, state_file, stream: None }
    }

    /// What the process says, else what it wrote before it ended.
    async fn look(&mut self) -> Option<PagerState> {
        if self.stream.is_none() {
            self.stream = connect(&self.folder).await.ok();
        }
        if let Some(stream) = &mut self.stream {
            match ask(stream, &Request::Status, &[]).await {
                Ok(Answer::State(state)) => return Some(state),
                _ => self.stream = None,
            }
        }
        Report::read(&self.state_file).ok().map(|report| report.as_state())
    }
}

/// Publishes until the end, or until nobody is interested.
async fn follow(mut link: Link, sender: watch::Sender<PagerState>) {
    let mut silent = 0;
    loop {
        match link.look().await {
            Some(state) => {
                silent = 0;
                let end = state.is_final();
                sender.send_if_modified(|old| {
                    let changed = *old != state;
                    *old = state;
                    changed
                });
                if end {
                    return;
                }
            }
            // Both processes are gone and have written nothing: nobody holds the missing pages any more.
            None if silent == LOOKS_MAX => {
                let _nobody_looks = sender.send(PagerState::Lost);
                return;
            }
            None => silent += 1,
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = sender.closed() => return,
        }
    }
}

async fn connect(folder: &Path) -> Result<UnixStream, PagerError> {
    let (_folder, path) = socket::short(folder, CONTROL_SOCKET).map_err(|_| PagerError::Gone)?;
    let connected = tokio::time::timeout(ANSWER_WITHIN, UnixStream::connect(path)).await;
    connected.map_err(|_| PagerError::Silent(ANSWER_WITHIN))?.map_err(|_| PagerError::Gone)
}

async fn ask(
    stream: &mut UnixStream,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<Answer, PagerError> {
    tokio::time::timeout(ANSWER_WITHIN, converse(stream, request, fds))
        .await
        .map_err(|_| PagerError::Silent(ANSWER_WITHIN))?
}

async fn converse(
    stream: &mut UnixStream,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<Answer, PagerError> {
    let bytes = wire::encode(request)?;
    let send = || passing::send(stream.as_fd(), &bytes, fds);
    let sent = stream.async_io(Interest::WRITABLE, send).await.map_err(|_| PagerError::Gone)?;
    stream.write_all(&bytes[sent..]).await.map_err(|_| PagerError::Gone)?;
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.map_err(|_| PagerError::Gone)?;
    let mut json = vec![0; wire::length(prefix)?];
    stream.read_exact(&mut json).await.map_err(|_| PagerError::Gone)?;
    wire::decode(&json)
}
