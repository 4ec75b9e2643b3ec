//! The difference between two hosts' clocks, estimated as NTP does: of several exchanges the one with the shortest round trip
//! counts, and half of that round trip bounds the error.

/// One exchange: sent (our clock), answered (their clock), received (our clock), microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// Our clock when the question left.
    pub sent_us: u64,
    /// Their clock when they answered.
    pub peer_us: u64,
    /// Our clock when the answer came.
    pub received_us: u64,
}

/// Their clock minus ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offset {
    /// Microseconds.
    pub offset_us: i64,
    /// Bound of the error, microseconds.
    pub error_us: u64,
}

impl Offset {
    /// From a few exchanges; zero with an unbounded error when there are none.
    #[must_use]
    pub fn estimate(exchanges: &[Exchange]) -> Self {
        let Some(best) = exchanges.iter().min_by_key(|e| e.received_us.saturating_sub(e.sent_us)) else {
            return Self { offset_us: 0, error_us: u64::MAX };
        };
        let round_trip = best.received_us.saturating_sub(best.sent_us);
        let middle = best.sent_us + round_trip / 2;
        Self {
            offset_us: best.peer_us.cast_signed() - middle.cast_signed(),
            error_us: round_trip.div_ceil(2),
        }
    }

    /// Microseconds between an instant on our clock and one on theirs; never negative.
    #[must_use]
    pub fn between(self, ours_us: u64, theirs_us: u64) -> u64 {
        let theirs_on_ours = theirs_us.cast_signed() - self.offset_us;
        u64::try_from(theirs_on_ours - ours_us.cast_signed()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_exchange_counts() {
        let slow = Exchange { sent_us: 0, peer_us: 5_000, received_us: 9_000 };
        let quick = Exchange { sent_us: 10_000, peer_us: 11_050, received_us: 10_100 };
        let offset = Offset::estimate(&[slow, quick]);
        assert_eq!(offset, Offset { offset_us: 1_000, error_us: 50 });
        assert_eq!(offset.between(20_000, 21_500), 500);
        assert_eq!(offset.between(20_000, 20_000), 0);
    }
}
