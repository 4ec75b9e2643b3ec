//! Reading another process's memory while it runs (process_vm_readv(2)). Needs ptrace access to it (PTRACE_MODE_ATTACH), stops
//! nothing and asks nobody.

use std::io::{self, IoSliceMut};

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
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        let runs = [PageRange { first: PageIndex(1), count: 1 }];
        let gone = read_pages(pid, &runs, &mut vec![0; PAGE_SIZE], &mut Vec::new()).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(nix::libc::ESRCH));
    }
}
