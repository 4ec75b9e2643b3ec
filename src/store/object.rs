//! One object's pages: a sparse memory file, and two bits for each page that say whether it is there and whether it is zero.
//! Zero pages take no memory beyond their bits.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::StoreError;
use crate::model::layout::push_merged;
use crate::model::page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::bitmap::{CHUNK_PAGES, ChunkBits};
use crate::pages::book::Book;
use crate::pages::hash::ZERO_DIGEST;
use crate::sys::memfd::MemFile;

/// What the books of a chunk cost, charged to the budget: a peer cannot make us keep more than it was granted by naming one page
/// in each of many chunks.
const CHUNK_BYTES: u64 = 1024;
/// Digests of so many pages are in one page of the file of digests.
const DIGESTS_IN_PAGE: u64 = PAGE_BYTES / DIGEST_BYTES;
const _: () = assert!(CHUNK_PAGES / DIGESTS_IN_PAGE <= 8);
/// Chunks whose roots are computed before others get at the books again.
const REFRESHED_AT_ONCE: usize = 16;

/// Memory that this migration may use, and what it uses.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn charge(&self, bytes: u64) -> Result<(), StoreError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map(drop)
            .map_err(|_| StoreError::BudgetExceeded { budget_bytes: self.limit })
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Absent,
    Zero,
    Content,
}

#[derive(Debug, Default, Clone, Copy)]
struct Chunk {
    content: ChunkBits,
    zero: ChunkBits,
    /// Pages of the file of digests that are in use, one bit each.
    digest_pages: u8,
}

#[derive(Debug, Default)]
struct Books {
    chunks: BTreeMap<u64, Chunk>,
    /// Digests of all pages, of the bytes as they arrived.
    book: Book,
    files: Option<Files>,
}

/// Memory files of one object.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// Content, each page at its number times the page size.
    pub(super) pages: Arc<MemFile>,
    /// Digests of content, each at its page's number times 32: what whoever installs the pages checks them with.
    pub(super) digests: Arc<MemFile>,
}

#[derive(Debug)]
pub(super) struct StoredObject {
    id: ObjectId,
    books: Mutex<Books>,
}

const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// What a page costs in the book, zero or not.
const DIGEST_BYTES: u64 = size_of::<Digest>() as u64;

impl StoredObject {
    pub(super) fn new(id: ObjectId) -> Self {
        Self { id, books: Mutex::default() }
    }

    pub(super) fn id(&self) -> ObjectId {
        self.id
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let object = self.id;
        move |source| StoreError::Memory { object, action, source }
    }

    /// Stores pages. The books are made first, so that the budget is never overdrawn; a failure ends the migration anyway.
    /// `digests`: of the pages, one each.
    pub(super) fn write(
        &self,
        first: u64,
        bytes: &[u8],
        digests: &[Digest],
        budget: &Budget,
    ) -> Result<(), StoreError> {
        let pages = PageRange { first: PageIndex(first), count: (bytes.len() / PAGE_SIZE) as u64 };
        let files = {
            let mut books = self.books();
            for (number, places) in chunks_of(pages) {
                let chunk = chunk_for(&mut books.chunks, number, budget)?;
                let (mut added, mut entered) = (0, 0);
                for place in places {
                    let was_zero = chunk.zero.remove(place);
                    let is_new = chunk.content.insert(place);
                    added += u64::from(is_new);
                    entered += u64::from(is_new && !was_zero);
                    let digest_page = 1 << (place as u64 / DIGESTS_IN_PAGE);
                    added += u64::from(chunk.digest_pages & digest_page == 0);
                    chunk.digest_pages |= digest_page;
                }
                budget.charge(added * PAGE_BYTES + entered * DIGEST_BYTES)?;
            }
            (first..).zip(digests).for_each(|(page, digest)| books.book.set(page, *digest));
            self.files_of(&mut books)?
        };
        let flat: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        files
            .digests
            .write_at(first * DIGEST_BYTES, &flat)
            .and_then(|()| files.pages.write_pages(first, bytes))
            .map_err(self.memory("written"))
    }

    /// The files, made if need be.
    pub(super) fn files(&self) -> Result<Files, StoreError> {
        self.files_of(&mut self.books())
    }

    fn files_of(&self, books: &mut Books) -> Result<Files, StoreError> {
        if let Some(files) = &books.files {
            return Ok(files.clone());
        }
        let create = |name| MemFile::create(name).map_err(self.memory("written"));
        let (pages, digests) = (create("decamp-pages")?, create("decamp-digests")?);
        let files = Files { pages: Arc::new(pages), digests: Arc::new(digests) };
        books.files = Some(files.clone());
        Ok(files)
    }

