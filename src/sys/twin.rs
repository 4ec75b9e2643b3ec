//! A child that shares our table of descriptors (clone(2), CLONE_FILES).
//!
//! What either of the two opens, receives or closes is opened or closed for both, in the same instant; the table lives as long as
//! one of them does. Memory is copied as by fork(2).

#![expect(unsafe_code, reason = "clone with CLONE_FILES has no safe wrapper")]

use std::io;

use nix::libc;
use nix::unistd::Pid;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin {
    /// The caller; this is its child.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Makes the child. Only for a process with one thread: like after fork(2), locks held by others would stay locked.
///
/// # Errors
/// What clone(2) says; `Other` when there is more than one thread.
pub fn twin() -> io::Result<Twin> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run, one may")));
    }
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has a copy of the memory, its stack included (stack argument 0), so this is fork(2)
    // except for the shared table of descriptors; there is one thread, so no lock is held by anyone else.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match libc::pid_t::try_from(pid) {
        Ok(0) => Ok(Twin::Child),
        Ok(pid) if pid > 0 => Ok(Twin::Parent(Pid::from_raw(pid))),
        _ => Err(io::Error::last_os_error()),
    }
}
