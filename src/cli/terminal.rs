//! What the reader's side can show, decided once; and the only place that writes. A reader that goes away (`decamp ls | head`)
//! is not an error: the rest is simply not printed, and a migration goes on being followed for its exit code.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};

use super::Complaint;
use super::args::When;
use crate::human::Style;

/// What the two outputs can show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// For standard output.
    pub(crate) out: Style,
    /// For standard error.
    pub(crate) err: Style,
    /// Standard output can redraw lines.
    pub(crate) live: bool,
}

impl Terminal {
    /// Looks at the descriptors and at the environment (NO_COLOR as in no-color.org, TERM, the locale).
    pub(crate) fn detect(when: When) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let utf8 = locale.is_some_and(|locale| locale.to_ascii_uppercase().replace('-', "").contains("UTF8"));
        let style = |terminal: bool| {
            let colour = match when {
                When::Always => true,
                When::Never => false,
                When::Auto => terminal && !dumb && !set("NO_COLOR"),
            };
            let base = if terminal && utf8 { Style::UNICODE } else { Style::PLAIN };
            base.with_colour(colour)
        };
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        console::set_colors_enabled(style(out).colour);
        Self { out: style(out), err: style(err), live: out && !dumb }
    }
}

/// Standard output and standard error, with or without lines that are redrawn below.
pub(crate) struct Screen {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    bars: Option<MultiProgress>,
    reader_gone: bool,
    trouble: Option<io::Error>,
}

impl Screen {
    /// The real outputs; `live` when lines are to be redrawn.
    pub(crate) fn standard(live: bool) -> Self {
        let bars = live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self { bars, ..Self::over(Box::new(io::stdout()), Box::new(io::stderr())) }
    }

    /// Any two outputs.
    pub(crate) fn over(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self { out, err, bars: None, reader_gone: false, trouble: None }
    }

    /// Where live lines are added, on a terminal.
    pub(crate) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// One line on standard output.
    pub(crate) fn line(&mut self, text: &str) {
        if self.reader_gone || self.trouble.is_some() {
            return;
        }
        let out = &mut self.out;
        let write = || writeln!(out, "{text}").and_then(|()| out.flush());
        match aside(self.bars.as_ref(), write) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.reader_gone = true,
            Err(error) => self.trouble = Some(error),
            Ok(()) => {}
        }
    }

    /// Lines on standard error. If even that cannot be written there is nobody left to tell.
    pub(crate) fn complain(&mut self, lines: &[String]) {
        let err = &mut self.err;
        let _ = aside(self.bars.as_ref(), || lines.iter().try_for_each(|line| writeln!(err, "{line}")));
    }

    /// What went wrong with standard output, other than that nobody reads it any more: a full disk, say.
    ///
    /// # Errors
    /// A complaint about it, once.
    pub(crate) fn finish(&mut self) -> Result<(), Complaint> {
        self.trouble
            .take()
            .map_or(Ok(()), |error| Err(Complaint::of_error("standard output cannot be written", &error)))
    }
}

/// Writes while live lines are out of the way.
fn aside<R>(bars: Option<&MultiProgress>, write: impl FnOnce() -> R) -> R {
    match bars {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen").field("reader_gone", &self.reader_gone).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone(io::ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_trouble_and_a_full_disk_is() {
        for (kind, trouble) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
            let mut screen = Screen::over(Box::new(Gone(kind)), Box::new(io::sink()));
            screen.line("one");
            screen.line("two");
            assert_eq!(screen.finish().is_err(), trouble);
        }
    }
}
