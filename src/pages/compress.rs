//! Compression: zstd level 1 over the content of a batch, and the policy that says when it pays.
//!
//! ```text
//!            ratio or speed unknown                compressor slower than the link,
//!   ┌──────────── try ────────────┐                or content does not shrink
//!   │                             ▼
//!  Raw ◀─────────────────────── Zstd        every PROBE_EVERY-th batch goes the other way, so that both speeds stay
//!   └──────── it pays again ──────▶          known while the link and the content change
//! ```

use std::io;
use std::time::Duration;

use crate::model::limits::BATCH_BYTES_MAX;

/// Level 1: faster than 2 and above by half, and on memory hardly worse.
const LEVEL: i32 = 1;
/// Every how many batches the other way is tried.
const PROBE_EVERY: u32 = 32;
/// Gain under which nothing is changed: measurements are noisy.
const MARGIN: f64 = 1.1;
/// Weight of the newest measurement.
const WEIGHT: f64 = 0.2;

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// When it pays.
    #[default]
    Auto,
    /// Always, except content that does not shrink.
    On,
    /// Never.
    Off,
}

/// A word that is not one of auto, on, off.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("compression {given:?} is not one of auto, on, off")]
pub struct UnknownCompression {
    /// What was given.
    pub given: String,
}

impl std::str::FromStr for Compression {
    type Err = UnknownCompression;
    fn from_str(given: &str) -> Result<Self, UnknownCompression> {
        match given {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(UnknownCompression { given: given.chars().take(40).collect() }),
        }
    }
}

/// A running mean in which the newest value counts a fifth.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old * (1.0 - WEIGHT) + value * WEIGHT));
    }
}

/// Decides batch by batch from what was measured. Shared by all streams of a migration.
#[derive(Debug)]
pub struct Policy {
    asked: Compression,
    /// Threads that can compress at the same time.
    compressors: f64,
    /// The operator's cap: the link is never faster than this.
    cap_bytes_per_s: Option<f64>,
    /// Seconds of one compressor for a byte of content. Means are taken of times per byte, not of speeds, so that one stalled batch
    /// is not hidden by one fast batch.
    compress_s_per_byte: Mean,
    /// Bytes after divided by bytes before.
    ratio: Mean,
    /// Seconds of the whole link for a byte on it.
    link_s_per_byte: Mean,
    batches: u32,
}

impl Policy {
    /// `compressors`: how many batches can be compressed at the same time; `cap_bytes_per_s`: the bandwidth limit.
    #[must_use]
    pub fn new(asked: Compression, compressors: usize, cap_bytes_per_s: Option<u64>) -> Self {
        Self {
            asked,
            compressors: compressors.max(1) as f64,
            cap_bytes_per_s: cap_bytes_per_s.map(|cap| cap as f64),
            compress_s_per_byte: Mean::default(),
            ratio: Mean::default(),
            link_s_per_byte: Mean::default(),
            batches: 0,
        }
    }

    /// Shall the next batch be compressed?
    pub fn choose(&mut self) -> bool {
        self.batches = self.batches.wrapping_add(1);
        match self.asked {
            Compression::On => true,
            Compression::Off => false,
            Compression::Auto => self.pays() != self.batches.is_multiple_of(PROBE_EVERY),
        }
    }

    /// What the measurements so far say; yes while they are missing, because only trying brings them.
    #[must_use]
    pub fn pays(&self) -> bool {
        let (Some(cost), Some(ratio)) = (self.compress_s_per_byte.0, self.ratio.0) else {
            return true;
        };
        if ratio * MARGIN > 1.0 {
            return false;
        }
        let measured = self.link_s_per_byte.0.map_or(f64::INFINITY, |cost| 1.0 / cost.max(1e-12));
        let link = self.cap_bytes_per_s.map_or(measured, |cap| cap.min(measured));
        if link.is_infinite() {
            return true;
        }
        // Content per second: raw it is the link's; compressed it is the slower of the compressors and the link with less on it.
        let compressed = (self.compressors / cost.max(1e-12)).min(link / ratio.max(1e-6));
        compressed > link * MARGIN
    }

    /// A batch was compressed from `before` to `after` bytes in `took`.
    pub fn compressed(&mut self, before: usize, after: usize, took: Duration) {
        if before > 0 {
            self.compress_s_per_byte.add(took.as_secs_f64() / before as f64);
            self.ratio.add(after as f64 / before as f64);
        }
    }

    /// `bytes` were handed to one of `streams` busy streams in `took`, waiting for room included.
    pub fn sent(&mut self, bytes: usize, took: Duration, streams: usize) {
        if bytes > 0 {
            self.link_s_per_byte.add(took.as_secs_f64() / bytes as f64 / streams.max(1) as f64);
        }
    }
}

