//! One kind of memory after the other, and everything that a program can do to it between two rounds.

use decamp::memory::{MixedTracker, Tracker};
use nix::libc;

use crate::oracle::Mirror;
use crate::target::{Target, program, stop};

struct Case {
    target: Target,
    tracker: MixedTracker,
    mirror: Mirror,
}

impl Case {
    fn new() -> Self {
        let target = Target::ops();
        let mirror = Mirror::new(target.process());
        Self { target, tracker: MixedTracker::probe(program()).unwrap(), mirror }
    }

    fn run(&mut self, command: &str) -> i64 {
        let answer = self.target.run(command);
        assert_ne!(answer, -1, "{command}");
        answer
    }

    fn round(&mut self) -> u64 {
        let seen = self.mirror.round(&self.tracker);
        assert!(self.tracker.exact(self.target.process()), "{:?}", self.tracker.report());
        seen.candidates
    }

    fn finish(&mut self, what: &str) {
        self.target.stop();
        self.mirror.last_round(&self.tracker);
        self.mirror.must_be_right(what);
        // Looking does not change anything.
        let again = self.mirror.last_round(&self.tracker);
        assert_eq!(again, self.mirror.last_round(&self.tracker));
        self.target.goes_on();
    }
}

#[test]
fn only_what_was_written_is_a_candidate() {
    let mut case = Case::new();
    let at = case.run("map anon 5000");
    case.run(&format!("fill {at} 5000 1"));
    assert!(case.round() >= 5000);
    let quiet = case.round();
    assert!(quiet < 100, "{quiet} candidates of a process that does nothing");
    // Every other page: more runs than one answer of the kernel holds.
    for page in (0..5000).step_by(2) {
        case.target.say(&format!("fill {} 1 {page}", at + page * 4096));
    }
    for _ in (0..5000).step_by(2) {
        assert_eq!(case.target.line(), "0");
    }
    let some = case.round();
    assert!((2500..2600).contains(&some), "{some} candidates after 2500 writes");
    case.run(&format!("fill {at} 17 9"));
    case.finish("anonymous memory");
}

#[test]
fn huge_pages_are_split_and_exact() {
    let mut case = Case::new();
    let at = case.run("map thp 2048");
    case.run(&format!("fill {at} 2048 1"));
    case.round();
    case.run(&format!("fill {} 3 5", at + 700 * 4096));
    let some = case.round();
    assert!(some < 1200, "{some} candidates after writing to three pages");
    case.run(&format!("advise {at} 512 {}", libc::MADV_DONTNEED));
    case.run(&format!("fill {} 5 6", at + 100 * 4096));
    case.finish("huge pages");
}

#[test]
fn memory_that_was_given_back_is_not_populated() {
    let mut case = Case::new();
    let at = case.run("map anon 1024");
    case.run(&format!("fill {at} 1024 1"));
    case.round();
    case.run(&format!("advise {at} 600 {}", libc::MADV_DONTNEED));
    case.run(&format!("fill {} 20 7", at + 40 * 4096));
    case.run(&format!("advise {} 200 {}", at + 700 * 4096, libc::MADV_FREE));
    case.run(&format!("fill {} 20 8", at + 710 * 4096));
    case.round();
    case.finish("given back");
}

#[test]
fn mappings_that_move_grow_and_are_replaced() {
    let mut case = Case::new();
    let [one, two] = [1, 2].map(|seed| {
        let at = case.run("map anon 300");
        case.run(&format!("fill {at} 300 {seed}"));
        at
    });
    case.round();
    // Replaced at the same place: the text of /proc/PID/maps stays the same.
    case.run(&format!("fixed {one} 300"));
    case.run(&format!("fill {one} 100 77"));
    case.round();
    case.run(&format!("fixed {} 50", one + 100 * 4096));
    case.run(&format!("fill {} 10 78", one + 110 * 4096));
    let moved = case.run(&format!("resize {two} 300 900"));
    case.run(&format!("fill {} 300 79", moved + 500 * 4096));
    case.round();
    // Parts exchange their places. A whole would not move: what was put over it is a mapping of its own.
    let between = case.run("map anon 300");
    case.run(&format!("move {one} 100 {between}"));
    case.run(&format!("move {moved} 100 {one}"));
    case.round();
    let copy = case.run(&format!("leave {between} 100"));
    case.run(&format!("fill {copy} 5 80"));
    case.run(&format!("fill {between} 7 81"));
    case.round();
    case.run(&format!("unmap {copy} 100"));
    let shrunk = case.run(&format!("resize {one} 100 10"));
    case.run(&format!("fill {shrunk} 2 83"));
    case.finish("moved and replaced");
}

