//! Words that every room uses: ids, pages, limits. No I/O, no async, no clock.

pub mod id;
pub mod layout;
pub mod limits;
pub mod page;

pub use id::{ContainerId, Epoch, HostId, MigrationId};
pub use page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};

/// Name of the link to the `decamp` binary that CRIU executes as its action script: CRIU passes no arguments
/// (criu/action-scripts.c), so the name says what to be.
pub const HOOK_NAME: &str = "decamp-hook";

/// Capability of a host that can install pages after the container runs.
pub const LAZY_PAGES: &str = "lazy-pages";
/// Capability of a host on which changed pages are found by write protection.
pub const TRACKER_USERFAULTFD: &str = "tracker-userfaultfd";
