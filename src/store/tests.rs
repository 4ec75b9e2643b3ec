//! Batches as a source would send them, honest and not; and images read back and compared byte by byte.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicBool;

use tokio::io::AsyncWriteExt;

use super::apply::Scratch;
use super::assemble::{AssembleStats, assemble};
use super::*;
use crate::images::pagemap;
use crate::model::ContainerId;
use crate::model::layout::{LayoutRun, ObjectLayout, PE_LAZY, PE_PARENT, PE_PRESENT};
use crate::model::page::Digest;
use crate::pages::compress::Compressor;
use crate::pages::hash::{Root, ZERO_DIGEST, digest};
use crate::protocol::pages::{Codec, Pages, Run, RunKind};

const ONE: ObjectId = ObjectId::Task(1);
const SHARED: ObjectId = ObjectId::Shmem(4711);

fn filled(fill: u8) -> [u8; PAGE_SIZE] {
    let mut page = [fill; PAGE_SIZE];
    page[9] = fill.wrapping_add(1);
    page
}

/// A batch of single pages: (number, fill, kind); fill 0 of a content page is not a zero page.
fn batch(object: ObjectId, pages: &[(u64, u8, RunKind)]) -> Pages {
    let mut root = Root::default();
    let (mut known, mut payload) = (Vec::new(), Vec::new());
    for (_, fill, kind) in pages {
        let bytes = filled(*fill);
        match kind {
            RunKind::Zero => root.update(&[ZERO_DIGEST]),
            RunKind::Content => {
                root.update(&[digest(&bytes)]);
                payload.extend_from_slice(&bytes);
            }
            RunKind::Known => {
                root.update(&[digest(&bytes)]);
                known.push(digest(&bytes));
            }
        }
    }
    let runs = pages.iter().map(|(page, _, kind)| Run { first: *page, count: 1, kind: *kind }).collect();
    Pages { batch: 3, object, runs, known, root: root.finish(), codec: Codec::None, payload: payload.into() }
}

struct Fixture {
    store: PageStore,
    retained: Arc<RetainedPages>,
    scratch: Scratch,
}

impl Fixture {
    fn new() -> Self {
        let retained = Arc::new(RetainedPages::new(1 << 20));
        Self { store: PageStore::new(1 << 20), retained, scratch: Scratch::new().unwrap() }
    }

    fn apply(&mut self, batch: &Pages) -> Result<Vec<u16>, StoreError> {
        self.store.apply(batch, &self.retained, &mut self.scratch)
    }

    fn content(&mut self, object: ObjectId, pages: &[(u64, u8)]) {
        let pages: Vec<_> = pages.iter().map(|(page, fill)| (*page, *fill, RunKind::Content)).collect();
        assert_eq!(self.apply(&batch(object, &pages)).unwrap(), [] as [u16; 0]);
    }

    fn page(&self, object: ObjectId, page: u64) -> Option<[u8; PAGE_SIZE]> {
        self.store.page(object, PageIndex(page)).map(|bytes| *bytes)
    }
}

#[test]
fn content_zero_and_known_pages_arrive_together() {
    use RunKind::{Content, Known, Zero};
    let mut world = Fixture::new();
    // 8 repeats what the same batch brings; 9 is nowhere.
    let mixed = batch(ONE, &[(5, 1, Content), (6, 0, Zero), (8, 1, Known), (9, 77, Known)]);
    assert_eq!(world.apply(&mixed).unwrap(), [3]);
    assert_eq!(world.page(ONE, 5), Some(filled(1)));
    assert_eq!(world.page(ONE, 6), Some([0; PAGE_SIZE]));
    assert_eq!(world.page(ONE, 8), Some(filled(1)));
    assert_eq!(world.page(ONE, 9), None);
    assert_eq!(world.page(SHARED, 5), None);
    // Another object finds it too.
    assert_eq!(world.apply(&batch(SHARED, &[(0, 1, Known)])).unwrap(), [] as [u16; 0]);
    assert_eq!(world.page(SHARED, 0), Some(filled(1)));
}

