//! Mappings that CRIU is not shown: what arrives is what was there, and what everybody missed is found.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::MIB_PAGES;
use super::world::{Target, World, read_memory};
use crate::memory::hidden_pass::difference;
use crate::memory::scanner::{Digester, Plan, Source};
use crate::memory::{Ledger, MemoryError, Process, Survey, Tracker};
use crate::model::layout::{ObjectLayout, PE_LAZY, PE_PRESENT};
use crate::model::page::{ObjectId, PAGE_SIZE, PageIndex, PageRange};
use crate::store::assemble::assemble;

/// A tracker that sees nothing after the rounds.
#[derive(Debug)]
struct Blind(Arc<dyn Tracker>);

impl Tracker for Blind {
    fn name(&self, _: Process) -> &'static str {
        "blind"
    }

    fn survey(&self, process: Process) -> Result<Survey, MemoryError> {
        self.0.survey(process)
    }

    fn final_survey(&self, process: Process, hidden: &[PageRange]) -> Result<Survey, MemoryError> {
        let mut survey = self.0.final_survey(process, hidden)?;
        survey.mappings.iter_mut().for_each(|it| it.candidates = Some(Vec::new()));
        Ok(survey)
    }
}

/// Plays CRIU, which delivers everything but `without`.
async fn dump(world: &mut World, target: &Target, without: &[PageRange]) {
    let plan = Plan::make(&target.processes(), &*world.tracker, &Ledger::default());
    for work in &plan.objects {
        let Source::Process { process, .. } = &work.source else { continue };
        world.plane.final_object(work.object).await.unwrap();
        for range in difference(&work.ranges, without) {
            for first in (range.first.0..range.end().0).step_by(100) {
                let chunk = PageRange { first: PageIndex(first), count: (range.end().0 - first).min(100) };
                let bytes = Bytes::from(read_memory(process.pid, chunk));
                let flags = PE_PRESENT | PE_LAZY;
                world.plane.final_pages(work.object, chunk.first, flags, bytes).await.unwrap();
            }
        }
    }
}

async fn complete(world: &mut World, target: &Target, hidden: &[PageRange], eager: &[PageIndex]) {
    let process = target.processes()[0];
    let survey = world.tracker.final_survey(process, hidden).unwrap();
    let tracker = Arc::clone(&world.tracker);
    world.plane.complete_process(process, hidden, survey, eager, &[], &tracker).await.unwrap();
}

