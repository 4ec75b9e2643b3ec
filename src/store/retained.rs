//! Pages that containers left behind when they moved away: when they come back, only what changed has to travel. In memory only,
//! by content, shared by all migrations of the agent, and bounded: the oldest visits go first, as a whole.
//!
//! A peer that is allowed to migrate here can learn whether some page content was here before, by asking for it. That is the
//! price of finding pages of other containers; who must not pay it sets the bound to zero.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::ContainerId;
use crate::model::page::{Digest, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::hash::{digest, prefix};
use crate::sys::memfd::MemFile;

/// What a page costs beside its bytes: a slot, an entry in the map, a place in a generation.
const PAGE_COST: u64 = PAGE_SIZE as u64 + 64;

/// One page and how many generations have it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hint: u64,
    holders: u32,
}

/// What one container left.
#[derive(Debug)]
struct Generation {
    container: ContainerId,
    /// Which writing made it: a visit is told from an earlier one of the same container.
    serial: u64,
    slots: Vec<u32>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<Arc<MemFile>>,
    by_hint: HashMap<u64, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Complete generations, oldest first.
    generations: VecDeque<Generation>,
    next_serial: u64,
}

/// The pages of earlier visits.
#[derive(Debug)]
pub struct RetainedPages {
    inner: Mutex<Inner>,
    bytes_max: u64,
}

impl RetainedPages {
    /// Nothing yet, at most `bytes_max` ever; zero keeps nothing.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { inner: Mutex::default(), bytes_max }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many pages are held.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.inner().held()
    }

    /// Memory they take, bytes.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.inner().held() * PAGE_COST
    }

    /// Is such content probably here? By the first eight bytes of the digest: never proof.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.hints_at(prefix(digest))
    }

    /// As [`RetainedPages::contains`], when only the hint is known.
    #[must_use]
    pub fn hints_at(&self, hint: u64) -> bool {
        self.inner().by_hint.contains_key(&hint)
    }

    /// Copies the content with this digest, hashed again; false when it is not here.
    pub fn get(&self, wanted: &Digest, out: &mut [u8; PAGE_SIZE]) -> bool {
        self.copy_hinted(wanted, out) && digest(out) == *wanted
    }

    /// Copies what is held for this digest without hashing it: the caller does.
    pub(super) fn copy_hinted(&self, wanted: &Digest, out: &mut [u8; PAGE_SIZE]) -> bool {
        let inner = self.inner();
        let Some(slot) = inner.by_hint.get(&prefix(wanted)) else { return false };
        // Read under the lock: the slot could be given to another page meanwhile.
        inner.file.as_ref().is_some_and(|file| file.read_pages(u64::from(*slot), out).is_ok())
    }

    /// Keeps the pages of a container that has left, in place of those of its earlier visit. Returns how many are held of this
    /// visit: fewer than given when the bound is reached even with all other generations gone.
    ///
    /// # Errors
    /// The kernel refuses memory; what was kept until then is dropped.
    pub fn insert_generation<'a>(
        self: &Arc<Self>,
        container: &ContainerId,
        pages: impl IntoIterator<Item = (Digest, &'a [u8; PAGE_SIZE])>,
    ) -> io::Result<u64> {
        let mut writer = self.begin_generation(container);
        for (digest, page) in pages {
            if !writer.add(&digest, page)? {
                break;
            }
        }
        Ok(writer.finish())
    }

    /// The same, page by page. What is not finished is dropped.
    #[must_use]
    pub fn begin_generation(self: &Arc<Self>, container: &ContainerId) -> GenerationWriter {
        let serial = {
            let mut inner = self.inner();
            inner.next_serial += 1;
            inner.next_serial
        };
        let generation = Generation { container: container.clone(), serial, slots: Vec::new() };
        GenerationWriter { retained: Arc::clone(self), generation: Some(generation) }
    }

    /// Drops what a container left.
    pub fn remove(&self, container: &ContainerId) {
        let mut inner = self.inner();
        while let Some(at) =
            inner.generations.iter().position(|generation| generation.container == *container)
        {
            inner.drop_generation(at);
        }
    }
}

impl Inner {
    fn held(&self) -> u64 {
        (self.slots.len() - self.free.len()) as u64
    }

    fn drop_generation(&mut self, at: usize) {
        if let Some(generation) = self.generations.remove(at) {
            self.release(&generation.slots);
        }
    }

    fn release(&mut self, slots: &[u32]) {
        for number in slots {
            let slot = &mut self.slots[*number as usize];
            slot.holders -= 1;
            if slot.holders == 0 {
                self.by_hint.remove(&slot.hint);
                self.free.push(*number);
                if let Some(file) = &self.file {
                    let page = PageRange { first: PageIndex(u64::from(*number)), count: 1 };
                    // A page that cannot be given back is overwritten when its slot is used again.
                    let _ = file.punch(page);
                }
            }
        }
    }

    /// Room for one more page, after evicting if need be.
    fn free_slot(&mut self, bytes_max: u64) -> Option<u32> {
        while (self.held() + 1) * PAGE_COST > bytes_max {
            if self.generations.is_empty() {
                return None;
            }
            self.drop_generation(0);
        }
        self.free.pop().or_else(|| {
            let number = u32::try_from(self.slots.len()).ok()?;
            self.slots.push(Slot { hint: 0, holders: 0 });
            Some(number)
        })
    }