#[test]
fn a_reference_to_what_was_overwritten_or_forgotten_is_missing() {
    let mut world = Fixture::new();
    world.content(ONE, &[(5, 1), (6, 2)]);
    world.content(ONE, &[(5, 3)]);
    assert_eq!(world.apply(&batch(ONE, &[(7, 1, RunKind::Known), (8, 2, RunKind::Known)])).unwrap(), [0]);
    assert_eq!((world.page(ONE, 7), world.page(ONE, 8)), (None, Some(filled(2))));
    let ranges = vec![PageRange { first: PageIndex(0), count: 1 << 40 }];
    world.store.forget(&Forget { batch: 0, object: ONE, ranges }).unwrap();
    assert_eq!(world.apply(&batch(SHARED, &[(8, 2, RunKind::Known)])).unwrap(), [0]);
    assert_eq!(world.store.bytes_used(), 0);
}

#[test]
fn an_earlier_visit_fills_in_also_when_the_store_had_it_and_lost_it() {
    let mut world = Fixture::new();
    let (bytes, container) = (filled(1), ContainerId::try_from("a").unwrap());
    world.retained.insert_generation(&container, [(digest(&bytes), &bytes)]).unwrap();
    assert_eq!(world.apply(&batch(ONE, &[(7, 1, RunKind::Known)])).unwrap(), [] as [u16; 0]);
    world.content(ONE, &[(7, 9)]);
    assert_eq!(world.apply(&batch(ONE, &[(8, 1, RunKind::Known)])).unwrap(), [] as [u16; 0]);
    assert_eq!(world.page(ONE, 8), Some(filled(1)));
}

#[test]
fn damage_anywhere_is_refused_and_nothing_of_it_is_kept() {
    let good = batch(ONE, &[(5, 1, RunKind::Content), (6, 2, RunKind::Known), (7, 0, RunKind::Zero)]);
    let mut flipped = good.clone();
    let mut bytes = flipped.payload.to_vec();
    bytes[2000] ^= 1;
    flipped.payload = bytes.into();
    let mut other_root = good.clone();
    other_root.root.0[0] ^= 1;
    let mut other_known = good.clone();
    other_known.known[0].0[31] ^= 1;
    let mut other_kind = good.clone();
    other_kind.runs.swap(0, 2);
    for bad in [flipped, other_root, other_known, other_kind] {
        let mut world = Fixture::new();
        assert!(matches!(world.apply(&bad), Err(StoreError::WrongRoot { batch: 3, object: ONE })));
        assert!((5..8).all(|page| world.page(ONE, page).is_none()));
    }
    let mut not_zstd = good;
    not_zstd.codec = Codec::Zstd;
    not_zstd.payload = vec![1; 100].into();
    assert!(matches!(Fixture::new().apply(&not_zstd), Err(StoreError::Payload { .. })));
}

#[test]
fn a_compressed_batch_unpacks_to_exactly_its_pages() {
    let mut packed = batch(ONE, &[(5, 1, RunKind::Content), (9, 2, RunKind::Content)]);
    packed.payload = Compressor::new().unwrap().compress(&packed.payload).unwrap().to_vec().into();
    packed.codec = Codec::Zstd;
    let mut world = Fixture::new();
    world.apply(&packed).unwrap();
    assert_eq!((world.page(ONE, 5), world.page(ONE, 9)), (Some(filled(1)), Some(filled(2))));
    // A bomb: far more than its pages.
    packed.payload = Compressor::new().unwrap().compress(&vec![7; 4 << 20]).unwrap().to_vec().into();
    assert!(matches!(Fixture::new().apply(&packed), Err(StoreError::Payload { .. })));
}

#[test]
fn the_budget_is_an_error_and_not_an_excuse_to_kill_somebody() {
    let mut world = Fixture::new();
    for start in 0..4 {
        let pages: Vec<_> = (0..64).map(|page| (start * 64 + page, 1, RunKind::Content)).collect();
        let result = world.apply(&batch(ONE, &pages));
        assert_eq!(result.is_err(), start == 3, "1 MiB holds 255 pages and their books: {result:?}");
    }
    assert!(world.store.bytes_used() <= 1 << 20);
}

