//! What operators type: "100MiB/s", "1.5GiB", "300ms". Refusals say which part is wrong and what to write instead.

/// Why a quantity was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadQuantity {
    /// Nothing, or something that does not begin with a number.
    #[error("{given:?} does not begin with a number; write for example {example}")]
    NoNumber {
        /// What was typed.
        given: String,
        /// A valid one.
        example: &'static str,
    },
    /// M could be 1000² or 1024².
    #[error("unit {unit:?} can mean two things: write {unit}iB (powers of 1024) or {unit}B (powers of 1000)")]
    Ambiguous {
        /// The unit that was typed.
        unit: String,
    },
    /// A unit nobody knows.
    #[error("unit {unit:?} is not known; known are {known}")]
    UnknownUnit {
        /// The unit that was typed.
        unit: String,
        /// What may be written.
        known: &'static str,
    },
    /// "/s" after a size.
    #[error("{given:?} is a rate; a size is wanted here: leave out \"/s\"")]
    NotASize {
        /// What was typed.
        given: String,
    },
    /// More than fits, or less than one.
    #[error("{given:?} is out of range: {range}")]
    OutOfRange {
        /// What was typed.
        given: String,
        /// What is allowed.
        range: &'static str,
    },
    /// humantime's complaint.
    #[error("{given:?} is not a duration ({why}); write for example {example}")]
    BadDuration {
        /// What was typed.
        given: String,
        /// The parser's reason.
        why: String,
        /// A valid one.
        example: &'static str,
    },
}

const BYTE_UNITS: &str = "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB";
const RATE_UNITS: &str = "B/s, KiB/s, MiB/s, GiB/s, KB/s, MB/s, GB/s, kbit/s, Mbit/s, Gbit/s";

/// A size in bytes: a number, optionally with decimals, and a unit; no unit means bytes. At least one byte.
///
/// # Errors
/// [`BadQuantity`].
pub fn parse_size(given: &str) -> Result<u64, BadQuantity> {
    if given.trim_end().ends_with("/s") {
        return Err(BadQuantity::NotASize { given: given.to_owned() });
    }
    let (number, unit) = split(given, "512MiB")?;
    let factor = byte_unit(unit).ok_or_else(|| unknown_unit(unit, BYTE_UNITS))?;
    scale(given, number, factor)
}

/// A rate in bytes a second: as [`parse_size`], with or without "/s"; bits are known too (100Mbit/s is 12.5 MB/s). Not zero: a
/// cap of nothing would never end.
///
/// # Errors
/// [`BadQuantity`].
pub fn parse_rate(given: &str) -> Result<u64, BadQuantity> {
    let whole = given.trim();
    let (number, unit) = split(whole.strip_suffix("/s").unwrap_or(whole), "100MiB/s")?;
    let factor = byte_unit(unit).or_else(|| bit_unit(unit)).ok_or_else(|| unknown_unit(unit, RATE_UNITS))?;
    scale(given, number, factor)
}

/// A duration in milliseconds, humantime's way: "300ms", "1s 500ms", "30m". At least one millisecond.
///
/// # Errors
/// [`BadQuantity::BadDuration`] and [`BadQuantity::OutOfRange`].
pub fn parse_millis(given: &str) -> Result<u64, BadQuantity> {
    let duration = humantime::parse_duration(given.trim()).map_err(|why| BadQuantity::BadDuration {
        given: given.to_owned(),
        why: why.to_string(),
        example: "300ms, 5s or 30m",
    })?;
    let range = "1ms to 365days";
    match u64::try_from(duration.as_millis()) {
        Ok(ms) if (1..=365 * 86_400_000).contains(&ms) => Ok(ms),
        _ => Err(BadQuantity::OutOfRange { given: given.to_owned(), range }),
    }
}

fn split<'a>(given: &'a str, example: &'static str) -> Result<(f64, &'a str), BadQuantity> {
    let given = given.trim();
    let end = given.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(given.len());
    let (number, unit) = given.split_at(end);
    match number.parse::<f64>() {
        Ok(number) => Ok((number, unit.trim())),
        Err(_) => Err(BadQuantity::NoNumber { given: given.to_owned(), example }),
    }
}

fn byte_unit(unit: &str) -> Option<f64> {
    let power = |base: f64, n| base.powi(n);
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => power(1024.0, 1),
        "mib" => power(1024.0, 2),
        "gib" => power(1024.0, 3),
        "tib" => power(1024.0, 4),
        "kb" => power(1000.0, 1),
        "mb" => power(1000.0, 2),
        "gb" => power(1000.0, 3),
        "tb" => power(1000.0, 4),
        _ => return None,
    })
}

fn bit_unit(unit: &str) -> Option<f64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "bit" => 1.0 / 8.0,
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        _ => return None,
    })
}

fn unknown_unit(unit: &str, known: &'static str) -> BadQuantity {
    match unit.to_ascii_uppercase().as_str() {
        upper @ ("K" | "M" | "G" | "T") => BadQuantity::Ambiguous { unit: upper.to_owned() },
        _ => BadQuantity::UnknownUnit { unit: unit.to_owned(), known },
    }
}

fn scale(given: &str, number: f64, factor: f64) -> Result<u64, BadQuantity> {
    let value = (number * factor).round();
    // 2^53: beyond it a double has no whole bytes any more, and no host has that much either.
    if !(1.0..=9_007_199_254_740_992.0).contains(&value) {
        return Err(BadQuantity::OutOfRange { given: given.to_owned(), range: "1 B to 8 PiB" });
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 ..= 2^53, checked above")]
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates() {
        let sizes =
            [("1", 1), ("100 B", 100), ("64KiB", 65_536), ("1.5GiB", 1_610_612_736), ("2mb", 2_000_000)];
        for (text, n) in sizes {
            assert_eq!(parse_size(text), Ok(n), "{text}");
        }
        let rates =
            [("100MiB/s", 104_857_600), ("100MiB", 104_857_600), ("1Gbit/s", 125_000_000), ("9kbit", 1125)];
        for (text, n) in rates {
            assert_eq!(parse_rate(text), Ok(n), "{text}");
        }
    }

    #[test]
    fn refusals_say_what_to_write() {
        let of = |result: Result<u64, BadQuantity>| result.unwrap_err().to_string();
        assert_eq!(
            of(parse_rate("fast")),
            "\"fast\" does not begin with a number; write for example 100MiB/s"
        );
        assert!(of(parse_rate("10M/s")).contains("write MiB (powers of 1024) or MB"));
        assert!(of(parse_size("3 parsecs")).contains("unit \"parsecs\" is not known; known are B, KiB"));
        assert!(of(parse_size("10MiB/s")).contains("leave out \"/s\""));
        assert!(of(parse_rate("0MiB/s")).contains("out of range"));
        assert!(of(parse_size("99999999999TiB")).contains("out of range"));
        assert!(of(parse_size("1.2.3KiB")).contains("does not begin with a number"));
        assert!(of(parse_size("-5MiB")).contains("does not begin with a number"));
        assert!(of(parse_size("")).contains("does not begin with a number"));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_millis("300ms"), Ok(300));
        assert_eq!(parse_millis("30m"), Ok(1_800_000));
        assert!(parse_millis("300").unwrap_err().to_string().contains("write for example 300ms, 5s or 30m"));
        assert!(matches!(parse_millis("20us"), Err(BadQuantity::OutOfRange { .. })));
        assert!(matches!(parse_millis("9000years"), Err(BadQuantity::OutOfRange { .. })));
    }
}
