//! The command line as types: what may be typed, and the help that explains it. Nothing is done here; whoever needs more than
//! parsing (a file, an agent) does it later.

mod agent;
mod bench;
mod groups;
mod migrate;
mod rooms;
mod values;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use agent::AgentOptions;
pub use bench::{BenchArgs, BenchCommand, DowntimeArgs};
pub use migrate::{DrainArgs, IfNotConverging, MigrateArgs, Mode, MoveOptions, OnOff, Tcp};
pub use rooms::{AgentArgs, DemoArgs, PkiArgs, PkiCommand};
pub use values::{AgentAddress, Destination, MountRule, MountWay, Which};

use super::exit::EXIT_CODES;
pub use super::hook::HookArgs;
pub use super::lab::LabArgs;

/// Live migration of running Linux containers.
#[derive(Debug, Parser)]
#[command(
    name = "decamp",
    version,
    about = "Move running Linux containers between hosts: memory, files, connections and identity",
    long_about = "Move running Linux containers between hosts: memory, files, connections and identity.\n\n\
        Every host runs an agent (`decamp agent`). This command line talks to one of them, by default the one on this host, \
        over its UNIX socket. Until the very last step the container goes on at the source: whatever fails before, it was \
        never away.",
    after_help = "`decamp help COMMAND` explains a command and shows examples. `decamp --help` lists exit codes.",
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: GlobalOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  decamp ls                                   what runs here
  decamp migrate redis --to node-b            move one, with progress
  decamp migrate redis --to node-b --json     the same for a program: one JSON document per line
  decamp drain --to node-b -j 2               empty this host, two at a time
  decamp history -n 5                         what was moved, and what it cost";

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct GlobalOptions {
    /// When to colour: auto means on a terminal and unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub color: When,
}

/// Auto, always, never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    Auto,
    /// Also into files and pipes.
    Always,
    /// Never.
    Never,
}

/// Every command; the help of each stands on its arguments.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "a doc comment on a variant replaces the help that stands on its arguments")]
pub enum Command {
    Ls(LsArgs),
    Info(InfoArgs),
    History(HistoryArgs),
    Migrate(MigrateArgs),
    Drain(DrainArgs),
    Watch(WatchArgs),
    Cancel(CancelArgs),
    Agent(AgentArgs),
    Pki(PkiArgs),
    Lab(LabArgs),
    Demo(DemoArgs),
    Bench(BenchArgs),
    Completions(CompletionsArgs),
    Hook(HookArgs),
}

/// `decamp ls`
#[derive(Debug, Args)]
#[command(
    about = "Containers on the agent's host",
    long_about = "Containers on the agent's host, with their memory, whether one is being moved just now, and where those came \
        from that arrived by migration.",
    after_long_help = "Examples:\n  decamp ls\n  decamp ls --json | jq -r '.containers[] | select(.status==\"running\") | .id'"
)]
pub struct LsArgs {
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
    /// Print one JSON document (ListReply)
    #[arg(long)]
    pub json: bool,
}

/// `decamp info`
#[derive(Debug, Args)]
#[command(
    about = "What the agent and its host can do, and what is missing",
    long_about = "What the agent is, what its host offers (kernel, CRIU, runtime, capabilities found by trying them), what is \
        missing with the reason and the remedy, and the peers it knows.\n\nExits with 0 also when problems are listed: the agent \
        answered.",
    after_long_help = "Examples:\n  decamp info\n  decamp info --json | jq .problems"
)]
pub struct InfoArgs {
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
    /// Print one JSON document (InfoReply)
    #[arg(long)]
    pub json: bool,
}

/// `decamp history`
#[derive(Debug, Args)]
#[command(
    about = "Finished migrations, newest first",
    long_about = "Finished migrations that this agent took part in, as source or as destination, newest first: when, from where \
        to where, how it ended, downtime, total time, bytes on the wire. Times are UTC.",
    after_long_help = "Examples:\n  decamp history\n  decamp history -n 1 --json | jq '.entries[0].summary.downtime_parts'"
)]
pub struct HistoryArgs {
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
    /// How many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print one JSON document (HistoryReply)
    #[arg(long)]
    pub json: bool,
}

