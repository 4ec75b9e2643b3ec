//! The two holds. CRIU executes `decamp-hook` (a link to this binary) at its script points; the hook asks the agent over a UNIX
//! socket and waits for the verdict. CRIU stands still meanwhile, with the tasks stopped.
//!
//! ```text
//! CRIU ── exec ──▶ decamp-hook ── one JSON line ──▶ agent (HookHub) ── HookCall ──▶ the migration
//!      ◀─ exit 0/1 ─            ◀─ "ok" | "no: why" ─             ◀── Verdict ───
//! ```
//! A hook that gets no verdict (agent gone, socket closed) exits with 1. That is safe on both sides: at the source CRIU resumes
//! the tasks unless the freezer holds them (it does from before Commit on), at the destination CRIU destroys what it restored.
//! The hook never decides anything itself.

mod client;
mod hub;

pub use client::{ENV_SOCKET, ENV_TOKEN, called_as_hook, main};
pub use hub::{HookCall, HookError, HookHub, HookWaiter, Verdict};

use serde::{Deserialize, Serialize};

/// CRIU's script points that decamp takes part in (criu/action-scripts.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Dump: before the tasks are stopped.
    PreDump,
    /// Dump: everything is written, the tasks are stopped, the network is locked. The source's hold.
    PostDump,
    /// Restore: everything is restored, no task has run. The destination's hold.
    PostRestore,
    /// Restore: the last point before the tasks run; its exit code is ignored by CRIU.
    PreResume,
    /// Restore: the tasks run.
    PostResume,
}

impl Action {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "pre-dump" => Some(Self::PreDump),
            "post-dump" => Some(Self::PostDump),
            "post-restore" => Some(Self::PostRestore),
            "pre-resume" => Some(Self::PreResume),
            "post-resume" => Some(Self::PostResume),
            _ => None,
        }
    }
}

/// What the hook says to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Greeting {
    token: String,
    action: Action,
    init_pid: i32,
}
