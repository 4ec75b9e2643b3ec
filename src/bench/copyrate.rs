//! How fast this machine lets pages be installed at all: a plain loop of UFFDIO_COPY (ioctl_userfaultfd(2)) into fresh memory of
//! this process, one thread, no faults in the way. What a background fill is held against.

use std::time::Instant;

use super::error::BenchError;
use crate::model::{PAGE_SIZE, PageIndex, PageRange};
use crate::sys::uffd::Uffd;

/// Memory to install.
const BYTES: usize = 256 << 20;
/// Content of one call; from 32 KiB on the rate does not depend on it.
const PIECE: usize = 1 << 20;

/// Bytes a second.
///
/// # Errors
/// The kernel has no userfaultfd for us.
pub(super) fn measure() -> Result<u64, BenchError> {
    let failed = BenchError::io("measure the rate of UFFDIO_COPY");
    let rate = || -> std::io::Result<u128> {
        // Room of that size is a mapping of its own, and none of its pages is there: nothing of it was touched yet.
        let room: Vec<u8> = Vec::with_capacity(BYTES + PAGE_SIZE);
        let first = PageIndex::of_address((room.as_ptr().addr() + PAGE_SIZE - 1) as u64);
        let content = vec![0x5a; PIECE];
        let uffd = Uffd::create(0)?;
        uffd.register(PageRange { first, count: (BYTES / PAGE_SIZE) as u64 })?;
        let began = Instant::now();
        for at in (0..BYTES / PAGE_SIZE).step_by(PIECE / PAGE_SIZE) {
            let stopped = uffd.copy(PageIndex(first.0 + at as u64), &content);
            stopped.map_err(|stopped| std::io::Error::other(format!("{stopped:?}")))?;
        }
        Ok(BYTES as u128 * 1_000_000 / began.elapsed().as_micros().max(1))
    };
    rate().map(|rate| u64::try_from(rate).unwrap_or(u64::MAX)).map_err(failed)
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_can_be_installed_at_some_rate() {
        assert!(super::measure().unwrap() > 0);
    }
}
