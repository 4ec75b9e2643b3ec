//! What the destination has acknowledged: for each page of each object the digest it holds, in one [`Book`] per object.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{Digest, ObjectId, PageIndex, PageRange};
use crate::pages::book::Book;

/// Every page an object can have.
const ALL: [PageRange; 1] = [PageRange { first: PageIndex(0), count: PAGE_INDEX_MAX }];

/// What the destination holds. Only acknowledgements write to it.
#[derive(Debug, Default)]
pub struct Ledger {
    objects: Mutex<HashMap<ObjectId, Book>>,
}

impl Ledger {
    fn objects(&self) -> MutexGuard<'_, HashMap<ObjectId, Book>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest that the destination holds for a page.
    #[must_use]
    pub fn digest(&self, object: ObjectId, page: PageIndex) -> Option<Digest> {
        self.objects().get(&object)?.digest(page)
    }

    /// How many pages the destination holds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.objects().values().map(Book::pages).sum()
    }

    /// The pages of an object that the destination holds inside `within` (ascending, disjoint).
    #[must_use]
    pub fn held(&self, object: ObjectId, within: &[PageRange]) -> Vec<PageRange> {
        self.objects().get(&object).map(|book| book.held(within)).unwrap_or_default()
    }

    /// See [`Book::root_of`].
    #[must_use]
    pub fn root_of(&self, object: ObjectId, within: &[PageRange]) -> Digest {
        match self.objects().get(&object) {
            Some(book) => book.root_of(within),
            None => Book::default().root_of(within),
        }
    }

    /// Does what can be done before the freeze towards [`Ledger::root_of`].
    pub(super) fn refresh(&self) {
        self.objects().values_mut().for_each(Book::refresh);
    }

    /// Calls `each` with the places in `pages` whose digest is not the one that the destination holds.
    pub(super) fn differing(&self, object: ObjectId, pages: &[(u64, Digest)], each: impl FnMut(usize)) {
        match self.objects().get(&object) {
            Some(book) => book.differing(pages, each),
            None => (0..pages.len()).for_each(each),
        }
    }

    /// The destination has acknowledged these.
    pub(super) fn record(&self, object: ObjectId, pages: impl Iterator<Item = (u64, Digest)>) {
        let mut objects = self.objects();
        let book = objects.entry(object).or_default();
        pages.for_each(|(page, digest)| book.set(page, digest));
    }

    /// Forgets what is not in `populated` (ascending, disjoint), and says what that was.
    pub(super) fn keep_only(&self, object: ObjectId, populated: &[PageRange]) -> Vec<PageRange> {
        self.keep_only_within(object, &ALL, populated)
    }

    /// The same for the part of an object that lies inside `within` (ascending, disjoint).
    pub(super) fn keep_only_within(
        &self,
        object: ObjectId,
        within: &[PageRange],
        populated: &[PageRange],
    ) -> Vec<PageRange> {
        let mut objects = self.objects();
        let Some(book) = objects.get_mut(&object) else { return Vec::new() };
        let gone = book.keep_only(within, populated);
        if book.is_empty() {
            objects.remove(&object);
        }
        gone
    }

    /// The objects of which the destination holds pages.
    pub(super) fn known_objects(&self) -> Vec<ObjectId> {
        self.objects().keys().copied().collect()
    }

    /// Every digest that the destination holds, in no order.
    pub(super) fn for_each_digest(&self, each: impl FnMut(&Digest)) {
        self.objects().values().flat_map(Book::digests).for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let gone = ledger.keep_only(OBJECT, &[PageRange { first: PageIndex(0), count: 512 }]);
        assert_eq!(gone.iter().map(|range| range.first.0).collect::<Vec<_>>(), [512, 1 << 40]);
        assert_eq!(ledger.keep_only(OBJECT, &[]).len(), 2);
        assert_eq!(ledger.known_objects(), []);
    }
}
