//! Which pages of one address space are still to be installed, and where their bytes are. Pure bookkeeping: no descriptor.
//!
//! A page that is not in here is there already or reads as zero. Places move (mremap), origins stay: the origin is the page's
//! number in the file and in the digests.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::model::page::{PageIndex, PageRange};

/// Consecutive pages with consecutive origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where they belong now.
    pub(super) place: u64,
    /// How many.
    pub(super) count: u64,
    /// Number of the first one in the file.
    pub(super) origin: u64,
}

impl Piece {
    pub(super) fn pages(self) -> PageRange {
        PageRange { first: PageIndex(self.place), count: self.count }
    }

    fn end(self) -> u64 {
        self.place + self.count
    }

    /// The part inside [start, end).
    fn clip(self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.place.max(start), self.end().min(end));
        (from < to).then(|| Self { place: from, count: to - from, origin: self.origin + (from - self.place) })
    }
}

/// The pages that are missing.
#[derive(Debug, Clone, Default)]
pub(super) struct Remaining {
    pieces: BTreeMap<u64, Piece>,
    count: u64,
}

impl Remaining {
    /// Adds pages that are not in it.
    pub(super) fn insert(&mut self, piece: Piece) {
        if piece.count > 0 {
            self.count += piece.count;
            self.pieces.insert(piece.place, piece);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The piece that holds this page, from this page on.
    pub(super) fn at(&self, page: u64) -> Option<Piece> {
        let (_, piece) = self.pieces.range(..=page).next_back()?;
        piece.clip(page, u64::MAX)
    }

    /// The first missing piece at or behind this page.
    pub(super) fn next(&self, page: u64) -> Option<Piece> {
        self.at(page).or_else(|| self.pieces.range(page..).next().map(|(_, piece)| *piece))
    }

    /// The parts inside a range, ascending.
    pub(super) fn within(&self, pages: PageRange) -> Vec<Piece> {
        let (start, end) = (pages.first.0, pages.first.0.saturating_add(pages.count));
        let before = self.pieces.range(..start).next_back();
        let inside = self.pieces.range(start..end.max(start));
        before.into_iter().chain(inside).filter_map(|(_, piece)| piece.clip(start, end)).collect()
    }

    /// What of this piece still belongs exactly there: pages that moved away, were given back or are there already are left out.
    pub(super) fn still(&self, piece: Piece) -> Vec<Piece> {
        let mut parts = self.within(piece.pages());
        parts.retain(|part| part.origin.wrapping_sub(part.place) == piece.origin.wrapping_sub(piece.place));
        parts
    }

    /// Takes a range out; returns what was in it.
    pub(super) fn remove(&mut self, pages: PageRange) -> Vec<Piece> {
        let removed = self.within(pages);
        for gone in &removed {
            let Some((key, whole)) = self.pieces.range(..=gone.place).next_back().map(|(k, p)| (*k, *p))
            else {
                continue;
            };
            if let Entry::Occupied(entry) = self.pieces.entry(key) {
                entry.remove();
            }
            for rest in [whole.clip(0, gone.place), whole.clip(gone.end(), u64::MAX)].into_iter().flatten() {
                self.pieces.insert(rest.place, rest);
            }
            self.count -= gone.count;
        }
        removed
    }

    /// The pages of `from` are at `to` now.
    pub(super) fn shift(&mut self, from: PageRange, to: PageIndex) {
        let moved = self.remove(from);
        self.remove(PageRange { first: to, count: from.count });
        for piece in moved {
            self.insert(Piece { place: piece.place - from.first.0 + to.0, ..piece });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    fn piece(place: u64, count: u64, origin: u64) -> Piece {
        Piece { place, count, origin }
    }

    #[test]
    fn removing_splits_and_moving_keeps_the_origin() {
        let mut missing = Remaining::default();
        missing.insert(piece(10, 10, 10));
        missing.insert(piece(30, 5, 30));
        assert_eq!(missing.remove(range(12, 2)), [piece(12, 2, 12)]);
        assert_eq!(missing.within(range(0, 100)), [piece(10, 2, 10), piece(14, 6, 14), piece(30, 5, 30)]);
        missing.shift(range(15, 20), PageIndex(1000));
        assert_eq!(missing.at(1000), Some(piece(1000, 5, 15)));
        assert_eq!(missing.at(1016), Some(piece(1016, 4, 31)));
        assert_eq!(missing.at(15), None);
        assert_eq!(missing.next(15), Some(piece(1000, 5, 15)));
        assert_eq!(missing.count(), 2 + 1 + 5 + 5);
        assert_eq!(missing.still(piece(1000, 5, 15)), [piece(1000, 5, 15)]);
        assert!(missing.still(piece(1000, 5, 16)).is_empty());
        assert_eq!(missing.remove(range(0, u64::MAX)).len(), 4);
        assert_eq!((missing.count(), missing.next(0)), (0, None));
    }

    /// Against a plain table of pages, with a small generator of numbers.
    #[test]
    fn it_does_what_a_plain_table_does() {
        let mut missing = Remaining::default();
        let mut table: BTreeMap<u64, u64> = (0..400).filter(|n| n % 50 > 3).map(|n| (n, n)).collect();
        for start in 0..8 {
            missing.insert(piece(start * 50 + 4, 46, start * 50 + 4));
        }
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..2000 {
            let (first, count) = (random(400), random(20));
            if random(3) == 0 {
                let to = random(400);
                // The kernel refuses ranges that overlap.
                if first.abs_diff(to) >= count {
                    missing.shift(range(first, count), PageIndex(to));
                    let moved: Vec<_> = (first..first + count).map(|n| table.remove(&n)).collect();
                    for (at, origin) in (to..).zip(moved) {
                        table.remove(&at);
                        table.extend(origin.map(|origin| (at, origin)));
                    }
                }
            } else if random(40) == 0 {
                missing.remove(range(first, count));
                table.retain(|n, _| !(first..first + count).contains(n));
            }
            assert_eq!(missing.count(), table.len() as u64);
            for n in 0..430 {
                assert_eq!(missing.at(n).map(|piece| piece.origin), table.get(&n).copied());
            }
        }
    }
}
