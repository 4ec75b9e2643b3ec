//! What is measured: the kinds of containers, and which of them make up a round.

use std::fmt;

use serde::Serialize;

/// Memory of writers, and what the floor is compared with, MiB.
const REFERENCE_MIB: u32 = 1024;

/// A kind of container and of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Filled memory that nobody writes to.
    Idle,
    /// The same program without memory: the floor.
    Empty,
    /// The same, by `runc checkpoint` and `runc restore`.
    ByHand,
    /// Writes a quarter of the pages that the link could carry.
    #[serde(rename = "writer-25")]
    Writer25,
    /// Half of them.
    #[serde(rename = "writer-50")]
    Writer50,
    /// Redis under as much load as it takes, for its throughput.
    RedisClosed,
    /// Redis under a fixed rate of requests, for their latency.
    RedisOpen,
}

impl Mode {
    /// Every mode, in the order of a round: an idle container goes before the writers, whose rate follows from it.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Empty,
        Self::ByHand,
        Self::Writer25,
        Self::Writer50,
        Self::RedisClosed,
        Self::RedisOpen,
    ];

    /// The word on the command line and in the report.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Empty => "empty",
            Self::ByHand => "by-hand",
            Self::Writer25 => "writer-25",
            Self::Writer50 => "writer-50",
            Self::RedisClosed => "redis-closed",
            Self::RedisOpen => "redis-open",
        }
    }

    /// The reverse of [`Mode::word`].
    ///
    /// # Errors
    /// The words that there are.
    pub fn parse(word: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::word).join(", ");
        Self::ALL.into_iter().find(|mode| mode.word() == word).ok_or_else(|| format!("it is one of {known}"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds that count, beside one that does not.
    pub runs: u32,
    /// Sizes of idle containers, MiB.
    pub memory_mib: Vec<u32>,
    /// Values in Redis, MiB.
    pub redis_mib: u32,
    /// Which modes.
    pub modes: Vec<Mode>,
}

impl Options {
    /// Memory of writers, MiB: the reference size, or the largest that is measured.
    #[must_use]
    pub fn reference_mib(&self) -> u32 {
        let largest = self.memory_mib.iter().copied().max().unwrap_or(REFERENCE_MIB);
        if self.memory_mib.contains(&REFERENCE_MIB) { REFERENCE_MIB } else { largest }
    }
}

/// One thing to do in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) mode: Mode,
    pub(super) memory_mib: u32,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} MiB", self.mode, self.memory_mib)
    }
}

/// The jobs of a round.
pub(super) fn jobs(options: &Options) -> Vec<Job> {
    let sizes = |mode: Mode| match mode {
        Mode::Idle => options.memory_mib.clone(),
        Mode::Empty | Mode::ByHand => vec![0],
        Mode::Writer25 | Mode::Writer50 => vec![options.reference_mib()],
        Mode::RedisClosed | Mode::RedisOpen => vec![options.redis_mib],
    };
    let wanted = Mode::ALL.into_iter().filter(|mode| options.modes.contains(mode));
    wanted.flat_map(|mode| sizes(mode).into_iter().map(move |memory_mib| Job { mode, memory_mib })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back() {
        for mode in Mode::ALL {
            assert_eq!(Mode::parse(mode.word()), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.word());
        }
        assert!(Mode::parse("fast").unwrap_err().contains("by-hand"));
    }

    #[test]
    fn a_round_begins_with_what_the_writers_need() {
        let mut options =
            Options { runs: 1, memory_mib: vec![64, 1024, 2048], redis_mib: 256, modes: Mode::ALL.to_vec() };
        let all = jobs(&options);
        assert_eq!(all.len(), 9);
        assert!(all[..3].iter().all(|job| job.mode == Mode::Idle));
        assert_eq!(all[5], Job { mode: Mode::Writer25, memory_mib: 1024 });
        options.memory_mib = vec![64, 256];
        assert_eq!(options.reference_mib(), 256);
    }
}
