//! What happens when things go wrong: budgets, cancellation, peers that break off or lie.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::world::{Target, World};
use crate::memory::{MemoryError, PagePlane, PlaneOptions};
use crate::model::layout::{PE_PARENT, PE_PRESENT};
use crate::model::page::{ObjectId, PAGE_SIZE, PageIndex};
use crate::protocol::pace::Pacer;
use crate::protocol::pages::DestinationFrame;
use crate::store::{RetainedPages, StoreError};

const MIB_PAGES: u64 = 256;

fn noisy(mib: u64) -> Target {
    let mut target = Target::start();
    target.map("a", mib * MIB_PAGES, "private");
    target.tell(&format!("noise a 0 {}", mib * MIB_PAGES));
    target
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_memory_than_was_reserved_is_an_error_on_both_sides() {
    let target = noisy(16);
    let mut world = World::new(8 << 20, PlaneOptions::default(), &Arc::new(RetainedPages::new(0)));
    let failed = world.round(&target).await.unwrap_err();
    assert!(matches!(failed, MemoryError::Closed { .. } | MemoryError::Stream { .. }), "{failed}");
    assert!(world.store.bytes_used() <= 8 << 20);
    assert!(matches!(world.round(&target).await, Err(MemoryError::Broken)));
    let ends = world.ends().await;
    assert!(ends.iter().any(
        |end| matches!(end, Err(StoreError::BudgetExceeded { budget_bytes }) if *budget_bytes == 8 << 20)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_round_ends_soon_and_the_plane_says_so() {
    let target = noisy(64);
    // 1 MB/s: the round would take a minute.
    let (near, far) = tokio::io::duplex(1 << 16);
    let store = Arc::new(crate::store::PageStore::new(1 << 30));
    let serving = tokio::spawn(crate::store::serve_page_stream(far, store, Arc::new(RetainedPages::new(0))));
    let mut plane =
        PagePlane::new(vec![near], Arc::new(Pacer::new(Some(1_000_000))), PlaneOptions::default());
    let tracker: Arc<dyn crate::memory::Tracker> =
        Arc::new(crate::memory::ContentHashTracker::probe().unwrap());
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        trigger.cancel();
    });
    let round = plane.round(target.processes(), Arc::clone(&tracker), |_| {}, cancel);
    let ended = tokio::time::timeout(Duration::from_secs(20), round).await.expect("it ends soon");
    assert!(matches!(ended, Err(MemoryError::Cancelled)));
    let again = plane.round(target.processes(), tracker, |_| {}, CancellationToken::new()).await;
    assert!(matches!(again, Err(MemoryError::Broken)));
    drop(plane);
    // Cut between two frames or inside one: in either case the destination is done with it.
    let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
    assert!(!matches!(ended.expect("it sees the end").unwrap(), Err(StoreError::BudgetExceeded { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_is_dropped_leaves_nothing_running() {
    let target = noisy(64);
    let tracker: Arc<dyn crate::memory::Tracker> =
        Arc::new(crate::memory::ContentHashTracker::probe().unwrap());
    let weak = {
        // Nobody serves the other end: the round is stuck in the middle.
        let (near, _far) = tokio::io::duplex(1 << 16);
        let mut plane = PagePlane::new(vec![near], Arc::new(Pacer::new(None)), PlaneOptions::default());
        let round = plane.round(target.processes(), Arc::clone(&tracker), |_| {}, CancellationToken::new());
        assert!(tokio::time::timeout(Duration::from_millis(300), round).await.is_err());
        Arc::downgrade(&plane.shared)
    };
    // Scanner threads and stream tasks hold the shared state; when all are gone it is.
    for _ in 0..200 {
        if weak.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("something still runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_gone_fails_nothing() {
    let target = noisy(4);
    let mut world = World::plain();
    let mut gone = target.processes();
    gone.push(crate::memory::Process { pid: i32::MAX, vpid: 77 });
    let tracker = Arc::clone(&world.tracker);
    let round = world.plane.round(gone, tracker, |_| {}, CancellationToken::new()).await.unwrap();
    assert!(round.pages_dirty >= 4 * MIB_PAGES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_lies_is_found_out() {
    let target = noisy(1);
    let lies = [
        DestinationFrame::Ack { batch: 99, missing: vec![] },
        DestinationFrame::Ack { batch: 0, missing: vec![0] },
        DestinationFrame::HaveReply { batch: 0, held: vec![] },
    ];
    for lie in lies {
        let (near, mut far) = tokio::io::duplex(16 << 20);
        let mut answer = Vec::new();
        lie.encode(&mut answer);
        let mut plane = PagePlane::new(vec![near], Arc::new(Pacer::new(None)), PlaneOptions::default());
        let tracker = Arc::new(crate::memory::ContentHashTracker::probe().unwrap());
        // The lie is sent when the first batch is there, so that it answers something.
        let liar = tokio::spawn(async move {
            use tokio::io::AsyncReadExt;
            let mut first = [0; 64];
            far.read_exact(&mut first).await.unwrap();
            far.write_all(&answer).await.unwrap();
            far
        });
        let round = plane.round(target.processes(), tracker, |_| {}, CancellationToken::new()).await;
        assert!(matches!(round, Err(MemoryError::Answer { .. })), "{lie:?}: {round:?}");
        drop(liar.await.unwrap());
    }
}

#[tokio::test]
async fn final_pages_in_an_order_that_criu_does_not_use_are_refused() {
    let page = || Bytes::from(vec![1; PAGE_SIZE]);
    let (one, two) = (ObjectId::Task(1), ObjectId::Task(2));
    let fresh = || async {
        let mut world = World::plain();
        world.plane.final_object(one).await.unwrap();
        world.plane.final_pages(one, PageIndex(5), PE_PRESENT, page()).await.unwrap();
        world
    };
    let refused = |result: Result<(), MemoryError>| {
        assert!(matches!(result, Err(MemoryError::FinalPages { .. })), "{result:?}")
    };
    refused(fresh().await.plane.final_pages(two, PageIndex(9), PE_PRESENT, page()).await);
    refused(fresh().await.plane.final_pages(one, PageIndex(5), PE_PRESENT, page()).await);
    refused(fresh().await.plane.final_pages(one, PageIndex(9), PE_PARENT, page()).await);
    refused(fresh().await.plane.final_pages(one, PageIndex(u64::MAX), PE_PRESENT, page()).await);
    refused(
        fresh().await.plane.final_pages(one, PageIndex(9), PE_PRESENT, Bytes::from_static(b"part")).await,
    );
    refused(fresh().await.plane.final_object(one).await);

    // And what CRIU does: an object without pages, then one with.
    let mut world = fresh().await;
    world.plane.final_object(two).await.unwrap();
    let (layouts, stats) = world.plane.finish_final().await.unwrap();
    assert_eq!(layouts.iter().map(|layout| layout.pages_present()).collect::<Vec<_>>(), [1, 0]);
    assert_eq!((stats.pages_dirty, stats.pages_raw + stats.pages_compressed), (1, 1));
}