#[tokio::test]
async fn a_stream_is_served_to_its_end_and_counted() {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (store, retained) = (Arc::new(PageStore::new(1 << 20)), Arc::new(RetainedPages::new(0)));
    let serving = tokio::spawn(serve_page_stream(far, Arc::clone(&store), retained));
    let sent = batch(ONE, &[(5, 1, RunKind::Content), (6, 0, RunKind::Zero), (7, 3, RunKind::Known)]);
    let mut frame = Vec::new();
    sent.encode_head(sent.payload.len(), &mut frame);
    frame.extend_from_slice(&sent.payload);
    near.write_all(&frame).await.unwrap();
    near.shutdown().await.unwrap();
    let stats = serving.await.unwrap().unwrap();
    let expected = StreamStats {
        frames: 1,
        bytes_received: frame.len() as u64,
        pages_zero: 1,
        pages_content: 1,
        pages_known: 0,
        pages_missing: 1,
    };
    assert_eq!(stats, expected);
    assert!(store.page(ONE, PageIndex(5)).is_some());
}

#[tokio::test]
async fn a_silent_stream_gives_time_to_get_ready_for_the_freeze() {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (store, retained) = (Arc::new(PageStore::new(1 << 20)), Arc::new(RetainedPages::new(0)));
    let serving = tokio::spawn(serve_page_stream(far, Arc::clone(&store), retained));
    for (fill, frames) in [(1, 1), (2, 3)] {
        let sent = batch(ONE, &[(5, fill, RunKind::Content)]);
        for _ in 0..frames {
            let mut frame = Vec::new();
            sent.encode_head(sent.payload.len(), &mut frame);
            frame.extend_from_slice(&sent.payload);
            near.write_all(&frame).await.unwrap();
        }
        while store.page(ONE, PageIndex(5)).as_deref() != Some(&filled(fill)) || store.is_stale() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    near.shutdown().await.unwrap();
    assert_eq!(serving.await.unwrap().unwrap().frames, 4, "nothing was lost by the waiting");
}

fn layout(object: ObjectId, runs: &[(u64, u32, u32)], digests: &[Digest]) -> ObjectLayout {
    let runs = runs
        .iter()
        .map(|(first, count, flags)| LayoutRun { first: *first, count: *count, flags: *flags })
        .collect();
    ObjectLayout { runs, root: Root::of(digests), ..ObjectLayout::empty(object) }
}

fn hiding(layout: ObjectLayout, mappings: &[(u64, u64)]) -> ObjectLayout {
    let hidden = mappings.iter().map(|(first, count)| PageRange { first: PageIndex(*first), count: *count });
    ObjectLayout { hidden: hidden.collect(), ..layout }
}

fn run(world: &Fixture, layouts: &[ObjectLayout]) -> (tempfile::TempDir, Result<AssembleStats, StoreError>) {
    let folder = tempfile::tempdir().unwrap();
    let result = assemble(&world.store, layouts, folder.path(), 1, 2, &AtomicBool::new(false));
    (folder, result)
}

#[test]
fn images_hold_every_byte_in_order_and_zero_pages_are_holes() {
    let mut world = Fixture::new();
    world.content(ONE, &[(0x400, 1), (0x401, 2), (0x7fff_0000, 3)]);
    world.apply(&batch(ONE, &[(0x402, 0, RunKind::Zero)])).unwrap();
    world.content(SHARED, &[(0, 9)]);
    let digests: Vec<Digest> = [1, 2]
        .map(|fill| digest(&filled(fill)))
        .into_iter()
        .chain([ZERO_DIGEST, digest(&filled(3))])
        .collect();
    let layouts = [
        layout(ONE, &[(0x400, 3, PE_PRESENT), (0x7fff_0000, 1, PE_PRESENT | PE_LAZY)], &digests),
        layout(SHARED, &[(0, 1, PE_PRESENT)], &[digest(&filled(9))]),
        layout(ObjectId::Task(2), &[], &[]),
    ];
    let (folder, stats) = run(&world, &layouts);
    assert_eq!(stats.unwrap(), AssembleStats { objects: 3, pages_verified: 5, pages_zero: 1, pages_lazy: 0 });
    assert_eq!(world.store.bytes_used(), 0, "given back as it was written");

    let read = |name: &str| pagemap::read(&mut File::open(folder.path().join(name)).unwrap()).unwrap();
    // The mark of lazy pages goes: CRIU would look for them elsewhere.
    let plain: Vec<LayoutRun> =
        layouts[0].runs.iter().map(|run| LayoutRun { flags: PE_PRESENT, ..*run }).collect();
    assert_eq!(read("pagemap-1.img"), (1, plain));
    assert_eq!(read("pagemap-shmem-4711.img"), (2, layouts[1].runs.clone()));
    assert_eq!(read("pagemap-2.img"), (3, vec![]));
    let pages = std::fs::read(folder.path().join("pages-1.img")).unwrap();
    let expected: Vec<u8> = [filled(1), filled(2), [0; PAGE_SIZE], filled(3)].concat();
    assert!(pages == expected);
    assert!(std::fs::read(folder.path().join("pages-2.img")).unwrap() == filled(9));
    assert_eq!(std::fs::metadata(folder.path().join("pages-3.img")).unwrap().len(), 0);
}

#[test]
fn a_large_object_is_cut_and_put_together_again() {
    let retained = RetainedPages::new(0);
    let store = PageStore::new(64 << 20);
    let mut scratch = Scratch::new().unwrap();
    let mut digests = Vec::new();
    // Every third page is missing from the layout, every fifth is zero: 3000 pages in 1500 runs of two.
    let (mut runs, mut expected) = (Vec::new(), Vec::new());
    for pair in 0..1500u64 {
        let fills = [pair * 2, pair * 2 + 1].map(|page| u8::try_from(page % 250 + 1).unwrap());
        let kinds =
            [pair * 2, pair * 2 + 1].map(|page| if page % 5 == 0 { RunKind::Zero } else { RunKind::Content });
        let pages = [(pair * 3, fills[0], kinds[0]), (pair * 3 + 1, fills[1], kinds[1])];
        store.apply(&batch(ONE, &pages), &retained, &mut scratch).unwrap();
        for (_, fill, kind) in pages {
            let bytes = if kind == RunKind::Zero { [0; PAGE_SIZE] } else { filled(fill) };
            digests.push(digest(&bytes));
            expected.extend_from_slice(&bytes);
        }
        runs.push((pair * 3, 2, PE_PRESENT));
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let stats =
        assemble(&store, &[layout(ONE, &runs, &digests)], folder.path(), 5, 2, &AtomicBool::new(false))
            .unwrap();
    assert_eq!(stats, AssembleStats { objects: 1, pages_verified: 3000, pages_zero: 600, pages_lazy: 0 });
    let file = File::open(folder.path().join("pages-5.img")).unwrap();
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    assert_eq!(file.metadata().unwrap().blocks() * 512, 2400 * PAGE_SIZE as u64, "zero pages are holes");
}

#[test]
fn a_layout_names_every_page_that_is_to_be_installed_later() {
    let mut world = Fixture::new();
    world.content(ONE, &[(1, 1), (2, 2)]);
    world.apply(&batch(ONE, &[(3, 0, RunKind::Zero), (4, 0, RunKind::Zero)])).unwrap();
    let told = |runs: &[(u64, u32, u32)], mappings: &[(u64, u64)]| {
        let layout = hiding(layout(ONE, runs, &[]), mappings);
        let root = world.store.find(ONE).unwrap().1.root_of(&layout.hidden);
        ObjectLayout { hidden_root: root, ..layout }
    };
    for wrong in [
        told(&[(2, 3, PE_LAZY)], &[(0, 8)]),
        told(&[(1, 1, PE_LAZY), (3, 2, PE_LAZY)], &[(0, 8)]),
        told(&[(1, 5, PE_LAZY)], &[(0, 8)]),
    ] {
        let error = run(&world, std::slice::from_ref(&wrong)).1.unwrap_err();
        assert!(matches!(error, StoreError::WrongObject { object: ONE }), "{wrong:?}: {error}");
    }
    // One mapping whose pages are all zero beside one of which a page is in the image.
    let layouts = [told(&[(1, 1, PE_PRESENT), (2, 1, PE_LAZY), (3, 2, PE_LAZY)], &[(0, 3), (3, 5)])];
    let stats = run(&world, &layouts).1.unwrap();
    assert_eq!((stats.pages_verified, stats.pages_lazy), (1, 3));
    let [lazy] = &world.store.lazy(&layouts)[..] else { panic!("one process") };
    assert_eq!(lazy.content, [PageRange { first: PageIndex(2), count: 1 }]);
    assert_eq!(lazy.mappings.len(), 2);
}

#[test]
fn a_process_whose_lazy_pages_are_all_zero_is_told_of_as_well() {
    let mut world = Fixture::new();
    world.apply(&batch(ONE, &[(3, 0, RunKind::Zero)])).unwrap();
    let layout = hiding(layout(ONE, &[(3, 1, PE_LAZY)], &[]), &[(3, 1)]);
    let hidden_root = world.store.find(ONE).unwrap().1.root_of(&layout.hidden);
    let layouts = [ObjectLayout { hidden_root, ..layout }];
    run(&world, &layouts).1.unwrap();
    let [lazy] = &world.store.lazy(&layouts)[..] else { panic!("one process") };
    assert_eq!((lazy.vpid, lazy.content.len()), (1, 0));
}

#[test]
fn a_wrong_byte_a_missing_page_or_a_strange_layout_makes_no_image() {
    let mut world = Fixture::new();
    world.content(ONE, &[(1, 1), (2, 2)]);
    let digests = [digest(&filled(1)), digest(&filled(2))];
    let bad = [
        (layout(ONE, &[(1, 3, PE_PRESENT)], &digests), "arrived"),
        (layout(ONE, &[(2, 1, PE_PRESENT), (1, 1, PE_PRESENT)], &digests), "ascending"),
        (layout(ONE, &[(1, 2, PE_PARENT)], &digests), "parent"),
        (layout(ONE, &[(1, 2, PE_LAZY)], &digests), "only pages of hidden mappings are lazy"),
        (hiding(layout(ONE, &[(1, 2, PE_LAZY)], &digests), &[(0, 2)]), "in one hidden mapping or in none"),
        (hiding(layout(ONE, &[(1, 2, PE_LAZY)], &digests), &[(2, 2), (0, 2)]), "strictly ascending"),
        (hiding(layout(ONE, &[(1, 2, PE_LAZY)], &digests), &[(u64::MAX, 2)]), "strictly ascending"),
        (hiding(layout(ONE, &[(1, 2, PE_LAZY)], &digests), &[(0, 4)]), "root"),
        (layout(ONE, &[(1, 2, PE_PRESENT | 64)], &digests), "flags"),
        (layout(ONE, &[(PAGE_INDEX_MAX - 1, 2, PE_PRESENT)], &digests), "address space"),
        (layout(ONE, &[(1, 2, PE_PRESENT)], &[digests[1], digests[0]]), "root"),
    ];
    for (layout, word) in bad {
        let error = run(&world, &[layout]).1.unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} should say {word:?}");
    }
}

#[test]
fn memory_that_changed_in_the_store_is_noticed() {
    let mut world = Fixture::new();
    world.content(ONE, &[(1, 1), (2, 2)]);
    let layouts = [layout(ONE, &[(1, 2, PE_PRESENT)], &[1, 2].map(|fill| digest(&filled(fill))))];
    // A bit flips behind our back.
    let (_, object) = world.store.find(ONE).unwrap();
    let file = object.look(PageRange { first: PageIndex(1), count: 1 }, &mut Vec::new()).unwrap();
    let mut bytes = filled(1);
    bytes[3000] ^= 4;
    file.write_pages(1, &bytes).unwrap();
    assert!(matches!(run(&world, &layouts).1, Err(StoreError::WrongObject { object: ONE })));
}

#[test]
fn assembling_stops_when_told_and_never_overwrites() {
    let mut world = Fixture::new();
    world.content(ONE, &[(1, 1)]);
    let layouts = [layout(ONE, &[(1, 1, PE_PRESENT)], &[digest(&filled(1))])];
    let folder = tempfile::tempdir().unwrap();
    let stopped = assemble(&world.store, &layouts, folder.path(), 1, 2, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(StoreError::Stopped)));
    let again = assemble(&world.store, &layouts, folder.path(), 1, 2, &AtomicBool::new(false));
    assert!(matches!(again, Err(StoreError::Image { .. })), "the file exists");
}
