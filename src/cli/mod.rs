//! The command line: parses, asks an agent, shows what it says. It never touches a container itself, and it never decides
//! anything about a migration: it only asks and tells.
//!
//! ```text
//! args ─▶ connect ─▶ follow (events, signals) ─▶ view: json | lines | terminal ─▶ exit
//! ```

pub mod args;
mod exit;

pub use exit::Exit;
