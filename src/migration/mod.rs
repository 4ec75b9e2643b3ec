//! One migration, both sides. Start with `source/mod.rs` and `destination/mod.rs`: each tells its side from start to end.
//!
//! ```text
//! source                                                            destination
//! inspect ─▶ Offer ─────────────────────────────────────────────▶ preflight
//!                  ◀───────────────────────────── Accept | Refuse   home, network, scratch made
//! file round 1 ══════════════════════════════════════════════════▶ trees
//! memory rounds 1..n ════════════════════════════════════════════▶ page store        container runs at the source
//! file round 2 ══════════════════════════════════════════════════▶
//! Prewarm ───────────────────────────────────────────────────────▶ runtime and CRIU started, held at the gate
//! ─ t0 ─ dump, CRIU's pages compared with what was sent ─ hold                         container frozen
//! last pages, files, images, layouts ════════════════════════════▶ assemble, gate open, CRIU restore ─ hold
//!                  ◀───────────────────────────────────────── Ready
//! freezer on, journal, Commit ───────────────────────────────────▶ journal = the decision, hold released ─ t1 ─
//!                  ◀─────────────────────────────────────── Running                   container runs at the destination
//! kill, clean up; Released ──────────────────────────────────────▶ forget
//! ```
//! What must never happen: two running copies, or none; a task that sees a byte that was not checked; anything left behind.
//! This room tells the hands what to do; it never touches the kernel itself.

use std::time::Duration;

pub mod clock;
pub mod convergence;
mod courtesy;
pub mod destination;
mod error;
mod gate;
mod guard;
mod home;
mod host;
mod pagers;
mod progress;
mod recover;
mod registry;
pub mod request;
mod scratch;
mod session;
pub mod source;

pub use courtesy::{Courtesy, Turn};
pub use error::{MigrationError, chain};
pub use guard::{Cancel, Guard};
pub use home::Home;
pub use host::{Host, MemoryPromise, NETWORK_LOCK_NFTABLES, Peer, Settings};
pub use pagers::Pagers;
pub use progress::{Progress, unix_ms, unix_us};
pub use recover::recover;
pub use registry::{Registry, Reservation};
pub use request::Request;

/// How long the destination may take from the last byte to its vote, and from the release to the resume: a minute, and 5 ms a
/// MiB, six times CRIU's own pace. The container is frozen meanwhile.
fn restore_within(memory_bytes: u64) -> Duration {
    Duration::from_secs(60) + Duration::from_millis((memory_bytes >> 20) * 5)
}
