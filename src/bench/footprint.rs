//! Memory of decamp's own processes on a host, sampled while a migration runs: anonymous memory only, so that the page store
//! (shared memory, the container's own pages) and the program's text are apart. It only reads /proc.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::BenchError;
use crate::lab::Host;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(25);
/// Looks after which the list of processes is read anew.
const LIST_EVERY: u32 = 8;

/// Looks at one host until [`Footprint::peak_bytes`].
#[derive(Debug)]
pub(super) struct Footprint {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Footprint {
    /// Begins.
    pub(super) fn watch(host: Host) -> Result<Self, BenchError> {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let look = move || {
            let mut pids = Vec::new();
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                if looks % LIST_EVERY == 0 {
                    pids = ours(&host);
                }
                looks += 1;
                highest.fetch_max(pids.iter().map(|pid| anonymous_bytes(*pid)).sum(), Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("footprint".into()).spawn(look);
        Ok(Self { stop, peak, thread: thread.map_err(BenchError::io("start a thread"))? })
    }

    /// Ends, and tells the most that all of them had together.
    pub(super) fn peak_bytes(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // It cannot panic; what was seen until then is the answer anyway.
        let _ = self.thread.join();
        self.peak.load(Ordering::Relaxed)
    }
}

/// The agent, its pagers and injectors; not the command line.
fn ours(host: &Host) -> Vec<i32> {
    let mut pids = host.pids_matching("decamp agent");
    pids.extend(host.pids_matching("decamp-"));
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// `RssAnon` of proc_pid_status(5); 0 when it has ended.
fn anonymous_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    rss_anon(&status)
}

fn rss_anon(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Waits until no pager runs on a host any more: until then it takes processor time that the next run would miss. A pager that
/// is still there after the deadline is left alone.
pub(super) fn wait_for_pagers(host: &Host, deadline: Duration) {
    let until = std::time::Instant::now() + deadline;
    while !host.pids_matching(crate::pager::PAGER_NAME).is_empty() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_read_in_bytes() {
        assert_eq!(rss_anon("VmRSS:\t   9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t 1 kB\n"), 1234 << 10);
        assert_eq!(rss_anon("Name:\tkthreadd\n"), 0);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(anonymous_bytes(own) > 0);
    }
}
