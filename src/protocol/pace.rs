//! The bandwidth cap: one pacer per migration, shared by all its streams.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use tokio::time::Instant;

/// Hands out permission to send, `bytes_per_s` on average, a tenth of a second of burst. It also counts what was sent.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s: Option<u64>,
    next_free: Mutex<Instant>,
    sent: AtomicU64,
}

impl Pacer {
    /// `None`: no cap, only counting.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        let bytes_per_s = bytes_per_s.filter(|rate| *rate > 0);
        Self { bytes_per_s, next_free: Mutex::new(Instant::now()), sent: AtomicU64::new(0) }
    }

    /// The cap.
    #[must_use]
    pub fn cap(&self) -> Option<u64> {
        self.bytes_per_s
    }

    /// Bytes that were let through so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` may be sent and counts them.
    pub async fn take(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.bytes_per_s else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut next = self.next_free.lock().unwrap_or_else(PoisonError::into_inner);
            let burst = Instant::now().checked_sub(Duration::from_millis(100));
            *next = burst.map_or(*next, |earliest| (*next).max(earliest)) + cost;
            *next
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_cap_holds_on_average() {
        let pacer = Pacer::new(Some(1_000_000));
        let start = Instant::now();
        for _ in 0..20 {
            pacer.take(100_000).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1800) && took <= Duration::from_millis(2100), "{took:?}");
        assert_eq!(pacer.bytes_sent(), 2_000_000);
    }
}
