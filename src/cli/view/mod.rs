//! How events are shown: JSON lines, plain lines, or a terminal with live lines below. What is said is decided by [`Teller`],
//! which is pure; this file only brings it to the screen. It must never change what happens to a migration.

mod teller;
mod waterfall;

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use self::teller::{Live, Teller};
use super::Complaint;
use super::args::Telling;
use super::terminal::{Screen, Terminal};
use crate::rpc::v1::{Event, event::Body};

/// Migrations shown at once; more are followed but not shown.
const ROWS_MAX: usize = 256;

/// Shows events of one or several migrations.
#[derive(Debug)]
pub(crate) struct View {
    screen: Screen,
    terminal: Terminal,
    telling: Telling,
    several: bool,
    rows: HashMap<String, Row>,
}

#[derive(Debug)]
struct Row {
    teller: Teller,
    bar: Option<ProgressBar>,
}

impl View {
    /// `several`: every line begins with the container's name.
    pub(crate) fn new(terminal: Terminal, telling: Telling, several: bool) -> Self {
        let live = terminal.live && !telling.json && !telling.quiet;
        let terminal = Terminal { live, ..terminal };
        Self { screen: Screen::standard(live), terminal, telling, several, rows: HashMap::new() }
    }

    /// One event.
    pub(crate) fn event(&mut self, event: &Event) {
        if self.telling.json {
            let document = serde_json::to_string(event).expect("a message has only strings as keys");
            self.screen.line(&document);
            return;
        }
        if self.telling.quiet {
            return;
        }
        let Some(row) = self.row(event) else { return };
        let lines = row.teller.lines(event);
        let live = row.teller.live(event);
        if let (Some(bar), Some(live)) = (&row.bar, live) {
            show(bar, &live);
        }
        let ended = matches!(event.body, Some(Body::Completed(_) | Body::Failed(_)));
        if ended {
            self.close(&key(event));
        }
        lines.iter().for_each(|line| self.screen.line(line));
    }

    /// A line that is not about an event, for people: `decamp drain`'s table.
    pub(crate) fn line(&mut self, text: &str) {
        if !self.telling.json && !self.telling.quiet {
            self.screen.line(text);
        }
    }

    /// Something this command line itself has to say while it follows.
    pub(crate) fn say(&mut self, text: &str) {
        self.screen.complain(&[format!("decamp: {text}")]);
    }

    /// A failure among several, as it happens.
    pub(crate) fn complain(&mut self, complaint: &Complaint) {
        self.screen.complain(&complaint.lines(self.terminal.err));
    }

    /// Removes the live lines: what follows is the end.
    pub(crate) fn finish(&mut self) -> Result<(), Complaint> {
        let keys: Vec<String> = self.rows.keys().cloned().collect();
        keys.iter().for_each(|key| self.close(key));
        self.screen.finish()
    }

    fn close(&mut self, key: &str) {
        if let Some(bar) = self.rows.remove(key).and_then(|row| row.bar) {
            bar.finish_and_clear();
            if let Some(bars) = self.screen.bars() {
                bars.remove(&bar);
            }
        }
    }

    fn row(&mut self, event: &Event) -> Option<&mut Row> {
        let key = key(event);
        if !self.rows.contains_key(&key) {
            if self.rows.len() >= ROWS_MAX {
                return None;
            }
            let bar = self.screen.bars().map(|bars| bars.add(new_bar()));
            let name = self.several.then_some(event.container.as_str());
            let teller = Teller::new(self.terminal.out, !self.terminal.live, name);
            self.rows.insert(key.clone(), Row { teller, bar });
        }
        self.rows.get_mut(&key)
    }
}

fn key(event: &Event) -> String {
    if event.migration_id.is_empty() { event.container.clone() } else { event.migration_id.clone() }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0).with_style(spinner_style());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}{spinner} {wide_msg}").expect("a template that a test draws")
}

fn bar_style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{prefix}{bar:20.cyan} {percent:>3} %  {wide_msg}");
    style.expect("a template that a test draws").progress_chars("\u{2588}\u{2592}\u{2591}")
}

fn show(bar: &ProgressBar, live: &Live) {
    if live.total > 0 {
        bar.set_style(bar_style());
        bar.set_length(live.total);
        bar.set_position(live.done.min(live.total));
    } else {
        bar.set_style(spinner_style());
    }
    bar.set_prefix(live.label.clone());
    bar.set_message(live.text.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        let bar = ProgressBar::hidden();
        show(&bar, &Live { label: "memory".into(), text: "round 1".into(), done: 7, total: 5 });
        assert_eq!((bar.position(), bar.length()), (5, Some(5)));
        show(&bar, &Live { label: "cut-over".into(), text: "frozen".into(), done: 0, total: 0 });
    }
}
