//! ptrace(2) as the injection needs it: one task, stopped by us, whose registers are ours for a moment. Nothing here allocates.

#![expect(unsafe_code, reason = "nix has neither PTRACE_O_SUSPEND_SECCOMP nor the signal mask requests")]

use std::io;
use std::time::{Duration, Instant};

use nix::libc::{self, c_int, c_void};

/// `PTRACE_GET_RSEQ_CONFIGURATION`, include/uapi/linux/ptrace.h, Linux 5.13.
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// `PTRACE_EVENT_STOP`: how a seized task reports that it stopped because it was asked to.
const EVENT_STOP: c_int = 128;
/// `PTRACE_O_SUSPEND_SECCOMP`.
const SUSPEND_SECCOMP: usize = 1 << 21;
/// `NT_PRSTATUS`.
const GENERAL_REGISTERS: usize = 1;
/// Bytes of the kernel's signal set.
const SIGNAL_SET: usize = 8;
/// `__USER_CS`: code segment of 64-bit code.
const CODE_64_BIT: u64 = 0x33;
/// How often a stop is looked for before the processor is given away: it takes 12 to 60 microseconds on an idle machine.
const SPINS: u32 = 2000;

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    area: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// The general registers of a task.
pub(super) type Registers = libc::user_regs_struct;

/// How a task came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// As asked by [`interrupt`], or by a stop signal of its own.
    Asked,
    /// At the entry of a system call.
    SystemCall,
    /// A signal is about to be delivered.
    Signal(c_int),
}

fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: every caller passes what ptrace(2) asks for with this request: numbers, or pointers to objects that outlive the call.
    let answer = unsafe { libc::ptrace(what, tid, address as *mut c_void, data as *mut c_void) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes the tracer of a task without stopping it. `without_seccomp`: its filters are not asked as long as we trace it.
pub(super) fn seize(tid: i32, without_seccomp: bool) -> io::Result<()> {
    let good = usize::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap_or_default();
    let options = good | if without_seccomp { SUSPEND_SECCOMP } else { 0 };
    request(libc::PTRACE_SEIZE, tid, 0, options)
}

/// Asks for a stop.
pub(super) fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets the task run, with this signal (0: none).
pub(super) fn resume(tid: i32, signal: c_int) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, usize::try_from(signal).unwrap_or_default())
}

/// Lets the task run as far as the entry of its next system call.
pub(super) fn resume_to_system_call(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0)
}

/// Ends the tracing; the task runs on.
pub(super) fn detach(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, 0)
}

/// Waits for the next stop.
///
/// # Errors
/// `TimedOut`; `NotFound` when the task is gone.
pub(super) fn wait(tid: i32, patience: Duration) -> io::Result<Stop> {
    let start = Instant::now();
    let mut looks = 0u32;
    loop {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid place for the answer.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        if got == tid {
            return stopped(status);
        }
        if start.elapsed() > patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        looks = looks.saturating_add(1);
        if looks > SPINS {
            std::thread::sleep(Duration::from_micros(30));
        } else {
            std::hint::spin_loop();
        }
    }
}

fn stopped(status: c_int) -> io::Result<Stop> {
    if !libc::WIFSTOPPED(status) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let signal = libc::WSTOPSIG(status);
    Ok(match (status >> 16, signal) {
        (EVENT_STOP, _) => Stop::Asked,
        (_, signal) if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        (_, signal) => Stop::Signal(signal),
    })
}

/// The registers of a stopped task; `None` when it runs 32-bit code.
pub(super) fn registers(tid: i32) -> io::Result<Option<Registers>> {
    // SAFETY: plain numbers, for which all zeros is a value.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    let size = size_of::<Registers>();
    let mut vector = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size };
    request(libc::PTRACE_GETREGSET, tid, GENERAL_REGISTERS, &raw mut vector as usize)?;
    Ok((vector.iov_len == size && registers.cs == CODE_64_BIT).then_some(registers))
}

/// Gives a stopped task these registers.
pub(super) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let base = (&raw const *registers).cast_mut().cast();
    let mut vector = libc::iovec { iov_base: base, iov_len: size_of::<Registers>() };
    request(libc::PTRACE_SETREGSET, tid, GENERAL_REGISTERS, &raw mut vector as usize)
}

/// The signals that a stopped task blocks.
pub(super) fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, SIGNAL_SET, &raw mut mask as usize)?;
    Ok(mask)
}

/// Makes a stopped task block these signals.
pub(super) fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, SIGNAL_SET, &raw const mask as usize)
}

/// Is a stopped task at `instruction` inside a restartable sequence? If it were moved away from there, the kernel would forget the
/// sequence, and the way back would resume it without its protection (kernel/rseq.c). In doubt: yes.
pub(super) fn in_restartable_sequence(tid: i32, instruction: u64) -> bool {
    let mut configuration = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    let asked = request(GET_RSEQ_CONFIGURATION, tid, size, &raw mut configuration as usize);
    if asked.is_err() || configuration.area == 0 {
        return false;
    }
    // `struct rseq`: cpu_id_start, cpu_id, then the pointer to the active section.
    let mut word = [0; 8];
    if !peek(tid, configuration.area + 8, &mut word) {
        return true;
    }
    let section = u64::from_ne_bytes(word);
    if section == 0 {
        return false;
    }
    // `struct rseq_cs`: version, flags, start_ip, post_commit_offset, abort_ip.
    let (mut start, mut length) = ([0; 8], [0; 8]);
    if !(peek(tid, section + 8, &mut start) && peek(tid, section + 16, &mut length)) {
        return true;
    }
    instruction.wrapping_sub(u64::from_ne_bytes(start)) < u64::from_ne_bytes(length)
}

/// Reads the task's memory; false unless all of it could be read.
pub(super) fn peek(tid: i32, address: u64, buffer: &mut [u8]) -> bool {
    let length = buffer.len();
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: length };
    // SAFETY: `local` is the caller's buffer; the remote side is checked by the kernel.
    let got = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got) == Ok(length)
}
