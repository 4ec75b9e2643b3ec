//! A process does not notice that one of its threads was borrowed.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use decamp::sys::inject::{PROGRAM, take_userfaultfd};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::target::{Target, eventually, program, states};

const INJECTIONS: usize = 10;

#[test]
fn blocking_system_calls_end_as_they_would() {
    let kinds = ["nanosleep", "poll", "select", "futex", "epoll", "read", "pause"];
    let mut all = kinds.map(|kind| (kind, Target::start("wait", &[kind, "6000"]).0, 0));
    for (_, target, _) in &all {
        eventually("it waits", || states(target.pid()) == [b'S']);
    }
    for _ in 0..INJECTIONS {
        for (kind, target, done) in &mut all {
            match take_userfaultfd(program(), target.pid()) {
                Ok(_) => *done += 1,
                // On a slow machine its time may be over.
                Err(trouble) => assert!(target.ended(), "{kind}: {trouble}"),
            }
        }
    }
    for (kind, mut target, done) in all {
        match kind {
            "pause" => target.signal(Signal::SIGUSR1),
            "read" => target.say("x"),
            _ => {}
        }
        assert_eq!(target.line(), "0", "{kind} after {done} injections");
        assert!(done > 0, "{kind} was over before anything happened");
    }
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut target = Target::ops();
    target.stop();
    take_userfaultfd(program(), target.pid()).unwrap();
    eventually("stopped", || states(target.pid()) == [b'T']);
    target.goes_on();
    assert!(target.run("map anon 1") > 0);
}

/// Nothing can be promised for the microseconds in which a thread has foreign registers. What is promised: it is never left
/// stopped or traced, and nearly always it lives on.
#[test]
fn an_injector_that_is_killed_leaves_nobody_stopped() {
    let (mut killed_early, mut died, mut copies) = (0, 0, 0);
    let mut target = Target::ops();
    let start = Instant::now();
    take_userfaultfd(program(), target.pid()).unwrap();
    let whole = start.elapsed();
    for turn in 0..40 {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut injector = Command::new(program())
            .arg0(PROGRAM)
            .args(["take", &target.pid().to_string()])
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        std::thread::sleep(whole * (turn * 13 % 40) / 40);
        injector.kill().unwrap();
        if !injector.wait().unwrap().success() {
            killed_early += 1;
        }
        drop(ours);
        eventually("it runs or has ended", || {
            target.ended() || matches!(states(target.pid()).first(), Some(b'S' | b'R'))
        });
        target.say("map anon 1");
        // Both: what it said before its end may still be in the pipe.
        if target.line().is_empty() || target.ended() {
            died += 1;
            target = Target::ops();
            continue;
        }
        // Not reaped, so it is there, alive or not.
        let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
        // It may still end later: an answer that its system call never gave.
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", target.pid())).map_or(0, Iterator::count);
        copies = copies.max(descriptors.saturating_sub(3));
    }
    println!(
        "{killed_early} of 40 killed early; {died} targets died; at most {copies} descriptors left behind"
    );
}
