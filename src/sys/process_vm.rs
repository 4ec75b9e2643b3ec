//! Reading another process's memory while it runs (process_vm_readv(2)). Needs ptrace access to it (PTRACE_MODE_ATTACH), stops
//! nothing and asks nobody.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::model::page::{PAGE_SIZE, PageRange};

/// Remote ranges in one call: the kernel's UIO_MAXIOV.
const RANGES_MAX: usize = 1024;

/// Reads `runs` one after the other into `buffer`, which is as long as all runs together. A page that cannot be read (unmapped,
/// made unreadable or given back meanwhile) is put into `missing` by its number in the request, and its bytes in `buffer` are
/// unspecified.
///
/// # Errors
/// ESRCH when the process is gone, EPERM when we may not look; never because of single pages.
pub fn read_pages(
    task: i32,
    runs: &[PageRange],
    buffer: &mut [u8],
    missing: &mut Vec<usize>,
) -> io::Result<()> {
    missing.clear();
    let total: u64 = runs.iter().map(|run| run.count).sum();
    assert_eq!(total * PAGE_SIZE as u64, buffer.len() as u64, "the buffer fits the request");
    let mut done = 0;
    while done < buffer.len() {
        let remote = remaining(runs, done);
        match process_vm_readv(Pid::from_raw(task), &mut [IoSliceMut::new(&mut buffer[done..])], &remote) {
            // The kernel stops at the first page it cannot read and says how far it came: whole pages before it are good.
            Ok(read) if read > 0 => {
                let whole = read / PAGE_SIZE * PAGE_SIZE;
                done += whole;
                if whole == 0 {
                    missing.push(done / PAGE_SIZE);
                    done += PAGE_SIZE;
                }
            }
            Ok(_) | Err(Errno::EFAULT) => {
                missing.push(done / PAGE_SIZE);
                done += PAGE_SIZE;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Tries the pages in `missing` again, in a way that does not ask for the protection of their mapping (/proc/PID/mem, fs/proc/base.c:
/// `mem_rw` forces access). Those that can be read are taken out of `missing`. Slower, a page at a time.
///
/// # Errors
/// /proc/PID/mem cannot be opened: the process is gone, or we may not look.
pub fn read_protected(
    task: i32,
    runs: &[PageRange],
    buffer: &mut [u8],
    missing: &mut Vec<usize>,
) -> io::Result<()> {
    let memory = File::open(format!("/proc/{task}/mem"))?;
    let mut pages = runs.iter().flat_map(|run| run.iter()).enumerate();
    missing.retain(|wanted| {
        let Some((place, page)) = pages.find(|(place, _)| place == wanted) else { return true };
        let room = &mut buffer[place * PAGE_SIZE..][..PAGE_SIZE];
        memory.read_exact_at(room, page.address()).is_err()
    });
    Ok(())
}

/// What of `runs` is left after `done` bytes, at most [`RANGES_MAX`] ranges of it.
fn remaining(runs: &[PageRange], done: usize) -> Vec<RemoteIoVec> {
    let mut skip = done;
    let mut out = Vec::with_capacity(runs.len().min(RANGES_MAX));
    for run in runs {
        let bytes = usize::try_from(run.count).unwrap_or(usize::MAX) * PAGE_SIZE;
        if skip >= bytes {
            skip -= bytes;
            continue;
        }
        let base = usize::try_from(run.first.address()).unwrap_or(usize::MAX) + skip;
        out.push(RemoteIoVec { base, len: bytes - skip });
        skip = 0;
        if out.len() == RANGES_MAX {
            break;
        }
    }
    out
}

#[cfg(test)]
#[expect(unsafe_code, reason = "a test makes memory that it may not read")]
mod tests {
    use super::*;
    use crate::model::page::PageIndex;

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn pages_come_in_order_and_a_hole_is_skipped() {
        let memory = vec![0u8; 9 * PAGE_SIZE];
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE as u64);
        let at = |page: u64| PageIndex::of_address(base + page * PAGE_SIZE as u64);
        let mut memory = memory;
        let skew = usize::try_from(base - memory.as_ptr() as u64).unwrap();
        for page in 0..8u8 {
            memory[skew + usize::from(page) * PAGE_SIZE..][..PAGE_SIZE].fill(page + 1);
        }
        // Page 1 of the address space is never mapped.
        let runs = [
            PageRange { first: at(5), count: 2 },
            PageRange { first: PageIndex(1), count: 2 },
            PageRange { first: at(0), count: 1 },
        ];
        let mut buffer = vec![0; 5 * PAGE_SIZE];
        let mut missing = vec![99];
        read_pages(own(), &runs, &mut buffer, &mut missing).unwrap();
        assert_eq!(missing, [2, 3]);
        let firsts: Vec<u8> = buffer.chunks(PAGE_SIZE).map(|page| page[17]).collect();
        assert_eq!((firsts[0], firsts[1], firsts[4]), (6, 7, 1));
    }

    #[test]
    fn protected_pages_are_read_and_holes_stay_missing() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        use std::num::NonZeroUsize;
        let length = NonZeroUsize::new(3 * PAGE_SIZE).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address of the kernel's choice, written to while it may be, given up below.
        let start = unsafe {
            let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let start = mmap_anonymous(None, length, both, flags).unwrap();
            start.cast::<u8>().write_bytes(7, length.get());
            nix::libc::mprotect(start.as_ptr(), length.get(), nix::libc::PROT_NONE);
            start
        };
        let runs = [
            PageRange { first: PageIndex(1), count: 1 },
            PageRange { first: PageIndex::of_address(start.as_ptr() as u64), count: 3 },
        ];
        let (mut buffer, mut missing) = (vec![0; 4 * PAGE_SIZE], Vec::new());
        read_pages(own(), &runs, &mut buffer, &mut missing).unwrap();
        assert_eq!(missing, [0, 1, 2, 3]);
        read_protected(own(), &runs, &mut buffer, &mut missing).unwrap();
        assert_eq!(missing, [0], "page 1 of the address space is never mapped");
        assert!(buffer[PAGE_SIZE..].iter().all(|byte| *byte == 7));
        // SAFETY: the mapping of above, of which nothing is borrowed.
        unsafe { munmap(start, length.get()).unwrap() };
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        let runs = [PageRange { first: PageIndex(1), count: 1 }];
        let gone = read_pages(pid, &runs, &mut vec![0; PAGE_SIZE], &mut Vec::new()).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(nix::libc::ESRCH));
    }
}
