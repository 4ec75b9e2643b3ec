//! A userfaultfd for another process's memory. Only a process itself can create one, so one of its threads is stopped for some 70
//! microseconds and made to call userfaultfd(2); the descriptor is taken and closed there at once. The process does not notice:
//! calls that block go on, signals stay pending for that moment, seccomp filters are suspended.
//!
//! The stop is the business of a short-lived process, this program under the name [`PROGRAM`]:
//!
//! ```text
//!  agent ── spawns ──▶ decamp-inject take PID ──▶ stops a thread, two system calls, lets it go
//!    ◀──── userfaultfd (SCM_RIGHTS) + answer ────┘
//!    looks whether a child forked meanwhile has a copy of it, and has it closed there
//! ```
//! It never stays in a process, never changes its memory, and lets everything alone that it cannot put back: traced, 32-bit, or with
//! a seccomp filter that cannot be suspended. What remains: were the injector killed by SIGKILL inside those microseconds, the
//! task would go on with foreign registers, and crash. The kernel's out-of-memory killer is told to choose another.

mod operator;
mod surgery;
mod task;
mod trace;

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use serde::{Deserialize, Serialize};

pub use operator::{called_as_injector, main};

/// The name under which the program injects.
pub const PROGRAM: &str = "decamp-inject";
/// What /proc/PID/fd shows for a userfaultfd (fs/userfaultfd.c).
pub const DESCRIPTOR_NAME: &str = "anon_inode:[userfaultfd]";
/// The injector gives up much earlier; this is for one that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a process is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The process is gone.
    Gone,
    /// Another program traces it (strace, gdb), or we are not allowed to.
    Traced,
    /// It runs 32-bit code.
    Not64Bit,
    /// It has a seccomp filter that cannot be suspended.
    Seccomp,
    /// It has no descriptor left (RLIMIT_NOFILE).
    NoDescriptor,
    /// Something else did not work; another time it may.
    Failed,
}

/// An injection that did not happen. The process runs on as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}")]
pub struct Trouble {
    /// Which kind.
    pub refusal: Refusal,
    /// For the operator.
    pub what: String,
}

impl Trouble {
    fn new(refusal: Refusal, what: &str) -> Self {
        Self { refusal, what: what.to_owned() }
    }

    fn gone() -> Self {
        Self::new(Refusal::Gone, "the process is gone")
    }

    fn io(action: &str, source: &io::Error) -> Self {
        Self { refusal: Refusal::Failed, what: format!("{action}: {source}") }
    }

    fn because(self, refusal: Refusal) -> Self {
        Self { refusal, ..self }
    }
}

/// A userfaultfd of another process.
#[derive(Debug)]
pub struct Injected {
    /// It. UFFDIO_API has not been called on it.
    pub descriptor: OwnedFd,
    /// The thread that was stopped.
    pub tid: i32,
    /// For how long, microseconds.
    pub stopped_us: u64,
}

/// What the injector is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Take a userfaultfd.
    Take { pid: i32 },
    /// Close one that is ours.
    Close { pid: i32, number: i32 },
}

impl Order {
    fn parse(words: &[String]) -> Option<Self> {
        match words {
            [word, pid] if word == "take" => Some(Self::Take { pid: pid.parse().ok()? }),
            [word, pid, number] if word == "close" => {
                Some(Self::Close { pid: pid.parse().ok()?, number: number.parse().ok()? })
            }
            _ => None,
        }
    }

    fn words(self) -> Vec<String> {
        match self {
            Self::Take { pid } => vec!["take".to_owned(), pid.to_string()],
            Self::Close { pid, number } => vec!["close".to_owned(), pid.to_string(), number.to_string()],
        }
    }
}

/// What the injector answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Taken { tid: i32, number: i32, closed: bool, stopped_us: u64 },
    Closed,
    Refused(Trouble),
}

/// Takes a userfaultfd of process `pid`. `program` is this program, usually /proc/self/exe.
///
/// # Errors
/// [`Trouble`]: it did not happen, and the process runs on. Also when a copy of the descriptor could not be closed again.
pub fn take_userfaultfd(program: &Path, pid: i32) -> Result<Injected, Trouble> {
    let before = userfaultfds(pid);
    let taken = order(program, Order::Take { pid });
    if taken.as_ref().is_err_and(|trouble| trouble.refusal == Refusal::Failed) {
        // It may have been killed between the two calls. CRIU does not dump a process with a userfaultfd.
        for number in userfaultfds(pid).into_iter().filter(|number| !before.contains(number)) {
            order(program, Order::Close { pid, number })?;
        }
    }
    let (answer, descriptor) = taken?;
    let (Answer::Taken { tid, number, closed, stopped_us }, Some(descriptor)) = (answer, descriptor) else {
        return Err(Trouble::new(Refusal::Failed, "the injector answered something else"));
    };
    if !closed {
        close_copy(program, pid, number, &descriptor)?;
    }
    // A thread that forked while the descriptor was there gave the child a copy, and CRIU does not dump such a child.
    for child in descendants(pid) {
        close_copy(program, child, number, &descriptor)?;
    }
    Ok(Injected { descriptor, tid, stopped_us })
}

