//! The conversation between agent and pager: one JSON request, one JSON answer, each behind its length; descriptors are attached
//! to the length. Everything is bounded before it is allocated.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::PagerError;
use crate::model::page::{PageIndex, PageRange};
use crate::sys::passing;

/// A message is a few paths and numbers.
pub(super) const MESSAGE_MAX: usize = 64 << 10;
/// Ranges of one object: every second page of 64 GiB.
const RANGES_MAX: u64 = 1 << 23;
const RANGE_BYTES: usize = 16;

/// Where the pager stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PagerState {
    /// Ready for CRIU.
    Listening,
    /// CRIU has connected; faults are served.
    Serving {
        /// Pages not installed.
        pages_missing: u64,
    },
    /// CRIU has finished; everything comes in.
    Filling {
        /// Pages not installed.
        pages_missing: u64,
        /// Pages of all processes, those forked meanwhile included.
        pages_total: u64,
    },
    /// Everything is there. The pager is gone.
    Resident {
        /// From CRIU's end to the last page, milliseconds.
        after_ms: u64,
    },
    /// The restore failed or was given up, before the container ran.
    Failed(String),
    /// The container cannot be completed and is killed; tasks that touch missing pages stand still.
    Lost,
}

impl PagerState {
    /// Nothing follows.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Resident { .. } | Self::Failed(_) | Self::Lost)
    }
}

/// What the agent may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Request {
    /// One process; descriptors: table of ranges, pages, digests.
    Load {
        vpid: u32,
        mappings: u64,
        content: u64,
    },
    /// Every process has been loaded: CRIU may come.
    Loaded,
    Status,
    /// The container runs from now on: what to kill if its memory cannot be completed.
    Release {
        freezer: PathBuf,
        init_pid: i32,
    },
    /// Drop everything and end.
    Abort,
}

/// What the pager says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Answer {
    Ok,
    No(String),
    State(PagerState),
}

/// Length and JSON.
pub(super) fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, PagerError> {
    let json = serde_json::to_vec(message).map_err(|e| PagerError::Malformed(e.to_string()))?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length as usize <= MESSAGE_MAX);
    let length = length.ok_or_else(|| PagerError::Malformed("a message is too long".to_owned()))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}

/// The length that was announced, if it is allowed.
pub(super) fn length(prefix: [u8; 4]) -> Result<usize, PagerError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_MAX {
        return Err(PagerError::Malformed(format!("a message of {length} bytes was announced")));
    }
    Ok(length)
}

/// The message in these bytes.
pub(super) fn decode<M: DeserializeOwned>(json: &[u8]) -> Result<M, PagerError> {
    serde_json::from_slice(json).map_err(|e| PagerError::Malformed(format!("not a message: {e}")))
}

/// The pager's side: reads a request; `None` when the agent has closed.
pub(super) fn receive(stream: &UnixStream) -> Result<Option<(Request, Vec<OwnedFd>)>, PagerError> {
    let (mut prefix, mut got, mut fds) = ([0u8; 4], 0, Vec::new());
    while got < prefix.len() {
        let step = passing::receive(stream.as_fd(), &mut prefix[got..], &mut fds)
            .map_err(PagerError::io("read a request"))?;
        match step {
            0 if got == 0 => return Ok(None),
            0 => return Err(PagerError::Malformed("a request ended in its length".to_owned())),
            step => got += step,
        }
    }
    let mut json = vec![0; length(prefix)?];
    (&*stream).read_exact(&mut json).map_err(PagerError::io("read a request"))?;
    Ok(Some((decode(&json)?, fds)))
}

/// The pager's side: answers.
pub(super) fn answer(mut stream: &UnixStream, answer: &Answer) -> Result<(), PagerError> {
    stream.write_all(&encode(answer)?).map_err(PagerError::io("answer"))
}

/// Ranges as they travel: pairs of first page and count in a file, because there can be a hundred thousand.
pub(super) fn write_ranges(file: BorrowedFd<'_>, lists: [&[PageRange]; 2]) -> io::Result<()> {
    let file = File::from(file.try_clone_to_owned()?);
    let all = lists.into_iter().flatten();
    let bytes: Vec<u8> =
        all.flat_map(|range| [range.first.0.to_le_bytes(), range.count.to_le_bytes()].concat()).collect();
    file.write_all_at(&bytes, 0)
}

/// The reverse of [`write_ranges`]; the counts are somebody else's word.
pub(super) fn read_ranges(file: &File, counts: [u64; 2]) -> Result<[Vec<PageRange>; 2], PagerError> {
    if counts.iter().any(|count| *count > RANGES_MAX) {
        return Err(PagerError::Malformed(format!("{counts:?} ranges were announced")));
    }
    let mut offset = 0;
    let mut lists = [Vec::new(), Vec::new()];
    for (list, count) in lists.iter_mut().zip(counts) {
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * RANGE_BYTES];
        file.read_exact_at(&mut bytes, offset).map_err(PagerError::io("read the ranges"))?;
        offset += bytes.len() as u64;
        list.extend(bytes.as_chunks::<RANGE_BYTES>().0.iter().map(|pair| {
            let word = |at: usize| u64::from_le_bytes(*pair[at..].first_chunk().expect("16 bytes"));
            PageRange { first: PageIndex(word(0)), count: word(8) }
        }));
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd::MemFile;

    #[test]
    fn requests_arrive_with_their_descriptors() {
        let (agent, pager) = UnixStream::pair().unwrap();
        let file = MemFile::create("table").unwrap();
        let ranges = [PageRange { first: PageIndex(7), count: 3 }];
        write_ranges(file.as_fd(), [&ranges, &[]]).unwrap();
        let bytes = encode(&Request::Load { vpid: 9, mappings: 1, content: 0 }).unwrap();
        assert_eq!(passing::send(agent.as_fd(), &bytes, &[file.as_fd()]).unwrap(), bytes.len());
        let (request, mut fds) = receive(&pager).unwrap().unwrap();
        assert!(matches!(request, Request::Load { vpid: 9, mappings: 1, content: 0 }));
        let table = File::from(fds.pop().unwrap());
        assert_eq!(read_ranges(&table, [1, 0]).unwrap(), [ranges.to_vec(), vec![]]);
        assert!(read_ranges(&table, [2, 0]).is_err());
        assert!(read_ranges(&table, [RANGES_MAX + 1, 0]).is_err());
        drop(agent);
        assert!(receive(&pager).unwrap().is_none());
    }

    #[test]
    fn a_lying_length_and_nonsense_are_refused() {
        for bytes in [&u32::MAX.to_le_bytes()[..], &[1, 0], &[2, 0, 0, 0, b'{', b'}']] {
            let (agent, pager) = UnixStream::pair().unwrap();
            (&agent).write_all(bytes).unwrap();
            drop(agent);
            assert!(receive(&pager).is_err(), "{bytes:?}");
        }
    }
}