fn of<'a>(layouts: &'a [ObjectLayout], target: &Target) -> &'a ObjectLayout {
    layouts.iter().find(|layout| layout.object == target.object()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_mapping_arrives_as_it_was_at_the_freeze() {
    let mut target = Target::start();
    let data = target.map("a", 8 * MIB_PAGES, "private");
    target.tell("noise a 0 1500");
    target.tell("fill a 1500 100 0");
    let mut world = World::plain();
    world.round(&target).await.unwrap();
    target.tell("noise a 10 3");
    target.tell("drop a 700 50");
    target.tell("noise a 1900 5");
    target.freeze();
    dump(&mut world, &target, &[data]).await;
    let eager = [PageIndex(data.first.0 + 20)];
    complete(&mut world, &target, &[data], &eager).await;
    let (layouts, last) = world.plane.finish_final().await.unwrap();
    assert_eq!((last.pages_forgotten, last.pages_missed), (50, 0), "{last:?}");
    let layout = of(&layouts, &target);
    assert_eq!((layout.hidden.as_slice(), layout.pages_lazy()), (&[data][..], 1500 - 50 + 100 + 5 - 1));

    let expected = target.memory(data);
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let mut damaged = layouts.clone();
    damaged.iter_mut().for_each(|layout| layout.hidden_root.0[0] ^= 1);
    assert!(assemble(&world.store, &damaged, folder.path(), 1, 2, &stop).is_err());
    let folder = tempfile::tempdir().unwrap();
    let stats = assemble(&world.store, &layouts, folder.path(), 1, 2, &stop).unwrap();
    assert_eq!(stats.pages_lazy, layout.pages_lazy());
    let lazy = world.store.lazy(&layouts);
    let [lazy] = lazy.as_slice() else { panic!("{lazy:?}") };
    let content: u64 = lazy.content.iter().map(|range| range.count).sum();
    assert_eq!(content, 1500 - 50 + 5 - 1, "zero pages and the one in the image have no content");
    for page in data.iter().filter(|page| !eager.contains(page)) {
        let mut bytes = [0; PAGE_SIZE];
        if lazy.content.iter().any(|range| range.iter().any(|it| it == page)) {
            lazy.pages.read_pages(page.0, &mut bytes).unwrap();
        }
        let at = usize::try_from(page.0 - data.first.0).unwrap() * PAGE_SIZE;
        assert!(bytes == expected[at..at + PAGE_SIZE], "page {}", page.0 - data.first.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_nobody_brought_is_found_counted_and_sent() {
    let mut target = Target::start();
    let data = target.map("a", 100, "private");
    target.tell("noise a 0 71");
    let mut world = World::plain();
    world.round(&target).await.unwrap();
    // One that the destination holds as it was, and one that it never saw.
    target.tell("noise a 70 2");
    target.freeze();
    let planted = PageRange { first: PageIndex(data.first.0 + 70), count: 2 };
    dump(&mut world, &target, &[planted]).await;
    complete(&mut world, &target, &[], &[]).await;
    let (layouts, last) = world.plane.finish_final().await.unwrap();
    assert_eq!(last.pages_missed, 2, "{last:?}");
    let mut digests = Vec::new();
    Digester::default().digest(&target.memory(planted), &mut digests);
    for (page, digest) in planted.iter().zip(digests) {
        let held = world.plane.shared.ledger.digest(target.object(), page);
        assert_eq!(held, Some(digest), "page {} is as it was in the last round", page.0 - data.first.0);
    }
    let layout = of(&layouts, &target);
    assert_eq!((layout.pages_lazy(), layout.hidden.as_slice()), (0, &[planted][..]));
    let folder = tempfile::tempdir().unwrap();
    let stats = assemble(&world.store, &layouts, folder.path(), 1, 2, &AtomicBool::new(false)).unwrap();
    assert_eq!(stats.pages_verified, layouts.iter().map(ObjectLayout::pages_present).sum::<u64>());
    assert!(layout.runs.iter().any(|run| run.first <= planted.first.0 && run.end() > planted.first.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_pages_are_read_though_their_process_may_not_read_them() {
    let mut target = Target::start();
    let data = target.map("a", 50, "private");
    target.tell("noise a 0 50");
    target.tell("protect a");
    let mut world = World::plain();
    target.freeze();
    // This dump leaves out what is not readable; CRIU's does not.
    dump(&mut world, &target, &[]).await;
    complete(&mut world, &target, &[], &[]).await;
    let (_, last) = world.plane.finish_final().await.unwrap();
    assert_eq!((last.pages_missed, last.pages_unread), (50, 0), "{last:?}");
    let mut digests = Vec::new();
    Digester::default().digest(&target.memory(data), &mut digests);
    for (page, digest) in data.iter().zip(digests) {
        assert_eq!(world.plane.shared.ledger.digest(target.object(), page), Some(digest));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_the_kernel_may_drop_are_not_missed() {
    let mut target = Target::start();
    let droppable = target.map("d", 3, "droppable");
    if droppable.first == PageIndex(0) {
        println!("skipped: this kernel has no such mappings");
        return;
    }
    target.tell("noise d 0 3");
    let mut world = World::plain();
    target.freeze();
    dump(&mut world, &target, &[droppable]).await;
    complete(&mut world, &target, &[], &[]).await;
    let (layouts, last) = world.plane.finish_final().await.unwrap();
    assert_eq!(last.pages_missed, 0, "{last:?}");
    assert_eq!(of(&layouts, &target).hidden, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blind_tracker_is_found_out() {
    let mut target = Target::start();
    let data = target.map("a", 8 * MIB_PAGES, "private");
    target.tell("noise a 0 300");
    let mut world = World::plain();
    world.round(&target).await.unwrap();
    world.tracker = Arc::new(Blind(Arc::clone(&world.tracker)));
    target.tell("noise a 5 1");
    target.tell("noise a 400 7");
    target.freeze();
    dump(&mut world, &target, &[data]).await;
    complete(&mut world, &target, &[data], &[]).await;
    let (_, last) = world.plane.finish_final().await.unwrap();
    assert_eq!(last.pages_missed, 7, "pages that the page tables show and nobody holds: {last:?}");
    let hidden = [(target.processes()[0], vec![data])];
    let stale = world.plane.spot_checker().check(&hidden, 10_000, &AtomicBool::new(false)).unwrap_err();
    let address = PageIndex(data.first.0 + 5).address();
    assert!(
        matches!(stale, MemoryError::Stale { object: ObjectId::Task(_), address: found } if found == address),
        "{stale}"
    );
}
