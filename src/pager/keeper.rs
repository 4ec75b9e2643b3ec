//! The program `decamp-pager`: it starts as the keeper and makes the worker, its child with the same table of descriptors. The keeper
//! serves nothing and holds no memory of the container: it waits for the worker's end.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::board::Board;
use super::report::{Ending, Report};
use super::worker::{self, HANDLED};
use super::{CONTROL_SOCKET, CRIU_SOCKET, PagerError, aftermath, socket};
use crate::sys::priority::set_thread;
use crate::sys::twin::{Twin, twin};

/// Argument 0 under which the `decamp` binary is the pager.
pub const PAGER_NAME: &str = "decamp-pager";

/// Was the program started under the pager's name?
#[must_use]
pub fn called_as_pager(program: Option<&std::ffi::OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == PAGER_NAME)
}

/// What both processes begin with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) control: UnixListener,
    pub(super) criu: UnixListener,
    pub(super) board: Board,
    pub(super) state_file: PathBuf,
}

/// The whole program. Arguments: folder of the control socket, CRIU's work folder, state file.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, work, state_file] = &arguments[..] else {
        eprintln!("{PAGER_NAME} is started by the agent");
        return ExitCode::FAILURE;
    };
    match prepare(folder, work, state_file) {
        Ok(setup) => live(&setup),
        Err(error) => {
            eprintln!("{PAGER_NAME}: {error}: {}", source(&error));
            ExitCode::FAILURE
        }
    }
}

fn source(error: &PagerError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

fn prepare(folder: &Path, work: &Path, state_file: &Path) -> Result<Setup, PagerError> {
    nix::unistd::setsid().map_err(PagerError::io("become a session leader"))?;
    // Whoever stops the agent must not stop us: a container would lose its memory. SIGKILL remains.
    let polite: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    polite.thread_block().map_err(PagerError::io("block signals"))?;
    // The agent may have made itself less urgent, and we have inherited that.
    let _not_allowed = set_thread(0, 0);
    // Without CAP_SYS_RESOURCE the kernel may choose us like anyone else.
    let _not_allowed = std::fs::write("/proc/self/oom_score_adj", "-1000");
    Ok(Setup {
        control: socket::listen(folder, CONTROL_SOCKET).map_err(PagerError::io("listen for the agent"))?,
        criu: socket::listen(work, CRIU_SOCKET).map_err(PagerError::io("listen for CRIU"))?,
        board: Board::new().map_err(PagerError::io("make the board"))?,
        state_file: state_file.to_owned(),
    })
}

fn live(setup: &Setup) -> ExitCode {
    match twin() {
        Ok(Twin::Child) => worker::run(setup),
        Ok(Twin::Parent(worker)) => {
            let mut out = std::io::stdout();
            // The agent may be gone again.
            let _nobody_reads = out.write_all(b"ready\n").and_then(|()| out.flush());
            keep(setup, worker)
        }
        Err(error) => {
            eprintln!("{PAGER_NAME}: cannot start the worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep(setup: &Setup, worker: Pid) -> ExitCode {
    let end = loop {
        match waitpid(worker, None) {
            Ok(WaitStatus::Exited(_, 0 | HANDLED)) => return ExitCode::SUCCESS,
            Ok(end @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => break format!("{end:?}"),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => break format!("it cannot be waited for: {errno}"),
        }
    };
    hang_up(setup);
    let why = format!("the pager's worker ended: {end}");
    let report = Report::now(Ending::Lost, setup.board.pages(), why);
    aftermath::run(&setup.control, &setup.board, &report, &setup.state_file);
    ExitCode::SUCCESS
}

/// The worker's connections live on in the shared table with nobody at this end. Whoever waits for an answer is told so and
/// connects again, to us.
fn hang_up(setup: &Setup) {
    let listeners = [setup.control.as_raw_fd(), setup.criu.as_raw_fd()];
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2 && !listeners.contains(number)) {
        // ENOTSOCK for everything that is no connection.
        let _no_connection = shutdown(number, Shutdown::Both);
    }
}
