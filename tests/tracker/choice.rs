//! Which technique a process gets, and that every process is right with the one that it got.

use decamp::memory::{MixedTracker, Technique, TrackedProcess, Tracker};
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::oracle::Mirror;
use crate::target::{Target, program};

/// Some rounds of a process in this state; how it is tracked.
fn tracked(target: &mut Target) -> (MixedTracker, TrackedProcess) {
    let tracker = MixedTracker::probe(program()).unwrap();
    let mut mirror = Mirror::new(target.process());
    let at = target.run("map anon 200");
    target.run(&format!("fill {at} 200 1"));
    for seed in 2..5 {
        mirror.round(&tracker);
        target.run(&format!("fill {at} 20 {seed}"));
    }
    target.stop();
    mirror.last_round(&tracker);
    mirror.must_be_right("this process");
    target.goes_on();
    let report = tracker.report();
    assert_eq!(report.len(), 1, "{report:?}");
    (tracker, report[0].clone())
}

#[test]
fn these_are_watched() {
    for state in ["", "hidden", "filter", "leaderless"] {
        let mut target = Target::ops();
        if !state.is_empty() {
            assert_eq!(target.run(state), 0, "{state}");
        }
        let (tracker, process) = tracked(&mut target);
        assert_eq!(process.technique, Technique::Userfaultfd, "{state}: {process:?}");
        assert_eq!(tracker.name(target.process()), "userfaultfd");
        println!("{state:?}: stood still for {} us", process.stopped_us);
        // It was only borrowed.
        assert!(!has_userfaultfd(target.pid()), "{state}");
        tracker.release();
        assert!(tracker.report().is_empty());
        assert!(!tracker.exact(target.process()));
    }
}

#[test]
fn these_are_not_and_say_why() {
    for (state, expected) in [("full", "userfaultfd: Too many open files"), ("userfaultfd", "of its own")] {
        let mut target = Target::ops();
        assert_ne!(target.run(state), -1, "{state}");
        let (tracker, process) = tracked(&mut target);
        assert_eq!(process.technique, Technique::ContentHash, "{state}");
        let reason = process.reason.unwrap();
        assert!(reason.contains(expected), "{state}: {reason}");
        assert!(!tracker.exact(target.process()));
        assert_eq!(tracker.name(target.process()), "content hash");
    }
}

#[test]
fn a_traced_process_is_tried_once_more() {
    let mut target = Target::ops();
    let pid = Pid::from_raw(target.pid());
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    let tracker = MixedTracker::probe(program()).unwrap();
    let mut mirror = Mirror::new(target.process());
    mirror.round(&tracker);
    let report = tracker.report();
    assert_eq!(report[0].technique, Technique::ContentHash);
    assert!(report[0].reason.as_ref().unwrap().contains("traces it"), "{report:?}");
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::detach(pid, None).unwrap();
    mirror.round(&tracker);
    assert_eq!(tracker.name(target.process()), "userfaultfd", "{:?}", tracker.report());
    let at = target.run("map anon 20");
    target.run(&format!("fill {at} 20 1"));
    target.stop();
    mirror.last_round(&tracker);
    mirror.must_be_right("once traced");
}

#[test]
fn a_userfaultfd_that_appears_later_ends_the_watch() {
    let mut target = Target::ops();
    let tracker = MixedTracker::probe(program()).unwrap();
    let mut mirror = Mirror::new(target.process());
    mirror.round(&tracker);
    assert!(tracker.exact(target.process()));
    assert!(target.run("userfaultfd") > 0);
    mirror.round(&tracker);
    assert!(!tracker.exact(target.process()));
    assert!(tracker.report()[0].reason.as_ref().unwrap().contains("of its own"));
}

#[test]
fn a_process_that_is_gone_is_an_error() {
    let target = Target::ops();
    let process = target.process();
    let tracker = MixedTracker::probe(program()).unwrap();
    tracker.survey(process).unwrap();
    drop(target);
    tracker.survey(process).unwrap_err();
    assert!(!tracker.exact(process));
}

fn has_userfaultfd(pid: i32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().any(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|name| name.ends_with("anon_inode:[userfaultfd]"))
    })
}
