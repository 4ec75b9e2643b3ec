//! What /proc tells about the tasks of a process before one of them is chosen, and where it has a system call instruction.

use std::fs;
use std::fs::File;
use std::io::Read;

use super::trace;

/// The machine code of `syscall`.
pub(super) const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// How much of one mapping is searched for it.
const SEARCHED: usize = 1 << 20;

/// System calls that end with EINTR at any stop, and that can be called again as they were (signal(7)): never connect or close.
const CALL_AGAIN: [u64; 24] = [
    0,   // read
    1,   // write
    17,  // pread64
    18,  // pwrite64
    19,  // readv
    20,  // writev
    43,  // accept
    44,  // sendto
    45,  // recvfrom
    46,  // sendmsg
    47,  // recvmsg
    65,  // semop
    69,  // msgsnd
    70,  // msgrcv
    128, // rt_sigtimedwait
    208, // io_getevents
    220, // semtimedop
    232, // epoll_wait
    281, // epoll_pwait
    288, // accept4
    299, // recvmmsg
    307, // sendmmsg
    333, // io_pgetevents
    441, // epoll_pwait2
];

/// May a call that a stop cut short be made once more?
pub(super) fn may_be_called_again(number: u64) -> bool {
    CALL_AGAIN.contains(&number)
}

/// The value of a line of /proc/TID/status, read without allocating.
pub(super) fn status_field<'a>(tid: i32, name: &str, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut path = [0u8; 40];
    let path = format_into(&mut path, format_args!("/proc/{tid}/status"))?;
    let mut file = File::open(path).ok()?;
    let mut filled = 0;
    while let Ok(n) = file.read(&mut buffer[filled..])
        && n > 0
    {
        filled += n;
    }
    let line = buffer[..filled].split(|byte| *byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(name.as_bytes())?;
        rest.strip_prefix(b":")
    })?;
    str::from_utf8(line).ok().map(str::trim)
}

/// Formats into a buffer; `None` when it does not fit.
pub(super) fn format_into<'a>(buffer: &'a mut [u8], text: std::fmt::Arguments<'_>) -> Option<&'a str> {
    let whole = buffer.len();
    let mut rest = &mut *buffer;
    std::io::Write::write_fmt(&mut rest, text).ok()?;
    let used = whole - rest.len();
    str::from_utf8(&buffer[..used]).ok()
}

/// A hexadecimal set of signals of /proc/TID/status; all of them when it cannot be read.
pub(super) fn signals(tid: i32, name: &str) -> u64 {
    let mut buffer = [0; 4096];
    status_field(tid, name, &mut buffer)
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(u64::MAX)
}

/// The live tasks of a process, those first that a stop disturbs least.
pub(super) fn tasks(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let all = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<(u32, i32)> = all.filter_map(|tid| Some((disturbance(pid, tid)?, tid))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, tid)| tid).collect()
}

fn disturbance(pid: i32, tid: i32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // The name before the state is in brackets and may hold brackets itself.
    let bracket = stat.iter().rposition(|byte| *byte == b')')?;
    let state = *stat.get(bracket + 2)?;
    if matches!(state, b'Z' | b'X' | b'x') {
        return None;
    }
    let call = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    let number = call.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let interrupted = match number {
        // Running.
        None => 0,
        // A futex restarts by itself, as do most others.
        Some(202) => 1,
        Some(number) if may_be_called_again(number) => 5,
        Some(_) => 2,
    };
    // Uninterruptible sleep: it may not stop for long.
    Some(interrupted + if state == b'D' { 100 } else { 0 })
}

/// Where the process has a `syscall` instruction, looked up before anything is stopped. Code that changes in between is noticed
/// when the instruction is looked at once more.
pub(super) fn find_instruction(tid: i32) -> Option<u64> {
    let maps = fs::read(format!("/proc/{tid}/maps")).ok()?;
    let mut executable: Vec<(bool, u64, u64)> =
        maps.split(|byte| *byte == b'\n').filter_map(executable_mapping).collect();
    // The kernel's own page first: it is in every process and never changes.
    executable.sort_unstable();
    let mut code = Vec::new();
    executable.into_iter().find_map(|(_, start, end)| {
        code.resize(usize::try_from(end - start).unwrap_or(SEARCHED).min(SEARCHED), 0);
        if !trace::peek(tid, start, &mut code) {
            return None;
        }
        let at = code.windows(INSTRUCTION.len()).position(|bytes| bytes == INSTRUCTION)?;
        Some(start + at as u64)
    })
}

fn executable_mapping(line: &[u8]) -> Option<(bool, u64, u64)> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (start, end) = str::from_utf8(words.next()?).ok()?.split_once('-')?;
    let mode = words.next()?;
    let rest = words.next()?;
    if !mode.starts_with(b"r-x") || rest.ends_with(b"[vsyscall]") {
        return None;
    }
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some((!rest.ends_with(b"[vdso]"), start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_an_instruction_and_a_status() {
        let own = i32::try_from(std::process::id()).unwrap();
        let at = find_instruction(own).unwrap();
        let mut bytes = [0; 2];
        assert!(trace::peek(own, at, &mut bytes));
        assert_eq!(bytes, INSTRUCTION);
        let mut buffer = [0; 4096];
        assert_eq!(status_field(own, "Tgid", &mut buffer), Some(own.to_string().as_str()));
        assert_eq!(status_field(own, "NoSuchLine", &mut buffer), None);
        assert!(tasks(own).contains(&own));
    }

    #[test]
    fn a_text_that_does_not_fit_is_none() {
        let mut buffer = [0; 4];
        assert_eq!(format_into(&mut buffer, format_args!("{}", 1234)), Some("1234"));
        assert_eq!(format_into(&mut buffer, format_args!("{}", 12345)), None);
    }
}
