//! After the commit, before the frozen original goes: its pages are kept here, so that its return sends only what changed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::MemoryError;
use super::ledger::Ledger;
use super::process::Process;
use super::scanner::{Digester, Plan, Reader};
use super::tracker::Tracker;
use crate::model::page::{Digest, PAGE_SIZE};
use crate::pages::hash::ZERO_DIGEST;

/// What was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetainedStats {
    /// Pages that were read.
    pub pages_read: u64,
    /// Pages that were handed over: zero pages and unreadable ones are not.
    pub pages_kept: u64,
}

/// Reads all pages of `processes` once more and hands each that is not zero to `keep`, with the digest of the bytes as they are
/// now, until that returns false (enough) or `stop` is set. The processes must be frozen. Blocking.
///
/// # Errors
/// [`MemoryError::Retain`] when `keep` fails. Pages that cannot be read are left out.
pub fn retain_departed(
    processes: &[Process],
    tracker: &dyn Tracker,
    stop: &AtomicBool,
    mut keep: impl FnMut(&Digest, &[u8; PAGE_SIZE]) -> io::Result<bool>,
) -> Result<RetainedStats, MemoryError> {
    let plan = Plan::make(processes, tracker, &Ledger::default());
    let mut stats = RetainedStats::default();
    let (mut reader, mut digester) = (Reader::default(), Digester::default());
    let (mut runs, mut digests) = (Vec::new(), Vec::new());
    while let Some(number) = plan.next_piece(&mut runs) {
        if stop.load(Ordering::Relaxed) {
            return Err(MemoryError::Cancelled);
        }
        if let Err(error) = reader.read(&plan.objects[number].source, &runs) {
            tracing::debug!(object = %plan.objects[number].object, %error, "pages not retained");
            continue;
        }
        digester.digest(&reader.buffer, &mut digests);
        let pages = reader.buffer.as_chunks::<PAGE_SIZE>().0;
        stats.pages_read += pages.len() as u64;
        for (place, (page, digest)) in pages.iter().zip(&digests).enumerate() {
            if *digest == ZERO_DIGEST || reader.missing.binary_search(&place).is_ok() {
                continue;
            }
            if !keep(digest, page).map_err(MemoryError::Retain)? {
                return Ok(stats);
            }
            stats.pages_kept += 1;
        }
    }
    Ok(stats)
}