/// `decamp watch`
#[derive(Debug, Args)]
#[command(
    about = "Follow migrations in flight",
    long_about = "Follow migrations in flight: the one named, or all. Nothing is changed by watching; Ctrl-C only ends the \
        watching.\n\nWith a name the exit code is that of the migration, as for `decamp migrate`.",
    after_long_help = "Examples:\n  decamp watch\n  decamp watch redis\n  decamp watch 0198f1d2a7f87a60b2f3a1c4d5e6f708 --json"
)]
pub struct WatchArgs {
    /// Container or migration id; all in flight when left out
    #[arg(value_name = "WHICH")]
    pub which: Option<Which>,
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
    /// How to tell it.
    #[command(flatten)]
    pub telling: Telling,
}

/// `decamp cancel`
#[derive(Debug, Args)]
#[command(
    about = "Ask a migration to stop",
    long_about = "Ask a migration to stop. Until the hand-over the container goes on at the source, with its connections, and \
        the destination forgets what it received. After the hand-over a migration cannot be cancelled any more; then this \
        command says so and exits with 3.\n\nThe command returns when the agent has taken the request; `decamp watch` shows the \
        end.",
    after_long_help = "Examples:\n  decamp cancel redis\n  decamp cancel redis --why 'maintenance was called off'"
)]
pub struct CancelArgs {
    /// Container or migration id
    #[arg(value_name = "WHICH")]
    pub which: Which,
    /// Shown to whoever watches, and kept in the history
    #[arg(long, value_name = "TEXT", default_value = "asked for by the operator")]
    pub why: String,
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentOptions,
    /// Print one JSON document (CancelReply)
    #[arg(long)]
    pub json: bool,
}

/// `decamp completions`
#[derive(Debug, Args)]
#[command(
    about = "Print a completion script for a shell",
    long_about = "Print a completion script for a shell on standard output.",
    after_long_help = "Examples:\n  decamp completions bash > /etc/bash_completion.d/decamp\n  \
        decamp completions zsh > ~/.zfunc/_decamp\n  decamp completions fish > ~/.config/fish/completions/decamp.fish"
)]
pub struct CompletionsArgs {
    /// Shell
    pub shell: clap_complete::Shell,
}

/// How a migration is told while it runs.
#[derive(Debug, Clone, Copy, Args)]
pub struct Telling {
    /// Print every event as one JSON document per line (Event); nothing else on standard output
    #[arg(long, action = ArgAction::SetTrue)]
    pub json: bool,
    /// Print nothing but failures
    #[arg(long, short = 'q', conflicts_with = "json", action = ArgAction::SetTrue)]
    pub quiet: bool,
}

impl Cli {
    /// The tree, with the commands grouped in its help.
    #[must_use]
    pub fn tree() -> clap::Command {
        let tree = Self::command();
        let template = groups::template(&tree);
        tree.help_template(template)
    }

    /// Parses; the error knows how to print itself and its exit code.
    ///
    /// # Errors
    /// clap's: bad usage, or help and version, which are "errors" with exit code 0.
    pub fn parse_line<I>(line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = std::ffi::OsString>,
    {
        let matches = Self::tree().try_get_matches_from(line)?;
        let cli = Self::from_arg_matches(&matches)?;
        cli.check()?;
        Ok(cli)
    }

    /// What clap's types cannot say.
    fn check(&self) -> Result<(), clap::Error> {
        let options = match &self.command {
            Command::Migrate(args) => &args.options,
            Command::Drain(args) => &args.options,
            _ => return Ok(()),
        };
        options.check().map_err(|why| Self::tree().error(clap::error::ErrorKind::ValueValidation, why))
    }
}

#[cfg(test)]
mod tests;
