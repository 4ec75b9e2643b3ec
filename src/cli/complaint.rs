//! What is printed when something did not work: what, where, the evidence, where the container runs now, what to do next, and
//! the exit code that goes with it.

use super::Exit;
use crate::human::{Paint, Style, clean};
use crate::rpc::v1::{Failure, Phase, Reason};

/// Lines of a log that are shown, and reasons: an agent's answer has no bound of its own here.
const SHOWN_MAX: usize = 200;

/// Something did not work.
#[derive(Debug, Clone)]
pub(crate) struct Complaint {
    /// How the command ends.
    pub(crate) exit: Exit,
    /// One sentence.
    pub(crate) headline: String,
    /// Label and text, in order.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// Reasons of a refusal.
    pub(crate) reasons: Vec<Reason>,
}

impl Complaint {
    /// Without facts yet.
    pub(crate) fn new(exit: Exit, headline: impl Into<String>) -> Self {
        Self { exit, headline: headline.into(), facts: Vec::new(), reasons: Vec::new() }
    }

    /// Adds a fact; an empty one is left out.
    pub(crate) fn fact(mut self, label: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        if !text.is_empty() {
            self.facts.push((label, text));
        }
        self
    }

    /// A room that runs on this machine gave up.
    pub(crate) fn of_error(headline: &str, error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Failed, headline).fact("what", chain(error))
    }

    /// A migration that ended badly.
    pub(crate) fn of_failure(container: &str, failure: &Failure) -> Self {
        let exit = Exit::of_failure(failure);
        let host = if failure.host.is_empty() { String::new() } else { format!(" on {}", failure.host) };
        let headline = match exit {
            Exit::Cancelled => format!("{container} was not moved: the migration was cancelled"),
            Exit::InDoubt => format!("it is not known yet on which host {container} runs"),
            Exit::Refused => match failure.reasons.len() {
                1 => format!("{container} was not moved: refused{host} for one reason; nothing was changed"),
                n => format!("{container} was not moved: refused{host} for {n} reasons; nothing was changed"),
            },
            _ => format!("{container} was not moved: it failed{host} {}", during(failure.phase())),
        };
        let mut complaint = Self::new(exit, headline).fact("what", &failure.message);
        complaint.reasons.clone_from(&failure.reasons);
        for line in failure.log_lines.iter().take(SHOWN_MAX) {
            complaint = complaint.fact("evidence", line);
        }
        let now = match (failure.state_now.as_str(), exit) {
            ("", Exit::InDoubt) => {
                "not known; it is never run twice: the agents ask each other until one answers"
            }
            ("", _) => "the agent did not say; `decamp ls` shows it",
            (told, _) => told,
        };
        complaint.fact("now", now).fact("next", &failure.remedy)
    }

    /// What is printed. Everything that came from elsewhere is cleaned of control characters.
    pub(crate) fn lines(&self, style: Style) -> Vec<String> {
        let mut lines = vec![format!("{} {}", style.paint(Paint::Bad, "decamp:"), clean(&self.headline))];
        let (before, after): (Vec<_>, Vec<_>) = self.facts.iter().partition(|(label, _)| *label == "what");
        let mut previous = "";
        let mut tell = |lines: &mut Vec<String>, label: &'static str, text: &str| {
            let shown = if label == previous { "" } else { label };
            previous = label;
            lines.push(format!("  {} {}", style.paint(Paint::Label, &format!("{shown:<9}")), clean(text)));
        };
        before.iter().for_each(|(label, text)| tell(&mut lines, label, text));
        for (number, reason) in self.reasons.iter().take(SHOWN_MAX).enumerate() {
            lines.extend(reason_lines(number + 1, reason, style));
        }
        after.iter().for_each(|(label, text)| tell(&mut lines, label, text));
        lines
    }
}

