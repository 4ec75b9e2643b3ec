//! On a terminal: live lines, colours, and neither when they are not wanted.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use decamp::rpc::v1::{Failure, MemoryProgress, Phase, RoundStats, event::Body};
use nix::pty::{Winsize, openpty};

use crate::fake::{Fake, Step, completed, failed, phase};
use crate::harness::asking;

/// Runs with a terminal of 120 columns as both outputs; returns what the terminal got.
fn on_a_terminal(fake: &Fake, line: &str, no_colour: bool) -> (i32, String) {
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let mut command = asking(fake, line);
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
    if no_colour {
        command.env("NO_COLOR", "1");
    }
    let mut child = command.spawn().unwrap();
    drop((command, pty.slave));
    let mut shown = Vec::new();
    // Linux answers EIO when the last holder of the other end is gone: that is the end.
    let mut terminal = std::fs::File::from(pty.master);
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = terminal.read(&mut piece) {
        shown.extend_from_slice(&piece[..read]);
    }
    (child.wait().unwrap().code().unwrap(), String::from_utf8_lossy(&shown).into_owned())
}

fn story() -> Vec<Step> {
    let at = |pages_done| MemoryProgress {
        round: 1,
        pages_done,
        pages_total: 1000,
        bytes_sent: 1 << 20,
        bytes_per_s: 1 << 20,
    };
    let round = RoundStats { round: 1, pages_dirty: 1000, expected_downtime_ms: 71, ..RoundStats::default() };
    let pause = || Step::Pause(Duration::from_millis(250));
    vec![
        phase(Phase::PreCopy),
        Step::Say(Body::MemoryProgress(at(500))),
        pause(),
        Step::Say(Body::MemoryRound(round)),
        phase(Phase::CutOver),
        pause(),
        completed("redis"),
    ]
}

#[test]
fn a_bar_moves_and_the_lines_stay() {
    let fake = Fake::playing("redis", story());
    let (code, shown) = on_a_terminal(&fake, "migrate redis --to node-b", false);
    assert_eq!(code, 0, "{shown}");
    for piece in [
        "50 %",
        "500 of 1k pages",
        "freezing the container",
        "next freeze ≈ 71 ms",
        "→",
        "downtime 82 ms",
        "\x1b[3",
    ] {
        assert!(shown.contains(piece), "{piece:?} is missing in {shown:?}");
    }
}

#[test]
fn no_color_is_respected_and_color_can_be_forced_off() {
    for (line, no_colour) in
        [("migrate redis --to node-b", true), ("migrate redis --to node-b --color never", false)]
    {
        let fake = Fake::playing("redis", story());
        let (code, shown) = on_a_terminal(&fake, line, no_colour);
        assert_eq!(code, 0);
        // Live lines still move the cursor (CSI A, K); colours (CSI ... m) must not be there.
        let colours = shown.split("\x1b[").skip(1).filter(|rest| {
            rest.trim_start_matches([';', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']).starts_with('m')
        });
        assert_eq!(colours.count(), 0, "{shown:?}");
    }
}

#[test]
fn a_failure_ends_below_the_live_lines() {
    let failure =
        Failure { phase: Phase::CutOver.into(), message: "criu says no".into(), ..Failure::default() };
    let fake = Fake::playing(
        "redis",
        vec![phase(Phase::PreCopy), Step::Pause(Duration::from_millis(250)), failed(failure)],
    );
    let (code, shown) = on_a_terminal(&fake, "migrate redis --to node-b", true);
    assert_eq!(code, 1);
    let told = shown.find("decamp: redis was not moved").expect("the failure is told");
    assert!(!shown[told..].contains("copying memory"), "the live line must be gone by then: {shown:?}");
}
