//! Blocks on the wire: which are asked for, reading them at the source, checking them at the destination.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::Sender;

use super::beneath::Beneath;
use super::content::{block_buffer, block_digest, read_full};
use super::entry::{Entry, Kind, ZEROS, block_len};
use super::error::{Doing, FilesError, is_vanished, show};
use crate::model::limits::{FILE_BLOCK, MANIFEST_PART_ENTRIES_MAX};
use crate::protocol::frame::{FrameError, read_message, write_message};
use crate::rpc::v1::{FileBlock, FileNeed, NeedPart};

/// zstd's fastest level: files are read at disk speed or better.
const LEVEL: i32 = 1;
/// Shorter blocks are not worth a try.
const COMPRESS_BYTES_MIN: usize = 256;

/// Blocks to send, in order.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) root: PathBuf,
    pub(super) entries: Arc<Vec<Entry>>,
    pub(super) needs: Vec<FileNeed>,
    /// A block that changed is an error.
    pub(super) frozen: bool,
}

/// The blocks of a need list one by one: index of the entry, number of the block.
pub(super) fn each(needs: &[FileNeed]) -> impl Iterator<Item = (usize, u32)> {
    needs.iter().flat_map(|need| (0..need.blocks).map(|n| (need.entry as usize, need.first_block + n)))
}

impl Order {
    /// Uncompressed bytes of all blocks.
    pub(super) fn bytes(&self) -> u64 {
        bytes(&self.entries, &self.needs)
    }
}

/// Uncompressed bytes of the blocks asked for.
pub(super) fn bytes(entries: &[Entry], needs: &[FileNeed]) -> u64 {
    each(needs).map(|(entry, block)| block_len(entries[entry].size, u64::from(block)) as u64).sum()
}

/// Writes a need list.
pub(super) async fn write_needs<W: AsyncWrite + Unpin>(
    writer: &mut W,
    needs: &[FileNeed],
) -> Result<(), FilesError> {
    let mut parts = needs.chunks(MANIFEST_PART_ENTRIES_MAX).peekable();
    while let Some(part) = parts.next() {
        let part = NeedPart { needs: part.to_vec(), last: parts.peek().is_none(), error: String::new() };
        write_message(writer, &part).await?;
    }
    if needs.is_empty() {
        write_message(writer, &NeedPart { last: true, ..NeedPart::default() }).await?;
    }
    Ok(writer.flush().await.map_err(FrameError::Io)?)
}

/// Reads a need list and checks it against the manifest.
pub(super) async fn read_needs<R: AsyncRead + Unpin>(
    reader: &mut R,
    entries: &[Entry],
) -> Result<Vec<FileNeed>, FilesError> {
    let mut needs = Vec::new();
    // First block that may still be asked for.
    let mut next = (0, 0);
    loop {
        let part: NeedPart = read_message(reader).await?;
        if !part.error.is_empty() {
            return Err(FilesError::Refused { message: part.error });
        }
        if part.needs.is_empty() && !part.last {
            return Err(FilesError::BadList { why: "a part of the need list is empty", path: show(b"") });
        }
        for need in part.needs {
            let Some(entry) = entries.get(need.entry as usize) else {
                return Err(FilesError::BadList {
                    why: "a need for an entry that does not exist",
                    path: show(b""),
                });
            };
            let bad = |why| FilesError::BadList { why, path: show(&entry.path) };
            let end = u64::from(need.first_block) + u64::from(need.blocks);
            if need.blocks == 0 || end > entry.blocks.len() as u64 {
                return Err(bad("a need for blocks that do not exist"));
            }
            if (need.entry, u64::from(need.first_block)) < next {
                return Err(bad("needs are not in order"));
            }
            next = (need.entry, end);
            needs.push(need);
        }
        if part.last {
            return Ok(needs);
        }
    }
}

/// Reads the blocks of an order from disk and hands them on, with their uncompressed lengths. Blocks the thread. Stops when
/// nobody listens any more.
pub(super) fn read_blocks(order: &Order, ready: &Sender<(FileBlock, u64)>) -> Result<(), FilesError> {
    let mut at = Beneath::open(&order.root)?;
    let mut open: Option<(usize, Option<File>)> = None;
    let mut buffer = block_buffer();
    for (index, block) in each(&order.needs) {
        let entry = &order.entries[index];
        if open.as_ref().is_none_or(|(known, _)| *known != index) {
            open = Some((index, open_source(&mut at, entry, order.frozen)?));
        }
        let file = open.as_ref().and_then(|(_, file)| file.as_ref());
        let data = &mut buffer[..block_len(entry.size, u64::from(block))];
        let same = match file {
            Some(file) => {
                let from = u64::from(block) * FILE_BLOCK as u64;
                let filled = read_full(file, data, from).doing("read", &entry.path)?;
                filled == data.len() && block_digest(data) == entry.blocks[block as usize]
            }
            None => false,
        };
        if !same && order.frozen {
            return Err(FilesError::Changed { path: show(&entry.path) });
        }
        let message = if same { packed(index, block, data) } else { missing(index, block) };
        if ready.blocking_send((message, data.len() as u64)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// `None`: it is gone, and may be.
fn open_source(at: &mut Beneath, entry: &Entry, frozen: bool) -> Result<Option<File>, FilesError> {
    let file = match at.read_file(&entry.path) {
        Err(error) if !frozen && is_vanished(&error.into()) => return Ok(None),
        other => other.doing("open", &entry.path)?,
    };
    let kind = nix::sys::stat::fstat(&file).doing("look at", &entry.path)?;
    Ok((Kind::of(&kind) == Kind::File).then_some(file))
}

fn missing(entry: usize, block: u32) -> FileBlock {
    FileBlock { entry: index(entry), block, changed: true, ..FileBlock::default() }
}

fn packed(entry: usize, block: u32, data: &[u8]) -> FileBlock {
    let smaller = (data.len() >= COMPRESS_BYTES_MIN)
        .then(|| zstd::bulk::compress(data, LEVEL).ok())
        .flatten()
        .filter(|packed| packed.len() < data.len() - data.len() / 10);
    let (data, uncompressed) = match smaller {
        Some(packed) => (packed, data.len()),
        None => (data.to_vec(), 0),
    };
    FileBlock {
        entry: index(entry),
        block,
        data: data.into(),
        uncompressed_len: index(uncompressed),
        changed: false,
    }
}

/// Entries and block lengths are bounded far below `u32::MAX` by `model::limits`.
pub(super) fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Content of a block that was asked for as `(entry, block)`, checked. `None`: it changed at the source meanwhile.
pub(super) fn unpack(
    message: &FileBlock,
    expected: (usize, u32),
    entry: &Entry,
) -> Result<Option<Vec<u8>>, FilesError> {
    let bad = |why| FilesError::BadBlock { why, path: show(&entry.path), block: message.block };
    if (message.entry as usize, message.block) != expected {
        return Err(bad("another block was asked for"));
    }
    if message.changed {
        return Ok(None);
    }
    let len = block_len(entry.size, u64::from(message.block));
    let data = match message.uncompressed_len {
        0 => message.data.to_vec(),
        packed if packed as usize != len => return Err(bad("its length is not the block's")),
        _ => zstd::bulk::decompress(&message.data, len).map_err(|_| bad("it cannot be decompressed"))?,
    };
    if data.len() != len {
        return Err(bad("its length is not the block's"));
    }
    let promised = entry.blocks[message.block as usize];
    if promised == ZEROS || block_digest(&data) != promised {
        return Err(bad("its content does not have the promised digest"));
    }
    Ok(Some(data))
}
