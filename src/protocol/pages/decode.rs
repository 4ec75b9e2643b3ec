//! Bytes into page frames. Everything here comes from the peer: each count is checked against its bound and against the bytes
//! that are left before anything is allocated for it.

use bytes::{Buf, Bytes};

use super::{
    Codec, DestinationFrame, Forget, Have, KIND_ACK, KIND_FORGET, KIND_HAVE, KIND_HAVE_REPLY, KIND_PAGES,
    PageFrameError, Pages, Run, RunKind, SourceFrame,
};
use crate::model::limits::{BATCH_PAGES_MAX, FORGET_RANGES_MAX, PAGE_INDEX_MAX};
use crate::model::page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};

/// What is left of a frame.
struct Body {
    kind: u8,
    bytes: Bytes,
}

impl Body {
    fn open(mut bytes: Bytes) -> Result<Self, PageFrameError> {
        let kind = bytes.try_get_u8().map_err(|_| PageFrameError::WrongLength { kind: 0 })?;
        Ok(Self { kind, bytes })
    }

    fn wrong_length(&self) -> PageFrameError {
        PageFrameError::WrongLength { kind: self.kind }
    }

    fn u8(&mut self) -> Result<u8, PageFrameError> {
        self.bytes.try_get_u8().map_err(|_| self.wrong_length())
    }

    fn u16(&mut self) -> Result<u16, PageFrameError> {
        self.bytes.try_get_u16_le().map_err(|_| self.wrong_length())
    }

    fn u64(&mut self) -> Result<u64, PageFrameError> {
        self.bytes.try_get_u64_le().map_err(|_| self.wrong_length())
    }

    /// A count of things of `each` bytes that must all be there.
    fn count(&mut self, max: usize, each: usize) -> Result<usize, PageFrameError> {
        let count = usize::from(self.u16()?);
        if count > max {
            return Err(PageFrameError::Rule { rule: "more entries than a batch may have" });
        }
        self.need(count * each)?;
        Ok(count)
    }

    fn need(&self, bytes: usize) -> Result<(), PageFrameError> {
        if self.bytes.remaining() < bytes { Err(self.wrong_length()) } else { Ok(()) }
    }

    fn digest(&mut self) -> Result<Digest, PageFrameError> {
        self.need(32)?;
        Digest::from_slice(&self.bytes.split_to(32)).ok_or_else(|| self.wrong_length())
    }

    fn object(&mut self) -> Result<ObjectId, PageFrameError> {
        let object_type = u32::from(self.u8()?);
        let id = self.u64()?;
        ObjectId::from_wire(object_type, id)
            .ok_or(PageFrameError::Rule { rule: "the object's type is not known" })
    }

    fn end(&self) -> Result<(), PageFrameError> {
        if self.bytes.has_remaining() { Err(self.wrong_length()) } else { Ok(()) }
    }
}

impl SourceFrame {
    /// From a frame's bytes, without its length.
    ///
    /// # Errors
    /// [`PageFrameError`]; never panics.
    pub fn decode(bytes: Bytes) -> Result<Self, PageFrameError> {
        let mut body = Body::open(bytes)?;
        match body.kind {
            KIND_HAVE => decode_have(&mut body).map(Self::Have),
            KIND_PAGES => decode_pages(body).map(Self::Pages),
            KIND_FORGET => decode_forget(&mut body).map(Self::Forget),
            kind => Err(PageFrameError::WrongKind { kind }),
        }
    }
}

