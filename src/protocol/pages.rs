//! Page frames: the binary language of a page stream, the hot path. The source speaks, the destination answers each frame once,
//! in the order in which the frames came.
//!
//! ```text
//! source                                              destination
//!   Have{batch, hints} ──────────────────────────────▶   "do you hold contents that begin like this?"
//!   ◀──────────────────────────────── HaveReply{batch, bits}
//!   Pages{batch, object, runs, known, root, content} ─▶   verified, stored
//!   ◀──────────────────────────────── Ack{batch, missing} "these known pages I could not produce: send them"
//!   Forget{batch, object, ranges} ───────────────────▶   pages that the object no longer has
//!   ◀──────────────────────────────── Ack{batch}
//! ```
//!
//! A frame is a `u32` length, then that many bytes: a kind byte and the body; integers are little-endian. A hint is the first eight
//! bytes of a digest and proves nothing: what counts are the digests in `Pages`, which the destination computes again from the
//! bytes, and `root`, the BLAKE3 over the digests of all pages of the batch in order. Nothing is allocated for a length that was
//! only announced: every count is bounded by `model::limits` and by the bytes that are really there.

mod decode;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::model::limits::PAGE_FRAME_MAX;
use crate::model::page::{Digest, ObjectId, PageRange};

const KIND_HAVE: u8 = 1;
const KIND_HAVE_REPLY: u8 = 2;
const KIND_PAGES: u8 = 3;
const KIND_ACK: u8 = 4;
const KIND_FORGET: u8 = 5;

/// A page stream could not be understood or broke.
#[derive(Debug, thiserror::Error)]
pub enum PageFrameError {
    /// The stream failed, or ended inside a frame.
    #[error("the page stream broke")]
    Io(#[source] std::io::Error),
    /// The peer announced more than the bound.
    #[error("a page frame of {length} bytes was announced, at most {max} are allowed")]
    TooLong {
        /// What was announced.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// The frame ends before its own counts say so, or goes on after.
    #[error("a page frame of kind {kind} has the wrong length")]
    WrongLength {
        /// Its kind byte.
        kind: u8,
    },
    /// A kind that does not exist or does not belong in this direction.
    #[error("a page frame of kind {kind} may not come here")]
    WrongKind {
        /// Its kind byte.
        kind: u8,
    },
    /// A rule inside the frame is broken.
    #[error("a page frame breaks a rule: {rule}")]
    Rule {
        /// The rule.
        rule: &'static str,
    },
}

/// What a run of pages in a batch consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// All zero; nothing else is told about them.
    Zero,
    /// Their bytes are in the payload.
    Content,
    /// The destination holds such bytes already; their digests are in the frame.
    Known,
}

/// Consecutive pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page in its object.
    pub first: u64,
    /// How many, at least one.
    pub count: u16,
    /// What they are.
    pub kind: RunKind,
}

/// How the payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    None,
    /// One zstd frame.
    Zstd,
}

/// A batch of pages of one object, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// Number of the batch, chosen by the source, unique on its stream.
    pub batch: u64,
    /// What the pages belong to.
    pub object: ObjectId,
    /// The pages, in strictly ascending runs.
    pub runs: Vec<Run>,
    /// Digests of the known pages, in order.
    pub known: Vec<Digest>,
    /// BLAKE3 over the digests of all pages of the batch, in order.
    pub root: Digest,
    /// How `payload` is packed.
    pub codec: Codec,
    /// The bytes of the content pages, in order.
    pub payload: Bytes,
}

impl Pages {
    /// How many pages are of this kind.
    #[must_use]
    pub fn count(&self, kind: RunKind) -> usize {
        self.runs.iter().filter(|run| run.kind == kind).map(|run| usize::from(run.count)).sum()
    }

    /// Appends the frame up to its payload; `payload_len` bytes must follow. So the payload is never copied.
    pub fn encode_head(&self, payload_len: usize, out: &mut Vec<u8>) {
        let start = begin(out, KIND_PAGES);
        let (object_type, object_id) = self.object.to_wire();
        out.extend_from_slice(&self.batch.to_le_bytes());
        out.push(u8::try_from(object_type).expect("CRIU's types are 1 and 2"));
        out.extend_from_slice(&object_id.to_le_bytes());
        out.push(match self.codec {
            Codec::None => 0,
            Codec::Zstd => 1,
        });
        out.extend_from_slice(&self.root.0);
        out.extend_from_slice(&count_u16(self.runs.len()));
        for run in &self.runs {
            out.extend_from_slice(&run.first.to_le_bytes());
            out.extend_from_slice(&run.count.to_le_bytes());
            out.push(match run.kind {
                RunKind::Zero => 0,
                RunKind::Content => 1,
                RunKind::Known => 2,
            });
        }
        for digest in &self.known {
            out.extend_from_slice(&digest.0);
        }
        finish(out, start, payload_len);
    }
}