    /// Records zero pages, and gives back what they held.
    pub(super) fn write_zero(&self, pages: PageRange, budget: &Budget) -> Result<(), StoreError> {
        let mut held = Vec::new();
        let mut books = self.books();
        for (number, places) in chunks_of(pages) {
            let chunk = chunk_for(&mut books.chunks, number, budget)?;
            let mut entered = 0;
            for place in places {
                let is_new = chunk.zero.insert(place);
                if chunk.content.remove(place) {
                    push_merged(&mut held, single(number, place));
                } else {
                    entered += u64::from(is_new);
                }
            }
            budget.charge(entered * DIGEST_BYTES)?;
        }
        pages.iter().for_each(|page| books.book.set(page.0, ZERO_DIGEST));
        self.punch(&books, &held, budget)
    }

    /// Drops pages. The range may be much larger than what is there.
    pub(super) fn forget(&self, pages: PageRange, budget: &Budget) -> Result<(), StoreError> {
        let mut held = Vec::new();
        let mut emptied = Vec::new();
        let mut books = self.books();
        let end = pages.end().0;
        for (number, chunk) in books.chunks.range_mut(pages.first.0 / CHUNK_PAGES..end.div_ceil(CHUNK_PAGES))
        {
            let base = number * CHUNK_PAGES;
            for place in
                place_of(pages.first.0.max(base) - base)..place_of(end.min(base + CHUNK_PAGES) - base)
            {
                let was_zero = chunk.zero.remove(place);
                let had_content = chunk.content.remove(place);
                if had_content {
                    push_merged(&mut held, single(*number, place));
                }
                if was_zero || had_content {
                    budget.release(DIGEST_BYTES);
                }
            }
            if chunk.content.is_empty() && chunk.zero.is_empty() {
                emptied.push(*number);
            }
        }
        books.book.remove(pages);
        for number in emptied {
            let digest_pages = books.chunks.remove(&number).map_or(0, |chunk| chunk.digest_pages);
            if let Some(files) = books.files.as_ref().filter(|_| digest_pages != 0) {
                let pages = CHUNK_PAGES / DIGESTS_IN_PAGE;
                let range = PageRange { first: PageIndex(number * pages), count: pages };
                files.digests.punch(range).map_err(self.memory("given back"))?;
            }
            budget.release(CHUNK_BYTES + u64::from(digest_pages.count_ones()) * PAGE_BYTES);
        }
        self.punch(&books, &held, budget)
    }

    fn punch(&self, books: &Books, held: &[PageRange], budget: &Budget) -> Result<(), StoreError> {
        let Some(files) = &books.files else { return Ok(()) };
        for range in held {
            files.pages.punch(*range).map_err(self.memory("given back"))?;
            budget.release(range.count * PAGE_BYTES);
        }
        Ok(())
    }

    /// What is there of `pages`, and the file with the content.
    pub(super) fn look(&self, pages: PageRange, out: &mut Vec<Presence>) -> Option<Arc<MemFile>> {
        let books = self.books();
        for (number, places) in chunks_of(pages) {
            match books.chunks.get(&number) {
                None => out.extend(places.map(|_| Presence::Absent)),
                Some(chunk) => out.extend(places.map(|place| match () {
                    () if chunk.content.contains(place) => Presence::Content,
                    () if chunk.zero.contains(place) => Presence::Zero,
                    () => Presence::Absent,
                })),
            }
        }
        books.files.as_ref().map(|files| Arc::clone(&files.pages))
    }

    /// The runs of `within` (ascending, disjoint) that have content; zero pages are left out.
    pub(super) fn content(&self, within: impl Iterator<Item = PageRange>) -> (Vec<PageRange>, Option<Files>) {
        let books = self.books();
        let mut out = Vec::new();
        for range in within {
            for (number, places) in chunks_of(range) {
                let Some(chunk) = books.chunks.get(&number) else { continue };
                let content = chunk.content.within(places.clone());
                if content.count() == places.len() {
                    let first = PageIndex(number * CHUNK_PAGES + places.start as u64);
                    push_merged(&mut out, PageRange { first, count: places.len() as u64 });
                } else {
                    content.iter().for_each(|place| push_merged(&mut out, single(number, place)));
                }
            }
        }
        (out, books.files.clone())
    }

    /// The digest of a page as it arrived.
    pub(super) fn digest(&self, page: PageIndex) -> Option<Digest> {
        self.books().book.digest(page)
    }

    /// See [`Book::root_of`].
    pub(super) fn root_of(&self, within: &[PageRange]) -> Digest {
        self.books().book.root_of(within)
    }

    /// See [`Book::held`].
    pub(super) fn held(&self, within: &[PageRange]) -> Vec<PageRange> {
        self.books().book.held(within)
    }

