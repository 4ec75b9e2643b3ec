//! Sets of pages as ascending ranges that do not overlap.

use crate::model::page::{PageIndex, PageRange};

/// Makes a set out of ranges in any order.
pub(super) fn set(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
    ranges.sort_unstable_by_key(|range| range.first);
    let mut out: Vec<PageRange> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| range.count > 0) {
        match out.last_mut() {
            Some(last) if last.end() >= range.first => {
                last.count = last.end().max(range.end()).0 - last.first.0;
            }
            _ => out.push(range),
        }
    }
    out
}

/// Pages in either set.
pub(super) fn union(a: &[PageRange], b: &[PageRange]) -> Vec<PageRange> {
    if b.is_empty() {
        return a.to_vec();
    }
    set([a, b].concat())
}

/// Pages in both sets.
pub(super) fn intersection(a: &[PageRange], b: &[PageRange]) -> Vec<PageRange> {
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    let mut out = Vec::new();
    while let (Some(one), Some(other)) = (left.peek(), right.peek()) {
        let first = one.first.max(other.first);
        let end = one.end().min(other.end());
        if first < end {
            out.push(PageRange { first, count: end.0 - first.0 });
        }
        if one.end() < other.end() {
            left.next();
        } else {
            right.next();
        }
    }
    out
}

/// Is all of `range` in the set?
pub(super) fn covers(set: &[PageRange], range: PageRange) -> bool {
    let after = set.partition_point(|one| one.first <= range.first);
    let end = after.checked_sub(1).map_or(PageIndex(0), |at| set[at].end());
    range.end() <= end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(first: u64, count: u64) -> PageRange {
        PageRange { first: PageIndex(first), count }
    }

    #[test]
    fn sets_behave_like_sets() {
        assert_eq!(set(vec![r(5, 2), r(1, 2), r(3, 1), r(6, 4), r(20, 0), r(7, 1)]), [r(1, 3), r(5, 5)]);
        assert_eq!(union(&[r(1, 2)], &[r(2, 5), r(9, 1)]), [r(1, 6), r(9, 1)]);
        assert_eq!(
            intersection(&[r(1, 4), r(8, 4)], &[r(0, 2), r(3, 6), r(11, 9)]),
            [r(1, 1), r(3, 2), r(8, 1), r(11, 1)]
        );
        assert!(covers(&[r(1, 4), r(8, 4)], r(9, 3)));
        assert!(covers(&[r(1, 4), r(8, 4)], r(1, 4)));
        for outside in [r(0, 1), r(4, 2), r(7, 2), r(9, 4), r(12, 1)] {
            assert!(!covers(&[r(1, 4), r(8, 4)], outside), "{outside:?}");
        }
        assert!(!covers(&[], r(0, 1)));
    }
}
