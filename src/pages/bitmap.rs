//! One bit for each of the 512 pages of a 2 MiB chunk: the unit in which ledger and store keep their books.

/// Pages in a chunk.
pub const CHUNK_PAGES: u64 = 512;

/// A set of pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkBits([u64; 8]);

impl ChunkBits {
    /// The chunk that a page is in, and its place there.
    #[must_use]
    pub fn locate(page: u64) -> (u64, usize) {
        let place = usize::try_from(page % CHUNK_PAGES).expect("below 512");
        (page / CHUNK_PAGES, place)
    }

    /// Is it in the set?
    #[must_use]
    pub fn contains(&self, place: usize) -> bool {
        self.0[place / 64] & (1 << (place % 64)) != 0
    }

    /// Adds it; false when it was there already.
    pub fn insert(&mut self, place: usize) -> bool {
        let was = self.contains(place);
        self.0[place / 64] |= 1 << (place % 64);
        !was
    }

    /// Takes it out; false when it was not there.
    pub fn remove(&mut self, place: usize) -> bool {
        let was = self.contains(place);
        self.0[place / 64] &= !(1 << (place % 64));
        was
    }

    /// How many are in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True when none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// How many of the set lie below `place`.
    #[must_use]
    pub fn rank(&self, place: usize) -> usize {
        let (word, bit) = (place / 64, place % 64);
        let below: usize = self.0[..word].iter().map(|word| word.count_ones() as usize).sum();
        below + (self.0[word] & ((1 << bit) - 1)).count_ones() as usize
    }

    /// One bit for each place, 64 in a word.
    #[must_use]
    pub fn words(&self) -> [u64; 8] {
        self.0
    }

    /// The members that lie in `places`.
    #[must_use]
    pub fn within(&self, places: std::ops::Range<usize>) -> Self {
        let mut bits = *self;
        for (at, word) in bits.0.iter_mut().enumerate() {
            let (start, end) =
                (places.start.clamp(at * 64, at * 64 + 64), places.end.clamp(at * 64, at * 64 + 64));
            let below =
                |place: usize| if place == at * 64 + 64 { u64::MAX } else { (1 << (place - at * 64)) - 1 };
            *word &= below(end) & !below(start);
        }
        bits
    }

    /// One bit for each place, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let bits = *self;
        (0..512).filter(move |place| bits.contains(*place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_what_is_below() {
        let mut bits = ChunkBits::default();
        for place in [0, 3, 63, 64, 200, 511] {
            assert!(bits.insert(place));
            assert!(!bits.insert(place));
        }
        assert_eq!([0, 1, 64, 65, 511].map(|place| bits.rank(place)), [0, 1, 3, 4, 5]);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 3, 63, 64, 200, 511]);
        assert!(bits.remove(63) && !bits.remove(63));
        assert_eq!(bits.count(), 5);
        assert_eq!(ChunkBits::locate(1025), (2, 1));
    }
}
