//! Programs that change everything at once, in full flight, for several rounds.

use std::collections::HashSet;
use std::time::Duration;

use decamp::memory::{MixedTracker, Survey, Tracker};
use decamp::model::page::PageIndex;

use crate::oracle::{EVERYTHING, Mirror};
use crate::target::{Target, eventually, program};

#[test]
fn threads_that_map_move_and_write_without_a_pause() {
    for seed in [20_261_201, 7] {
        println!("storm with seed {seed}");
        let (mut target, _) = Target::start("storm", &["3", &seed.to_string()]);
        let tracker = MixedTracker::probe(program()).unwrap();
        let mut mirror = Mirror::new(target.process());
        for _ in 0..20 {
            mirror.round(&tracker);
            std::thread::sleep(Duration::from_millis(10));
        }
        target.stop();
        mirror.last_round(&tracker);
        let pages = mirror.must_be_right("storm");
        println!("{pages} pages are right");
        assert!(tracker.exact(target.process()), "{:?}", tracker.report());
        target.goes_on();
        assert!(!target.ended());
    }
}

#[test]
fn what_a_device_writes_late_is_named_again_at_the_end() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pages = 2000;
    let bytes: Vec<u8> =
        (0..pages * 4096u32).map(|at| u8::try_from((at / 4096 + at) % 251).unwrap()).collect();
    std::fs::write(file.path(), bytes).unwrap();
    let name = file.path().display().to_string();
    let (target, works) = Target::start("direct", &[&name, &pages.to_string(), "3"]);
    if works != 0 {
        println!("the file system of {name} does not read past the cache: nothing to see here");
        return;
    }
    let tracker = MixedTracker::probe(program()).unwrap();
    let mut mirror = Mirror::new(target.process());
    for _ in 0..30 {
        mirror.round(&tracker);
    }
    let pages = |survey: &Survey| -> HashSet<PageIndex> {
        let candidates = survey.mappings.iter().filter_map(|pages| pages.candidates.as_ref());
        candidates.flatten().flat_map(|run| run.iter()).collect()
    };
    let mut reported = HashSet::new();
    eventually("a transfer is seen", || {
        mirror.round(&tracker);
        reported = pages(&tracker.survey(target.process()).unwrap());
        !reported.is_empty()
    });
    target.stop();
    mirror.last_round(&tracker);
    mirror.must_be_right("direct reads");
    assert!(tracker.exact(target.process()));
    // The marks of these pages were cleared by the last survey. What was reported by it is named again, written since or not.
    let last = pages(&tracker.final_survey(target.process(), &[EVERYTHING]).unwrap());
    assert!(reported.is_subset(&last), "{} of {}", reported.intersection(&last).count(), reported.len());
}
