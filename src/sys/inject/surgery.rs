//! One task stands still for some 70 microseconds and makes two system calls for us. The order matters:
//!
//! ```text
//!  SEIZE ─▶ INTERRUPT ─▶ stop in get_signal()
//!             registers, restartable sequence?, block signals
//!             ┌──────────────────────────────────────────────────────────────────────┐
//!             │ registers = a call ─▶ SYSCALL ─▶ entry stop ─▶ INTERRUPT + CONT ─▶    │ twice: userfaultfd, close
//!             │ the call is made ─▶ stop in get_signal() again, no user code was run  │
//!             └──────────────────────────────────────────────────────────────────────┘
//!             signal mask and registers as they were ─▶ DETACH
//! ```
//! A call of its own that the first stop cut short holds a restart code of the kernel in rax. Only get_signal() translates these
//! (arch/x86/kernel/signal.c), so the registers are given back at a stop inside it, and the kernel restarts the call, or reports
//! EINTR, as it would after any other stop. Between stop and detach nothing is allocated.

#![expect(unsafe_code, reason = "pidfd_open and pidfd_getfd have no wrapper in nix")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;

use super::task::{self, INSTRUCTION};
use super::trace::{self, Registers, Stop};
use super::{DESCRIPTOR_NAME, Refusal, Trouble};

/// userfaultfd(2), x86-64.
const USERFAULTFD: u64 = 323;
/// close(2), x86-64.
const CLOSE: u64 = 3;
/// `UFFD_USER_MODE_ONLY`: needs no privilege, and with asynchronous write protection the kernel's own writes are seen all the same.
const USER_MODE_ONLY: u64 = 1;
/// A task that does not stop in this time is left alone: uninterruptible sleep, a vfork in progress.
const STOP_PATIENCE: Duration = Duration::from_millis(200);
/// The calls that we make take microseconds; this is for a machine that is very busy.
const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// How often a task is let on to leave a restartable sequence.
const SEQUENCE_TRIES: u32 = 50;

/// What an injection brought.
#[derive(Debug)]
pub(super) struct Loot {
    /// The userfaultfd, ours now.
    pub(super) descriptor: OwnedFd,
    /// Its number in the process, where it is closed again.
    pub(super) number: i32,
    /// False: it could not be closed there.
    pub(super) closed: bool,
    /// How long the task stood still, microseconds.
    pub(super) stopped_us: u64,
}

/// A task that stands still and whose registers and signals we hold.
struct Held {
    tid: i32,
    registers: Registers,
    mask: u64,
    instruction: u64,
    since: Instant,
}

/// Makes the process of `tid` create a userfaultfd and takes it.
pub(super) fn take_userfaultfd(tid: i32) -> Result<Loot, Trouble> {
    // Of the thread, whose table of descriptors may be its own.
    let pidfd = open_pidfd(tid).map_err(|e| Trouble::io("pidfd_open", &e))?;
    let held = hold(tid)?;
    let taken = held.take(&pidfd);
    let stopped_us = held.release()?;
    taken.map(|(descriptor, number, closed)| Loot { descriptor, number, closed, stopped_us })
}

/// Makes the process of `tid` close a userfaultfd that is not its own.
pub(super) fn close_userfaultfd(tid: i32, number: i32) -> Result<(), Trouble> {
    let held = hold(tid)?;
    let closed = held.close(number);
    held.release()?;
    if closed? {
        Ok(())
    } else {
        Err(Trouble::new(Refusal::Failed, "the descriptor is not the one we look for"))
    }
}

