//! The manifest on the wire: the whole list in the first round, afterwards only what differs from the list before, so that an
//! unchanged tree costs a few bytes.

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::entry::{Entry, check_tree};
use super::error::{FilesError, show};
use crate::model::Digest;
use crate::model::limits::{
    MANIFEST_PART_BYTES_MAX, MANIFEST_PART_ENTRIES_MAX, TREE_ENTRIES_MAX, TREE_MANIFEST_BYTES_MAX,
};
use crate::protocol::frame::{read_message, write_message};
use crate::protocol::pace::Pacer;
use crate::rpc::v1::{ManifestPart, ManifestStep, manifest_step::Step};

/// Block digests in one step.
const STEP_DIGESTS_MAX: usize = 8192;

const _: () = assert!(STEP_DIGESTS_MAX * 32 * 4 <= MANIFEST_PART_BYTES_MAX);

/// How a list comes out of the list before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Keep(u32),
    Skip(u32),
    Entry(usize),
}

/// The differences between two sorted lists.
fn changes(base: &[Entry], new: &[Entry]) -> Vec<Change> {
    let mut found: Vec<Change> = Vec::new();
    let mut old = base.iter().peekable();
    for (at, entry) in new.iter().enumerate() {
        while old.next_if(|old| old.path < entry.path).is_some() {
            push(&mut found, Change::Skip(1));
        }
        match old.next_if(|old| old.path == entry.path) {
            Some(same) if same == entry => push(&mut found, Change::Keep(1)),
            Some(_) => {
                push(&mut found, Change::Skip(1));
                found.push(Change::Entry(at));
            }
            None => found.push(Change::Entry(at)),
        }
    }
    found
}

fn push(found: &mut Vec<Change>, change: Change) {
    match (found.last_mut(), change) {
        (Some(Change::Keep(n)), Change::Keep(_)) | (Some(Change::Skip(n)), Change::Skip(_)) => *n += 1,
        _ => found.push(change),
    }
}

/// Writes the manifest; `base` is what the peer holds (empty: nothing). Returns the bytes written.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    base: &[Entry],
    new: &[Entry],
    pacer: &Pacer,
) -> Result<u64, FilesError> {
    let mut part = Parts { writer, pacer, steps: Vec::new(), bytes: 0, written: 0 };
    for change in changes(base, new) {
        match change {
            Change::Keep(count) => part.add(Step::Keep(count)).await?,
            Change::Skip(count) => part.add(Step::Skip(count)).await?,
            Change::Entry(at) => {
                let mut chunks = new[at].blocks.chunks(STEP_DIGESTS_MAX);
                let mut wire = new[at].to_wire();
                wire.block_digests = chunks.next().map(concatenated).unwrap_or_default();
                part.add(Step::Entry(wire)).await?;
                for chunk in chunks {
                    part.add(Step::Digests(concatenated(chunk))).await?;
                }
            }
        }
    }
    part.flush(true).await?;
    Ok(part.written)
}

fn concatenated(digests: &[Digest]) -> Bytes {
    digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>().into()
}

struct Parts<'a, W> {
    writer: &'a mut W,
    pacer: &'a Pacer,
    steps: Vec<ManifestStep>,
    bytes: usize,
    written: u64,
}

impl<W: AsyncWrite + Unpin> Parts<'_, W> {
    async fn add(&mut self, step: Step) -> Result<(), FilesError> {
        let step = ManifestStep { step: Some(step) };
        let bytes = step.encoded_len() + 8;
        let full =
            self.bytes + bytes > MANIFEST_PART_BYTES_MAX || self.steps.len() == MANIFEST_PART_ENTRIES_MAX;
        if full {
            self.flush(false).await?;
        }
        self.bytes += bytes;
        self.steps.push(step);
        Ok(())
    }

    async fn flush(&mut self, last: bool) -> Result<(), FilesError> {
        let part = ManifestPart { steps: std::mem::take(&mut self.steps), last };
        self.bytes = 0;
        self.pacer.take(part.encoded_len() as u64).await;
        self.written += write_message(self.writer, &part).await?;
        if self.written > TREE_MANIFEST_BYTES_MAX as u64 {
            return Err(FilesError::TooLarge {
                what: "the encoded file list",
                path: show(b""),
                have: self.written,
                max: TREE_MANIFEST_BYTES_MAX as u64,
            });
        }
        if last {
            self.writer.flush().await.map_err(crate::protocol::frame::FrameError::Io)?;
        }
        Ok(())
    }
}

