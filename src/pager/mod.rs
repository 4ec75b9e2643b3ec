//! The pager: gives a restored container the memory that was not put there before it ran. First the pages that it touches,
//! meanwhile all others, each verified against the digest that it was sent with.
//!
//! Two processes of their own, started by the agent long before the freeze, that outlive it:
//!
//! ```text
//!  agent ── pager.sock ──▶ WORKER ◀── lazy-pages.socket ── criu restore (vpid, userfaultfd, …, RSTF)
//!                            │ owner threads: events, faults, installing        (nice -10)
//!                            │ preparer threads: read, verify, give memory back (nice 10)
//!                          KEEPER: same table of descriptors, waits for the worker's end
//!
//!  Listening ──▶ Serving ──RSTF──▶ Filling ──▶ Resident
//!      │            │                 │
//!      └───▶ Failed ◀ CRIU hung up    └──▶ Lost: the container is killed, pager.json says why
//! ```
//! A userfaultfd whose last descriptor is closed lets the kernel show zeros where content belongs. So both processes share one
//! table of descriptors (CLONE_FILES): when the worker dies, every descriptor, also one that it got a microsecond ago, is
//! still open in the keeper, and who touches a missing page waits until the keeper has killed the container. When the keeper
//! dies, the worker goes on.
//!
//! This room must never let a process read a page that is not what was sent: it stops, and kills, rather than guess. It never
//! decides whether a migration goes on: the agent does, with [`PagerState`].

mod aftermath;
mod agent;
mod board;
mod convict;
mod criu;
mod error;
mod keeper;
mod object;
mod owner;
mod pace;
mod prepare;
mod progress;
mod remaining;
mod report;
mod socket;
mod space;
mod wire;
mod worker;

pub use agent::{LazyObject, Pager, PagerHandle, PagerSpec};
pub use error::PagerError;
pub use keeper::{PAGER_NAME, called_as_pager, main};
pub use report::{Ending, Report};
pub use wire::PagerState;

/// CRIU's name for the socket in its work folder (criu/uffd.c, `LAZY_PAGES_SOCK_NAME`).
pub const CRIU_SOCKET: &str = "lazy-pages.socket";
/// The agent's socket in the pager's folder.
pub const CONTROL_SOCKET: &str = "pager.sock";

/// Does this kernel have what CRIU's lazy pages need (criu/uffd.c, `NEED_UFFD_API_FEATURES`), and may we use it?
///
/// # Errors
/// What the kernel said.
pub fn probe() -> std::io::Result<()> {
    use crate::sys::uffd::{EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, Uffd};
    Uffd::create(EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP).map(drop)
}
