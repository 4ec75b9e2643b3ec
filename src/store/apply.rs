//! One batch of pages into the store: verify first, keep then, resolve what the source says we know.

use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::object::StoredObject;
use super::retained::RetainedPages;
use super::{Location, PageStore};
use crate::model::page::{Digest, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::compress::Decompressor;
use crate::pages::hash::{Root, ZERO_DIGEST, digest_bytes, prefix};
use crate::protocol::pages::{Codec, Pages, RunKind};

/// Buffers of one stream, kept between batches.
#[derive(Debug)]
pub(super) struct Scratch {
    decompressor: Decompressor,
    content: Vec<u8>,
    content_digests: Vec<Digest>,
    known: Vec<u8>,
    known_digests: Vec<Digest>,
}

impl Scratch {
    pub(super) fn new() -> Result<Self, StoreError> {
        Ok(Self {
            decompressor: Decompressor::new().map_err(StoreError::Decompressor)?,
            content: Vec::new(),
            content_digests: Vec::new(),
            known: Vec::new(),
            known_digests: Vec::new(),
        })
    }
}

/// A known page: its place in the batch, its number, and what it must hash to.
struct KnownPage {
    place: u16,
    page: u64,
    digest: Digest,
}

impl PageStore {
    /// Verifies and keeps a batch. Returns the places of known pages that could not be produced here.
    pub(super) fn apply(
        &self,
        batch: &Pages,
        retained: &RetainedPages,
        scratch: &mut Scratch,
    ) -> Result<Vec<u16>, StoreError> {
        let (number, object) = self.find_or_create(batch.object)?;
        let content_len = batch.count(RunKind::Content) * PAGE_SIZE;
        let mut unpacked = std::mem::take(&mut scratch.content);
        let content: &[u8] = match batch.codec {
            Codec::None => &batch.payload,
            Codec::Zstd => {
                unpacked.resize(content_len, 0);
                let broken =
                    |source| StoreError::Payload { object: batch.object, batch: batch.batch, source };
                scratch.decompressor.decompress(&batch.payload, &mut unpacked).map_err(broken)?;
                &unpacked
            }
        };
        scratch.content_digests.clear();
        digest_bytes(content, &mut scratch.content_digests);
        check_root(batch, &scratch.content_digests)?;
        self.keep(batch, number, &object, content, &scratch.content_digests)?;
        scratch.content = unpacked;
        let missing = self.resolve(&known_pages(batch), number, &object, retained, scratch);
        self.changed.store(true, Ordering::Relaxed);
        missing
    }

    /// Writes zero and content pages, which are verified by now.
    fn keep(
        &self,
        batch: &Pages,
        number: u32,
        object: &StoredObject,
        content: &[u8],
        digests: &[Digest],
    ) -> Result<(), StoreError> {
        let mut rest = content;
        let mut located = Vec::with_capacity(digests.len());
        let mut rest_digests = digests;
        for run in &batch.runs {
            let pages = PageRange { first: PageIndex(run.first), count: u64::from(run.count) };
            match run.kind {
                RunKind::Zero => object.write_zero(pages, &self.budget)?,
                RunKind::Content => {
                    let (bytes, after) = rest.split_at(usize::from(run.count) * PAGE_SIZE);
                    let of_run = take(&mut rest_digests, usize::from(run.count));
                    object.write(run.first, bytes, of_run, &self.budget)?;
                    rest = after;
                    located.extend(pages.iter().map(|page| Location::new(number, page.0)));
                }
                RunKind::Known => {}
            }
        }
        self.remember(digests.iter().zip(located));
        Ok(())
    }

    /// Puts contents into the index. When it has outgrown its bound, which takes many rounds, it starts anew: it only holds hints.
    fn remember<'a>(&self, contents: impl Iterator<Item = (&'a Digest, Location)>) {
        let mut index = self.index();
        if index.len() >= self.index_max {
            index.clear();
        }
        for (digest, location) in contents {
            index.insert(prefix(digest), location);
        }
    }

    /// Copies known pages from where such content was seen, hashes the copies, and keeps those that are what they should be.
    fn resolve(
        &self,
        known: &[KnownPage],
        number: u32,
        object: &StoredObject,
        retained: &RetainedPages,
        scratch: &mut Scratch,
    ) -> Result<Vec<u16>, StoreError> {
        if known.is_empty() {
            return Ok(Vec::new());
        }
        scratch.known.clear();
        scratch.known.resize(known.len() * PAGE_SIZE, 0);
        for (page, room) in known.iter().zip(scratch.known.as_chunks_mut::<PAGE_SIZE>().0) {
            if !self.copy_hinted(&page.digest, room) {
                retained.copy_hinted(&page.digest, room);
            }
        }
        scratch.known_digests.clear();
        digest_bytes(&scratch.known, &mut scratch.known_digests);
        let mut missing = Vec::new();
        let mut good = Vec::with_capacity(known.len());
        for (at, page) in known.iter().enumerate() {
            let room = &mut scratch.known.as_chunks_mut::<PAGE_SIZE>().0[at];
            // The store's copy was overwritten meanwhile: an earlier visit may still have left one.
            if scratch.known_digests[at] == page.digest || retained.get(&page.digest, room) {
                good.push(at);
            } else {
                missing.push(page.place);
            }
        }
        let adjacent = |a: &usize, b: &usize| *b == *a + 1 && known[*b].page == known[*a].page + 1;
        for run in good.chunk_by(adjacent) {
            let bytes = &scratch.known[run[0] * PAGE_SIZE..(run[run.len() - 1] + 1) * PAGE_SIZE];
            let digests: Vec<Digest> = run.iter().map(|at| known[*at].digest).collect();
            object.write(known[run[0]].page, bytes, &digests, &self.budget)?;
        }
        let places = good.iter().map(|at| (&known[*at].digest, Location::new(number, known[*at].page)));
        self.remember(places);
        Ok(missing)
    }

    /// Copies what the index points to for this digest; the caller hashes it.
    fn copy_hinted(&self, digest: &Digest, room: &mut [u8; PAGE_SIZE]) -> bool {
        let Some((number, page)) = self.index().get(&prefix(digest)).map(|location| location.parts()) else {
            return false;
        };
        self.by_number(number).is_some_and(|object| object.read_content(page, room))
    }
}

fn check_root(batch: &Pages, content: &[Digest]) -> Result<(), StoreError> {
    let mut root = Root::default();
    let (mut content, mut known) = (content, &batch.known[..]);
    for run in &batch.runs {
        let count = usize::from(run.count);
        match run.kind {
            RunKind::Zero => (0..count).for_each(|_| root.update(&[ZERO_DIGEST])),
            RunKind::Content => root.update(take(&mut content, count)),
            RunKind::Known => root.update(take(&mut known, count)),
        }
    }
    if root.finish() == batch.root {
        return Ok(());
    }
    Err(StoreError::WrongRoot { object: batch.object, batch: batch.batch })
}

fn take<'a>(from: &mut &'a [Digest], count: usize) -> &'a [Digest] {
    let (head, tail) = from.split_at(count);
    *from = tail;
    head
}

fn known_pages(batch: &Pages) -> Vec<KnownPage> {
    let mut known = Vec::with_capacity(batch.known.len());
    let mut place = 0u16;
    for run in &batch.runs {
        for at in 0..run.count {
            if run.kind == RunKind::Known {
                let digest = batch.known[known.len()];
                known.push(KnownPage { place, page: run.first + u64::from(at), digest });
            }
            place += 1;
        }
    }
    known
}
