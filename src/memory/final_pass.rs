//! The last pages, at the hold: CRIU delivers every page of every frozen process, we hash them on two threads, send those that
//! differ from what the destination holds, and note the layout and the root of each object for the final check.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::batch::{BatchBuilder, Work};
use super::error::MemoryError;
use super::pipeline::{PagePlane, joined};
use super::scanner::Digester;
use super::stats::{Counters, RoundStats};
use crate::model::layout::{LayoutRun, ObjectLayout, PE_LAZY, PE_PRESENT, push_merged};
use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::hash::{Root, ZERO_DIGEST};

/// Pages collected before they are hashed together: CRIU's chunks can be single pages.
const GROUP_PAGES: usize = 256;
/// Groups being hashed at the same time.
const GROUPS_MAX: usize = 2;

/// What CRIU delivered at once.
#[derive(Debug)]
struct Delivery {
    first: u64,
    bytes: Bytes,
}

/// Deliveries of one object, hashed.
#[derive(Debug)]
struct Group {
    object: ObjectId,
    deliveries: Vec<Delivery>,
    digests: Vec<Digest>,
}

/// The state of the final pass.
#[derive(Debug)]
pub(super) struct FinalPass {
    started: Instant,
    /// Not yet hashed, all of the newest object.
    pending: Vec<Delivery>,
    pending_pages: usize,
    /// Being hashed, oldest first.
    hashing: VecDeque<JoinHandle<Group>>,
    /// Objects in the order of delivery, and how far each has been absorbed.
    objects: Vec<(ObjectLayout, Root)>,
    seen: HashSet<ObjectId>,
    /// Index into `objects` of the one whose groups come out now.
    absorbing: usize,
    builder: Option<BatchBuilder>,
}

impl FinalPass {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            pending: Vec::new(),
            pending_pages: 0,
            hashing: VecDeque::new(),
            objects: Vec::new(),
            seen: HashSet::new(),
            absorbing: 0,
            builder: None,
        }
    }

    /// What CRIU delivered of an object, ascending.
    pub(super) fn delivered(&self, object: ObjectId) -> Vec<PageRange> {
        let mut out = Vec::new();
        let of_it = self.objects.iter().filter(|(layout, _)| layout.object == object);
        for run in of_it.flat_map(|(layout, _)| &layout.runs) {
            let run = PageRange { first: PageIndex(run.first), count: u64::from(run.count) };
            push_merged(&mut out, run);
        }
        out
    }

    /// Has this object begun?
    pub(super) fn has(&self, object: ObjectId) -> bool {
        self.seen.contains(&object)
    }

    /// Starts hashing what is pending.
    fn hash_pending(&mut self) {
        let Some((layout, _)) = self.objects.last() else { return };
        if self.pending.is_empty() {
            return;
        }
        self.pending_pages = 0;
        let object = layout.object;
        let deliveries = std::mem::take(&mut self.pending);
        self.hashing.push_back(tokio::task::spawn_blocking(move || {
            let mut digester = Digester::default();
            let (mut digests, mut part) = (Vec::new(), Vec::new());
            for delivery in &deliveries {
                digester.digest(&delivery.bytes, &mut part);
                digests.append(&mut part);
            }
            Group { object, deliveries, digests }
        }));
    }
}

impl PagePlane {
    /// Begins an object of the final dump; its pages follow. An object without pages is part of the layout too.
    ///
    /// # Errors
    /// [`MemoryError::FinalPages`] when the object was there before; [`MemoryError::Broken`].
    pub async fn final_object(&mut self, object: ObjectId) -> Result<(), MemoryError> {
        self.enter()?;
        if self.final_pass.is_none() {
            self.shared.counters.take();
            self.final_pass = Some(FinalPass::new());
        }
        let Some(pass) = &mut self.final_pass else { return Err(MemoryError::Broken) };
        if !pass.seen.insert(object) {
            return Err(MemoryError::FinalPages { object, rule: "an object comes once" });
        }
        pass.hash_pending();
        pass.objects.push((ObjectLayout::empty(object), Root::default()));
        self.absorb_down_to(GROUPS_MAX).await?;
        self.leave();
        Ok(())
    }