/// Reads and checks a manifest that is told as a difference to `base`.
pub(super) async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    base: &[Entry],
) -> Result<Vec<Entry>, FilesError> {
    let mut builder = Builder { base, used: 0, entries: Vec::new(), digests: Vec::new() };
    let mut bytes = 0;
    loop {
        let part: ManifestPart = read_message(reader).await?;
        bytes += part.encoded_len();
        if bytes > TREE_MANIFEST_BYTES_MAX {
            return Err(builder.bad("the list is too long"));
        }
        if part.steps.is_empty() && !part.last {
            return Err(builder.bad("a part of the list is empty"));
        }
        for step in part.steps {
            builder.step(step.step)?;
        }
        if part.last {
            break;
        }
    }
    builder.close();
    let entries = builder.entries;
    tokio::task::spawn_blocking(move || check_tree(&entries).map(|()| entries))
        .await
        .map_err(FilesError::Interrupted)?
}

struct Builder<'a> {
    base: &'a [Entry],
    used: usize,
    entries: Vec<Entry>,
    /// Digests of the newest entry, while more may follow.
    digests: Vec<Digest>,
}

impl<'a> Builder<'a> {
    fn bad(&self, why: &'static str) -> FilesError {
        FilesError::BadList { why, path: show(self.entries.last().map_or(b"", |entry| &entry.path)) }
    }

    fn step(&mut self, step: Option<Step>) -> Result<(), FilesError> {
        match step {
            Some(Step::Digests(digests)) => return self.more(&digests),
            Some(Step::Entry(mut wire)) => {
                self.close();
                let digests = std::mem::take(&mut wire.block_digests);
                self.entries.push(Entry::from_wire(&wire)?);
                self.more(&digests)?;
            }
            Some(Step::Keep(count)) => {
                self.close();
                let kept = self.advance(count)?;
                self.entries.extend_from_slice(kept);
            }
            Some(Step::Skip(count)) => {
                self.close();
                self.advance(count)?;
            }
            None => return Err(self.bad("an unknown step")),
        }
        if self.entries.len() > TREE_ENTRIES_MAX {
            return Err(self.bad("there are too many entries"));
        }
        Ok(())
    }

    /// The next `count` entries of the base.
    fn advance(&mut self, count: u32) -> Result<&'a [Entry], FilesError> {
        let base = self.base;
        let end = self.used.saturating_add(count as usize);
        let Some(entries) = base.get(self.used..end) else {
            return Err(self.bad("it refers past the end of the last list"));
        };
        self.used = end;
        Ok(entries)
    }

    fn more(&mut self, digests: &[u8]) -> Result<(), FilesError> {
        let allowed = self.entries.last().map_or(0, |entry| super::entry::block_count(entry.size));
        let (whole, rest) = digests.as_chunks::<32>();
        if !rest.is_empty() || (self.digests.len() + whole.len()) as u64 > allowed {
            return Err(self.bad("there are more block digests than blocks"));
        }
        self.digests.extend(whole.iter().map(|digest| Digest(*digest)));
        Ok(())
    }

    /// The newest entry is complete.
    fn close(&mut self) {
        if let Some(entry) = self.entries.last_mut()
            && !self.digests.is_empty()
        {
            entry.blocks = std::mem::take(&mut self.digests).into();
        }
    }
}
