//! How long CRIU sleeps between two looks at a freezer. It writes FROZEN, looks at once, and as the kernel needs a moment it sleeps
//! a tenth of a second before it looks again (criu/seize.c, `freeze_processes`); the tasks stand still meanwhile. All its sleeps
//! of that length are of this kind. It counts them: a hundred, then the dump fails.

/// The sleep that CRIU asks for, nanoseconds.
pub const ASKED_NS: i64 = 100_000_000;

/// The sleep it gets instead at its `count`-th, from 0: short ones first, and most of the hundred as long as they were, so that
/// tasks which cannot be frozen soon still get their time.
#[must_use]
pub const fn length_ns(count: u32) -> i64 {
    let doubled = count / 2;
    if doubled > 6 { ASKED_NS } else { 1_000_000 << doubled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_begin_short_and_leave_a_hundred_of_them_nearly_as_long() {
        assert_eq!(length_ns(0), 1_000_000);
        let all: Vec<i64> = (0..100).map(length_ns).collect();
        assert!(all.is_sorted() && all.iter().all(|nap| *nap <= ASKED_NS));
        assert!(all.iter().sum::<i64>() > 80 * ASKED_NS);
        assert_eq!(length_ns(u32::MAX), ASKED_NS);
    }
}