fn close_copy(program: &Path, pid: i32, number: i32, ours: &OwnedFd) -> Result<(), Trouble> {
    let name = fs::read_link(format!("/proc/{pid}/fd/{number}"));
    if name.map_or(true, |name| name != Path::new(DESCRIPTOR_NAME)) || !is_same_file(pid, number, ours) {
        return Ok(());
    }
    let done = order(program, Order::Close { pid, number });
    // Whatever the answer: is it still there?
    if is_same_file(pid, number, ours) {
        let why = done.err().map(|trouble| trouble.what).unwrap_or_default();
        let what = format!("descriptor {number} was left open in process {pid} ({why})");
        return Err(Trouble { refusal: Refusal::Failed, what });
    }
    Ok(())
}

/// The numbers of all userfaultfds of a process.
fn userfaultfds(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let is_one = |path: &Path| fs::read_link(path).is_ok_and(|name| name == Path::new(DESCRIPTOR_NAME));
    let found = entries.flatten().filter(|entry| is_one(&entry.path()));
    found.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// All processes below one; a process has few that were forked within microseconds.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found.split_off(1)
}

/// Is that descriptor of another process the same open file as ours (kcmp(2), KCMP_FILE)?
#[expect(unsafe_code, reason = "kcmp has no wrapper in nix")]
fn is_same_file(pid: i32, number: i32, ours: &OwnedFd) -> bool {
    const KCMP_FILE: i32 = 0;
    let own = std::process::id();
    // SAFETY: plain numbers.
    let order =
        unsafe { nix::libc::syscall(nix::libc::SYS_kcmp, own, pid, KCMP_FILE, ours.as_raw_fd(), number) };
    order == 0
}

fn order(program: &Path, order: Order) -> Result<(Answer, Option<OwnedFd>), Trouble> {
    let failed = |what: &'static str| move |e: io::Error| Trouble::io(what, &e);
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Trouble::io("socketpair", &e.into()))?;
    let mut injector = Command::new(program)
        .arg0(PROGRAM)
        .args(order.words())
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("starting the injector"))?;
    let received = receive(&ours);
    if received.is_err() {
        // It ended without a word, or hangs. Never while it still may be at work.
        let _ = injector.kill();
    }
    let mut words = String::new();
    if let Some(mut stderr) = injector.stderr.take() {
        let _ = stderr.read_to_string(&mut words);
    }
    let _ = injector.wait();
    match received {
        Ok((Answer::Refused(trouble), _)) => Err(trouble),
        Ok(answer) => Ok(answer),
        Err(e) => Err(Trouble {
            refusal: Refusal::Failed,
            what: format!("the injector: {e} {}", words.trim()).trim_end().to_owned(),
        }),
    }
}

#[expect(unsafe_code, reason = "descriptors that arrive over a socket are raw numbers")]
fn receive(socket: &OwnedFd) -> io::Result<(Answer, Option<OwnedFd>)> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut waiting = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)];
    while poll(&mut waiting, timeout) == Err(nix::errno::Errno::EINTR) {}
    if waiting[0].revents().is_none_or(|events| events.is_empty()) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = [0u8; 4096];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut vectors = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel just put these descriptors into our table, and nobody else knows their numbers.
            descriptor = numbers.first().map(|number| unsafe { OwnedFd::from_raw_fd(*number) });
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "ended without an answer"));
    }
    Ok((serde_json::from_slice(&bytes[..length])?, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        for order in [Order::Take { pid: 7 }, Order::Close { pid: 8, number: 9 }] {
            assert_eq!(Order::parse(&order.words()), Some(order));
        }
        assert_eq!(Order::parse(&["take".to_owned()]), None);
        assert_eq!(Order::parse(&["take".to_owned(), "x".to_owned()]), None);
    }

    #[test]
    fn only_its_name_makes_the_program_an_injector() {
        for (name, expected) in [("decamp-inject", true), ("/run/x/decamp-inject", true), ("decamp", false)] {
            assert_eq!(called_as_injector(Some(std::ffi::OsStr::new(name))), expected, "{name}");
        }
        assert!(!called_as_injector(None));
    }

    #[test]
    fn an_injector_that_says_nothing_is_trouble_and_not_a_hang() {
        let trouble = take_userfaultfd(Path::new("/bin/true"), 1).unwrap_err();
        assert_eq!(trouble.refusal, Refusal::Failed);
        assert!(trouble.what.contains("without an answer"), "{trouble}");
        let trouble = take_userfaultfd(Path::new("/nonexistent/decamp"), 1).unwrap_err();
        assert!(trouble.what.starts_with("starting the injector"), "{trouble}");
    }
}
