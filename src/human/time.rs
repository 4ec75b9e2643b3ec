//! Times as people read them.

use std::time::{Duration, SystemTime};

/// "0.4 ms", "82 ms", "2.91 s", "1 min 12 s", "2 h 3 min" from microseconds.
#[must_use]
pub fn duration_us(us: u64) -> String {
    let seconds = us / 1_000_000;
    match us {
        0..9_950 => format!("{:.1} ms", us as f64 / 1e3),
        9_950..999_500 => format!("{} ms", (us + 500) / 1000),
        999_500..9_995_000 => format!("{:.2} s", us as f64 / 1e6),
        9_995_000..59_950_000 => format!("{:.1} s", us as f64 / 1e6),
        _ if us < 3_600_000_000 => {
            let seconds = (us + 500_000) / 1_000_000;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Milliseconds with one decimal and no unit, for the waterfall: "38.2".
#[must_use]
pub fn milliseconds(us: u64) -> String {
    format!("{:.1}", us as f64 / 1e3)
}

/// A moment in UTC, "2026-08-24 10:11:12"; "-" for 0, which means "not known".
#[must_use]
pub fn instant_ms(unix_ms: u64) -> String {
    // humantime refuses years past 9999; what a peer sends may be anything.
    const YEAR_9999_MS: u64 = 253_402_300_799_000;
    if unix_ms == 0 || unix_ms > YEAR_9999_MS {
        return "-".to_owned();
    }
    let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(moment).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_change_unit_without_a_seam() {
        let cases = [
            (0, "0.0 ms"),
            (420, "0.4 ms"),
            (9_949, "9.9 ms"),
            (9_950, "10 ms"),
            (82_300, "82 ms"),
            (999_499, "999 ms"),
            (999_500, "1.00 s"),
            (2_913_000, "2.91 s"),
            (42_000_000, "42.0 s"),
            (59_960_000, "1 min 0 s"),
            (72_000_000, "1 min 12 s"),
            (7_380_000_000, "2 h 3 min"),
        ];
        for (us, text) in cases {
            assert_eq!(duration_us(us), text, "{us}");
        }
    }

    #[test]
    fn moments_survive_any_number() {
        assert_eq!(instant_ms(1_000), "1970-01-01 00:00:01");
        assert_eq!(instant_ms(0), "-");
        assert_eq!(instant_ms(u64::MAX), "-");
    }
}
