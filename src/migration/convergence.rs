//! When to stop copying and cut over: a pure function of the last rounds (QEMU's downtime limit, P.Haul's bounded rounds).

use std::time::Duration;

use crate::model::PAGE_SIZE;

/// What a dump and restore of an empty container cost with runc, measured: freeze to hold, restore, resume.
const FIXED: Duration = Duration::from_millis(250);
/// CRIU's own pace through the memory it dumps and restores while frozen, both together (about 0.85 ms a MiB each way).
const CRIU_PER_MIB: Duration = Duration::from_micros(1700);
/// Fewer dirty pages than this are not worth another round.
const FEW_PAGES: u64 = 64;
/// A round that brings the dirty pages down by less than this has stopped paying.
const GAIN_MIN: f64 = 0.10;

/// What to do when rounds do not converge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotConverging {
    /// Cut over with the downtime it takes.
    CutOver,
    /// Stop; the container goes on at the source.
    Cancel,
}

/// The operator's wishes.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Cut over when the expected downtime fits.
    pub downtime_target: Duration,
    /// Never more rounds.
    pub max_rounds: u32,
    /// Otherwise.
    pub if_not_converging: NotConverging,
}

/// One finished round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// 1, 2, ...
    pub number: u32,
    /// Pages that CRIU has to dump and restore itself: what is not hidden from it.
    pub pages_eager: u64,
    /// Pages that had changed since the round before.
    pub pages_dirty: u64,
    /// Speed of the link, bytes of page content a second; 0: not known yet.
    pub bytes_per_s: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Another round.
    GoOn,
    /// Freeze now; why, in words.
    CutOver(&'static str),
    /// Stop; why, in words.
    GiveUp(String),
}

/// What does not depend on dirty pages.
fn base(round: &Round) -> Duration {
    let mib = round.pages_eager * PAGE_SIZE as u64 / (1 << 20);
    FIXED + CRIU_PER_MIB.saturating_mul(u32::try_from(mib).unwrap_or(u32::MAX))
}

fn last_pages(round: &Round) -> Duration {
    let bytes = round.pages_dirty * PAGE_SIZE as u64;
    Duration::from_secs_f64(bytes as f64 / round.bytes_per_s.max(1 << 20) as f64)
}

/// What a cut-over after this round would cost.
#[must_use]
pub fn expected_downtime(round: &Round) -> Duration {
    base(round) + last_pages(round)
}

/// Go on, cut over or give up.
#[must_use]
pub fn decide(policy: &Policy, previous: Option<&Round>, round: &Round) -> Verdict {
    if round.number > 1 && round.pages_dirty <= FEW_PAGES {
        return Verdict::CutOver("almost nothing changes any more");
    }
    if round.number > 1 {
        let room = policy.downtime_target.saturating_sub(base(round));
        if last_pages(round) <= room {
            return Verdict::CutOver("the expected downtime fits the target");
        }
        if last_pages(round) <= base(round) / 20 {
            return Verdict::CutOver("the last pages cost next to nothing beside CRIU's own work");
        }
    }
    let stuck = previous.is_some_and(|previous| {
        previous.number > 1 && round.pages_dirty as f64 > previous.pages_dirty as f64 * (1.0 - GAIN_MIN)
    });
    if round.number < policy.max_rounds && !stuck {
        return Verdict::GoOn;
    }
    match policy.if_not_converging {
        NotConverging::CutOver if stuck => {
            Verdict::CutOver("further rounds would not bring the dirty pages down")
        }
        NotConverging::CutOver => Verdict::CutOver("the last allowed round is over"),
        NotConverging::Cancel => Verdict::GiveUp(format!(
            "round {}: {} dirty pages, {} expected against a target of {}",
            round.number,
            round.pages_dirty,
            humantime::format_duration(Duration::from_millis(
                u64::try_from(expected_downtime(round).as_millis()).unwrap_or(u64::MAX)
            )),
            humantime::format_duration(policy.downtime_target)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB_PAGES: u64 = (1 << 20) / PAGE_SIZE as u64;

    fn policy(if_not_converging: NotConverging) -> Policy {
        Policy { downtime_target: Duration::from_millis(300), max_rounds: 5, if_not_converging }
    }

    fn round(number: u32, pages_dirty: u64) -> Round {
        Round { number, pages_eager: 10 * MIB_PAGES, pages_dirty, bytes_per_s: 100 << 20 }
    }

    #[test]
    fn an_idle_container_is_cut_over_after_the_second_round() {
        let policy = policy(NotConverging::CutOver);
        let first = round(1, 10 * MIB_PAGES);
        assert_eq!(decide(&policy, None, &first), Verdict::GoOn);
        assert!(matches!(decide(&policy, Some(&first), &round(2, 3)), Verdict::CutOver(_)));
    }

    #[test]
    fn a_busy_one_goes_on_while_it_pays_and_then_follows_the_policy() {
        let first = round(1, 10 * MIB_PAGES);
        let second = round(2, 9 * MIB_PAGES);
        let third = round(3, 6 * MIB_PAGES);
        let stuck = round(4, 6 * MIB_PAGES);
        for not_converging in [NotConverging::CutOver, NotConverging::Cancel] {
            let policy = policy(not_converging);
            assert_eq!(decide(&policy, Some(&first), &second), Verdict::GoOn);
            assert_eq!(decide(&policy, Some(&second), &third), Verdict::GoOn);
        }
        assert!(matches!(decide(&policy(NotConverging::CutOver), Some(&third), &stuck), Verdict::CutOver(_)));
        assert!(matches!(decide(&policy(NotConverging::Cancel), Some(&third), &stuck), Verdict::GiveUp(_)));
    }

    #[test]
    fn the_number_of_rounds_is_bounded() {
        let policy = policy(NotConverging::CutOver);
        let mut previous = round(1, 1 << 30);
        for number in 2.. {
            let now = round(number, previous.pages_dirty / 2);
            if let Verdict::CutOver(_) = decide(&policy, Some(&previous), &now) {
                assert_eq!(number, policy.max_rounds);
                return;
            }
            previous = now;
        }
    }
}