    /// The next pages of the object that was begun last, in ascending order, with CRIU's flags. Returns when there is room for more,
    /// so a slow link slows the dump down and no memory fills up.
    ///
    /// # Errors
    /// [`MemoryError::FinalPages`] for pages that are not whole, not ascending, or not present; otherwise as for a round.
    pub async fn final_pages(
        &mut self,
        object: ObjectId,
        first: PageIndex,
        flags: u32,
        data: Bytes,
    ) -> Result<(), MemoryError> {
        self.enter()?;
        let rule = |rule| Err(MemoryError::FinalPages { object, rule });
        let Some(pass) = &mut self.final_pass else {
            return rule("an object is begun before its pages come");
        };
        let Some((layout, _)) = pass.objects.last_mut().filter(|(layout, _)| layout.object == object) else {
            return rule("an object is begun before its pages come");
        };
        if data.is_empty() || !data.len().is_multiple_of(PAGE_SIZE) {
            return rule("only whole pages come");
        }
        if flags & PE_PRESENT == 0 || flags & !(PE_PRESENT | PE_LAZY) != 0 {
            return rule("only pages that are present come");
        }
        let pages = data.len() / PAGE_SIZE;
        let end = first.0.checked_add(pages as u64).filter(|end| *end <= PAGE_INDEX_MAX);
        let ascending = layout.runs.last().is_none_or(|last| last.end() <= first.0);
        let (Ok(count), Some(_), true) = (u32::try_from(pages), end, ascending) else {
            return rule("pages come in ascending order, inside the address space");
        };
        match layout.runs.last_mut() {
            Some(last)
                if last.end() == first.0
                    && last.flags == flags
                    && last.count.checked_add(count).is_some() =>
            {
                last.count += count;
            }
            _ => layout.runs.push(LayoutRun { first: first.0, count, flags }),
        }
        pass.pending.push(Delivery { first: first.0, bytes: data });
        pass.pending_pages += pages;
        if pass.pending_pages >= GROUP_PAGES {
            pass.hash_pending();
            self.absorb_down_to(GROUPS_MAX).await?;
        }
        self.leave();
        Ok(())
    }

    /// Waits until the destination has acknowledged every page of the final dump. Returns the layouts in the order in which CRIU
    /// delivered the objects, with their roots, and what was sent.
    ///
    /// # Errors
    /// As for a round.
    pub async fn finish_final(&mut self) -> Result<(Vec<ObjectLayout>, RoundStats), MemoryError> {
        self.enter()?;
        if let Some(pass) = &mut self.final_pass {
            pass.hash_pending();
        }
        self.absorb_down_to(0).await?;
        let Some(mut pass) = self.final_pass.take() else {
            self.leave();
            return Ok((Vec::new(), RoundStats::default()));
        };
        if let Some(batch) = pass.builder.take().and_then(BatchBuilder::finish) {
            self.enqueue(Work::Pages(batch)).await?;
        }
        self.all_acknowledged().await?;
        let mut stats = self.shared.counters.take();
        stats.duration = pass.started.elapsed();
        let hidden = std::mem::take(&mut self.hidden_parts);
        let finished = |(mut layout, root): (ObjectLayout, Root)| {
            layout.root = root.finish();
            if let Some(part) = hidden.get(&layout.object) {
                self.lay_out_hidden(&mut layout, part);
            }
            layout
        };
        let layouts = pass.objects.into_iter().map(finished).collect();
        self.leave();
        Ok((layouts, stats))
    }

    /// Takes hashed groups, oldest first, until at most `left` are under way.
    async fn absorb_down_to(&mut self, left: usize) -> Result<(), MemoryError> {
        loop {
            let Some(pass) = &mut self.final_pass else { return Ok(()) };
            if pass.hashing.len() <= left {
                return Ok(());
            }
            let Some(oldest) = pass.hashing.pop_front() else { return Ok(()) };
            let group = joined(oldest).await?;
            self.absorb(&group).await?;
        }
    }

    /// Books a group: the object's root, and its differing pages into batches.
    async fn absorb(&mut self, group: &Group) -> Result<(), MemoryError> {
        let Some(pass) = &mut self.final_pass else { return Ok(()) };
        while pass.objects[pass.absorbing].0.object != group.object {
            pass.absorbing += 1;
        }
        pass.objects[pass.absorbing].1.update(&group.digests);
        let numbers = group
            .deliveries
            .iter()
            .flat_map(|delivery| (delivery.first..).zip(delivery.bytes.as_chunks::<PAGE_SIZE>().0));
        let pages: Vec<(u64, &[u8; PAGE_SIZE])> = numbers.collect();
        let entries: Vec<(u64, Digest)> =
            pages.iter().zip(&group.digests).map(|((page, _), digest)| (*page, *digest)).collect();
        let mut differing = Vec::new();
        self.shared.ledger.differing(group.object, &entries, |place| differing.push(place));
        Counters::add(&self.shared.counters.scanned, entries.len() as u64);
        Counters::add(&self.shared.counters.dirty, differing.len() as u64);
        for place in differing {
            let Some(pass) = &mut self.final_pass else { return Ok(()) };
            let open = pass.builder.as_ref();
            if open.is_some_and(|open| open.object() != group.object || open.is_full())
                && let Some(batch) = pass.builder.take().and_then(BatchBuilder::finish)
            {
                self.enqueue(Work::Pages(batch)).await?;
            }
            let Some(pass) = &mut self.final_pass else { return Ok(()) };
            let shared = &self.shared;
            let open =
                pass.builder.get_or_insert_with(|| BatchBuilder::new(group.object, shared.pool.take()));
            let (page, digest) = entries[place];
            open.push(page, digest, (digest != ZERO_DIGEST).then_some(&pages[place].1[..]));
        }
        Ok(())
    }
}
