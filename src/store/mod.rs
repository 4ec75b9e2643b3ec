//! The destination's pages: received, verified, kept in memory, and at the end put into the image files that CRIU restores from.
//!
//! ```text
//! page stream ─▶ receive ─▶ apply: recompute every digest, compare the root ─▶ sparse memory file per object
//!                              │                                                   ▲           │
//!                              └── known pages: copy, hash again, else "missing" ──┘           ▼
//!                    retained pages of earlier visits ──▶┘                        assemble: hash again, root of the freeze
//! ```
//! Nothing is believed: not the source's digests, not our own index, not the memory between receiving and restoring. This room
//! never keeps more than its budget, and never writes an image whose pages do not hash to the root of the frozen container.

mod apply;
pub mod assemble;
mod error;
mod lazy;
mod object;
mod receive;
mod retained;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::limits::{OBJECTS_MAX, PAGE_INDEX_MAX};
use crate::model::page::{ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::protocol::pages::Forget;

pub use error::StoreError;
pub use lazy::LazyPages;
use object::{Budget, Presence, StoredObject};
pub use receive::{StreamStats, serve_page_stream};
pub use retained::{GenerationWriter, RetainedPages};

/// Objects of one migration, by id and by the order in which they appeared.
#[derive(Debug, Default)]
struct Objects {
    numbers: HashMap<ObjectId, u32>,
    list: Vec<Arc<StoredObject>>,
}

/// Where some content was seen: object number and page, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Location(u64);

const PAGE_BITS: u32 = PAGE_INDEX_MAX.trailing_zeros();
const _: () = assert!(PAGE_INDEX_MAX.is_power_of_two() && OBJECTS_MAX < 1 << (64 - PAGE_BITS));

impl Location {
    fn new(number: u32, page: u64) -> Self {
        Self(u64::from(number) << PAGE_BITS | page)
    }

    fn parts(self) -> (usize, u64) {
        (usize::try_from(self.0 >> PAGE_BITS).unwrap_or(usize::MAX), self.0 & (PAGE_INDEX_MAX - 1))
    }
}

/// The pages of one migration at its destination.
#[derive(Debug)]
pub struct PageStore {
    budget: Budget,
    objects: Mutex<Objects>,
    /// First eight bytes of a digest → where such content was put. A hint: contents move and go.
    index: Mutex<HashMap<u64, Location>>,
    index_max: usize,
    /// Pages came or went since the last [`PageStore::refresh`].
    changed: AtomicBool,
}

impl PageStore {
    /// An empty store that may use `budget_bytes` of memory for pages and their books; its index of contents, at most 2 % on top, is
    /// not counted.
    #[must_use]
    pub fn new(budget_bytes: u64) -> Self {
        let pages = usize::try_from(budget_bytes / PAGE_SIZE as u64).unwrap_or(usize::MAX / 4);
        Self {
            budget: Budget::new(budget_bytes),
            objects: Mutex::default(),
            index: Mutex::default(),
            index_max: pages * 2 + 65_536,
            changed: AtomicBool::new(false),
        }
    }

    /// Bytes of the budget in use.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.budget.used()
    }

    /// Bytes that may be used.
    #[must_use]
    pub fn bytes_budget(&self) -> u64 {
        self.budget.limit()
    }

    /// Is content that begins like this probably here? Never proof.
    #[must_use]
    pub fn hints_at(&self, hint: u64) -> bool {
        self.index().contains_key(&hint)
    }

    /// Drops pages that their object no longer has.
    ///
    /// # Errors
    /// The kernel refuses to give memory back.
    pub fn forget(&self, forget: &Forget) -> Result<(), StoreError> {
        let Some((_, object)) = self.find(forget.object) else { return Ok(()) };
        self.changed.store(true, Ordering::Relaxed);
        forget.ranges.iter().try_for_each(|range| object.forget(*range, &self.budget))
    }

    /// The bytes of one page; `None` when it never arrived.
    #[must_use]
    pub fn page(&self, object: ObjectId, page: PageIndex) -> Option<Box<[u8; PAGE_SIZE]>> {
        let (_, object) = self.find(object)?;
        let mut presence = Vec::with_capacity(1);
        object.look(PageRange { first: page, count: 1 }, &mut presence);
        let mut bytes = Box::new([0; PAGE_SIZE]);
        match presence[0] {
            Presence::Absent => None,
            Presence::Zero => Some(bytes),
            Presence::Content => object.read_content(page.0, &mut bytes).then_some(bytes),
        }
    }

    /// Does what can be done before the freeze towards comparing books, so that the comparison takes the same time however many
    /// pages there are. For moments in which no pages come in; cheap when none have come since the last time.
    pub fn refresh(&self) {
        if self.changed.swap(false, Ordering::Relaxed) {
            let objects = self.objects().list.clone();
            objects.iter().for_each(|object| object.refresh());
        }
    }

    /// Is there anything to do for [`PageStore::refresh`]?
    fn is_stale(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    fn index(&self) -> MutexGuard<'_, HashMap<u64, Location>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: ObjectId) -> Option<(u32, Arc<StoredObject>)> {
        let objects = self.objects();
        let number = *objects.numbers.get(&id)?;
        Some((number, Arc::clone(objects.list.get(number as usize)?)))
    }

    fn by_number(&self, number: usize) -> Option<Arc<StoredObject>> {
        self.objects().list.get(number).cloned()
    }

    fn find_or_create(&self, id: ObjectId) -> Result<(u32, Arc<StoredObject>), StoreError> {
        if let Some(found) = self.find(id) {
            return Ok(found);
        }
        let mut objects = self.objects();
        if let Some(number) = objects.numbers.get(&id) {
            return Ok((*number, Arc::clone(&objects.list[*number as usize])));
        }
        let too_many = || StoreError::TooManyObjects { max: OBJECTS_MAX };
        let number = u32::try_from(objects.list.len()).map_err(|_| too_many())?;
        if objects.list.len() >= OBJECTS_MAX {
            return Err(too_many());
        }
        let object = Arc::new(StoredObject::new(id));
        objects.list.push(Arc::clone(&object));
        objects.numbers.insert(id, number);
        Ok((number, object))
    }
}

#[cfg(test)]
mod tests;
