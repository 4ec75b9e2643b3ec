//! Says what an event means, in lines that stay and in one that is redrawn. Pure: events in, text out.

use super::waterfall::waterfall;
use crate::human::{Paint, Style, bytes, clean, count, duration_us, percent, rate, rate_over};
use crate::model::PAGE_SIZE;
use crate::rpc::v1::{
    Event, FileProgress, FileStats, MemoryProgress, Phase, RoundStats, Summary, event::Body,
};

/// Cells of a round's bar.
const BAR: u64 = 20;

/// The line that is redrawn.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Live {
    /// What is going on, padded.
    pub(super) label: String,
    /// How far, in words.
    pub(super) text: String,
    /// How far, as a share of `total`.
    pub(super) done: u64,
    /// 0: not known.
    pub(super) total: u64,
}

/// What was told so far about one migration.
#[derive(Debug)]
pub(super) struct Teller {
    style: Style,
    tell_phases: bool,
    name: Option<String>,
    largest_round_pages: u64,
    expected_downtime_ms: u64,
}

impl Teller {
    /// `tell_phases`: a line per phase, where no live line shows it. `name`: begins every line.
    pub(super) fn new(style: Style, tell_phases: bool, name: Option<&str>) -> Self {
        let name = name.map(clean);
        Self { style, tell_phases, name, largest_round_pages: 0, expected_downtime_ms: 0 }
    }

    /// The lines that stay.
    pub(super) fn lines(&mut self, event: &Event) -> Vec<String> {
        match &event.body {
            Some(Body::Phase(change)) if self.tell_phases => phase_words(change.phase())
                .map(|(label, text)| self.labelled(label, text))
                .into_iter()
                .collect(),
            Some(Body::Note(note)) => vec![self.labelled("note", &clean(&note.text))],
            Some(Body::FileRound(stats)) => vec![self.labelled("files", &file_round(stats))],
            Some(Body::MemoryRound(stats)) => vec![self.memory_round(stats)],
            Some(Body::Completed(summary)) => self.completed(event, summary),
            _ => Vec::new(),
        }
    }

    /// The line that is redrawn, when the event changes it.
    pub(super) fn live(&self, event: &Event) -> Option<Live> {
        let (label, text, done, total) = match &event.body {
            Some(Body::Phase(change)) => {
                let (label, text) = phase_words(change.phase())?;
                (label, text.to_owned(), 0, 0)
            }
            Some(Body::FileProgress(at)) => ("files", file_progress(at), at.bytes_done, at.bytes_total),
            Some(Body::MemoryProgress(at)) => {
                ("memory", self.memory_progress(at), at.pages_done, at.pages_total)
            }
            _ => return None,
        };
        Some(Live { label: self.labelled(label, ""), text, done, total })
    }

    fn labelled(&self, label: &str, text: &str) -> String {
        let label = self.style.paint(Paint::Label, &format!("{label:<12}"));
        self.named(&format!("{label} {text}"))
    }

    /// With the container in front, where several are told at once.
    fn named(&self, line: &str) -> String {
        match &self.name {
            Some(name) => format!("{} {line}", self.style.paint(Paint::Strong, &format!("{name:<12}"))),
            None => line.to_owned(),
        }
    }

    fn memory_round(&mut self, stats: &RoundStats) -> String {
        self.largest_round_pages = self.largest_round_pages.max(stats.pages_dirty);
        self.expected_downtime_ms = stats.expected_downtime_ms;
        let round =
            if stats.round == 0 { "frozen  ".to_owned() } else { format!("round {:<2}", stats.round) };
        let bar = self.round_bar(stats.pages_dirty);
        let mut text = format!("{round}  {bar}  {:>8}", pages_as_bytes(stats.pages_dirty));
        text.push_str(&format!("   sent {}", bytes(stats.bytes_sent)));
        if let Some(speed) = rate_over(stats.bytes_sent, stats.duration_us) {
            text.push_str(&format!(" in {} ({speed})", duration_us(stats.duration_us)));
        }
        if stats.pages_dirty > 0 {
            let share = |pages| percent(pages, stats.pages_dirty);
            text.push_str(&format!(
                "   zero {}  known {}",
                share(stats.pages_zero),
                share(stats.pages_known)
            ));
        }
        if stats.round > 1 {
            text.push_str(&format!("   dirty {} pages/s", count(stats.dirty_pages_per_s)));
        }
        if stats.round > 0 && stats.expected_downtime_ms > 0 {
            text.push_str(&format!("   {}", self.next_freeze()));
        }
        self.labelled("memory", &text)
    }

    fn next_freeze(&self) -> String {
        let about = self.style.glyphs.about;
        format!("next freeze {about} {}", duration_us(self.expected_downtime_ms.saturating_mul(1000)))
    }

    /// As long as the round is large, measured by the largest so far: one sees the rounds shrink.
    fn round_bar(&self, pages: u64) -> String {
        let cells = u128::from(pages) * u128::from(BAR) / u128::from(self.largest_round_pages.max(1));
        let cells = usize::try_from(cells).unwrap_or(0);
        let drawn =
            if cells == 0 { self.style.glyphs.thin.to_owned() } else { self.style.glyphs.full.repeat(cells) };
        let padding = usize::try_from(BAR).unwrap_or(0).saturating_sub(cells.max(1));
        format!("{}{}", self.style.paint(Paint::Good, &drawn), " ".repeat(padding))
    }

