//! Which pages of one object are held, and their digests: the same book is kept by the source of what the destination has
//! acknowledged, and by the destination of what it has. 32 bytes for each page that is held, in chunks of 512, and nothing for
//! pages that are not there.
//!
//! Two books are compared by one digest, [`Book::root_of`]. Most of it is computed while pages come in ([`Book::refresh`]), so that
//! what is left to do in a freeze depends on the number of chunks (one for 2 MiB of memory) and not on the number of pages.

use std::collections::BTreeMap;

use super::bitmap::{CHUNK_PAGES, ChunkBits};
use crate::model::layout::push_merged;
use crate::model::page::{Digest, PageIndex, PageRange};

/// Pages of a chunk that share a word of its bits. A page that changes costs hashing 2 KiB of digests and not 16.
const GROUP_PAGES: usize = 64;

/// Digests of the pages of one chunk that are held, in order of the pages.
#[derive(Debug, Default)]
struct Chunk {
    held: ChunkBits,
    digests: Vec<Digest>,
    /// [`group_root`] of each group, and the chunk's own, when they have been computed since the last change.
    groups: [Option<Digest>; 8],
    root: Option<Digest>,
}

impl Chunk {
    fn get(&self, place: usize) -> Option<&Digest> {
        self.held.contains(place).then(|| &self.digests[self.held.rank(place)])
    }

    fn set(&mut self, place: usize, digest: Digest) {
        let rank = self.held.rank(place);
        if self.held.insert(place) {
            self.digests.insert(rank, digest);
        } else {
            self.digests[rank] = digest;
        }
        self.changed(place);
    }

    fn remove(&mut self, place: usize) {
        let rank = self.held.rank(place);
        if self.held.remove(place) {
            self.digests.remove(rank);
            self.changed(place);
        }
    }

    fn changed(&mut self, place: usize) {
        self.groups[place / GROUP_PAGES] = None;
        self.root = None;
    }

    /// BLAKE3 over the number of the chunk, which pages are meant (one bit each, little-endian), and the roots of the groups that
    /// have any. `pages` are those of the held pages that lie between two places.
    fn root_of(&self, number: u64, pages: ChunkBits) -> Digest {
        let known = self.root.filter(|_| pages == self.held);
        known.unwrap_or_else(|| self.compute(number, pages, |_, root| root))
    }

    fn refresh(&mut self, number: u64) {
        let mut groups = self.groups;
        let root = self.compute(number, self.held, |group, root| *groups[group].insert(root));
        (self.groups, self.root) = (groups, Some(root));
    }

    fn compute(
        &self,
        number: u64,
        pages: ChunkBits,
        mut computed: impl FnMut(usize, Digest) -> Digest,
    ) -> Digest {
        let mut bytes = Vec::with_capacity(8 + 64 + 8 * 32);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&pages.to_bytes());
        let mut rank = 0;
        for (group, (held, meant)) in self.held.words().into_iter().zip(pages.words()).enumerate() {
            if meant != 0 {
                let known = self.groups[group].filter(|_| meant == held);
                let root = known.unwrap_or_else(|| {
                    let below = held & ((1 << meant.trailing_zeros()) - 1);
                    let start = rank + below.count_ones() as usize;
                    let digests = &self.digests[start..start + meant.count_ones() as usize];
                    computed(group, group_root(digests))
                });
                bytes.extend_from_slice(&root.0);
            }
            rank += held.count_ones() as usize;
        }
        Digest(*blake3::hash(&bytes).as_bytes())
    }
}

/// BLAKE3 over digests. They are put together first: it hashes what lies together side by side, and many times 32 bytes one after the
/// other, which is some times slower.
fn group_root(digests: &[Digest]) -> Digest {
    let mut bytes = [0; GROUP_PAGES * 32];
    let used = &mut bytes[..digests.len() * 32];
    used.as_chunks_mut::<32>().0.iter_mut().zip(digests).for_each(|(to, digest)| *to = digest.0);
    Digest(*blake3::hash(used).as_bytes())
}

/// The pages of one object.
#[derive(Debug, Default)]
pub struct Book {
    chunks: BTreeMap<u64, Chunk>,
}