    fn add(&mut self, hint: u64, page: &[u8; PAGE_SIZE], bytes_max: u64) -> io::Result<Option<u32>> {
        if let Some(number) = self.by_hint.get(&hint) {
            self.slots[*number as usize].holders += 1;
            return Ok(Some(*number));
        }
        let Some(number) = self.free_slot(bytes_max) else { return Ok(None) };
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(MemFile::create("decamp-retained")?))),
        };
        if let Err(e) = file.write_pages(u64::from(number), page) {
            self.free.push(number);
            return Err(e);
        }
        self.slots[number as usize] = Slot { hint, holders: 1 };
        self.by_hint.insert(hint, number);
        Ok(Some(number))
    }
}

/// Takes the pages of one visit.
#[derive(Debug)]
pub struct GenerationWriter {
    retained: Arc<RetainedPages>,
    generation: Option<Generation>,
}

impl GenerationWriter {
    /// Keeps one page, whose digest the caller has just computed. False: the bound is reached.
    ///
    /// # Errors
    /// The kernel refuses memory.
    pub fn add(&mut self, digest: &Digest, page: &[u8; PAGE_SIZE]) -> io::Result<bool> {
        let Some(generation) = &mut self.generation else { return Ok(false) };
        let added = self.retained.inner().add(prefix(digest), page, self.retained.bytes_max)?;
        generation.slots.extend(added);
        Ok(added.is_some())
    }

    /// Makes it the container's only generation. Returns how many pages it has.
    pub fn finish(mut self) -> u64 {
        let Some(generation) = self.generation.take() else { return 0 };
        let pages = generation.slots.len() as u64;
        let mut inner = self.retained.inner();
        let older =
            |other: &Generation| other.container == generation.container && other.serial < generation.serial;
        while let Some(at) = inner.generations.iter().position(older) {
            inner.drop_generation(at);
        }
        inner.generations.push_back(generation);
        pages
    }
}

impl Drop for GenerationWriter {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            self.retained.inner().release(&generation.slots);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str) -> ContainerId {
        ContainerId::try_from(name).unwrap()
    }

    fn pages(fills: std::ops::Range<u8>) -> Vec<(Digest, Box<[u8; PAGE_SIZE]>)> {
        fills.map(|fill| (digest(&[fill; PAGE_SIZE]), Box::new([fill; PAGE_SIZE]))).collect()
    }

    fn insert(retained: &Arc<RetainedPages>, name: &str, fills: std::ops::Range<u8>) -> u64 {
        let pages = pages(fills);
        retained
            .insert_generation(&container(name), pages.iter().map(|(digest, page)| (*digest, &**page)))
            .unwrap()
    }

    fn held(retained: &RetainedPages, fill: u8) -> bool {
        let mut out = [0; PAGE_SIZE];
        retained.get(&digest(&[fill; PAGE_SIZE]), &mut out) && out == [fill; PAGE_SIZE]
    }

    #[test]
    fn the_oldest_visit_goes_first_and_shared_pages_stay() {
        let retained = Arc::new(RetainedPages::new(10 * PAGE_COST));
        assert_eq!(insert(&retained, "a", 1..5), 4);
        assert_eq!(insert(&retained, "b", 3..9), 6);
        assert_eq!(retained.pages(), 8);
        assert_eq!(insert(&retained, "c", 20..24), 4);
        assert!(!held(&retained, 1) && !held(&retained, 2), "only a had them");
        assert!((3..9).chain(20..24).all(|fill| held(&retained, fill)));
        assert!(retained.bytes_used() <= 10 * PAGE_COST);
    }

    #[test]
    fn a_new_visit_replaces_the_old_one_of_the_same_container() {
        let retained = Arc::new(RetainedPages::new(1 << 20));
        insert(&retained, "a", 1..5);
        insert(&retained, "a", 4..8);
        assert!(!held(&retained, 1) && held(&retained, 4) && held(&retained, 7));
        assert_eq!(retained.pages(), 4);
        retained.remove(&container("a"));
        assert_eq!(retained.pages(), 0);
        let file = retained.inner().file.clone().unwrap();
        assert_eq!(file.allocated_bytes().unwrap(), 0);
    }

    #[test]
    fn a_visit_larger_than_the_bound_is_kept_in_part_and_nothing_with_a_bound_of_zero() {
        let retained = Arc::new(RetainedPages::new(3 * PAGE_COST));
        assert_eq!(insert(&retained, "a", 1..9), 3);
        assert_eq!(retained.pages(), 3);
        let none = Arc::new(RetainedPages::new(0));
        assert_eq!(insert(&none, "a", 1..9), 0);
    }

    #[test]
    fn what_is_not_finished_is_dropped() {
        let retained = Arc::new(RetainedPages::new(1 << 20));
        let mut writer = retained.begin_generation(&container("a"));
        for (digest, page) in &pages(1..4) {
            assert!(writer.add(digest, page).unwrap());
        }
        assert!(held(&retained, 1));
        drop(writer);
        assert_eq!(retained.pages(), 0);
    }

    #[test]
    fn a_hint_that_lies_is_not_believed() {
        let retained = Arc::new(RetainedPages::new(1 << 20));
        insert(&retained, "a", 1..2);
        let mut forged = digest(&[1; PAGE_SIZE]);
        forged.0[31] ^= 1;
        assert!(retained.contains(&forged));
        assert!(!retained.get(&forged, &mut [0; PAGE_SIZE]));
    }
}
