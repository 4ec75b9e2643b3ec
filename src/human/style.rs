//! Colours and signs. Whoever prints decides once what the reader's side can show and passes a [`Style`] along.

use console::Style as Colour;

/// What a piece of text means; colours follow meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Headings and labels.
    Label,
    /// The number the operator came for.
    Strong,
    /// It worked.
    Good,
    /// Worth a look.
    Warn,
    /// It failed.
    Bad,
    /// Less important than its surroundings.
    Faint,
}

/// Signs outside ASCII, or their replacements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glyphs {
    /// Filled part of a bar.
    pub full: &'static str,
    /// Less than one cell.
    pub thin: &'static str,
    /// "to".
    pub arrow: &'static str,
    /// "about".
    pub about: &'static str,
    /// "plus or minus".
    pub plus_minus: &'static str,
    /// A passed check.
    pub pass: &'static str,
    /// A failed check.
    pub fail: &'static str,
}

/// How to print: colours or none, which signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether escape sequences for colour are written.
    pub colour: bool,
    /// Signs in use.
    pub glyphs: Glyphs,
}

impl Style {
    /// ASCII, no colour: files, pipes, tests.
    pub const PLAIN: Self = Self {
        colour: false,
        glyphs: Glyphs {
            full: "#",
            thin: "|",
            arrow: "->",
            about: "~",
            plus_minus: "+-",
            pass: "ok",
            fail: "FAILED",
        },
    };

    /// For a terminal that shows UTF-8.
    pub const UNICODE: Self = Self {
        colour: false,
        glyphs: Glyphs {
            full: "\u{2588}",
            thin: "\u{258f}",
            arrow: "\u{2192}",
            about: "\u{2248}",
            plus_minus: "\u{b1}",
            pass: "\u{2713}",
            fail: "\u{2717}",
        },
    };

    /// The same with colours on or off.
    #[must_use]
    pub const fn with_colour(self, colour: bool) -> Self {
        Self { colour, ..self }
    }

    /// The text in the colour of its meaning. Pad before painting: escape sequences have no width.
    #[must_use]
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let colour = match paint {
            Paint::Label => Colour::new().cyan(),
            Paint::Strong => Colour::new().bold(),
            Paint::Good => Colour::new().green(),
            Paint::Warn => Colour::new().yellow(),
            Paint::Bad => Colour::new().red().bold(),
            Paint::Faint => Colour::new().dim(),
        };
        colour.force_styling(true).apply_to(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_written_only_when_asked() {
        assert_eq!(Style::PLAIN.paint(Paint::Bad, "x"), "x");
        let painted = Style::PLAIN.with_colour(true).paint(Paint::Bad, "x");
        assert!(painted.starts_with("\u{1b}[") && painted.ends_with("\u{1b}[0m"), "{painted:?}");
    }
}