    /// See [`Book::refresh`]; streams get their turn in between.
    pub(super) fn refresh(&self) {
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.books().book.refresh_some(from, REFRESHED_AT_ONCE);
        }
    }

    /// The bytes of one page if it has content; not checked.
    pub(super) fn read_content(&self, page: u64, out: &mut [u8; PAGE_SIZE]) -> bool {
        let file = {
            let books = self.books();
            let (number, place) = ChunkBits::locate(page);
            if !books.chunks.get(&number).is_some_and(|chunk| chunk.content.contains(place)) {
                return false;
            }
            books.files.clone()
        };
        file.is_some_and(|files| files.pages.read_pages(page, out).is_ok())
    }
}

fn chunk_for<'a>(
    chunks: &'a mut BTreeMap<u64, Chunk>,
    number: u64,
    budget: &Budget,
) -> Result<&'a mut Chunk, StoreError> {
    use std::collections::btree_map::Entry;
    match chunks.entry(number) {
        Entry::Occupied(chunk) => Ok(chunk.into_mut()),
        Entry::Vacant(room) => {
            budget.charge(CHUNK_BYTES)?;
            Ok(room.insert(Chunk::default()))
        }
    }
}

fn place_of(offset: u64) -> usize {
    usize::try_from(offset).expect("at most the pages of a chunk")
}

fn single(chunk: u64, place: usize) -> PageRange {
    PageRange { first: PageIndex(chunk * CHUNK_PAGES + place as u64), count: 1 }
}

/// The chunks that a range touches, each with the places in it.
fn chunks_of(pages: PageRange) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let (start, end) = (pages.first.0, pages.end().0);
    (start / CHUNK_PAGES..end.div_ceil(CHUNK_PAGES)).map(move |number| {
        let base = number * CHUNK_PAGES;
        (number, place_of(start.max(base) - base)..place_of(end.min(base + CHUNK_PAGES) - base))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    /// Two chunks, and a page of digests in each.
    const BOOKS: u64 = 2 * (CHUNK_BYTES + PAGE_BYTES);

    #[test]
    fn the_budget_follows_what_is_held() {
        let budget = Budget::new(20 * PAGE_BYTES);
        let object = StoredObject::new(ObjectId::Task(1));
        let digests = [Digest([1; 32]); 4];
        object.write(510, &[1; 4 * PAGE_SIZE], &digests, &budget).unwrap();
        assert_eq!(budget.used(), 4 * (PAGE_BYTES + DIGEST_BYTES) + BOOKS);
        object.write(510, &[2; 4 * PAGE_SIZE], &digests, &budget).unwrap();
        assert_eq!(budget.used(), 4 * (PAGE_BYTES + DIGEST_BYTES) + BOOKS, "the same pages again");
        object.write_zero(range(511, 1), &budget).unwrap();
        assert_eq!(budget.used(), 3 * PAGE_BYTES + 4 * DIGEST_BYTES + BOOKS);
        assert_eq!(object.digest(PageIndex(511)), Some(ZERO_DIGEST));
        object.write_zero(range(511, 1), &budget).unwrap();
        assert_eq!(budget.used(), 3 * PAGE_BYTES + 4 * DIGEST_BYTES + BOOKS, "zero again");
        let mut seen = Vec::new();
        let file = object.look(range(509, 6), &mut seen).unwrap();
        use Presence::{Absent, Content, Zero};
        assert_eq!(seen, [Absent, Content, Zero, Content, Content, Absent]);
        assert_eq!(file.allocated_bytes().unwrap(), 3 * PAGE_BYTES);
        let digests = object.files().unwrap().digests;
        assert_eq!(digests.allocated_bytes().unwrap(), 2 * PAGE_BYTES);
        object.forget(range(0, 1 << 45), &budget).unwrap();
        assert_eq!(digests.allocated_bytes().unwrap(), 0);
        assert_eq!((budget.used(), file.allocated_bytes().unwrap()), (0, 0));
    }

    #[test]
    fn more_than_the_budget_is_refused_also_by_books_alone() {
        let budget = Budget::new(3 * PAGE_BYTES);
        let object = StoredObject::new(ObjectId::Shmem(9));
        let refused = object.write(0, &[1; 3 * PAGE_SIZE], &[Digest([1; 32]); 3], &budget);
        assert!(matches!(refused, Err(StoreError::BudgetExceeded { .. })));
        let object = StoredObject::new(ObjectId::Shmem(10));
        let budget = Budget::new(3 * PAGE_BYTES);
        let sparse = (0..100).try_for_each(|chunk| object.write_zero(range(chunk * 512, 1), &budget));
        assert!(matches!(sparse, Err(StoreError::BudgetExceeded { .. })));
    }
}
