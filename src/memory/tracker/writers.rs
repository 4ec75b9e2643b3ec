//! What writes to a process's memory without a page table showing when: devices, into pages that were pinned for them. The pin shows
//! as a write when it is made; the data arrives later, perhaps after the page was protected again.
//!
//! - Direct and asynchronous I/O pins for as long as one transfer takes: pages that were reported in the last [`GRACE`] are named
//!   once more at the end.
//! - Buffers registered with io_uring stay pinned: they are candidates in every survey.
//!
//! Also here: whether a process has a userfaultfd of its own, which ours must not meet.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use super::ranges;
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{PAGE_SIZE, PageRange};
use crate::sys::inject::DESCRIPTOR_NAME;

/// Longer than a transfer takes.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// `O_DIRECT` on x86-64, as /proc/PID/fdinfo shows it.
const O_DIRECT: u64 = 0o40_000;

/// The descriptors of a process that matter here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// It has a userfaultfd.
    pub(super) userfaultfd: bool,
    /// It reads or writes past the page cache.
    pub(super) direct: bool,
    /// Pages that are pinned for as long as an io_uring lives; a set.
    pub(super) pinned: Vec<PageRange>,
}

impl Descriptors {
    /// Of a task. A process that cannot be looked at has none: it is gone, and the survey says so.
    pub(super) fn of(task: i32) -> Self {
        let mut found = Self::default();
        let Ok(entries) = fs::read_dir(format!("/proc/{task}/fd")) else { return found };
        for entry in entries.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.as_os_str().as_bytes();
            let number = entry.file_name();
            let info = || fs::read(format!("/proc/{task}/fdinfo/{}", number.display())).unwrap_or_default();
            if target == DESCRIPTOR_NAME.as_bytes() {
                found.userfaultfd = true;
            } else if target == b"anon_inode:[io_uring]" {
                found.direct = true;
                found.pinned.extend(registered_buffers(&info()));
            } else if target.starts_with(b"/") && !target.starts_with(b"/dev/pts/") {
                found.direct = found.direct || is_direct(&info());
            }
        }
        found.pinned = ranges::set(std::mem::take(&mut found.pinned));
        found
    }
}

fn is_direct(info: &[u8]) -> bool {
    info.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"flags:"))
        .and_then(|flags| u64::from_str_radix(str::from_utf8(flags).ok()?.trim(), 8).ok())
        .is_some_and(|flags| flags & O_DIRECT != 0)
}

/// `UserBufs: N` and N lines `  0: 0x7fbd0d659000/262144` (io_uring/fdinfo.c).
fn registered_buffers(info: &[u8]) -> Vec<PageRange> {
    let lines = info.split(|byte| *byte == b'\n').skip_while(|line| !line.starts_with(b"UserBufs:")).skip(1);
    lines.map_while(|line| line.starts_with(b" ").then(|| buffer(line))).flatten().collect()
}

fn buffer(line: &[u8]) -> Option<PageRange> {
    let (_, place) = str::from_utf8(line).ok()?.split_once(": 0x")?;
    let (start, length) = place.trim().split_once('/')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = start.checked_add(length.parse().ok()?)?.checked_next_multiple_of(PAGE_SIZE as u64)?;
    (end / PAGE_SIZE as u64 <= PAGE_INDEX_MAX)
        .then(|| PageRange::of_addresses(start / PAGE_SIZE as u64 * PAGE_SIZE as u64, end))
}

/// The pages that were reported lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    reports: VecDeque<(Instant, Vec<PageRange>)>,
}

impl Recent {
    /// Adds a report and forgets those that are older than [`GRACE`]. Only reports age, so what was recent at the last one still
    /// counts at the end, however long ago that was.
    pub(super) fn add(&mut self, now: Instant, pages: Vec<PageRange>) {
        self.reports.push_back((now, pages));
        while self.reports.front().is_some_and(|(at, _)| now.duration_since(*at) > GRACE) {
            self.reports.pop_front();
        }
    }

    /// All of them; a set.
    pub(super) fn pages(&self) -> Vec<PageRange> {
        ranges::set(self.reports.iter().flat_map(|(_, pages)| pages.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::page::PageIndex;

    #[test]
    fn registered_buffers_are_read_from_fdinfo() {
        let info = b"pos:\t0\nflags:\t02000002\nUserFiles:\t0\nUserBufs:\t2\n    0: 0x7fbd0d659000/262144\n    1: 0x1800/16\nPollList:\n  op=1\n";
        let expected = [
            PageRange::of_addresses(0x7fbd_0d65_9000, 0x7fbd_0d69_9000),
            PageRange { first: PageIndex(1), count: 1 },
        ];
        assert_eq!(registered_buffers(info), expected);
        assert!(registered_buffers(b"UserBufs:\t0\nPollList:\n").is_empty());
        assert!(registered_buffers(b"UserBufs:\t1\n  0: 0xffffffffffffffff/99\n").is_empty());
    }

    #[test]
    fn direct_descriptors_are_told_from_others() {
        assert!(is_direct(b"pos:\t0\nflags:\t0140002\n"));
        assert!(!is_direct(b"pos:\t0\nflags:\t0100002\n"));
        assert!(!is_direct(b""));
    }

    #[test]
    fn old_reports_are_forgotten() {
        let page = |first| vec![PageRange { first: PageIndex(first), count: 1 }];
        let start = Instant::now();
        let mut recent = Recent::default();
        recent.add(start, page(1));
        recent.add(start + GRACE / 2, page(2));
        assert_eq!(recent.pages(), [PageRange { first: PageIndex(1), count: 2 }]);
        recent.add(start + GRACE + Duration::from_secs(1), page(9));
        assert_eq!(recent.pages(), [page(2), page(9)].concat());
    }
}
