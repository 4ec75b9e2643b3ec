//! `decamp --help` lists commands in groups; clap itself knows only one list.

use std::fmt::Write;

/// Groups in order. A command that is hidden needs none; one that is shown must be in exactly one (a test holds that).
pub(super) const GROUPS: &[(&str, &[&str])] = &[
    ("Look", &["ls", "info", "history"]),
    ("Move", &["migrate", "drain", "watch", "cancel"]),
    ("Set up", &["agent", "pki", "completions"]),
    ("Try it", &["lab", "demo", "bench"]),
];

/// The help template of the top level: clap's own, with our list in place of clap's.
pub(super) fn template(tree: &clap::Command) -> String {
    let mut list = String::new();
    for (title, names) in GROUPS {
        let shown = names
            .iter()
            .filter_map(|name| tree.find_subcommand(name))
            .filter(|command| !command.is_hide_set());
        let lines: String = shown.fold(String::new(), |mut lines, command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(lines, "  {:<12} {about}", command.get_name());
            lines
        });
        if !lines.is_empty() {
            let _ = write!(list, "{title}:\n{lines}\n");
        }
    }
    format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::CommandFactory;

    #[test]
    fn every_shown_command_is_in_exactly_one_group() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let times = GROUPS.iter().flat_map(|(_, names)| names.iter()).filter(|n| **n == name).count();
            assert!(times == 1 || name == "help", "{name} is in {times} groups");
        }
    }
}
