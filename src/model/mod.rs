//! Words that every room uses: ids, pages, limits. No I/O, no async, no clock.

pub mod id;
pub mod layout;
pub mod limits;
pub mod page;

pub use id::{ContainerId, Epoch, HostId, MigrationId};
pub use page::{Digest, ObjectId, PAGE_SIZE, PageIndex, PageRange};