/// Compresses batches; keeps its tables and its output buffer between them.
pub struct Compressor {
    inner: zstd::bulk::Compressor<'static>,
    output: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// # Errors
    /// Out of memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inner: zstd::bulk::Compressor::new(LEVEL)?, output: Vec::new() })
    }

    /// The compressed form, or `None` when it would not be smaller by a sixteenth: then decompressing costs more than it saves.
    pub fn compress(&mut self, content: &[u8]) -> Option<&[u8]> {
        self.output.clear();
        // The capacity of the output is the bound that makes zstd give up.
        let room = content.len() - content.len() / 16;
        self.output.reserve_exact(BATCH_BYTES_MAX.max(room));
        let length = self.inner.compress_to_buffer(content, &mut self.output).ok()?;
        (length <= room).then_some(&self.output[..length])
    }
}

/// Decompresses batches; keeps its tables between them.
pub struct Decompressor {
    inner: zstd::bulk::Decompressor<'static>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// # Errors
    /// Out of memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inner: zstd::bulk::Decompressor::new()? })
    }

    /// Fills `output` exactly. Never writes more than that, whatever the payload claims.
    ///
    /// # Errors
    /// The payload is not zstd, or is longer or shorter than announced.
    pub fn decompress(&mut self, payload: &[u8], output: &mut [u8]) -> io::Result<()> {
        let length = self.inner.decompress_to_buffer(payload, output)?;
        if length == output.len() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the payload is shorter than announced"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn policy(asked: Compression, cap: Option<u64>) -> Policy {
        Policy::new(asked, 2, cap)
    }

    /// Compressor at `compress` and link at `link` MiB/s, shrinking to `percent` of its size; long enough for the means to settle.
    fn feed(policy: &mut Policy, compress: f64, percent: usize, link: f64) {
        for _ in 0..60 {
            policy.compressed(MIB, MIB * percent / 100, Duration::from_secs_f64(1.0 / compress));
            // Two streams share the link: each sees half of it.
            policy.sent(MIB, Duration::from_secs_f64(2.0 / link), 2);
        }
    }

    #[test]
    fn it_pays_on_a_slow_link_and_not_on_a_fast_one() {
        let mut policy = policy(Compression::Auto, None);
        assert!(policy.pays(), "nothing is known yet: try");
        feed(&mut policy, 300.0, 40, 100.0);
        assert!(policy.pays());
        feed(&mut policy, 300.0, 40, 2000.0);
        assert!(!policy.pays(), "two compressors make 600 MiB/s, the link takes 2000");
        feed(&mut policy, 300.0, 40, 100.0);
        assert!(policy.pays(), "the link became slow again");
    }

    #[test]
    fn a_cap_makes_a_fast_link_slow() {
        let mut policy = policy(Compression::Auto, Some(100 << 20));
        feed(&mut policy, 300.0, 40, 5000.0);
        assert!(policy.pays());
    }

    #[test]
    fn content_that_does_not_shrink_goes_raw() {
        let mut policy = policy(Compression::Auto, None);
        feed(&mut policy, 900.0, 99, 10.0);
        assert!(!policy.pays());
    }

    #[test]
    fn the_other_way_is_tried_now_and_then_and_words_of_the_operator_hold() {
        let mut auto = policy(Compression::Auto, None);
        feed(&mut auto, 300.0, 40, 2000.0);
        let tried = (0..PROBE_EVERY * 4).filter(|_| auto.choose()).count();
        assert_eq!(tried, 4);
        let mut on = policy(Compression::On, None);
        feed(&mut on, 1.0, 99, 5000.0);
        assert!((0..100).all(|_| on.choose()));
        let mut off = policy(Compression::Off, None);
        assert!((0..100).all(|_| !off.choose()));
        assert_eq!("on".parse(), Ok(Compression::On));
        assert!("fast".parse::<Compression>().is_err());
    }

    #[test]
    fn content_comes_back_and_lies_about_its_length_are_refused() {
        let content: Vec<u8> = (0..64 * 1024usize).map(|at| u8::try_from(at / 100 % 256).unwrap()).collect();
        let mut compressor = Compressor::new().unwrap();
        let payload = compressor.compress(&content).unwrap().to_vec();
        assert!(payload.len() < content.len() / 4);
        let mut decompressor = Decompressor::new().unwrap();
        let mut back = vec![0; content.len()];
        decompressor.decompress(&payload, &mut back).unwrap();
        assert_eq!(back, content);
        assert!(decompressor.decompress(&payload, &mut back[1..]).is_err(), "longer than announced");
        assert!(decompressor.decompress(&payload, &mut vec![0; content.len() + 1]).is_err(), "shorter");
        assert!(decompressor.decompress(b"nonsense", &mut back).is_err());
    }

    #[test]
    fn noise_is_not_worth_compressing() {
        let mut noise = vec![0; 64 * 1024];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert!(Compressor::new().unwrap().compress(&noise).is_none());
    }
}
