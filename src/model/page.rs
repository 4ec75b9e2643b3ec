//! Pages and what they belong to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a page. decamp serves x86-64 and refuses a host with another page size at the offer.
pub const PAGE_SIZE: usize = 4096;

/// Number of a page inside its object: address (or offset) divided by [`PAGE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page that holds this address.
    #[must_use]
    pub fn of_address(address: u64) -> Self {
        Self(address / PAGE_SIZE as u64)
    }

    /// Address (or offset) of the page's first byte.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0 * PAGE_SIZE as u64
    }
}

/// Consecutive pages [first, first + count).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// First page.
    pub first: PageIndex,
    /// How many.
    pub count: u64,
}

impl PageRange {
    /// From byte addresses; both are multiples of the page size.
    #[must_use]
    pub fn of_addresses(start: u64, end: u64) -> Self {
        Self { first: PageIndex::of_address(start), count: (end - start) / PAGE_SIZE as u64 }
    }

    /// One past the last page.
    #[must_use]
    pub fn end(self) -> PageIndex {
        PageIndex(self.first.0 + self.count)
    }

    /// The pages one by one.
    pub fn iter(self) -> impl Iterator<Item = PageIndex> {
        (self.first.0..self.first.0 + self.count).map(PageIndex)
    }
}

/// What pages belong to, with CRIU's own numbering of object types (criu/page-xfer.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectId {
    /// A process, by its pid inside the container.
    Task(u32),
    /// A shared-memory object, by CRIU's shmid (for shared anonymous memory: its inode).
    Shmem(u64),
}

impl ObjectId {
    /// CRIU's type number and id, the form on the wire.
    #[must_use]
    pub fn to_wire(self) -> (u32, u64) {
        match self {
            Self::Task(pid) => (1, u64::from(pid)),
            Self::Shmem(id) => (2, id),
        }
    }

    /// The reverse of [`ObjectId::to_wire`]; `None` for a type that is not known.
    #[must_use]
    pub fn from_wire(object_type: u32, id: u64) -> Option<Self> {
        match object_type {
            1 => u32::try_from(id).ok().map(Self::Task),
            2 => Some(Self::Shmem(id)),
            _ => None,
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(pid) => write!(f, "task {pid}"),
            Self::Shmem(id) => write!(f, "shared memory {id}"),
        }
    }
}

/// BLAKE3 of a page, a block or a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// From bytes of unknown length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}…", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}
