//! The page plane from a real process to CRIU's image files, over in-memory pipes.

mod failures;
mod hidden;
mod world;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_util::sync::CancellationToken;
use world::{Target, World};

use crate::memory::{PlaneOptions, Progress, retain_departed};
use crate::model::ContainerId;
use crate::model::page::{ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::pages::compress::Compression;
use crate::store::RetainedPages;

const MIB_PAGES: u64 = 256;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_is_what_was_there_though_it_changed_between_the_rounds() {
    let mut target = Target::start();
    let data = target.map("a", 8 * MIB_PAGES, "private");
    target.tell("noise a 0 1000");
    target.tell("text a 1000 600");
    target.tell("fill a 1600 100 0");
    let mut world = World::plain();
    let first = world.round(&target).await.unwrap();
    assert!(first.pages_dirty >= 1700 && first.pages_zero >= 100, "{first:?}");
    assert!(first.bytes_sent > 1000 * PAGE_SIZE as u64, "{first:?}");
    assert_eq!(
        first.pages_dirty,
        first.pages_zero + first.pages_known + first.pages_compressed + first.pages_raw
    );

    let idle = world.round(&target).await.unwrap();
    assert!(idle.bytes_sent * 100 < first.bytes_sent, "an idle process: {idle:?} after {first:?}");
    assert!(idle.pages_scanned >= 1700);

    target.tell("noise a 10 3");
    target.tell("fill a 500 20 0");
    target.tell("fill a 1610 1 7");
    target.tell("drop a 1000 50");
    let second = world.round(&target).await.unwrap();
    assert!((24..200).contains(&second.pages_dirty), "{second:?}");
    assert!((50..100).contains(&second.pages_forgotten), "{second:?}");
    assert!(world.store.page(target.object(), PageIndex(data.first.0 + 1001)).is_none());

    target.tell("noise a 1010 5");
    target.freeze();
    let (arrived, last) = world.arrive(&target).await;
    assert!((5..200).contains(&last.pages_dirty), "{last:?}");
    arrived.assert_equal(&target);
    let expected = target.memory(data);
    for (place, page) in arrived.pages(target.object(), data).into_iter().enumerate() {
        let wanted = &expected[place * PAGE_SIZE..][..PAGE_SIZE];
        match page {
            Some(page) => assert!(page == wanted, "page {place}"),
            None => assert!(wanted.iter().all(|byte| *byte == 0), "page {place} did not arrive"),
        }
    }
    assert!(arrived.stats.pages_zero >= 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_writes_all_the_time_arrives_as_it_was_when_frozen() {
    let mut target = Target::start();
    let data = target.map("a", 4 * MIB_PAGES, "private");
    target.tell("noise a 0 1024");
    target.tell("churn a 1024");
    let mut world = World::plain();
    for _ in 0..4 {
        world.round(&target).await.unwrap();
    }
    target.freeze();
    let (arrived, _) = world.arrive(&target).await;
    arrived.assert_equal(&target);
    assert_eq!(arrived.pages(target.object(), data).concat_all(), target.memory(data));
}

/// All pages one after the other; each must be there.
trait Concat {
    fn concat_all(self) -> Vec<u8>;
}

impl Concat for Vec<Option<Vec<u8>>> {
    fn concat_all(self) -> Vec<u8> {
        self.into_iter().flat_map(|page| page.expect("it arrived")).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_of_zeros_costs_less_than_a_mebibyte() {
    let mut target = Target::start();
    target.map("z", 1024 * MIB_PAGES, "private");
    let mut world = World::plain();
    world.round(&target).await.unwrap();
    for part in 0..64 {
        target.tell(&format!("fill z {} 4096 0", part * 4096));
    }
    let zeros = world.round(&target).await.unwrap();
    assert!(zeros.pages_zero >= 1024 * MIB_PAGES, "{zeros:?}");
    assert!(zeros.bytes_sent < 1 << 20, "{zeros:?}");
    assert!(world.store.bytes_used() < 32 << 20, "{} bytes", world.store.bytes_used());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forked_child_costs_next_to_nothing_and_its_pages_go_when_it_goes() {
    let mut target = Target::start();
    target.map("a", 32 * MIB_PAGES, "private");
    target.tell("noise a 0 8192");
    let mut world = World::plain();
    let alone = world.round(&target).await.unwrap();
    let child = target.tell("fork");
    assert_eq!(target.processes().len(), 2);
    let both = world.round(&target).await.unwrap();
    assert!(both.pages_known >= 8192, "{both:?}");
    assert!(both.bytes_sent * 20 < alone.bytes_sent, "{both:?} after {alone:?}");
    let used = world.store.bytes_used();

    target.tell(&format!("kill {child}"));
    let after = world.round(&target).await.unwrap();
    assert!(after.pages_forgotten >= 8192, "{after:?}");
    assert!(world.store.bytes_used() + (30 << 20) < used);
    target.freeze();
    world.arrive(&target).await.0.assert_equal(&target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_travels_once_whoever_maps_it() {
    let mut target = Target::start();
    let shared = target.map("s", 8 * MIB_PAGES, "shared");
    target.tell("noise s 0 1000");
    target.tell("noise s 1500 10");
    target.tell("fork");
    let mut world = World::plain();
    let first = world.round(&target).await.unwrap();
    let again = world.round(&target).await.unwrap();
    assert!(again.bytes_sent * 100 < first.bytes_sent, "{again:?} after {first:?}");
    target.tell("noise s 3 2");
    target.freeze();
    let (arrived, last) = world.arrive(&target).await;
    assert!(last.pages_dirty < 200, "the round had the rest: {last:?}");
    arrived.assert_equal(&target);
    let objects: Vec<ObjectId> = arrived.layouts.iter().map(|layout| layout.object).collect();
    let ours = *objects.iter().find(|object| matches!(object, ObjectId::Shmem(_))).unwrap();
    let expected = target.memory(shared);
    let pages = arrived.pages(ours, PageRange { first: PageIndex(0), count: shared.count });
    assert_eq!(pages.iter().flatten().count(), 1010, "holes stay holes");
    for (place, page) in pages.into_iter().enumerate() {
        let page = page.unwrap_or_else(|| vec![0; PAGE_SIZE]);
        assert!(page == expected[place * PAGE_SIZE..][..PAGE_SIZE], "page {place}");
    }
    assert_eq!(objects.iter().filter(|object| matches!(object, ObjectId::Shmem(_))).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_comes_back_sends_only_what_changed() {
    let mut target = Target::start();
    let data = target.map("a", 32 * MIB_PAGES, "private");
    target.tell("noise a 0 8000");
    let there = Arc::new(RetainedPages::new(256 << 20));
    let tracker = crate::memory::ContentHashTracker::probe().unwrap();
    target.freeze();
    let mut visit = there.begin_generation(&ContainerId::try_from("redis").unwrap());
    let kept = retain_departed(&target.processes(), &tracker, &AtomicBool::new(false), |digest, page| {
        visit.add(digest, page)
    });
    assert_eq!(kept.unwrap().pages_kept, visit.finish());
    target.thaw();
    target.tell("noise a 100 20");

    let options = PlaneOptions { ask_retained: true, compression: Compression::Auto };
    let mut back = World::new(1 << 30, options, &there);
    let round = back.round(&target).await.unwrap();
    let whole = round.pages_scanned * PAGE_SIZE as u64;
    assert!(round.pages_known >= 7980, "{round:?}");
    assert!(round.bytes_sent * 50 < whole, "{round:?} of {whole} bytes");
    target.freeze();
    let (arrived, _) = back.arrive(&target).await;
    arrived.assert_equal(&target);
    assert_eq!(
        arrived.pages(target.object(), data)[150].as_deref(),
        Some(&target.memory(data)[150 * PAGE_SIZE..151 * PAGE_SIZE])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_content_that_is_gone_is_sent_after_all() {
    let mut target = Target::start();
    let data = target.map("a", 8 * MIB_PAGES, "private");
    target.tell("noise a 0 500");
    let mut world = World::plain();
    world.round(&target).await.unwrap();
    // The contents move to other pages while their old places are overwritten: the source thinks that the destination has them,
    // and in part it has not any more.
    target.tell("copy a 0 500 a 1000");
    target.tell("noise a 0 500");
    let moved = world.round(&target).await.unwrap();
    assert!(moved.pages_dirty >= 1000, "{moved:?}");
    target.freeze();
    let (arrived, last) = world.arrive(&target).await;
    assert!(last.pages_dirty < 200, "{last:?}");
    arrived.assert_equal(&target);
    assert_eq!(
        arrived.pages(target.object(), data)[1000].as_deref(),
        Some(&target.memory(data)[1000 * PAGE_SIZE..1001 * PAGE_SIZE])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressible_memory_is_compressed_when_asked_and_never_when_not() {
    let mut target = Target::start();
    target.map("a", 8 * MIB_PAGES, "private");
    target.tell("text a 0 2048");
    let mut sent = Vec::new();
    for compression in [Compression::On, Compression::Off] {
        let options = PlaneOptions { compression, ..PlaneOptions::default() };
        let mut world = World::new(1 << 30, options, &Arc::new(RetainedPages::new(0)));
        let round = world.round(&target).await.unwrap();
        match compression {
            Compression::Off => assert_eq!(round.pages_compressed, 0),
            _ => assert!(round.pages_compressed > 2048, "{round:?}"),
        }
        sent.push(round.bytes_sent);
        target.freeze();
        world.arrive(&target).await.0.assert_equal(&target);
        target.thaw();
    }
    assert!(sent[0] * 2 < sent[1], "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_first_thread_has_ended_is_still_read() {
    let mut target = Target::start();
    let data = target.map("a", 4 * MIB_PAGES, "private");
    target.tell("noise a 0 1024");
    target.tell("leave");
    let pid = target.pid();
    while !std::fs::read(format!("/proc/{pid}/maps")).unwrap().is_empty() {
        std::thread::yield_now();
    }
    let mut world = World::plain();
    let round = world.round(&target).await.unwrap();
    assert!(round.pages_dirty >= 1024, "{round:?}");
    assert!(world.store.page(target.object(), data.first).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_reaches_its_total() {
    let mut target = Target::start();
    target.map("a", 4 * MIB_PAGES, "private");
    target.tell("noise a 0 1024");
    let mut world = World::plain();
    let told = std::sync::Mutex::new(Vec::<Progress>::new());
    let tracker = Arc::clone(&world.tracker);
    let progress = |now| told.lock().unwrap().push(now);
    world.plane.round(target.processes(), tracker, progress, CancellationToken::new()).await.unwrap();
    let last = told.into_inner().unwrap().pop().unwrap();
    assert!(last.pages_total >= 1024 && last.pages_done <= last.pages_total);
    assert!(last.pages_total - last.pages_done < 100, "{last:?}");
    assert!(last.bytes_sent > 0);
}