/// Asks which contents the destination holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// Number of the batch.
    pub batch: u64,
    /// First eight bytes of the digests in question.
    pub hints: Vec<u64>,
}

/// Pages that an object no longer has: the destination gives their memory back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Number of the batch.
    pub batch: u64,
    /// What the pages belonged to.
    pub object: ObjectId,
    /// The pages, strictly ascending.
    pub ranges: Vec<PageRange>,
}

/// What the source may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFrame {
    /// A question.
    Have(Have),
    /// Pages.
    Pages(Pages),
    /// Pages that are gone.
    Forget(Forget),
}

/// What the destination may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationFrame {
    /// One answer for each hint, in order.
    HaveReply {
        /// Number of the batch.
        batch: u64,
        /// True: probably held.
        held: Vec<bool>,
    },
    /// The batch is stored, except these.
    Ack {
        /// Number of the batch.
        batch: u64,
        /// Known pages that could not be resolved, by their place among all pages of the batch, ascending.
        missing: Vec<u16>,
    },
}

fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind);
    start
}

fn finish(out: &mut [u8], start: usize, payload_len: usize) {
    let length = out.len() - start - 4 + payload_len;
    assert!(length <= PAGE_FRAME_MAX, "a batch is bounded when it is made");
    let length = u32::try_from(length).expect("below the bound");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn count_u16(count: usize) -> [u8; 2] {
    u16::try_from(count).expect("a batch is bounded when it is made").to_le_bytes()
}

impl Have {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out, KIND_HAVE);
        out.extend_from_slice(&self.batch.to_le_bytes());
        out.extend_from_slice(&count_u16(self.hints.len()));
        for hint in &self.hints {
            out.extend_from_slice(&hint.to_le_bytes());
        }
        finish(out, start, 0);
    }
}

impl Forget {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out, KIND_FORGET);
        let (object_type, object_id) = self.object.to_wire();
        out.extend_from_slice(&self.batch.to_le_bytes());
        out.push(u8::try_from(object_type).expect("CRIU's types are 1 and 2"));
        out.extend_from_slice(&object_id.to_le_bytes());
        out.extend_from_slice(&count_u16(self.ranges.len()));
        for range in &self.ranges {
            out.extend_from_slice(&range.first.0.to_le_bytes());
            out.extend_from_slice(&range.count.to_le_bytes());
        }
        finish(out, start, 0);
    }
}

impl DestinationFrame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::HaveReply { batch, held } => {
                let start = begin(out, KIND_HAVE_REPLY);
                out.extend_from_slice(&batch.to_le_bytes());
                out.extend_from_slice(&count_u16(held.len()));
                out.extend(held.chunks(8).map(|bits| {
                    bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at)
                }));
                finish(out, start, 0);
            }
            Self::Ack { batch, missing } => {
                let start = begin(out, KIND_ACK);
                out.extend_from_slice(&batch.to_le_bytes());
                out.extend_from_slice(&count_u16(missing.len()));
                for place in missing {
                    out.extend_from_slice(&place.to_le_bytes());
                }
                finish(out, start, 0);
            }
        }
    }
}

/// Reads one frame's bytes, without its length; `None` when the peer ended the stream between two frames. `buffer` is reused
/// when the bytes handed out before are no longer held.
///
/// # Errors
/// [`PageFrameError::Io`], [`PageFrameError::TooLong`].
pub async fn read_frame<R>(reader: &mut R, buffer: &mut BytesMut) -> Result<Option<Bytes>, PageFrameError>
where
    R: AsyncRead + Unpin,
{
    let mut prefix = [0u8; 4];
    let mut filled = 0;
    while filled < prefix.len() {
        match reader.read(&mut prefix[filled..]).await.map_err(PageFrameError::Io)? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(PageFrameError::Io(std::io::ErrorKind::UnexpectedEof.into())),
            n => filled += n,
        }
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > PAGE_FRAME_MAX {
        return Err(PageFrameError::TooLong { length, max: PAGE_FRAME_MAX });
    }
    buffer.clear();
    buffer.reserve(length);
    let mut limited = reader.take(length as u64);
    while buffer.len() < length {
        if limited.read_buf(buffer).await.map_err(PageFrameError::Io)? == 0 {
            return Err(PageFrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Some(buffer.split().freeze()))
}

#[cfg(test)]
mod tests;
