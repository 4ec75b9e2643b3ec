//! The memory of a running container at its source: which pages there are, which changed, and how they get to the destination.
//!
//! ```text
//! processes ─▶ tracker ─▶ scanner threads ─▶ bounded queue ─▶ one worker per stream ─▶ destination
//!   (survey)               read, zero test,     (batches)      ask, compress, pace,        │
//!                          digest, compare                     write                       │
//!                             ▲                                                            │
//!                             └────────────── ledger: what the destination acknowledged ◀──┘ Ack
//! ```
//! It never stops a process, never writes to one, and never believes that the destination has a page before the destination said
//! so. A page that cannot be read is left out: the final pass, in which CRIU reads the frozen processes, brings every page.

mod batch;
mod error;
mod final_pass;
mod hidden_pass;
mod invariant;
mod ledger;
mod mapping;
mod pipeline;
mod process;
mod retain;
mod scanner;
mod stats;
mod stream;
mod tracker;

pub use error::MemoryError;
pub use hidden_pass::{SpotCheck, SpotChecker};
pub use ledger::Ledger;
pub use mapping::{Backing, Mapping, large_private};
pub use pipeline::{PagePlane, PlaneOptions};
pub use process::{Process, processes};
pub use retain::{RetainedStats, retain_departed};
pub use stats::{Progress, RoundStats};
pub use tracker::{
    ContentHashTracker, MappedPages, MixedTracker, Survey, Technique, TrackedProcess, Tracker,
    UserfaultTracker,
};
