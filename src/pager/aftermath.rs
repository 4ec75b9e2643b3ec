//! The container's memory cannot be completed. Kill it, or, when nobody has said yet what to kill, hold every descriptor and wait to
//! be told: until then whoever touches a missing page stands still. The worker comes here when it must not go on, the
//! keeper when the worker is dead.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::board::Board;
use super::convict::Convict;
use super::report::Report;
use super::socket;
use super::wire::{self, Answer, PagerState, Request};

/// A peer that stops in the middle of a message.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns when nobody can read wrong memory any more and the process may end.
pub(super) fn run(control: &UnixListener, board: &Board, report: &Report, file: &Path) {
    eprintln!("decamp-pager: lost: {}", report.why);
    if let Err(error) = report.write(file) {
        eprintln!("decamp-pager: cannot write {}: {error}", file.display());
    }
    if let Some(convict) = board.convict() {
        execute(&convict);
        return;
    }
    loop {
        // One request per connection: the agent makes a new one for each.
        let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::NONE).is_err() {
            continue;
        }
        if let Ok((stream, _)) = control.accept()
            && converse(&stream)
        {
            return;
        }
    }
}

/// True when the end has come.
fn converse(stream: &UnixStream) -> bool {
    if !socket::is_root(stream) || stream.set_read_timeout(Some(PATIENCE)).is_err() {
        return false;
    }
    while let Ok(Some((request, _))) = wire::receive(stream) {
        let (answer, end) = match request {
            Request::Release { freezer, init_pid } => {
                execute(&Convict::new(freezer, init_pid));
                (Answer::State(PagerState::Lost), true)
            }
            Request::Abort => (Answer::Ok, true),
            Request::Status | Request::Load { .. } | Request::Loaded => {
                (Answer::State(PagerState::Lost), false)
            }
        };
        let answered = wire::answer(stream, &answer).is_ok();
        if end || !answered {
            return end;
        }
    }
    false
}

fn execute(convict: &Convict) {
    let left = convict.execute();
    if left > 0 {
        // They keep waiting: ending now would show them zeros.
        eprintln!("decamp-pager: {left} processes do not die");
        while convict.execute() > 0 {}
    }
}
