//! The bytes of one process: a sparse file in memory, its content runs and a digest per page. Read, verified, given back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PagerError;
use super::remaining::{Piece, Remaining};
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{Digest, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::hash::digest_bytes;
use crate::sys::memfd::MemFile;

const DIGEST_BYTES: u64 = 32;

/// What a process is restored from.
#[derive(Debug)]
pub(super) struct Object {
    runs: Vec<PageRange>,
    /// Where whole mappings begin and end: one UFFDIO_COPY must not cross such a border.
    borders: Vec<u64>,
    file: MemFile,
    digests: File,
}

/// Buffers of one reader.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    stored: Vec<u8>,
    computed: Vec<Digest>,
}

impl Object {
    /// Checks that the ranges ascend.
    pub(super) fn new(
        mappings: &[PageRange],
        content: &[PageRange],
        file: MemFile,
        digests: File,
    ) -> Result<Self, PagerError> {
        ascending(mappings)?;
        ascending(content)?;
        let mut borders: Vec<u64> =
            mappings.iter().flat_map(|pages| [pages.first.0, pages.end().0]).collect();
        borders.dedup();
        Ok(Self { runs: content.to_vec(), borders, file, digests })
    }

    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Everything, cut where mappings meet.
    pub(super) fn remaining(&self) -> Remaining {
        let mut all = Remaining::default();
        for run in &self.runs {
            let mut start = run.first.0;
            let end = run.end().0;
            while start < end {
                let next = self.borders.partition_point(|border| *border <= start);
                let stop = self.borders.get(next).map_or(end, |border| (*border).min(end));
                all.insert(Piece { place: start, count: stop - start, origin: start });
                start = stop;
            }
        }
        all
    }

    /// Reads the pages from `origin` on, as many as fit into `bytes`, and puts the numbers of those that do not match their
    /// digests into `bad`.
    pub(super) fn read(
        &self,
        origin: u64,
        bytes: &mut [u8],
        scratch: &mut Scratch,
        bad: &mut Vec<usize>,
    ) -> io::Result<()> {
        bad.clear();
        let count = bytes.len() / PAGE_SIZE;
        self.is_content(origin, count as u64)?;
        self.file.read_pages(origin, bytes)?;
        scratch.stored.resize(count * 32, 0);
        self.digests.read_exact_at(&mut scratch.stored, origin * DIGEST_BYTES)?;
        scratch.computed.clear();
        digest_bytes(bytes, &mut scratch.computed);
        let pairs = scratch.computed.iter().zip(scratch.stored.as_chunks::<32>().0).enumerate();
        bad.extend(pairs.filter(|(_, (got, wanted))| got.0 != **wanted).map(|(at, _)| at));
        Ok(())
    }

    /// Gives the memory of these pages back.
    pub(super) fn punch(&self, pages: PageRange) -> io::Result<()> {
        self.file.punch(pages)
    }

    fn is_content(&self, origin: u64, count: u64) -> io::Result<()> {
        let behind = self.runs.partition_point(|run| run.first.0 <= origin);
        match behind.checked_sub(1).map(|at| self.runs[at]) {
            Some(run) if origin + count <= run.end().0 => Ok(()),
            _ => Err(io::Error::other(format!("page {origin} and {count} pages on have no content"))),
        }
    }
}

fn ascending(ranges: &[PageRange]) -> Result<(), PagerError> {
    let mut end = 0;
    for range in ranges {
        let PageIndex(first) = range.first;
        if first < end || range.count == 0 || range.count > PAGE_INDEX_MAX || first > PAGE_INDEX_MAX {
            return Err(PagerError::Malformed(format!("pages {first}+{} are out of order", range.count)));
        }
        end = first + range.count;
        if end > PAGE_INDEX_MAX {
            return Err(PagerError::Malformed(format!("page {end} is beyond every address")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::hash::digest;
    use std::os::fd::OwnedFd;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    fn digests(first: u64, all: &[Digest]) -> File {
        let file = File::from(OwnedFd::from(MemFile::create("digests").unwrap()));
        let bytes: Vec<u8> = all.iter().flat_map(|digest| digest.0).collect();
        file.write_all_at(&bytes, first * DIGEST_BYTES).unwrap();
        file
    }

    #[test]
    fn a_damaged_page_is_named_and_borders_cut() {
        let file = MemFile::create("pages").unwrap();
        let page = |n: u8| [n; PAGE_SIZE];
        for n in 0..6u8 {
            file.write_pages(100 + u64::from(n), &page(n + 1)).unwrap();
        }
        file.write_pages(104, &page(99)).unwrap();
        let all: Vec<Digest> = (1..=6).map(|n| digest(&page(n))).collect();
        let object = Object::new(
            &[range(90, 12), range(102, 100)],
            &[range(100, 3), range(103, 3)],
            file,
            digests(100, &all),
        )
        .unwrap();
        let pieces = object.remaining().within(range(0, 1000));
        let cut: Vec<_> = pieces.iter().map(|piece| (piece.place, piece.count)).collect();
        assert_eq!(cut, [(100, 2), (102, 1), (103, 3)]);
        let (mut bytes, mut bad) = (vec![0; 3 * PAGE_SIZE], Vec::new());
        object.read(103, &mut bytes, &mut Scratch::default(), &mut bad).unwrap();
        assert_eq!(bad, [1]);
        assert!(object.read(102, &mut bytes, &mut Scratch::default(), &mut bad).is_err());
        assert_eq!(object.pages(), 6);
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let new = |content: &[PageRange]| {
            Object::new(&[], content, MemFile::create("pages").unwrap(), digests(0, &[])).is_ok()
        };
        assert!(new(&[]));
        for content in
            [[range(5, 2), range(6, 1)], [range(5, 0), range(6, 1)], [range(1, u64::MAX), range(2, 1)]]
        {
            assert!(!new(&content));
        }
    }
}
