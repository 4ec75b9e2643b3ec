//! CPU priority of this process's own threads (setpriority(2): on Linux a nice value belongs to a thread, and a new thread inherits
//! its maker's).

#![expect(unsafe_code, reason = "setpriority has no wrapper in nix")]

use std::io;

use nix::libc;

/// The least urgent nice value (sched(7)).
pub const NICE_MAX: i32 = 19;

/// Sets the nice value of one thread (0: the calling one).
///
/// # Errors
/// EACCES without CAP_SYS_NICE when the value becomes more urgent; ESRCH when the thread is gone.
pub fn set_thread(thread: i32, nice: i32) -> io::Result<()> {
    let who = libc::id_t::try_from(thread).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: plain numbers; the call touches no memory of ours.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, who, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the nice value of every thread that this process has now; one that ends meanwhile is no error.
///
/// # Errors
/// As [`set_thread`], or /proc cannot be read.
pub fn set_all_threads(nice: i32) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match set_thread(thread, nice) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The nice value of the calling thread.
#[must_use]
pub fn of_this_thread() -> i32 {
    // SAFETY: plain numbers. An error and the value -1 look alike; the calling thread exists, so there is no error.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_becomes_less_urgent_and_urgent_again() {
        std::thread::spawn(|| {
            let before = of_this_thread();
            set_thread(0, NICE_MAX).unwrap();
            assert_eq!(of_this_thread(), NICE_MAX);
            set_thread(0, before).unwrap();
            assert_eq!(of_this_thread(), before);
        })
        .join()
        .unwrap();
    }
}