impl Book {
    /// True when no page is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many pages are held.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.digests.len() as u64).sum()
    }

    /// The digest of a page that is held.
    #[must_use]
    pub fn digest(&self, page: PageIndex) -> Option<Digest> {
        let (number, place) = ChunkBits::locate(page.0);
        self.chunks.get(&number)?.get(place).copied()
    }

    /// Every digest, ascending by page.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.chunks.values().flat_map(|chunk| &chunk.digests)
    }

    /// Enters a page, or its new content.
    pub fn set(&mut self, page: u64, digest: Digest) {
        let (number, place) = ChunkBits::locate(page);
        self.chunks.entry(number).or_default().set(place, digest);
    }

    /// Strikes pages out; the range may be much larger than what is held.
    pub fn remove(&mut self, pages: PageRange) {
        let (start, end) = (pages.first.0, pages.end().0);
        let mut emptied = Vec::new();
        for (number, chunk) in self.chunks.range_mut(start / CHUNK_PAGES..end.div_ceil(CHUNK_PAGES)) {
            for place in places(*number, pages) {
                chunk.remove(place);
            }
            if chunk.digests.is_empty() {
                emptied.push(*number);
            }
        }
        emptied.iter().for_each(|number| drop(self.chunks.remove(number)));
    }

    /// Calls `each` with the places in `pages` (best ascending) whose digest is not the one in the book.
    pub fn differing(&self, pages: &[(u64, Digest)], mut each: impl FnMut(usize)) {
        let mut cached: Option<(u64, Option<&Chunk>)> = None;
        for (at, (page, digest)) in pages.iter().enumerate() {
            let (number, place) = ChunkBits::locate(*page);
            let chunk = match cached {
                Some((cached, chunk)) if cached == number => chunk,
                _ => {
                    let chunk = self.chunks.get(&number);
                    cached = Some((number, chunk));
                    chunk
                }
            };
            if chunk.and_then(|chunk| chunk.get(place)) != Some(digest) {
                each(at);
            }
        }
    }

    /// The pages that are held inside `within` (ascending, disjoint), merged.
    #[must_use]
    pub fn held(&self, within: &[PageRange]) -> Vec<PageRange> {
        let mut out = Vec::new();
        for range in within {
            for (number, chunk) in self.touched(*range) {
                let places = places(number, *range);
                let held = chunk.held.within(places.clone());
                let page = |place: usize| PageIndex(number * CHUNK_PAGES + place as u64);
                if held.count() == places.len() {
                    let whole = PageRange { first: page(places.start), count: places.len() as u64 };
                    push_merged(&mut out, whole);
                } else {
                    for place in held.iter() {
                        push_merged(&mut out, PageRange { first: page(place), count: 1 });
                    }
                }
            }
        }
        out
    }

    /// Strikes out what lies inside `within` but not in `populated` (both ascending, disjoint), and says what that was.
    pub fn keep_only(&mut self, within: &[PageRange], populated: &[PageRange]) -> Vec<PageRange> {
        let mut gone = Vec::new();
        let mut rest = populated;
        for held in self.held(within) {
            let mut at = held.first.0;
            while at < held.end().0 {
                while rest.first().is_some_and(|range| range.end().0 <= at) {
                    rest = &rest[1..];
                }
                let next = rest.first().map_or(u64::MAX, |range| range.first.0);
                if next <= at {
                    at = rest[0].end().0;
                    continue;
                }
                let end = held.end().0.min(next);
                push_merged(&mut gone, PageRange { first: PageIndex(at), count: end - at });
                at = end;
            }
        }
        gone.iter().for_each(|range| self.remove(*range));
        gone
    }

    /// Computes what [`Book::root_of`] needs of chunks that have changed. Call it between rounds.
    pub fn refresh(&mut self) {
        self.refresh_some(0, usize::MAX);
    }

    /// The same in steps: begins with chunk `from` and ends when `most` roots are computed. Returns where to go on, `None` when
    /// every root is known. A root costs some 15 µs.
    pub fn refresh_some(&mut self, from: u64, most: usize) -> Option<u64> {
        let mut done = 0;
        for (number, chunk) in self.chunks.range_mut(from..) {
            if chunk.root.is_none() {
                if done == most {
                    return Some(*number);
                }
                chunk.refresh(*number);
                done += 1;
            }
        }
        None
    }

    /// One digest over every page that is held inside `within` (ascending, disjoint): which pages, and their contents. Two books
    /// with the same pages there have the same, however they came to be.
    #[must_use]
    pub fn root_of(&self, within: &[PageRange]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for range in within {
            hasher.update(&range.first.0.to_le_bytes());
            hasher.update(&range.count.to_le_bytes());
            for (number, chunk) in self.touched(*range) {
                let pages = chunk.held.within(places(number, *range));
                hasher.update(&chunk.root_of(number, pages).0);
            }
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Chunks that hold a page inside `range`.
    fn touched(&self, range: PageRange) -> impl Iterator<Item = (u64, &Chunk)> {
        let numbers = range.first.0 / CHUNK_PAGES..range.end().0.div_ceil(CHUNK_PAGES);
        let chunks = self.chunks.range(numbers).map(|(number, chunk)| (*number, chunk));
        chunks.filter(move |(number, chunk)| !chunk.held.within(places(*number, range)).is_empty())
    }
}

/// The places of a chunk that a range covers.
fn places(number: u64, range: PageRange) -> std::ops::Range<usize> {
    let base = number * CHUNK_PAGES;
    let place =
        |page: u64| usize::try_from(page.clamp(base, base + CHUNK_PAGES) - base).expect("at most 512");
    place(range.first.0)..place(range.end().0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(value: u8) -> Digest {
        Digest([value; 32])
    }

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    /// Disjoint, ascending ranges from cuts.
    fn ranges(cuts: &std::collections::BTreeSet<u64>) -> Vec<PageRange> {
        let cuts: Vec<u64> = cuts.iter().copied().collect();
        cuts.chunks_exact(2).map(|cut| range(cut[0], cut[1] - cut[0])).collect()
    }

    fn inside(ranges: &[PageRange], page: u64) -> bool {
        ranges.iter().any(|range| (range.first.0..range.end().0).contains(&page))
    }

    #[test]
    fn the_root_tells_every_difference_and_no_history() {
        let pages: Vec<(u64, Digest)> = (100..1700).map(|page| (page, fill((page % 251) as u8))).collect();
        let (mut forth, mut back) = (Book::default(), Book::default());
        pages.iter().for_each(|(page, digest)| forth.set(*page, *digest));
        forth.refresh();
        back.set(5000, fill(1));
        pages.iter().rev().for_each(|(page, digest)| back.set(*page, *digest));
        back.set(99, fill(3));
        let within = [range(100, 1000), range(1100, 600)];
        assert_eq!(forth.root_of(&within), back.root_of(&within), "pages outside do not count");
        assert_ne!(forth.root_of(&within), forth.root_of(&[range(100, 1600)]), "the ranges count");
        back.set(1099, fill(0));
        assert_ne!(forth.root_of(&within), back.root_of(&within), "a content");
        forth.set(1099, fill(0));
        assert_eq!(forth.root_of(&within), back.root_of(&within), "a change makes a cached root stale");
        back.remove(range(700, 1));
        assert_ne!(forth.root_of(&within), back.root_of(&within), "a page that is gone");
    }

    proptest! {
        /// Against the obvious: a map.
        #[test]
        fn it_is_a_map(
            pages in proptest::collection::btree_map(0..3000u64, any::<u8>(), 0..300),
            removed in proptest::collection::btree_set(0..3200u64, 0..8),
            within in proptest::collection::btree_set(0..3200u64, 0..20),
            populated in proptest::collection::btree_set(0..3200u64, 0..20),
            changed in 0..3200u64,
        ) {
            let mut book = Book::default();
            let mut model = pages.clone();
            pages.iter().for_each(|(page, value)| book.set(*page, fill(*value)));
            for cut in ranges(&removed) {
                book.remove(cut);
                model.retain(|page, _| !inside(&[cut], *page));
            }
            let within = ranges(&within);
            let held: Vec<u64> = book.held(&within).iter().flat_map(|range| range.iter().map(|page| page.0)).collect();
            let expected: Vec<u64> = model.keys().copied().filter(|page| inside(&within, *page)).collect();
            prop_assert_eq!(&held, &expected);
            let before = book.root_of(&within);
            let mut next = Some(0);
            while let Some(from) = next {
                next = book.refresh_some(from, 2);
                prop_assert_eq!(before, book.root_of(&within));
            }
            prop_assert!(book.chunks.values().all(|chunk| chunk.root.is_some()));
            let populated = ranges(&populated);
            let gone: Vec<u64> = book.keep_only(&within, &populated).iter().flat_map(|range| range.iter().map(|page| page.0)).collect();
            let expected: Vec<u64> = expected.into_iter().filter(|page| !inside(&populated, *page)).collect();
            prop_assert_eq!(&gone, &expected);
            model.retain(|page, _| !gone.contains(page));
            prop_assert_eq!(book.pages(), model.len() as u64);
            let mut fresh = Book::default();
            for (page, value) in model {
                prop_assert_eq!(book.digest(PageIndex(page)), Some(fill(value)));
                fresh.set(page, fill(value));
            }
            prop_assert_eq!(book.root_of(&within), fresh.root_of(&within));
            fresh.set(changed, fill(7));
            book.set(changed, fill(7));
            prop_assert_eq!(book.root_of(&within), fresh.root_of(&within));
            prop_assert_ne!(book.root_of(&[range(0, 3200)]), Book::default().root_of(&[range(0, 3200)]));
        }
    }
}
