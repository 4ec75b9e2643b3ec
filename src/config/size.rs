//! Byte sizes and rates as operators write them: "1GiB", "100MiB/s", "512KB".
//!
//! Pure arithmetic on words. It must never round silently, overflow, or accept a number whose unit it had to guess.

/// A size or rate that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadSize {
    /// No digits in front.
    #[error("a size is a whole number and a unit, such as 256MiB")]
    NoNumber,
    /// Letters that are no unit of bytes.
    #[error(
        "{unit:?} is not a unit; use B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)"
    )]
    UnknownUnit {
        /// What followed the digits.
        unit: String,
    },
    /// More than 2^63 - 1 bytes, the most a file or a TOML integer can be.
    #[error("it is more than 8 EiB")]
    TooLarge,
    /// "/s" on something that is not a rate.
    #[error("this is an amount, not a rate: leave out \"/s\"")]
    RateNotWanted,
}

/// Bytes: a whole number and an optional unit, in any case, with or without a space between. No unit means bytes.
///
/// # Errors
/// No number, an unknown unit, "/s" at the end, or more than 2^63 - 1 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, BadSize> {
    let text = text.trim();
    if text.ends_with("/s") {
        return Err(BadSize::RateNotWanted);
    }
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(BadSize::NoNumber);
    }
    let unit = unit.trim_start();
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(BadSize::UnknownUnit { unit: unit.chars().take(20).collect() }),
    };
    let number: u64 = digits.parse().map_err(|_| BadSize::TooLarge)?;
    number.checked_mul(factor).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or(BadSize::TooLarge)
}

/// Bytes per second: a size, with or without "/s" behind it.
///
/// # Errors
/// As [`parse_bytes`], except that "/s" is welcome.
pub fn parse_rate(text: &str) -> Result<u64, BadSize> {
    let text = text.trim();
    parse_bytes(text.strip_suffix("/s").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_mean_what_they_say() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("1KB", 1_000),
            ("1KiB", 1_024),
            ("3 MiB", 3 << 20),
            ("2mb", 2_000_000),
            ("10GiB", 10 << 30),
            ("5GB", 5_000_000_000),
            (" 1TiB ", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_rate("100MiB"), Ok(100 << 20));
        assert_eq!(parse_rate("0"), Ok(0));
    }

    #[test]
    fn nothing_is_guessed() {
        assert_eq!(parse_bytes(""), Err(BadSize::NoNumber));
        assert_eq!(parse_bytes("GiB"), Err(BadSize::NoNumber));
        assert_eq!(parse_bytes("-1"), Err(BadSize::NoNumber));
        assert_eq!(parse_bytes("1.5GiB"), Err(BadSize::UnknownUnit { unit: ".5GiB".into() }));
        assert_eq!(parse_bytes("1Gbit"), Err(BadSize::UnknownUnit { unit: "Gbit".into() }));
        assert_eq!(parse_bytes("1M"), Err(BadSize::UnknownUnit { unit: "M".into() }));
        assert_eq!(parse_bytes("1MiB/s"), Err(BadSize::RateNotWanted));
        assert_eq!(parse_rate("1MiB/s/s"), Err(BadSize::RateNotWanted));
        assert_eq!(parse_bytes("8388608TiB"), Err(BadSize::TooLarge));
        assert_eq!(parse_bytes("8388607TiB"), Ok(8_388_607 << 40));
        assert_eq!(parse_bytes("99999999999999999999"), Err(BadSize::TooLarge));
    }
}
