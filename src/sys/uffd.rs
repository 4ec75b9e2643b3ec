//! userfaultfd(2) for missing pages: events out, pages in. Linux Documentation/admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2).
//!
//! What the kernel does that callers rely on (fs/userfaultfd.c, mm/userfaultfd.c, seen on 6.18):
//! * a descriptor keeps the ranges registered until its last duplicate is closed; then missing pages become zero pages;
//! * `read` hands out page faults before events, whatever came first; among themselves events keep their order;
//! * while an event has not been read, or its task has not gone on yet, UFFDIO_COPY and UFFDIO_ZEROPAGE fail with EAGAIN
//!   (`mmap_changing`), so that nothing lands at a place that has just changed its meaning;
//! * a call that installs nothing (EEXIST, ENOENT) wakes nobody.

#![expect(unsafe_code, reason = "userfaultfd has no wrapper in nix or std")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use crate::model::page::{PAGE_SIZE, PageIndex, PageRange};

/// `UFFD_FEATURE_EVENT_FORK`.
pub const EVENT_FORK: u64 = 1 << 1;
/// `UFFD_FEATURE_EVENT_REMAP`.
pub const EVENT_REMAP: u64 = 1 << 2;
/// `UFFD_FEATURE_EVENT_REMOVE`.
pub const EVENT_REMOVE: u64 = 1 << 3;
/// `UFFD_FEATURE_EVENT_UNMAP`.
pub const EVENT_UNMAP: u64 = 1 << 6;

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const REGISTER_MODE_MISSING: u64 = 1;
const PAGEFAULT_FLAG_WRITE: u64 = 1;
/// `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;
/// Messages taken in one read.
const MESSAGES: usize = 64;

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArg {
    start: u64,
    length: u64,
}

#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArg {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeroArg {
    range: RangeArg,
    mode: u64,
    zeroed: i64,
}

/// What a userfaultfd has to say.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for this page.
    Fault {
        /// The page.
        page: PageIndex,
        /// It wants to write.
        write: bool,
    },
    /// The process forked: the child's memory has its own descriptor, with the same ranges registered.
    Fork(Uffd),
    /// Pages moved (mremap(2)).
    Remap {
        /// Where they were.
        from: PageRange,
        /// Their first page now.
        to: PageIndex,
    },
    /// The process gives these pages back (MADV_DONTNEED and the like); they are zero from now on.
    Remove(PageRange),
    /// The mapping is gone.
    Unmap(PageRange),
    /// A kind of event that was not asked for.
    Unknown(u8),
}

/// A call that stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{errno} after {pages} pages")]
pub struct Stopped {
    /// Pages installed before.
    pub pages: u64,
    /// Why it stopped.
    pub errno: Errno,
}

/// A userfaultfd in non-blocking mode.
#[derive(Debug)]
pub struct Uffd {
    file: File,
}