#[test]
fn protection_changes_hide_no_write() {
    let mut case = Case::new();
    let at = case.run("map anon 400");
    case.run(&format!("fill {at} 400 1"));
    case.run(&format!("protect {at} 200 1"));
    case.round();
    case.run(&format!("protect {at} 200 3"));
    case.run(&format!("fill {at} 20 5"));
    case.run(&format!("protect {at} 200 1"));
    case.round();
    // Neither readable at one round nor at the next, and written in between.
    let dark = case.run("map none 100");
    case.round();
    case.run(&format!("protect {dark} 100 3"));
    case.run(&format!("fill {dark} 50 6"));
    case.run(&format!("protect {dark} 100 0"));
    case.run(&format!("protect {at} 400 0"));
    case.round();
    case.run(&format!("protect {dark} 100 3"));
    case.run(&format!("protect {at} 400 3"));
    case.finish("protection");
}

#[test]
fn the_heap_grows() {
    let mut case = Case::new();
    let mut written = 0;
    for round in 1..6 {
        let at = case.run(&format!("brk {}", 20 * round));
        written = (at + 4095) / 4096 * 4096;
        case.run(&format!("fill {written} {} {round}", 20 * round - 1));
        case.round();
    }
    case.run(&format!("fill {written} 3 99"));
    case.finish("heap");
}

#[test]
fn private_pages_of_a_file_come_and_go() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), vec![7u8; 200 * 4096]).unwrap();
    let mut case = Case::new();
    let at = case.run(&format!("mapfile {} 200", file.path().display()));
    case.run(&format!("fill {at} 50 1"));
    case.round();
    case.run(&format!("fill {} 10 2", at + 100 * 4096));
    case.round();
    // Back to the file, and one of them written anew.
    case.run(&format!("advise {at} 40 {}", libc::MADV_DONTNEED));
    case.run(&format!("fill {} 1 3", at + 5 * 4096));
    case.round();
    case.run(&format!("fill {} 2 4", at + 199 * 4096 - 4096));
    case.finish("private pages of a file");
}

#[test]
fn parent_and_child_after_a_fork() {
    let mut case = Case::new();
    let at = case.run("map anon 500");
    case.run(&format!("fill {at} 500 1"));
    case.round();
    let pid = i32::try_from(case.run(&format!("fork {at} 40 9"))).unwrap();
    let child = decamp::memory::Process { pid, vpid: pid.cast_unsigned() };
    let mut copy = Mirror::new(child);
    case.run(&format!("fill {} 40 2", at + 20 * 4096));
    case.round();
    copy.round(&case.tracker);
    copy.round(&case.tracker);
    case.run(&format!("fill {} 30 3", at + 50 * 4096));
    stop(pid);
    copy.last_round(&case.tracker);
    copy.must_be_right("child");
    case.finish("parent");
    assert!(case.tracker.exact(child));
}

#[test]
fn another_program_in_the_same_process_begins_anew() {
    let mut case = Case::new();
    for seed in 1..5 {
        let at = case.run("map anon 300");
        case.run(&format!("fill {at} 300 {seed}"));
        case.round();
        case.round();
        assert_eq!(case.run("exec"), 0);
        let at = case.run("map anon 200");
        case.run(&format!("fill {at} 200 {}", seed + 50));
        assert!(case.round() >= 200);
        case.run(&format!("fill {at} 20 {}", seed + 60));
    }
    case.finish("after exec");
}