    fn memory_progress(&self, at: &MemoryProgress) -> String {
        let round =
            if at.round == 0 { "frozen: last pages".to_owned() } else { format!("round {}", at.round) };
        let (done, total) = (count(at.pages_done), count(at.pages_total));
        let mut text = format!(
            "{round}  {done} of {total} pages  sent {}  {}",
            bytes(at.bytes_sent),
            rate(at.bytes_per_s)
        );
        if self.expected_downtime_ms > 0 && at.round > 0 {
            text.push_str(&format!("  {}", self.next_freeze()));
        }
        text
    }

    fn completed(&self, event: &Event, summary: &Summary) -> Vec<String> {
        let style = self.style;
        let (from, to) = (clean(&summary.source), clean(&summary.destination));
        let mut lines = Vec::new();
        if !summary.downtime_parts.is_empty() {
            let text =
                format!("frozen at {from}, running at {to} {} later", duration_us(summary.downtime_us));
            lines.push(self.labelled("cut-over", &text));
            lines.extend(waterfall(summary, style).into_iter().map(|line| self.named(&line)));
        }
        if summary.clock_error_us > 0 || summary.clock_offset_us != 0 {
            lines.push(self.labelled("clocks", &self.clocks(summary)));
        }
        lines.extend(resident(summary).map(|text| self.labelled("memory", &text)));
        for note in summary.notes.iter().take(100) {
            lines.push(self.labelled("note", &clean(note)));
        }
        let strong = |text: String| style.paint(Paint::Strong, &text);
        let name = format!("{:<12}", clean(&event.container));
        let wire = format!(
            "{} on the wire (memory {}, files {}, images {})",
            bytes(summary.bytes_sent),
            bytes(summary.memory_bytes_sent),
            bytes(summary.file_bytes_sent),
            bytes(summary.image_bytes_sent)
        );
        lines.push(format!(
            "{} {from} {} {to}   {}   total {}   {wire}",
            style.paint(Paint::Good, &name),
            style.glyphs.arrow,
            strong(format!("downtime {}", duration_us(summary.downtime_us))),
            duration_us(summary.total_us),
        ));
        lines
    }

    fn clocks(&self, summary: &Summary) -> String {
        let (from, to) = (clean(&summary.source), clean(&summary.destination));
        let offset = duration_us(summary.clock_offset_us.unsigned_abs());
        let direction = if summary.clock_offset_us < 0 { "behind" } else { "ahead of" };
        let error = duration_us(summary.clock_error_us);
        format!(
            "{to} is {offset} {direction} {from}, {} {error}; taken into account",
            self.style.glyphs.plus_minus
        )
    }
}

/// What became of the pages that were not there yet when the container went on.
fn resident(summary: &Summary) -> Option<String> {
    let later = pages_as_bytes(summary.pages_lazy);
    match (summary.pages_lazy, summary.resident_after_us) {
        (0, _) => None,
        (_, 0) => Some(format!("{later} still being installed; `decamp ls` there says when all of it is")),
        (_, after) => {
            let speed = rate(summary.fill_bytes_per_s);
            Some(format!(
                "{later} installed behind it: fully resident {} after the resume ({speed})",
                duration_us(after)
            ))
        }
    }
}

fn pages_as_bytes(pages: u64) -> String {
    bytes(pages.saturating_mul(PAGE_SIZE as u64))
}

fn file_round(stats: &FileStats) -> String {
    let mut text = format!("round {:<2}  {:>8}", stats.round, bytes(stats.bytes_total));
    if stats.bytes_known > 0 {
        text.push_str(&format!("  ({} already there)", bytes(stats.bytes_known)));
    }
    text.push_str(&format!("   sent {}", bytes(stats.bytes_sent)));
    text.push_str(&format!("   {} entries, {} changed", count(stats.entries), count(stats.files_changed)));
    if stats.files_deleted > 0 {
        text.push_str(&format!(", {} deleted", count(stats.files_deleted)));
    }
    text
}

fn file_progress(at: &FileProgress) -> String {
    format!("round {}  {} of {}", at.round, bytes(at.bytes_done), bytes(at.bytes_total))
}

/// Label and sentence; the endings have lines of their own.
fn phase_words(phase: Phase) -> Option<(&'static str, &'static str)> {
    Some(match phase {
        Phase::Unspecified | Phase::Completed | Phase::Aborted => return None,
        Phase::Preflight => ("preflight", "looking at the container and at what it needs"),
        Phase::Negotiating => ("preflight", "asking the destination"),
        Phase::Files => ("files", "copying files while the container runs"),
        Phase::PreCopy => ("memory", "copying memory while the container runs"),
        Phase::CutOver => ("cut-over", "freezing the container and sending the rest"),
        Phase::Committing => ("cut-over", "the destination is ready and takes over"),
        Phase::Releasing => ("release", "it runs at the destination; removing the original"),
        Phase::RollingBack => {
            ("rolling back", "the container goes on at the source; removing what the destination has")
        }
        Phase::InDoubt => {
            ("in doubt", "the answer to the hand-over was lost; asking the destination until it answers")
        }
    })
}

#[cfg(test)]
mod tests;