fn open_pidfd(tid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers. O_EXCL is PIDFD_THREAD (Linux 6.9).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::O_EXCL) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Stops a task at a place from which it can be moved away and back.
fn hold(tid: i32) -> Result<Held, Trouble> {
    let mut buffer = [0; 4096];
    let filtered = task::status_field(tid, "Seccomp", &mut buffer).ok_or_else(Trouble::gone)? != "0";
    let known = task::find_instruction(tid);
    trace::seize(tid, filtered).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Trouble::gone(),
        // A filter might kill the task for a call that it never makes itself.
        _ if filtered => {
            Trouble::io("PTRACE_SEIZE with its seccomp filter suspended", &e).because(Refusal::Seccomp)
        }
        _ => Trouble::io("PTRACE_SEIZE", &e).because(Refusal::Traced),
    })?;
    let (registers, since) = match stop(tid) {
        Ok(stopped) => stopped,
        Err(trouble) => {
            // Not stopped: only our exit ends the tracing.
            let _ = trace::detach(tid);
            return Err(trouble);
        }
    };
    let prepared = prepare(tid, registers, known, since);
    if prepared.is_err() {
        let _ = trace::detach(tid);
    }
    prepared
}

fn prepare(tid: i32, registers: Registers, known: Option<u64>, since: Instant) -> Result<Held, Trouble> {
    // Inside a call of its own, the instruction is the one just before.
    let mut bytes = [0; 2];
    let is_call = |at: u64, bytes: &mut [u8; 2]| trace::peek(tid, at, bytes) && *bytes == INSTRUCTION;
    let last = registers.rip.wrapping_sub(INSTRUCTION.len() as u64);
    let instruction = if is_call(last, &mut bytes) {
        last
    } else {
        known
            .filter(|at| is_call(*at, &mut bytes))
            .ok_or_else(|| Trouble::new(Refusal::Failed, "it has no system call instruction"))?
    };
    let mask = trace::signal_mask(tid).map_err(|e| Trouble::io("PTRACE_GETSIGMASK", &e))?;
    trace::set_signal_mask(tid, u64::MAX).map_err(|e| Trouble::io("PTRACE_SETSIGMASK", &e))?;
    Ok(Held { tid, registers, mask, instruction, since })
}

fn stop(tid: i32) -> Result<(Registers, Instant), Trouble> {
    for _ in 0..SEQUENCE_TRIES {
        trace::interrupt(tid).map_err(|e| Trouble::io("PTRACE_INTERRUPT", &e))?;
        // A signal that came first is delivered, and the stop comes after it.
        while let Stop::Signal(signal) =
            trace::wait(tid, STOP_PATIENCE).map_err(|e| Trouble::io("stopping it", &e))?
        {
            trace::resume(tid, signal).map_err(|e| Trouble::io("PTRACE_CONT", &e))?;
        }
        let since = Instant::now();
        let registers = trace::registers(tid)
            .map_err(|e| Trouble::io("PTRACE_GETREGSET", &e))?
            .ok_or_else(|| Trouble::new(Refusal::Not64Bit, "it runs 32-bit code"))?;
        if !trace::in_restartable_sequence(tid, registers.rip) {
            return Ok((registers, since));
        }
        trace::resume(tid, 0).map_err(|e| Trouble::io("PTRACE_CONT", &e))?;
        std::thread::sleep(Duration::from_micros(50));
    }
    Err(Trouble::new(Refusal::Failed, "it never leaves its restartable sequences"))
}

impl Held {
    fn take(&self, pidfd: &OwnedFd) -> Result<(OwnedFd, i32, bool), Trouble> {
        let flags = USER_MODE_ONLY | u64::try_from(libc::O_CLOEXEC).unwrap_or_default();
        let answer = self.call(USERFAULTFD, flags)?;
        let number = i32::try_from(answer).unwrap_or(-libc::EOVERFLOW);
        if number < 0 {
            let e = io::Error::from_raw_os_error(-number);
            let full = matches!(-number, libc::EMFILE | libc::ENFILE);
            let why = if full { Refusal::NoDescriptor } else { Refusal::Failed };
            return Err(Trouble::io("userfaultfd", &e).because(why));
        }
        // SAFETY: plain numbers and a descriptor that is open.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
        let failed = io::Error::last_os_error();
        let closed = self.close(number);
        let fd = i32::try_from(got).unwrap_or(-1);
        if fd < 0 {
            return Err(Trouble::io("pidfd_getfd", &failed));
        }
        // SAFETY: the kernel just gave it to us.
        let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok((descriptor, number, closed.unwrap_or(false)))
    }

