//! Which mappings of a process hold pages that only we can carry. Parsed from bytes, because a container chooses its file names
//! (not UTF-8, or looking like something else) and must not be able to upset us with them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::process::{Process, threads};
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{PAGE_SIZE, PageRange};

/// What is behind a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private memory without a file: all its pages are its own.
    Private,
    /// A private mapping of a file: only the pages that were written are its own.
    PrivateFile,
    /// Shared memory that lives in no file system anybody else sees: shared anonymous memory, memfd, System V. CRIU names it by its
    /// inode (criu/proc_parse.c, `vma->shmid`).
    Shared {
        /// Inode on the kernel's internal tmpfs.
        inode: u64,
    },
}

/// One mapping that has to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is.
    pub pages: PageRange,
    /// What is behind it.
    pub backing: Backing,
}

/// The device of the kernel's internal tmpfs, on which shared anonymous memory, memfds and System V segments live: major, minor as
/// in /proc/PID/maps.
///
/// # Errors
/// No memfd could be made.
pub(super) fn shared_memory_device() -> io::Result<(u64, u64)> {
    let probe = fs::File::from(memfd_create("decamp-probe", MFdFlags::MFD_CLOEXEC)?);
    let device = probe.metadata()?.dev();
    Ok((nix::sys::stat::major(device), nix::sys::stat::minor(device)))
}

/// A mapping that is ours to carry, or will be when it becomes readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// It.
    pub(super) mapping: Mapping,
    /// May the process read it now?
    pub(super) readable: bool,
}

/// The address space of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressSpace {
    /// The thread through which it can be read.
    pub(super) task: i32,
    /// Its mappings, ascending.
    pub(super) lines: Vec<Line>,
    /// It has a context for asynchronous I/O (io_setup(2)), whose ring is mapped.
    pub(super) asynchronous_io: bool,
}

/// The mappings of a process that can be read, ascending, and the thread through which its memory can be read: a process whose first thread has
/// ended lives on in the others, and /proc shows nothing under its own number.
///
/// # Errors
/// What reading /proc says: the process is gone.
pub(super) fn mappings(pid: i32, shared_device: (u64, u64)) -> io::Result<(i32, Vec<Mapping>)> {
    let space = address_space(pid, shared_device)?;
    // process_vm_readv honours the protection; the final dump does not, and brings the others.
    let readable = space.lines.into_iter().filter(|line| line.readable).map(|line| line.mapping).collect();
    Ok((space.task, readable))
}

/// Private mappings without a file that are at least so large, ascending: what is hidden from CRIU, but for some that only smaps
/// tells apart. For estimates.
///
/// # Errors
/// As for every look at a process: it is gone.
pub fn large_private(process: Process, bytes_min: u64) -> io::Result<Vec<PageRange>> {
    let (_, mappings) = mappings(process.pid, shared_memory_device()?)?;
    let large = |mapping: &Mapping| {
        mapping.backing == Backing::Private && mapping.pages.count * PAGE_SIZE as u64 >= bytes_min
    };
    Ok(mappings.into_iter().filter(large).map(|mapping| mapping.pages).collect())
}

/// All mappings that may hold pages of a process.
///
/// # Errors
/// As [`mappings`].
pub(super) fn address_space(pid: i32, shared_device: (u64, u64)) -> io::Result<AddressSpace> {
    let mut text = fs::read(format!("/proc/{pid}/maps"))?;
    let mut task = pid;
    if text.is_empty() {
        for thread in threads(pid) {
            text = fs::read(format!("/proc/{pid}/task/{thread}/maps")).unwrap_or_default();
            if !text.is_empty() {
                task = thread;
                break;
            }
        }
    }
    let lines = || text.split(|byte| *byte == b'\n');
    Ok(AddressSpace {
        task,
        lines: lines().filter_map(|line| parse(line, shared_device)).collect(),
        // fs/aio.c; a file of that name in the container costs time and nothing else.
        asynchronous_io: lines().any(|line| line.ends_with(b"/[aio] (deleted)") || line.ends_with(b"/[aio]")),
    })
}

/// The mappings of a task whose pages the kernel may drop at any time (MAP_DROPPABLE, Linux 6.11; `dp` in smaps): state of random
/// number generators that is made anew when it is gone. Takes as long as reading smaps.
pub(super) fn droppable(task: i32) -> io::Result<Vec<PageRange>> {
    let text = fs::read(format!("/proc/{task}/smaps"))?;
    let (mut found, mut last) = (Vec::new(), None);
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let drops = flags.split(|byte| *byte == b' ').any(|flag| flag == b"dp");
            found.extend(last.take().filter(|_| drops));
        } else if let Some(line) = parse(line, (u64::MAX, u64::MAX)) {
            last = Some(line.mapping.pages);
        }
    }
    Ok(found)
}