/// One reason: what, evidence, remedy.
pub(crate) fn reason_lines(number: usize, reason: &Reason, style: Style) -> Vec<String> {
    let code = if reason.code.is_empty() { String::new() } else { format!("[{}]", clean(&reason.code)) };
    let head = format!("  {number}. {}", clean(&reason.what));
    let mut lines = vec![format!("{head} {}", style.paint(Paint::Faint, &code)).trim_end().to_owned()];
    for (label, text) in [("evidence", &reason.evidence), ("remedy", &reason.remedy)] {
        if !text.is_empty() {
            lines.push(format!("     {} {}", style.paint(Paint::Label, &format!("{label:<9}")), clean(text)));
        }
    }
    lines
}

/// An error and its causes, each once: tonic repeats itself, and says "transport error" above everything.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(current) = next {
        let text = current.to_string();
        if text != "transport error" && !texts.iter().any(|told| told.contains(&text)) {
            texts.push(text);
        }
        next = current.source();
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

/// "while its memory was copied": the phase as part of a sentence.
fn during(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "",
        Phase::Preflight => "in the preflight checks",
        Phase::Negotiating => "while the destination was asked",
        Phase::Files => "while files were copied",
        Phase::PreCopy => "while memory was copied",
        Phase::CutOver => "in the cut-over",
        Phase::Committing => "at the hand-over",
        Phase::Releasing | Phase::Completed => "while the source was cleaned up",
        Phase::RollingBack | Phase::Aborted => "and was rolled back",
        Phase::InDoubt => "in doubt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: &str, what: &str) -> Reason {
        let (evidence, remedy) = ("seen \x1b[31m", "do this");
        Reason { code: code.into(), what: what.into(), evidence: evidence.into(), remedy: remedy.into() }
    }

    #[test]
    fn a_refusal_lists_every_reason() {
        let failure = Failure {
            phase: Phase::Negotiating.into(),
            host: "node-b".into(),
            state_now: "redis runs at node-a".into(),
            reasons: vec![reason("name-taken", "a container redis exists"), reason("", "too little memory")],
            ..Failure::default()
        };
        let lines = Complaint::of_failure("redis", &failure).lines(Style::PLAIN);
        let wanted = [
            "decamp: redis was not moved: refused on node-b for 2 reasons; nothing was changed",
            "  1. a container redis exists [name-taken]",
            "     evidence  seen \\u{1b}[31m",
            "     remedy    do this",
            "  2. too little memory",
            "     evidence  seen \\u{1b}[31m",
            "     remedy    do this",
            "  now       redis runs at node-a",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn a_failure_says_what_where_evidence_now_and_next() {
        let failure = Failure {
            phase: Phase::CutOver.into(),
            host: "node-b".into(),
            message: "criu restore failed: exit code 1".into(),
            state_now: "redis runs at node-a".into(),
            remedy: "install the module".into(),
            log_lines: vec!["Error one".into(), "Error two".into()],
            ..Failure::default()
        };
        let lines = Complaint::of_failure("redis", &failure).lines(Style::PLAIN);
        let wanted = [
            "decamp: redis was not moved: it failed on node-b in the cut-over",
            "  what      criu restore failed: exit code 1",
            "  evidence  Error one",
            "            Error two",
            "  now       redis runs at node-a",
            "  next      install the module",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn a_chain_says_everything_once() {
        let inner = std::io::Error::other("no route");
        let outer = std::io::Error::other(Complained(inner));
        assert_eq!(chain(&outer), "dial node-b: no route");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("dial node-b")]
    struct Complained(#[source] std::io::Error);

    #[test]
    fn in_doubt_says_that_nothing_runs_twice() {
        let failure = Failure { phase: Phase::InDoubt.into(), ..Failure::default() };
        let complaint = Complaint::of_failure("redis", &failure);
        assert_eq!(complaint.exit, Exit::InDoubt);
        assert!(complaint.lines(Style::PLAIN).join("\n").contains("never run twice"));
    }
}
