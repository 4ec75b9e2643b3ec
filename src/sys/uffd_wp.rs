//! Asynchronous write protection of another process's memory by userfaultfd (Linux 6.7, Documentation/admin-guide/mm/userfaultfd.rst,
//! Documentation/admin-guide/mm/pagemap.rst): the first write to a protected page is let through by the kernel itself, which notes
//! it in the page table, and nobody waits. PAGEMAP_SCAN reads the notes and protects again (see [`super::pagemap`]).
//!
//! The userfaultfd acts on the address space of the process that created it, whoever holds it. With its last descriptor all
//! protection goes away.

#![expect(unsafe_code, reason = "the userfaultfd requests have no wrapper in nix")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::pagemap::{Marks, Method, Pagemap, Rearm, Scratch};
use crate::model::page::{PAGE_SIZE, PageRange};

/// `UFFD_API`, include/uapi/linux/userfaultfd.h.
const API_VERSION: u64 = 0xaa;
/// `UFFDIO_API`.
const API: libc::c_ulong = 0xc018_aa3f;
/// `UFFDIO_REGISTER`.
const REGISTER: libc::c_ulong = 0xc020_aa00;
/// `UFFDIO_UNREGISTER`.
const UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `UFFDIO_WRITEPROTECT`.
const WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 1 << 1;
/// `UFFD_FEATURE_` PAGEFAULT_FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED, WP_ASYNC.
const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: libc::c_int = 1;

#[repr(C)]
struct ApiArg {
    version: u64,
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
struct ProtectArg {
    range: RangeArg,
    mode: u64,
}

impl From<PageRange> for RangeArg {
    fn from(pages: PageRange) -> Self {
        Self { start: pages.first.address(), length: pages.count * PAGE_SIZE as u64 }
    }
}

/// A userfaultfd for asynchronous write protection.
#[derive(Debug)]
pub struct WriteProtection {
    descriptor: OwnedFd,
}

impl WriteProtection {
    /// Of a userfaultfd on which UFFDIO_API was not called yet.
    ///
    /// # Errors
    /// EINVAL: the kernel does not have asynchronous write protection.
    pub fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let protection = Self { descriptor };
        let mut arg = ApiArg { version: API_VERSION, features: FEATURES, ioctls: 0 };
        protection.request(API, &raw mut arg as usize)?;
        Ok(protection)
    }

    /// Of our own memory.
    ///
    /// # Errors
    /// What userfaultfd(2) says, or [`WriteProtection::open`].
    pub fn own() -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave it to us.
        Self::open(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Puts the mappings in this range under our watch. Does nothing to those that are already.
    ///
    /// # Errors
    /// EBUSY: another userfaultfd watches one of them; EPERM: one can never be written; EINVAL: nothing is mapped there; ENOMEM:
    /// the address space is gone (execve, exit), or has too many mappings.
    pub fn register(&self, pages: PageRange) -> io::Result<()> {
        let mut arg = RegisterArg { range: pages.into(), mode: MODE_WP, ioctls: 0 };
        self.request(REGISTER, &raw mut arg as usize)
    }

    /// Ends our watch over this range.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn unregister(&self, pages: PageRange) -> io::Result<()> {
        let mut arg = RangeArg::from(pages);
        self.request(UNREGISTER, &raw mut arg as usize)
    }

    /// Takes all protection off this range: every page in it counts as written. Marks of an earlier registration must not be
    /// believed.
    ///
    /// # Errors
    /// ENOENT: a part of the range is not registered; ESRCH: the address space is gone.
    pub fn lift(&self, pages: PageRange) -> io::Result<()> {
        let mut arg = ProtectArg { range: pages.into(), mode: 0 };
        self.request(WRITEPROTECT, &raw mut arg as usize)
    }

    fn request(&self, what: libc::c_ulong, arg: usize) -> io::Result<()> {
        // SAFETY: every caller passes the address of the structure that the request is defined with, alive for the call.
        let answer = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), what, arg) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Does this kernel do all that is needed? Tried on two pages of our own, because a kernel may know the words and have the feature
/// switched off.
///
/// # Errors
/// What it does not do.
pub fn probe() -> io::Result<()> {
    let length = NonZeroUsize::new(2 * PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
    let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let memory = unsafe { mmap_anonymous(None, length, access, flags) }?;
    let probed = probe_with(memory.cast());
    // SAFETY: the mapping made above, which nobody refers to any more.
    unsafe { munmap(memory, length.get()) }?;
    probed
}

/// `memory`: a mapping of two pages.
fn probe_with(memory: NonNull<u8>) -> io::Result<()> {
    let start = memory.as_ptr() as u64;
    let pages = PageRange::of_addresses(start, start + 2 * PAGE_SIZE as u64);
    let write = |page: usize| {
        // SAFETY: inside the mapping, to which nobody has a reference.
        unsafe { memory.add(page * PAGE_SIZE).write_volatile(1) };
    };
    write(0);
    write(1);
    let protection = WriteProtection::own()?;
    protection.register(pages)?;
    protection.lift(pages)?;
    let pagemap = Pagemap::of(File::open("/proc/self/pagemap")?, Method::Scan);
    let mut scratch = Scratch::default();
    let mut look = |rearm| {
        let mut marks = Marks::default();
        pagemap.marks(pages, false, rearm, &mut scratch, &mut marks)?;
        Ok::<_, io::Error>(marks.written.iter().map(|run| run.count).sum::<u64>())
    };
    let (first, clean) = (look(Rearm::Yes)?, look(Rearm::Yes)?);
    write(0);
    let (dirty, still) = (look(Rearm::No)?, look(Rearm::Yes)?);
    protection.unregister(pages)?;
    if (first, clean, dirty, still) == (2, 0, 1, 1) {
        Ok(())
    } else {
        Err(io::Error::other(format!("write protection reports {first}, {clean}, {dirty}, {still} pages")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_the_tracker_needs() {
        probe().unwrap();
    }

    #[test]
    fn memory_of_somebody_else_is_refused() {
        let page = nix::libc::PROT_READ | nix::libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), PAGE_SIZE, page, flags, -1, 0)
        };
        let pages = PageRange::of_addresses(start as u64, start as u64 + PAGE_SIZE as u64);
        let (first, second) = (WriteProtection::own().unwrap(), WriteProtection::own().unwrap());
        first.register(pages).unwrap();
        first.register(pages).unwrap();
        assert_eq!(second.register(pages).unwrap_err().raw_os_error(), Some(libc::EBUSY));
        drop(first);
        second.register(pages).unwrap();
        // SAFETY: the mapping made above, which nobody uses.
        unsafe { libc::munmap(start, PAGE_SIZE) };
        assert_eq!(second.lift(pages).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}