/// One line of /proc/PID/maps; `None` for a mapping that is not ours to carry.
fn parse(line: &[u8], shared_device: (u64, u64)) -> Option<Line> {
    let mut parts = line.splitn(6, |byte| *byte == b' ');
    let mut word = || parts.next().and_then(|part| str::from_utf8(part).ok());
    let (start, end) = word()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mode = word()?.as_bytes().first_chunk::<4>()?;
    let _offset = word()?;
    let (major, minor) = word()?.split_once(':')?;
    let device = (u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?);
    let inode: u64 = word()?.parse().ok()?;
    let name = parts.next().unwrap_or_default().trim_ascii();
    if start >= end || end / PAGE_SIZE as u64 > PAGE_INDEX_MAX {
        return None;
    }
    let backing = classify(*mode, device, inode, name, shared_device)?;
    let mapping = Mapping { pages: PageRange::of_addresses(start, end), backing };
    // Shared memory is read by object.
    let readable = mode[0] == b'r' || matches!(backing, Backing::Shared { .. });
    Some(Line { mapping, readable })
}

fn classify(
    mode: [u8; 4],
    device: (u64, u64),
    inode: u64,
    name: &[u8],
    shared_device: (u64, u64),
) -> Option<Backing> {
    if mode[3] == b's' {
        // Any other shared file is the business of the file plane, or a device that CRIU would refuse.
        return (device == shared_device).then_some(Backing::Shared { inode });
    }
    if device == (0, 0) && inode == 0 {
        let kernel: [&[u8]; 4] = [b"[vvar", b"[vdso]", b"[vsyscall]", b"[uprobes]"];
        return (!kernel.iter().any(|special| name.starts_with(special))).then_some(Backing::Private);
    }
    let device_node =
        name.starts_with(b"/dev/") && !name.starts_with(b"/dev/zero") && !name.starts_with(b"/dev/shm/");
    (!device_node).then_some(Backing::PrivateFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: (u64, u64) = (0, 1);

    fn backing(line: &str) -> Option<Backing> {
        parse(line.as_bytes(), SHARED).filter(|line| line.readable).map(|line| line.mapping.backing)
    }

    #[test]
    fn each_kind_is_told_apart() {
        let cases = [
            (
                "55d0c8a00000-55d0c8a21000 rw-p 00000000 00:00 0                          [heap]",
                Some(Backing::Private),
            ),
            ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0 ", Some(Backing::Private)),
            ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0 [anon:[vdso]]", Some(Backing::Private)),
            (
                "7ffc1c4f8000-7ffc1c519000 rw-p 00000000 00:00 0                          [stack]",
                Some(Backing::Private),
            ),
            ("7f0000000000-7f0000100000 ---p 00000000 00:00 0 ", None),
            (
                "7f0000000000-7f0000001000 r--p 00002000 fe:00 1234  /usr/lib/libc.so.6",
                Some(Backing::PrivateFile),
            ),
            ("7f0000000000-7f0000001000 rw-s 00000000 fe:00 1234  /var/lib/db", None),
            (
                "7f0000000000-7f0000001000 rw-s 00000000 00:01 77  /dev/zero (deleted)",
                Some(Backing::Shared { inode: 77 }),
            ),
            (
                "7f0000000000-7f0000001000 rw-s 00000000 00:01 0  /SYSV00000000 (deleted)",
                Some(Backing::Shared { inode: 0 }),
            ),
            (
                "7f0000000000-7f0000001000 ---s 00000000 00:01 9  /memfd:x (deleted)",
                Some(Backing::Shared { inode: 9 }),
            ),
            ("7f0000000000-7f0000001000 rw-s 00000000 00:2b 9  /dev/shm/x", None),
            ("7f0000000000-7f0000001000 rw-p 00000000 00:05 9  /dev/mem", None),
            ("7f0000000000-7f0000004000 r--p 00000000 00:00 0                          [vvar_vclock]", None),
            ("7f0000000000-7f0000002000 r-xp 00000000 00:00 0                          [vdso]", None),
            ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]", None),
            ("", None),
            ("nonsense", None),
        ];
        for (line, expected) in cases {
            assert_eq!(backing(line), expected, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_now_is_known_all_the_same() {
        let line = parse(b"7f0000000000-7f0000100000 ---p 00000000 00:00 0 ", SHARED).unwrap();
        assert_eq!((line.readable, line.mapping.backing), (false, Backing::Private));
    }

    #[test]
    fn names_that_are_no_text_or_look_like_others_do_no_harm() {
        let line = b"7f0000000000-7f0000001000 rw-p 00000000 fe:00 12 /tmp/\xff\xfe\\012[vdso]";
        assert_eq!(parse(line, SHARED).unwrap().mapping.backing, Backing::PrivateFile);
        assert_eq!(backing("7f0000000000-7f0000001000 rw-s 00000000 fe:00 12 /SYSV"), None);
    }

    #[test]
    fn our_own_shared_memory_is_on_the_device_that_was_probed() {
        let memfd = fs::File::from(memfd_create("decamp-test-shared", MFdFlags::MFD_CLOEXEC).unwrap());
        memfd.set_len(PAGE_SIZE as u64).unwrap();
        let device = memfd.metadata().unwrap().dev();
        let own = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        assert_eq!(shared_memory_device().unwrap(), own);
    }
}
