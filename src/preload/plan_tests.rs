//! The plan's reader: what it takes, and that no text makes it hide something by mistake or panic.

use super::*;

const HEAP: &str = "10000000-11000000 rw-p 00000000 00:00 0                          [heap]";
const BIG: &str = "7f0000000000-7f0001000000 rw-p 00000000 00:00 0 ";
const FILE: &str = "7f0010000000-7f0011000000 r--p 00002000 fe:00 1234   /usr/lib/libc.so.6";

fn plan() -> String {
    let section = |hide: &str| {
        format!(
            "{hide} {HEAP}\nf VmFlags: rd wr\n{hide} {BIG}\nf VmFlags: rd wr ac\nm {FILE}x\nf VmFlags: rd\n"
        )
    };
    let (first, second) = (section("m"), section("h"));
    format!("decamp-hide 1\nprocess 7 {}\n{first}process 77 {}\n{second}", first.len(), second.len())
}

fn may_hide(pid: u64, start: u64, end: u64, maps: &str) -> bool {
    let plan = plan();
    Section::find(plan.as_bytes(), pid)
        .is_some_and(|section| Walk::default().may_hide(section, maps.as_bytes(), start, end))
}

#[test]
fn lines_of_the_kernel_are_understood() {
    let heap = maps_line(HEAP.as_bytes()).unwrap();
    assert_eq!((heap.start, heap.end, heap.name), (0x1000_0000, 0x1100_0000, b"[heap]".as_slice()));
    assert!(heap.is_private_memory());
    assert!(maps_line(BIG.as_bytes()).unwrap().is_private_memory());
    for other in [
        FILE,
        "7f0000000000-7f0001000000 rw-s 00000000 00:00 0 ",
        "7ffc1c4f8000-7ffc1c519000 rw-p 00000000 00:00 0                          [stack]",
        "7f0000000000-7f0000002000 r-xp 00000000 00:00 0                          [vdso]",
        "7f0000000000-7f0001000000 rw-s 00000000 00:01 77  /dev/zero (deleted)",
    ] {
        assert!(!maps_line(other.as_bytes()).unwrap().is_private_memory(), "{other}");
    }
    for broken in ["", "x", "1-", "2000-1000 rw-p 0 00:00 0", "1000-2000 rw", "Size: 4 kB", "VmFlags: rd"] {
        assert_eq!(maps_line(broken.as_bytes()), None, "{broken}");
    }
    assert_eq!(number(b"fffffffffffffffff", 16), None);
}

#[test]
fn only_an_unchanged_marked_mapping_is_hidden() {
    let maps = format!("{HEAP}\n{BIG}\n{FILE}\n");
    let big = (0x7f00_0000_0000, 0x7f00_0100_0000);
    assert!(may_hide(77, big.0, big.1, &maps));
    assert!(may_hide(77, 0x1000_0000, 0x1100_0000, &maps));
    // Not marked, another process, a part, more than it, and a mapping that has changed or gone.
    assert!(!may_hide(7, big.0, big.1, &maps));
    assert!(!may_hide(78, big.0, big.1, &maps));
    assert!(!may_hide(77, big.0, big.1 - 0x1000, &maps));
    assert!(!may_hide(77, big.0 + 0x20_0000, big.1, &maps));
    assert!(!may_hide(77, 0, big.1, &maps));
    assert!(!may_hide(77, big.1, big.0, &maps));
    assert!(!may_hide(77, big.0, big.1, &maps.replace("rw-p", "r--p")));
    assert!(!may_hide(77, big.0, big.1, &format!("{HEAP}\n{FILE}\n")));
    assert!(!may_hide(77, big.0, big.1, ""));
}

#[test]
fn a_walk_may_go_back() {
    let plan = plan();
    let section = Section::find(plan.as_bytes(), 77).unwrap();
    let maps = format!("{HEAP}\n{BIG}\n{FILE}\n");
    let mut walk = Walk::default();
    for _ in 0..2 {
        assert!(walk.may_hide(section, maps.as_bytes(), 0x1000_0000, 0x1100_0000));
        assert!(!walk.may_hide(section, maps.as_bytes(), 0x1200_0000, 0x1300_0000));
        assert!(walk.may_hide(section, maps.as_bytes(), 0x7f00_0000_0000, 0x7f00_0100_0000));
        assert!(!walk.may_hide(section, maps.as_bytes(), 0x7f00_1000_0000, 0x7f00_1100_0000));
    }
}

#[test]
fn smaps_are_answered_only_when_every_mapping_is_known() {
    let plan = plan();
    let section = Section::find(plan.as_bytes(), 77).unwrap();
    let answer = |maps: &str| {
        let mut text = Vec::new();
        let complete = section.answer(maps.as_bytes(), |piece| {
            text.extend_from_slice(piece);
            true
        });
        complete.then(|| String::from_utf8(text).unwrap())
    };
    let maps = format!("{HEAP}\n{BIG}\n");
    let expected = format!("{HEAP}\nVmFlags: rd wr\n{BIG}\nVmFlags: rd wr ac\n");
    assert_eq!(answer(&maps), Some(expected));
    assert_eq!(answer(&format!("{HEAP}\n{BIG}\n{FILE}\n")), None, "a mapping the plan does not have");
    assert_eq!(answer(&format!("{HEAP}\n{BIG}")), None, "half a line");
    assert_eq!(answer(""), None, "no mappings: the process is going");
    assert!(!section.answer(maps.as_bytes(), |_| false), "no room");
}

#[test]
fn a_plan_that_is_cut_or_garbled_never_panics_and_hides_nothing_wrong() {
    let (plan, maps) = (plan(), format!("{HEAP}\n{BIG}\n"));
    for cut in 0..plan.len() {
        let Some(section) = Section::find(&plan.as_bytes()[..cut], 77) else { continue };
        Walk::default().may_hide(section, maps.as_bytes(), 0x7f00_0000_0000, 0x7f00_0100_0000);
        section.answer(maps.as_bytes(), |_| true);
    }
    for at in 0..plan.len() {
        let mut garbled = plan.clone().into_bytes();
        garbled[at] ^= 0x15;
        let Some(section) = Section::find(&garbled, 77) else { continue };
        // A range that is not a mapping of this process is never hidden, whatever the plan says.
        assert!(!Walk::default().may_hide(section, maps.as_bytes(), 0x7f00_0000_0000, 0x7f00_0200_0000));
    }
}
