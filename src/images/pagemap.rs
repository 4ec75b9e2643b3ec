//! `pagemap-PID.img` and `pagemap-shmem-ID.img`: which pages the matching `pages-N.img` holds, in order.
//!
//! ```text
//! u32 0x54564319   every image since CRIU 2.0        (IMG_COMMON_MAGIC)
//! u32 0x56084025   a pagemap                          (PAGEMAP_MAGIC)
//! u32 length, pagemap_head  { pages_id }
//! u32 length, pagemap_entry { vaddr, compat_nr_pages, flags, nr_pages }   … to the end of the file
//! ```
//! Only entries with `PE_PRESENT` take bytes of `pages-N.img`, 4096 for each page.

use std::io::{self, Read, Write};

use prost::Message;

use super::proto::{PagemapEntry, PagemapHead};
use crate::model::layout::{LayoutRun, PE_PRESENT};
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{ObjectId, PAGE_SIZE};

const IMAGE_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// Longest record believed: five fields of at most 11 bytes.
const RECORD_MAX: usize = 64;

/// A pagemap could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PagemapError {
    /// The file.
    #[error("the pagemap image could not be read or written")]
    Io(#[source] io::Error),
    /// Another kind of file, or a version that is not known.
    #[error("not a pagemap image: it begins with {first:#010x} {second:#010x}")]
    Magic {
        /// First word.
        first: u32,
        /// Second word.
        second: u32,
    },
    /// A record does not decode.
    #[error("record {record} of the pagemap image is damaged")]
    Record {
        /// 0 is the head.
        record: usize,
        /// Why, when protobuf said it.
        #[source]
        source: Option<prost::DecodeError>,
    },
}

/// Name of an object's pagemap file.
#[must_use]
pub fn pagemap_name(object: ObjectId) -> String {
    match object {
        ObjectId::Task(pid) => format!("pagemap-{pid}.img"),
        ObjectId::Shmem(id) => format!("pagemap-shmem-{id}.img"),
    }
}

/// Name of the file with the bytes.
#[must_use]
pub fn pages_name(pages_id: u32) -> String {
    format!("pages-{pages_id}.img")
}

/// Writes a pagemap image.
///
/// # Errors
/// What the writer says.
pub fn write<W: Write>(writer: &mut W, pages_id: u32, runs: &[LayoutRun]) -> io::Result<()> {
    writer.write_all(&IMAGE_MAGIC.to_le_bytes())?;
    writer.write_all(&PAGEMAP_MAGIC.to_le_bytes())?;
    let mut record = Vec::with_capacity(RECORD_MAX);
    put(writer, &mut record, &PagemapHead { pages_id })?;
    for run in runs {
        let entry = PagemapEntry {
            vaddr: run.first * PAGE_SIZE as u64,
            compat_nr_pages: run.count,
            in_parent: None,
            flags: Some(run.flags),
            nr_pages: Some(u64::from(run.count)),
        };
        put(writer, &mut record, &entry)?;
    }
    Ok(())
}

fn put<W: Write>(writer: &mut W, record: &mut Vec<u8>, message: &impl Message) -> io::Result<()> {
    record.clear();
    message.encode(record).expect("a vector grows");
    writer.write_all(&u32::try_from(record.len()).expect("a record is short").to_le_bytes())?;
    writer.write_all(record)
}

/// Reads a pagemap image: the number of its pages file, and its runs. Entries that point to a parent image or carry the old
/// `in_parent` mark keep their flags; it is for the caller to accept them.
///
/// # Errors
/// [`PagemapError`].
pub fn read<R: Read>(reader: &mut R) -> Result<(u32, Vec<LayoutRun>), PagemapError> {
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(PagemapError::Io)?;
    let (words, _) = magic.as_chunks::<4>();
    let (first, second) = (u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1]));
    if (first, second) != (IMAGE_MAGIC, PAGEMAP_MAGIC) {
        return Err(PagemapError::Magic { first, second });
    }
    let damaged = |record, source| PagemapError::Record { record, source };
    let head = get(reader, 0)?.ok_or_else(|| damaged(0, None))?;
    let head = PagemapHead::decode(&head[..]).map_err(|e| damaged(0, Some(e)))?;
    let mut runs = Vec::new();
    while let Some(bytes) = get(reader, runs.len() + 1)? {
        let record = runs.len() + 1;
        let entry = PagemapEntry::decode(&bytes[..]).map_err(|e| damaged(record, Some(e)))?;
        let count = entry.nr_pages.unwrap_or_else(|| u64::from(entry.compat_nr_pages));
        let first = entry.vaddr / PAGE_SIZE as u64;
        let count = u32::try_from(count).map_err(|_| damaged(record, None))?;
        if !entry.vaddr.is_multiple_of(PAGE_SIZE as u64) || first + u64::from(count) > PAGE_INDEX_MAX {
            return Err(damaged(record, None));
        }
        // CRIU before 3.0 wrote no flags: then every page is in the pages file, or in the parent's.
        let old = if entry.in_parent == Some(true) { crate::model::layout::PE_PARENT } else { PE_PRESENT };
        runs.push(LayoutRun { first, count, flags: entry.flags.unwrap_or(old) });
    }
    Ok((head.pages_id, runs))
}

/// The next record; `None` at the end of the file.
fn get<R: Read>(reader: &mut R, record: usize) -> Result<Option<Vec<u8>>, PagemapError> {
    let mut prefix = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut prefix).map_err(PagemapError::Io)?;
    if prefix.is_empty() {
        return Ok(None);
    }
    let damaged = || PagemapError::Record { record, source: None };
    let length =
        u32::from_le_bytes(*prefix.first_chunk().filter(|_| prefix.len() == 4).ok_or_else(damaged)?) as usize;
    if length > RECORD_MAX {
        return Err(damaged());
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).map_err(PagemapError::Io)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::PE_LAZY;
    use proptest::prelude::*;

    #[test]
    fn it_comes_back() {
        let runs = [
            LayoutRun { first: 0x400, count: 3, flags: PE_PRESENT },
            LayoutRun { first: 0x7_fff0_0000, count: u32::MAX, flags: PE_PRESENT | PE_LAZY },
        ];
        let mut file = Vec::new();
        write(&mut file, 7, &runs).unwrap();
        assert_eq!(file[..8], [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56]);
        let (id, back) = read(&mut &file[..]).unwrap();
        assert_eq!((id, &back[..]), (7, &runs[..]));
    }

    #[test]
    fn other_files_and_cut_ones_are_refused() {
        let mut file = Vec::new();
        write(&mut file, 1, &[LayoutRun { first: 1, count: 1, flags: PE_PRESENT }]).unwrap();
        for length in 0..file.len() {
            let result = read(&mut &file[..length]);
            // Cut exactly between two records it is a shorter file.
            let whole_records =
                length == file.len() || result.as_ref().is_ok_and(|(_, runs)| runs.is_empty());
            assert!(result.is_err() || whole_records, "{length}");
        }
        file[0] = 0;
        assert!(matches!(read(&mut &file[..]), Err(PagemapError::Magic { .. })));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut file = Vec::new();
            write(&mut file, 1, &[]).unwrap();
            file.extend(tail);
            let _ = read(&mut &file[..]);
        }
    }
}
