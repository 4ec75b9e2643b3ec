//! Lines for people, exactly.

use super::*;
use crate::rpc::v1::{Note, PhaseChange};

fn event(body: Body) -> Event {
    Event { migration_id: "m1".into(), container: "redis".into(), unix_ms: 1, body: Some(body) }
}

fn phase(phase: Phase) -> Event {
    event(Body::Phase(PhaseChange { phase: phase.into() }))
}

fn round(round: u32, pages_dirty: u64, expected_downtime_ms: u64) -> RoundStats {
    RoundStats {
        round,
        pages_dirty,
        pages_zero: pages_dirty * 31 / 100,
        pages_known: pages_dirty * 22 / 100,
        bytes_sent: pages_dirty * 1920,
        duration_us: 800_000,
        dirty_pages_per_s: 5_900,
        expected_downtime_ms,
        ..RoundStats::default()
    }
}

#[test]
fn rounds_shrink_before_the_readers_eyes() {
    let mut teller = Teller::new(Style::PLAIN, true, None);
    let mut tell = |stats| teller.lines(&event(Body::MemoryRound(stats)))[0].clone();
    assert_eq!(
        tell(round(1, 262_144, 900)),
        "memory       round 1   ####################  1.00 GiB   sent 480 MiB in 800 ms (600 MiB/s)   zero 30 %  known 21 %   \
         next freeze ~ 900 ms"
    );
    assert_eq!(
        tell(round(2, 26_214, 71)),
        "memory       round 2   #                      102 MiB   sent 48.0 MiB in 800 ms (60.0 MiB/s)   zero 30 %  known 21 %   \
         dirty 5.9k pages/s   next freeze ~ 71 ms"
    );
    assert_eq!(
        tell(RoundStats::default()),
        "memory       frozen    |                          0 B   sent 0 B"
    );
}

#[test]
fn phases_are_lines_only_where_no_live_line_shows_them() {
    let mut plain = Teller::new(Style::PLAIN, true, None);
    let mut live = Teller::new(Style::PLAIN, false, None);
    assert_eq!(plain.lines(&phase(Phase::Files)), ["files        copying files while the container runs"]);
    assert!(live.lines(&phase(Phase::Files)).is_empty());
    let shown = live.live(&phase(Phase::CutOver)).unwrap();
    assert_eq!((shown.label.as_str(), shown.total), ("cut-over     ", 0));
    assert_eq!(live.live(&phase(Phase::Completed)), None);
}

#[test]
fn progress_moves_the_live_line() {
    let mut teller = Teller::new(Style::PLAIN, false, None);
    teller.lines(&event(Body::MemoryRound(round(1, 1000, 71))));
    let at = MemoryProgress { round: 2, pages_done: 5, pages_total: 20, bytes_sent: 2048, bytes_per_s: 4096 };
    let live = teller.live(&event(Body::MemoryProgress(at))).unwrap();
    assert_eq!((live.done, live.total), (5, 20));
    assert_eq!(live.text, "round 2  5 of 20 pages  sent 2.00 KiB  4.00 KiB/s  next freeze ~ 71 ms");
}

#[test]
fn the_end_says_what_it_cost() {
    let summary = Summary {
        source: "node-a".into(),
        destination: "node-b".into(),
        downtime_us: 82_000,
        total_us: 2_900_000,
        bytes_sent: 503_316_480,
        memory_bytes_sent: 400 << 20,
        file_bytes_sent: 79 << 20,
        image_bytes_sent: 1 << 20,
        clock_offset_us: -1_200,
        clock_error_us: 100,
        notes: vec!["2 connections kept\x07".into()],
        ..Summary::default()
    };
    let lines = Teller::new(Style::PLAIN, true, None).lines(&event(Body::Completed(summary)));
    let wanted = [
        "clocks       node-b is 1.2 ms behind node-a, +- 0.1 ms; taken into account",
        "note         2 connections kept\\u{7}",
        "redis        node-a -> node-b   downtime 82 ms   total 2.90 s   480 MiB on the wire (memory 400 MiB, files 79.0 MiB, \
         images 1.00 MiB)",
    ];
    assert_eq!(lines, wanted);
}

#[test]
fn several_migrations_are_told_apart() {
    let mut teller = Teller::new(Style::PLAIN, true, Some("re\x1bdis"));
    let lines = teller.lines(&event(Body::Note(Note { text: "hm".into() })));
    assert_eq!(lines, ["re\\u{1b}dis  note         hm"]);
}

#[test]
fn no_control_characters_without_colour() {
    let mut teller = Teller::new(Style::PLAIN, true, Some("\x1b]0;x\x07"));
    let stats = FileStats {
        round: 1,
        entries: 3,
        bytes_total: 1,
        bytes_known: 1,
        files_deleted: 1,
        ..FileStats::default()
    };
    for body in [Body::FileRound(stats), Body::MemoryRound(round(1, 5, 5))] {
        for line in teller.lines(&event(body)) {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}
