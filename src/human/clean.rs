//! Text that comes from elsewhere (an agent, CRIU's log, a container's name) may hold escape sequences that repaint or
//! reprogram the operator's terminal. Nothing foreign is printed without passing here.

/// Longest piece of foreign text that is shown, in characters.
const SHOWN_MAX: usize = 2000;

/// One line that is safe to print: control characters become `\u{..}`, direction overrides too, tabs become spaces, and what is
/// over two thousand characters is cut and marked.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(SHOWN_MAX));
    for (index, letter) in text.trim_end().chars().enumerate() {
        if index == SHOWN_MAX {
            safe.push_str(" [cut]");
            break;
        }
        match letter {
            '\t' => safe.push(' '),
            c if c.is_control() || is_direction_mark(c) => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

/// Unicode's bidirectional overrides and isolates: they make text read as something else than it is.
fn is_direction_mark(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(clean("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb");
        assert_eq!(clean("x\u{202e}y\u{9b}31m"), "x\\u{202e}y\\u{9b}31m");
        assert_eq!(clean("tab\there, ünïcode stays"), "tab here, ünïcode stays");
    }

    #[test]
    fn long_text_is_cut() {
        let shown = clean(&"a".repeat(5000));
        assert!(shown.ends_with("a [cut]") && shown.len() < 2100);
    }
}