impl DestinationFrame {
    /// From a frame's bytes, without its length.
    ///
    /// # Errors
    /// [`PageFrameError`]; never panics.
    pub fn decode(bytes: Bytes) -> Result<Self, PageFrameError> {
        let mut body = Body::open(bytes)?;
        match body.kind {
            KIND_HAVE_REPLY => {
                let batch = body.u64()?;
                let count = body.count(BATCH_PAGES_MAX, 0)?;
                body.need(count.div_ceil(8))?;
                let bits = body.bytes.split_to(count.div_ceil(8));
                body.end()?;
                let held = (0..count).map(|at| bits[at / 8] & 1 << (at % 8) != 0).collect();
                Ok(Self::HaveReply { batch, held })
            }
            KIND_ACK => {
                let batch = body.u64()?;
                let count = body.count(BATCH_PAGES_MAX, 2)?;
                let missing = (0..count).map(|_| body.u16()).collect::<Result<Vec<_>, _>>()?;
                body.end()?;
                if !missing.is_sorted_by(|a, b| a < b) {
                    return Err(PageFrameError::Rule { rule: "missing pages are named in ascending order" });
                }
                Ok(Self::Ack { batch, missing })
            }
            kind => Err(PageFrameError::WrongKind { kind }),
        }
    }
}

fn decode_have(body: &mut Body) -> Result<Have, PageFrameError> {
    let batch = body.u64()?;
    let count = body.count(BATCH_PAGES_MAX, 8)?;
    let hints = (0..count).map(|_| body.u64()).collect::<Result<Vec<_>, _>>()?;
    body.end()?;
    Ok(Have { batch, hints })
}

fn decode_forget(body: &mut Body) -> Result<Forget, PageFrameError> {
    let batch = body.u64()?;
    let object = body.object()?;
    let count = body.count(FORGET_RANGES_MAX, 16)?;
    let mut ranges = Vec::with_capacity(count);
    let mut next = 0;
    for _ in 0..count {
        let (first, count) = (body.u64()?, body.u64()?);
        next = check_range(first, count, next)?;
        ranges.push(PageRange { first: PageIndex(first), count });
    }
    body.end()?;
    Ok(Forget { batch, object, ranges })
}

fn decode_pages(mut body: Body) -> Result<Pages, PageFrameError> {
    let batch = body.u64()?;
    let object = body.object()?;
    let codec = match body.u8()? {
        0 => Codec::None,
        1 => Codec::Zstd,
        _ => return Err(PageFrameError::Rule { rule: "the codec is not known" }),
    };
    let root = body.digest()?;
    let runs = decode_runs(&mut body)?;
    let mut pages = Pages { batch, object, runs, known: Vec::new(), root, codec, payload: Bytes::new() };
    let known = pages.count(RunKind::Known);
    body.need(known * 32)?;
    pages.known = (0..known).map(|_| body.digest()).collect::<Result<_, _>>()?;
    pages.payload = body.bytes;
    let content = pages.count(RunKind::Content) * PAGE_SIZE;
    let fits = match codec {
        Codec::None => pages.payload.len() == content,
        Codec::Zstd => !pages.payload.is_empty() && pages.payload.len() < content,
    };
    if fits {
        Ok(pages)
    } else {
        Err(PageFrameError::Rule { rule: "the payload does not fit the content pages" })
    }
}

fn decode_runs(body: &mut Body) -> Result<Vec<Run>, PageFrameError> {
    let count = body.count(BATCH_PAGES_MAX, 11)?;
    let mut runs = Vec::with_capacity(count);
    let (mut next, mut total) = (0, 0);
    for _ in 0..count {
        let (first, count) = (body.u64()?, body.u16()?);
        let kind = match body.u8()? {
            0 => RunKind::Zero,
            1 => RunKind::Content,
            2 => RunKind::Known,
            _ => return Err(PageFrameError::Rule { rule: "the kind of a run is not known" }),
        };
        next = check_range(first, u64::from(count), next)?;
        total += usize::from(count);
        if total > BATCH_PAGES_MAX {
            return Err(PageFrameError::Rule { rule: "more pages than a batch may have" });
        }
        runs.push(Run { first, count, kind });
    }
    Ok(runs)
}

/// One past the range, when it is not empty, lies behind `next` and inside the address space.
fn check_range(first: u64, count: u64, next: u64) -> Result<u64, PageFrameError> {
    if count == 0 || first < next {
        return Err(PageFrameError::Rule { rule: "runs are not empty and strictly ascending" });
    }
    first
        .checked_add(count)
        .filter(|end| *end <= PAGE_INDEX_MAX)
        .ok_or(PageFrameError::Rule { rule: "pages lie inside the address space" })
}
