//! What the destination has acknowledged: for each page of each object the digest it holds. 32 bytes for each page that it holds,
//! in chunks of 512, and nothing for pages that are not there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::layout::push_merged;
use crate::model::page::{Digest, ObjectId, PageIndex, PageRange};
use crate::pages::bitmap::{CHUNK_PAGES, ChunkBits};

/// Digests of the pages of one chunk that are held, in order of the pages.
#[derive(Debug, Default)]
struct Chunk {
    held: ChunkBits,
    digests: Vec<Digest>,
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
    }
}

type Chunks = BTreeMap<u64, Chunk>;

/// What the destination holds. Only acknowledgements write to it.
#[derive(Debug, Default)]
pub struct Ledger {
    objects: Mutex<HashMap<ObjectId, Chunks>>,
}

impl Ledger {
    fn objects(&self) -> MutexGuard<'_, HashMap<ObjectId, Chunks>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest that the destination holds for a page.
    #[must_use]
    pub fn digest(&self, object: ObjectId, page: PageIndex) -> Option<Digest> {
        let (number, place) = ChunkBits::locate(page.0);
        self.objects().get(&object)?.get(&number)?.get(place).copied()
    }

    /// How many pages the destination holds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.objects().values().flat_map(BTreeMap::values).map(|chunk| chunk.digests.len() as u64).sum()
    }

    /// Calls `each` with the places in `pages` whose digest is not the one that the destination holds.
    pub(super) fn differing(&self, object: ObjectId, pages: &[(u64, Digest)], mut each: impl FnMut(usize)) {
        let objects = self.objects();
        let chunks = objects.get(&object);
        let mut cached: Option<(u64, Option<&Chunk>)> = None;
        for (at, (page, digest)) in pages.iter().enumerate() {
            let (number, place) = ChunkBits::locate(*page);
            let chunk = match cached {
                Some((cached, chunk)) if cached == number => chunk,
                _ => {
                    let chunk = chunks.and_then(|chunks| chunks.get(&number));
                    cached = Some((number, chunk));
                    chunk
                }
            };
            if chunk.and_then(|chunk| chunk.get(place)) != Some(digest) {
                each(at);
            }
        }
    }

    /// The destination has acknowledged these.
    pub(super) fn record(&self, object: ObjectId, pages: impl Iterator<Item = (u64, Digest)>) {
        let mut objects = self.objects();
        let chunks = objects.entry(object).or_default();
        for (page, digest) in pages {
            let (number, place) = ChunkBits::locate(page);
            chunks.entry(number).or_default().set(place, digest);
        }
    }

    /// Forgets what is not in `populated` (ascending, disjoint), and says what that was.
    pub(super) fn keep_only(&self, object: ObjectId, populated: &[PageRange]) -> Vec<PageRange> {
        let mut gone = Vec::new();
        let mut objects = self.objects();
        let Some(chunks) = objects.get_mut(&object) else { return gone };
        let mut rest = populated;
        chunks.retain(|number, chunk| {
            let base = number * CHUNK_PAGES;
            while rest.first().is_some_and(|range| range.end().0 <= base) {
                rest = &rest[1..];
            }
            let mut at = 0;
            let inside = |page: u64| {
                rest.iter().take_while(|range| range.first.0 <= page).any(|range| page < range.end().0)
            };
            // Whole chunks are the common case.
            let whole = rest
                .first()
                .is_some_and(|range| range.first.0 <= base && range.end().0 >= base + CHUNK_PAGES);
            if !whole {
                for place in chunk.held.iter() {
                    let page = base + place as u64;
                    if inside(page) {
                        at += 1;
                    } else {
                        chunk.held.remove(place);
                        chunk.digests.remove(at);
                        push_merged(&mut gone, PageRange { first: PageIndex(page), count: 1 });
                    }
                }
            }
            !chunk.digests.is_empty()
        });
        if chunks.is_empty() {
            objects.remove(&object);
        }
        gone
    }

    /// The objects of which the destination holds pages.
    pub(super) fn known_objects(&self) -> Vec<ObjectId> {
        self.objects().keys().copied().collect()
    }

    /// Every digest that the destination holds, in no order.
    pub(super) fn for_each_digest(&self, mut each: impl FnMut(&Digest)) {
        self.objects()
            .values()
            .flat_map(BTreeMap::values)
            .flat_map(|chunk| &chunk.digests)
            .for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OBJECT: ObjectId = ObjectId::Task(1);

    fn fill(value: u8) -> Digest {
        Digest([value; 32])
    }

    fn differing(ledger: &Ledger, pages: &[(u64, Digest)]) -> Vec<usize> {
        let mut out = Vec::new();
        ledger.differing(OBJECT, pages, |at| out.push(at));
        out
    }

    #[test]
    fn only_what_was_acknowledged_is_equal() {
        let ledger = Ledger::default();
        let pages = [(5, fill(1)), (511, fill(2)), (512, fill(3)), (1 << 40, fill(4))];
        assert_eq!(differing(&ledger, &pages), [0, 1, 2, 3]);
        ledger.record(OBJECT, pages.into_iter());
        assert_eq!(differing(&ledger, &pages), [] as [usize; 0]);
        ledger.record(OBJECT, [(511, fill(9)), (4, fill(8))].into_iter());
        assert_eq!(differing(&ledger, &pages), [1]);
        assert_eq!(ledger.digest(OBJECT, PageIndex(4)), Some(fill(8)));
        assert_eq!(ledger.digest(OBJECT, PageIndex(5)), Some(fill(1)));
        assert_eq!(ledger.digest(ObjectId::Task(2), PageIndex(5)), None);
        assert_eq!(ledger.pages(), 5);
    }

    proptest! {
        /// Against the obvious: a map and a filter.
        #[test]
        fn keep_only_keeps_only(pages in proptest::collection::btree_map(0..3000u64, any::<u8>(), 0..300), cuts in proptest::collection::btree_set(0..3200u64, 0..20)) {
            let ledger = Ledger::default();
            ledger.record(OBJECT, pages.iter().map(|(page, value)| (*page, fill(*value))));
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let populated: Vec<PageRange> = cuts.chunks_exact(2).map(|cut| PageRange { first: PageIndex(cut[0]), count: cut[1] - cut[0] }).collect();
            let inside = |page: u64| populated.iter().any(|range| range.iter().any(|p| p.0 == page));
            let gone = ledger.keep_only(OBJECT, &populated);
            let gone: Vec<u64> = gone.iter().flat_map(|range| range.iter().map(|page| page.0)).collect();
            let expected: Vec<u64> = pages.keys().copied().filter(|page| !inside(*page)).collect();
            prop_assert_eq!(gone, expected);
            for (page, value) in pages {
                prop_assert_eq!(ledger.digest(OBJECT, PageIndex(page)), inside(page).then_some(fill(value)));
            }
        }
    }
}
