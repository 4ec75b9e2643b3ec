//! The short-lived process that does it: `decamp-inject` with its socket as standard input. A process of its own, because a task
//! that was seized and does not stop is only let go of when its tracer ends, and because nothing else of the agent runs in it.

use std::fs;
use std::io::{IoSlice, stdin};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Answer, Order, PROGRAM, Refusal, Trouble, surgery, task};

/// Threads of one process that are tried.
const THREADS_TRIED: usize = 4;

/// Was the program started under the injector's name?
#[must_use]
pub fn called_as_injector(program: Option<&std::ffi::OsStr>) -> bool {
    program.and_then(|program| std::path::Path::new(program).file_name()).is_some_and(|name| name == PROGRAM)
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // Killed between stop and detach, it would leave a task with foreign registers: the kernel is to choose another victim.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(order) = Order::parse(&words) else {
        eprintln!("{PROGRAM}: started by the agent, never by hand");
        return ExitCode::FAILURE;
    };
    let (answer, descriptor) = carry_out(order);
    match reply(&answer, descriptor.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn carry_out(order: Order) -> (Answer, Option<OwnedFd>) {
    let mut last = Trouble::gone();
    let pid = match order {
        Order::Take { pid } | Order::Close { pid, .. } => pid,
    };
    if let Some(trouble) = unfit(pid) {
        return (Answer::Refused(trouble), None);
    }
    for tid in task::tasks(pid).into_iter().take(THREADS_TRIED) {
        let tried = match order {
            Order::Take { .. } => surgery::take_userfaultfd(tid).map(|loot| {
                let answer = Answer::Taken {
                    tid,
                    number: loot.number,
                    closed: loot.closed,
                    stopped_us: loot.stopped_us,
                };
                (answer, Some(loot.descriptor))
            }),
            Order::Close { number, .. } => {
                surgery::close_userfaultfd(tid, number).map(|()| (Answer::Closed, None))
            }
        };
        match tried {
            Ok(done) => return done,
            // The same for all its threads.
            Err(trouble) if trouble.refusal != Refusal::Failed => return (Answer::Refused(trouble), None),
            Err(trouble) => last = trouble,
        }
    }
    (Answer::Refused(last), None)
}

/// What can be seen without touching it.
fn unfit(pid: i32) -> Option<Trouble> {
    let mut buffer = [0; 4096];
    let tracer = task::status_field(pid, "TracerPid", &mut buffer)?;
    if tracer != "0" {
        return Some(Trouble::new(Refusal::Traced, "another program traces it"));
    }
    // It stops when asked, and does not run when let go. Nothing else sleeps there (kernel/signal.c, kernel/cgroup/freezer.c); the
    // compiler decides which of the two names is seen.
    let sleeps = task::status_field(pid, "State", &mut buffer).is_some_and(|state| state.starts_with('S'));
    let place = fs::read(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let frozen = sleeps && [&b"do_freezer_trap"[..], b"get_signal"].contains(&&place[..]);
    frozen.then(|| Trouble::new(Refusal::Failed, "its cgroup is frozen"))
}

fn reply(answer: &Answer, descriptor: Option<&OwnedFd>) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    let numbers: Vec<i32> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &control[..0] } else { &control[..] };
    sendmsg::<()>(stdin().as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None)?;
    Ok(())
}
