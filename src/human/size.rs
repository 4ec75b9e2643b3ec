//! Bytes, counts, rates and shares as people read them: three significant digits, binary units.

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// "512 B", "1.00 KiB", "41.2 MiB", "480 MiB", "1.00 GiB". Binary units: 1 KiB is 1024 bytes.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// Bytes a second.
#[must_use]
pub fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", bytes(bytes_per_s))
}

/// Bytes moved in a time, as a rate; `None` when the time is too short to divide by.
#[must_use]
pub fn rate_over(moved_bytes: u64, duration_us: u64) -> Option<String> {
    if duration_us < 1000 {
        return None;
    }
    let per_s = u128::from(moved_bytes) * 1_000_000 / u128::from(duration_us);
    Some(rate(u64::try_from(per_s).unwrap_or(u64::MAX)))
}

/// "950", "5.9k", "1.20M": pages, keys, connections.
#[must_use]
pub fn count(n: u64) -> String {
    if n < 1000 {
        return n.to_string();
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < 4 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = three_digits(value);
    let short =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{short}{}", ["k", "M", "G", "T"][unit])
}

/// "31 %"; a part that is there but under one percent is "<1 %", and 100 is only said when nothing is missing.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".to_owned();
    }
    let hundredths = u128::from(part) * 100 / u128::from(whole);
    match hundredths {
        0 => "<1 %".to_owned(),
        n => format!("{n} %"),
    }
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_never_read_1024() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1.00 KiB"),
            (43_201_331, "41.2 MiB"),
            (503_316_480, "480 MiB"),
            (1 << 30, "1.00 GiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn rates_and_counts() {
        assert_eq!(rate_over(1 << 20, 1_000_000).unwrap(), "1.00 MiB/s");
        assert_eq!(rate_over(1 << 20, 0), None);
        assert_eq!(rate_over(u64::MAX, 1000).unwrap(), "16.0 EiB/s");
        assert_eq!(count(999), "999");
        assert_eq!(count(5_900), "5.9k");
        assert_eq!(count(200_000), "200k");
        assert_eq!(count(1_200_000), "1.2M");
    }

    #[test]
    fn a_hundred_percent_means_all() {
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(1000, 1000), "100 %");
        assert_eq!(percent(1, 1000), "<1 %");
        assert_eq!(percent(0, 0), "0 %");
    }
}