impl From<OwnedFd> for Uffd {
    /// A descriptor made by somebody else, already through UFFDIO_API.
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Uffd {
    /// For our own memory, with these `UFFD_FEATURE_*`.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_PTRACE, EINVAL when the kernel lacks a feature, ENOSYS without userfaultfd.
    pub fn create(features: u64) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes one integer and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = RawFd::try_from(fd).map_err(|_| io::Error::other("no descriptor"))?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
        let uffd = Self::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut arg = ApiArg { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: `arg` is a uffdio_api that lives for the call; the kernel writes only into it.
        Errno::result(unsafe { libc::ioctl(fd, UFFDIO_API, &raw mut arg) })?;
        Ok(uffd)
    }

    /// Missing pages of this range are ours to fill from now on.
    ///
    /// # Errors
    /// What ioctl_userfaultfd(2) says.
    pub fn register(&self, pages: PageRange) -> io::Result<()> {
        let mut arg = RegisterArg { range: range(pages), mode: REGISTER_MODE_MISSING, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut arg)?;
        Ok(())
    }

    /// Installs whole pages and wakes who waits for them.
    ///
    /// # Errors
    /// [`Stopped`]: EAGAIN an event must be read first, EEXIST the next page is there, ENOENT no registered mapping holds the
    /// whole range, ESRCH the process is gone, ENOMEM its memory limit is reached.
    pub fn copy(&self, first: PageIndex, bytes: &[u8]) -> Result<(), Stopped> {
        assert!(bytes.len().is_multiple_of(PAGE_SIZE), "only whole pages are installed");
        let mut arg = CopyArg {
            to: first.address(),
            from: bytes.as_ptr() as u64,
            length: bytes.len() as u64,
            mode: 0,
            copied: 0,
        };
        self.ioctl(UFFDIO_COPY, &mut arg).map_err(|errno| stopped(arg.copied, errno))
    }

    /// Installs the zero page and wakes who waits.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn zero(&self, pages: PageRange) -> Result<(), Stopped> {
        let mut arg = ZeroArg { range: range(pages), mode: 0, zeroed: 0 };
        self.ioctl(UFFDIO_ZEROPAGE, &mut arg).map_err(|errno| stopped(arg.zeroed, errno))
    }

    /// Lets those who wait for these pages try again.
    ///
    /// # Errors
    /// Only for a range that no address space can have.
    pub fn wake(&self, pages: PageRange) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut range(pages))?;
        Ok(())
    }

    /// Appends what is there to read; true when there may be more.
    ///
    /// # Errors
    /// What read(2) says; never EAGAIN.
    pub fn read(&self, out: &mut Vec<Event>) -> io::Result<bool> {
        let mut bytes = [0u8; MESSAGES * MESSAGE_BYTES];
        let got = match (&self.file).read(&mut bytes) {
            Ok(got) => got,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(e) => return Err(e),
        };
        out.extend(bytes[..got].as_chunks::<MESSAGE_BYTES>().0.iter().map(decode));
        Ok(got == bytes.len())
    }

    fn ioctl<A>(&self, request: libc::c_ulong, arg: &mut A) -> Result<(), Errno> {
        // SAFETY: every request of this file is paired with its own structure, which lives and is not otherwise borrowed for the
        // length of the call. UFFDIO_COPY also reads `length` bytes at `from`: the slice behind it is borrowed by `copy`.
        // The kernel writes into `arg` and into another address space, or into ranges that we registered.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), request, std::ptr::from_mut(arg)) })?;
        Ok(())
    }
}

fn range(pages: PageRange) -> RangeArg {
    RangeArg { start: pages.first.address(), length: pages.count * PAGE_SIZE as u64 }
}

/// The kernel reports the bytes done, or the error once more as a negative number, or nothing.
fn stopped(done: i64, errno: Errno) -> Stopped {
    Stopped { pages: u64::try_from(done).unwrap_or(0) / PAGE_SIZE as u64, errno }
}

fn decode(message: &[u8; MESSAGE_BYTES]) -> Event {
    let word = |at: usize| u64::from_ne_bytes(*message[at..].first_chunk().expect("inside the message"));
    let pages = |start: u64, end: u64| PageRange::of_addresses(start, end.max(start));
    match message[0] {
        0x12 => {
            Event::Fault { page: PageIndex::of_address(word(16)), write: word(8) & PAGEFAULT_FLAG_WRITE != 0 }
        }
        0x13 => {
            let fd = i32::from_ne_bytes(*message[8..].first_chunk().expect("inside the message"));
            // SAFETY: the read that brought this message made the descriptor for its reader (resolve_userfault_fork); its number
            // is nowhere else.
            Event::Fork(Uffd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        0x14 => Event::Remap {
            from: pages(word(8), word(8).saturating_add(word(24))),
            to: PageIndex::of_address(word(16)),
        },
        0x15 => Event::Remove(pages(word(8), word(16))),
        0x16 => Event::Unmap(pages(word(8), word(16))),
        other => Event::Unknown(other),
    }
}
