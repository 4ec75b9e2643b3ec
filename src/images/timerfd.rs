//! Periodic timers that CRIU 4.2 would lose. A timerfd that expires while the tasks are frozen and has not been read yet shows
//! `it_value: (0, 0)` in fdinfo (fs/timerfd.c: the timer is not forwarded before the read), CRIU writes that value into
//! `files.img`, and at the restore `timerfd_settime(2)` with a zero value disarms the timer for good (criu/timerfd.c). Programs
//! that wait for it would hang in silence.
//!
//! The cure: such an entry (unread expirations, zero value, an interval) gets a value of one nanosecond, so it expires at once
//! and goes on with its interval. Only this field is appended, which in protobuf replaces the earlier value of the field; every
//! other byte stays as CRIU wrote it.

use bytes::Buf;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// `IMG_COMMON_MAGIC` and `FILES_MAGIC` (criu/include/magic.h).
const MAGICS: [u32; 2] = [0x5456_4319, 0x5630_3138];
/// `tfd` in `file_entry` (images/fdinfo.proto).
const TAG_TIMERFD: u32 = 12;
/// In `timerfd_entry` (images/timerfd.proto).
const TAG_TICKS: u32 = 5;
const TAG_VALUE: [u32; 2] = [7, 8];
const TAG_INTERVAL: [u32; 2] = [9, 10];

/// `files.img` is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("files.img cannot be read: {0}")]
pub struct BadFilesImage(String);

fn bad<W: std::fmt::Display + ?Sized>(what: &W) -> BadFilesImage {
    BadFilesImage(what.to_string())
}

/// Rewrites `files.img` if a timer in it needs it; returns the new bytes and how many timers were armed again.
///
/// # Errors
/// The image is not well formed.
pub fn rearm(image: &[u8]) -> Result<Option<(Vec<u8>, u32)>, BadFilesImage> {
    let mut rest = image;
    for magic in MAGICS {
        if rest.try_get_u32_le().map_err(|error| bad(&error))? != magic {
            return Err(bad("its magic numbers are others"));
        }
    }
    let mut out = image[..8].to_vec();
    let mut armed = 0;
    while rest.has_remaining() {
        let length = rest.try_get_u32_le().map_err(|error| bad(&error))? as usize;
        let entry = rest.get(..length).ok_or_else(|| bad("it ends inside an entry"))?;
        rest.advance(length);
        let entry = match rearm_entry(entry)? {
            Some(changed) => {
                armed += 1;
                changed
            }
            None => entry.to_vec(),
        };
        out.extend_from_slice(&u32::try_from(entry.len()).map_err(|error| bad(&error))?.to_le_bytes());
        out.extend_from_slice(&entry);
    }
    Ok((armed > 0).then_some((out, armed)))
}

/// One `file_entry`.
fn rearm_entry(entry: &[u8]) -> Result<Option<Vec<u8>>, BadFilesImage> {
    let mut rest = entry;
    while rest.has_remaining() {
        let start = entry.len() - rest.len();
        let (tag, wire) = decode_key(&mut rest).map_err(|error| bad(&error))?;
        if (tag, wire) != (TAG_TIMERFD, WireType::LengthDelimited) {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(|error| bad(&error))?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut rest).map_err(|error| bad(&error))?)
            .map_err(|error| bad(&error))?;
        let timer = rest.get(..length).ok_or_else(|| bad("it ends inside a timer"))?;
        if !is_lost(timer)? {
            return Ok(None);
        }
        let mut timer = timer.to_vec();
        encode_key(TAG_VALUE[1], WireType::Varint, &mut timer);
        encode_varint(1, &mut timer);
        let mut out = entry[..start].to_vec();
        encode_key(TAG_TIMERFD, WireType::LengthDelimited, &mut out);
        encode_varint(timer.len() as u64, &mut out);
        out.extend_from_slice(&timer);
        out.extend_from_slice(&rest[length..]);
        return Ok(Some(out));
    }
    Ok(None)
}

/// Has it expired unread, with an interval to go on with?
fn is_lost(timer: &[u8]) -> Result<bool, BadFilesImage> {
    let (mut ticks, mut value, mut interval) = (0, 0, 0);
    let mut rest = timer;
    while rest.has_remaining() {
        let (tag, wire) = decode_key(&mut rest).map_err(|error| bad(&error))?;
        if wire != WireType::Varint {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(|error| bad(&error))?;
            continue;
        }
        let number = decode_varint(&mut rest).map_err(|error| bad(&error))?;
        match tag {
            TAG_TICKS => ticks = number,
            tag if TAG_VALUE.contains(&tag) => value |= number,
            tag if TAG_INTERVAL.contains(&tag) => interval |= number,
            _ => {}
        }
    }
    Ok(ticks > 0 && value == 0 && interval > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(u32, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, number) in pairs {
            encode_key(*tag, WireType::Varint, &mut out);
            encode_varint(*number, &mut out);
        }
        out
    }

    fn timer(ticks: u64, value_ns: u64, interval_ns: u64) -> Vec<u8> {
        let body = fields(&[
            (1, 9),
            (2, 0),
            (4, 1),
            (5, ticks),
            (6, 0),
            (7, 0),
            (8, value_ns),
            (9, 0),
            (10, interval_ns),
        ]);
        let mut entry = fields(&[(1, 17), (2, 9)]);
        encode_key(TAG_TIMERFD, WireType::LengthDelimited, &mut entry);
        encode_varint(body.len() as u64, &mut entry);
        entry.extend(body);
        entry
    }

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut out: Vec<u8> = MAGICS.iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for entry in entries {
            out.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            out.extend(entry);
        }
        out
    }

    #[test]
    fn only_a_lost_periodic_timer_is_armed_again() {
        let regular = fields(&[(1, 1), (2, 3)]);
        let lost = timer(4, 0, 5_000_000);
        let others = [timer(0, 0, 5_000_000), timer(4, 700, 5_000_000), timer(4, 0, 0), regular.clone()];
        assert_eq!(rearm(&image(&others)).unwrap(), None);
        let (changed, armed) =
            rearm(&image(&[regular.clone(), lost.clone(), regular.clone()])).unwrap().unwrap();
        assert_eq!(armed, 1);
        // The length byte of the timer grows by two, and two bytes follow: field 8 = 1.
        let mut expected = lost.clone();
        let length_at = fields(&[(1, 17), (2, 9)]).len() + 1;
        expected[length_at] += 2;
        expected.extend(fields(&[(8, 1)]));
        assert_eq!(changed, image(&[regular.clone(), expected, regular]));
        assert_eq!(rearm(&changed).unwrap(), None, "the last value of a field counts");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = rearm(&bytes);
            let mut with_magic = image(&[]);
            with_magic.extend(bytes);
            let _either = rearm(&with_magic);
        }
    }
}