    /// Closes the descriptor of this number in the process if it is a userfaultfd: another thread may have put something else there.
    fn close(&self, number: i32) -> Result<bool, Trouble> {
        if !is_userfaultfd(self.tid, number) {
            return Ok(false);
        }
        Ok(self.call(CLOSE, u64::try_from(number).unwrap_or(u64::MAX))? == 0)
    }

    /// Makes the task call the kernel; its answer.
    fn call(&self, number: u64, argument: u64) -> Result<i64, Trouble> {
        let failed = |what: &'static str| move |e: io::Error| Trouble::io(what, &e);
        let mut registers = self.registers;
        registers.rip = self.instruction;
        registers.rax = number;
        // No call of its own is to be restarted now.
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rsi, registers.rdx) = (argument, 0, 0);
        trace::set_registers(self.tid, &registers).map_err(failed("PTRACE_SETREGSET"))?;
        let mut entered = false;
        // The first stop may be one that was due before, a stop signal for instance.
        for _ in 0..3 {
            trace::resume_to_system_call(self.tid).map_err(failed("PTRACE_SYSCALL"))?;
            if trace::wait(self.tid, CALL_PATIENCE).map_err(failed("its system call"))? == Stop::SystemCall {
                entered = true;
                break;
            }
        }
        if !entered {
            return Err(Trouble::new(Refusal::Failed, "it did not enter the system call"));
        }
        trace::interrupt(self.tid).map_err(failed("PTRACE_INTERRUPT"))?;
        trace::resume(self.tid, 0).map_err(failed("PTRACE_CONT"))?;
        if trace::wait(self.tid, CALL_PATIENCE).map_err(failed("its system call"))? != Stop::Asked {
            return Err(Trouble::new(Refusal::Failed, "it stopped elsewhere than asked"));
        }
        let after = trace::registers(self.tid).map_err(failed("PTRACE_GETREGSET"))?;
        after
            .map(|after| after.rax.cast_signed())
            .ok_or_else(|| Trouble::new(Refusal::Failed, "it changed its mode"))
    }

    /// Everything as it was; how long it stood still, microseconds.
    fn release(self) -> Result<u64, Trouble> {
        let mut restored = self.put_back();
        if restored.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH)) {
            // It runs, after a call that did not end where expected: catch it once more.
            restored = trace::interrupt(self.tid)
                .and_then(|()| trace::wait(self.tid, CALL_PATIENCE))
                .and_then(|_| self.put_back());
        }
        restored.map_err(|e| Trouble::io("giving its registers back", &e))?;
        trace::detach(self.tid).map_err(|e| Trouble::io("PTRACE_DETACH", &e))?;
        Ok(u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn put_back(&self) -> io::Result<()> {
        let mut registers = self.registers;
        let interrupted = registers.rax.cast_signed() == -i64::from(libc::EINTR);
        if interrupted && task::may_be_called_again(registers.orig_rax) && self.nothing_pending() {
            // Only our stop cut this call short, and the kernel does not restart it: make it once more.
            registers.rax = registers.orig_rax;
            registers.rip = registers.rip.wrapping_sub(INSTRUCTION.len() as u64);
            registers.orig_rax = u64::MAX;
        }
        trace::set_signal_mask(self.tid, self.mask)?;
        trace::set_registers(self.tid, &registers)
    }

    fn nothing_pending(&self) -> bool {
        let pending = task::signals(self.tid, "SigPnd") | task::signals(self.tid, "ShdPnd");
        pending & !self.mask == 0
    }
}

fn is_userfaultfd(tid: i32, number: i32) -> bool {
    let mut path = [0u8; 64];
    let Some(path) = task::format_into(&mut path, format_args!("/proc/{tid}/fd/{number}\0")) else {
        return false;
    };
    let mut name = [0u8; DESCRIPTOR_NAME.len() + 1];
    // SAFETY: `path` ends with a zero byte, `name` is as long as stated.
    let got = unsafe { libc::readlink(path.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
    usize::try_from(got).is_ok_and(|length| &name[..length] == DESCRIPTOR_NAME.as_bytes())
}
