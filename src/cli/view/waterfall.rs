//! The downtime as a waterfall: each cause where it happened, as long as it took.

use crate::human::{Paint, Style, clean, milliseconds};
use crate::rpc::v1::{DowntimePart, Summary};

/// Cells of the time axis.
const WIDTH: u64 = 40;
/// Causes that are shown; an agent sends about ten.
const PARTS_MAX: usize = 40;

/// One line per cause, and one for what no cause accounts for if that is over a percent.
pub(super) fn waterfall(summary: &Summary, style: Style) -> Vec<String> {
    let mut parts: Vec<DowntimePart> = summary.downtime_parts.iter().take(PARTS_MAX).cloned().collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let told = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.duration_us));
    let rest = summary.downtime_us.saturating_sub(told);
    if rest.saturating_mul(100) > summary.downtime_us {
        parts.push(DowntimePart { name: "not told apart".into(), duration_us: rest, host: String::new() });
    }
    let whole = told.max(summary.downtime_us).max(1);
    let name_width =
        parts.iter().map(|part| console::measure_text_width(&clean(&part.name))).max().unwrap_or(0).min(24);
    let mut begun = 0u64;
    let mut lines = Vec::with_capacity(parts.len());
    for part in &parts {
        let bar = bar(begun, part.duration_us, whole, style);
        begun = begun.saturating_add(part.duration_us);
        let name = console::truncate_str(&clean(&part.name), name_width, "").into_owned();
        let padding = " ".repeat(name_width.saturating_sub(console::measure_text_width(&name)));
        let host = console::truncate_str(&clean(&part.host), 11, "").into_owned();
        let time = format!("{:>9} ms", milliseconds(part.duration_us));
        lines.push(format!(
            "  {name}{padding}  {} {bar} {time}",
            style.paint(Paint::Faint, &format!("{host:<11}"))
        ));
    }
    lines
}

/// Blank up to where it begins, then at least something, always [`WIDTH`] cells.
fn bar(begun: u64, took: u64, whole: u64, style: Style) -> String {
    let cell = |at: u64| {
        u64::try_from(u128::from(at) * u128::from(WIDTH) / u128::from(whole)).unwrap_or(WIDTH).min(WIDTH)
    };
    let (first, last) = (cell(begun).min(WIDTH - 1), cell(begun.saturating_add(took)));
    let full = last.saturating_sub(first);
    let repeat = |text: &str, cells: u64| text.repeat(usize::try_from(cells).unwrap_or(0));
    let (drawn, cells) =
        if full == 0 { (style.glyphs.thin.to_owned(), 1) } else { (repeat(style.glyphs.full, full), full) };
    let blank = repeat(" ", first);
    format!("{blank}{}{}", style.paint(Paint::Warn, &drawn), repeat(" ", WIDTH - first - cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(downtime_us: u64, parts: &[(&str, u64, &str)]) -> Summary {
        let part = |(name, duration_us, host): &(&str, u64, &str)| DowntimePart {
            name: (*name).into(),
            duration_us: *duration_us,
            host: (*host).into(),
        };
        Summary { downtime_us, downtime_parts: parts.iter().map(part).collect(), ..Summary::default() }
    }

    #[test]
    fn each_cause_stands_where_it_happened() {
        let given = summary(
            80_000,
            &[("freeze+dump", 40_000, "source"), ("commit", 200, "both"), ("restore", 39_800, "destination")],
        );
        let wanted = [
            "  freeze+dump  source      ####################                          40.0 ms",
            "  commit       both                            |                          0.2 ms",
            "  restore      destination                     ####################      39.8 ms",
        ];
        assert_eq!(waterfall(&given, Style::PLAIN), wanted);
    }

    #[test]
    fn time_without_a_cause_is_not_hidden() {
        let lines = waterfall(&summary(100_000, &[("dump", 60_000, "source")]), Style::PLAIN);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("not told apart") && lines[1].ends_with("40.0 ms"), "{lines:?}");
        assert_eq!(waterfall(&summary(100_000, &[("dump", 99_500, "source")]), Style::PLAIN).len(), 1);
        assert!(waterfall(&summary(5, &[]), Style::PLAIN).is_empty());
    }

    #[test]
    fn absurd_numbers_draw_something_of_the_same_width() {
        let given = summary(0, &[("a", u64::MAX, "source"), ("b", u64::MAX, "x\x1b"), ("c", 0, "y")]);
        let widths: Vec<_> =
            waterfall(&given, Style::PLAIN).iter().map(|line| line.find(" ms").is_some()).collect();
        assert_eq!(widths, [true, true, true]);
        for line in waterfall(&summary(1, &[("a", 0, ""), ("b", 1, ""), ("c", 0, "")]), Style::PLAIN) {
            assert_eq!(line.len(), 2 + 1 + 2 + 11 + 1 + 40 + 1 + 12, "{line:?}");
        }
    }
}
