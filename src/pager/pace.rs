//! How fast the background fill may go: at full speed on idle CPUs, slower the longer our own threads have to wait for one,
//! never below a floor, so that it ends. Pure: the clock comes in as an argument.
//!
//! The preparers are the yardstick: at niceness 10 they are the first to wait when the container wants the CPUs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Bytes per second and CPU that the fill always makes: about an eighth of the machine's time.
const FLOOR_PER_CPU: f64 = 128.0 * 1024.0 * 1024.0;
/// Above this it is as good as unlimited.
const CEILING: f64 = 16.0 * 1024.0 * 1024.0 * 1024.0;
/// Share of the time that preparers may wait before we call it contention.
const WAIT_SHARE: f64 = 0.3;
/// One opinion per so much time: a single chunk says little.
const WINDOW: Duration = Duration::from_millis(4);
/// How far behind its schedule it may catch up.
const CREDIT: Duration = Duration::from_millis(2);

/// How far the floor's schedule may lie ahead or behind: what was done early does not excuse a long pause.
const AHEAD: Duration = Duration::from_millis(20);

/// The pace of one owner.
#[derive(Debug)]
pub(super) struct Pace {
    rate: f64,
    floor: f64,
    next: Instant,
    latest: Instant,
    window: Instant,
    waited_ns: u64,
    ran_ns: u64,
}

impl Pace {
    /// `cpus`: those that this owner may think of as its share.
    pub(super) fn new(now: Instant, cpus: f64) -> Self {
        Self {
            rate: CEILING,
            floor: FLOOR_PER_CPU * cpus,
            next: now,
            latest: now,
            window: now,
            waited_ns: 0,
            ran_ns: 0,
        }
    }

    /// A chunk was installed; `waited_ns` and `ran_ns` are what its preparation cost.
    pub(super) fn installed(&mut self, now: Instant, bytes: usize, waited_ns: u64, ran_ns: u64) {
        self.waited_ns += waited_ns;
        self.ran_ns += ran_ns;
        if now.duration_since(self.window) >= WINDOW {
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let share = self.waited_ns as f64 / (self.waited_ns + self.ran_ns).max(1) as f64;
            self.rate = if share > WAIT_SHARE { self.rate.min(1e9) * 0.7 } else { self.rate * 1.4 };
            self.rate = self.rate.clamp(self.floor, CEILING);
            (self.waited_ns, self.ran_ns, self.window) = (0, 0, now);
        }
        // Little credit for the past: a pause is not made up for by a burst, only what a sleep of a millisecond overshoots.
        self.next = self.next.max(now.checked_sub(CREDIT).unwrap_or(now)) + Self::time(bytes, self.rate);
        self.latest = (self.latest + Self::time(bytes, self.floor))
            .clamp(now.checked_sub(AHEAD).unwrap_or(now), now + AHEAD);
    }

    /// When the next chunk may be installed.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// When something must be installed, whoever waits: the floor, on average.
    pub(super) fn latest(&self) -> Instant {
        self.latest
    }

    fn time(bytes: usize, rate: f64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a duration")]
        Duration::from_secs_f64(bytes as f64 / rate)
    }
}

/// How long the calling thread ran and waited for a CPU (/proc/thread-self/schedstat).
#[derive(Debug)]
pub(super) struct RunQueue {
    file: Option<File>,
    last: (u64, u64),
}

impl RunQueue {
    /// For the calling thread only.
    pub(super) fn of_this_thread() -> Self {
        let mut own = Self { file: File::open("/proc/thread-self/schedstat").ok(), last: (0, 0) };
        own.step();
        own
    }

    /// Nanoseconds run and waited since the last call; zeros where the kernel does not count.
    pub(super) fn step(&mut self) -> (u64, u64) {
        let mut bytes = [0u8; 96];
        let got = self.file.as_ref().and_then(|file| file.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&bytes[..got]).unwrap_or_default();
        let mut numbers = text.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0));
        let now = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let before = std::mem::replace(&mut self.last, now);
        (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contention_slows_down_to_the_floor_and_idleness_speeds_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 1.0);
        let mut now = start;
        let mut install = |pace: &mut Pace, waited: u64| {
            now = now.max(pace.next()) + WINDOW;
            pace.installed(now, 1 << 20, waited, 1000);
            (pace.next() + CREDIT - now).as_secs_f64()
        };
        for _ in 0..100 {
            install(&mut pace, 5000);
        }
        let slow = install(&mut pace, 5000);
        assert!((slow - f64::from(1 << 20) / FLOOR_PER_CPU).abs() < 1e-6, "{slow}");
        for _ in 0..100 {
            install(&mut pace, 0);
        }
        assert!(install(&mut pace, 0) < 1e-4);
    }

    #[test]
    fn small_steps_at_the_last_moment_make_the_floor() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 2.0);
        let (mut now, mut bytes) = (start, 0);
        while now < start + Duration::from_secs(1) {
            now = now.max(pace.latest());
            pace.installed(now, 1 << 15, 1, 0);
            bytes += 1 << 15;
        }
        let floor = 2.0 * FLOOR_PER_CPU;
        assert!((f64::from(bytes) / floor - 1.0).abs() < 0.05, "{bytes}");
    }
}
