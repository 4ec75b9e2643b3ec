//! Which pages of a process are populated: `ioctl(PAGEMAP_SCAN)` on /proc/PID/pagemap (Linux 6.7, Documentation/admin-guide/mm/
//! pagemap.rst), or the classic 8 bytes per page of the same file on older kernels.
//!
//! A pagemap descriptor is bound to the address space it was opened on: after execve it silently reports nothing. So open it
//! anew for every look.

#![expect(unsafe_code, reason = "PAGEMAP_SCAN has no wrapper in nix or rustix")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::libc;

use crate::model::layout::push_merged;
use crate::model::page::{PAGE_SIZE, PageIndex, PageRange};

/// Written since it was last protected (`PAGE_IS_WRITTEN`); the other way round than the bit in the page table.
pub const WRITTEN: u64 = 1 << 1;
/// Backed by a file's page cache or by shared memory (`PAGE_IS_FILE`).
pub const FILE: u64 = 1 << 2;
/// In memory (`PAGE_IS_PRESENT`).
pub const PRESENT: u64 = 1 << 3;
/// In swap, or a marker that looks like it (`PAGE_IS_SWAPPED`).
pub const SWAPPED: u64 = 1 << 4;

/// The zero page that all share (`PAGE_IS_PFNZERO`): never written.
pub const PFNZERO: u64 = 1 << 5;
/// A guard (`MADV_GUARD_INSTALL`; `PAGE_IS_GUARD`, Linux 6.15): looks like swap, and nobody can read it.
const GUARD: u64 = 1 << 8;

/// `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `PM_SCAN_WP_MATCHING`: protect the written pages again, in the same walk.
const WP_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: EPERM where no asynchronous write protection is registered, instead of saying nothing.
const CHECK_WPASYNC: u64 = 1 << 1;
/// Regions asked for in one call: 24 bytes each.
const REGIONS: usize = 2048;
/// Entries of the classic pagemap read at once.
const CLASSIC_ENTRIES: usize = 4096;

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Memory for the kernel's answers, kept from one mapping to the next.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Region>);

/// What is known of a range under write protection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Marks {
    /// Populated pages that belong to the process, ascending.
    pub populated: Vec<PageRange>,
    /// Those of them that may have been written, ascending.
    pub written: Vec<PageRange>,
}

/// Are written pages protected again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rearm {
    /// Yes: the next look shows what was written after this one.
    Yes,
    /// No: the next look shows the same pages and more.
    No,
}

/// How the kernel is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `ioctl(PAGEMAP_SCAN)`: about 3 ms per GiB, nothing for holes.
    Scan,
    /// Reading /proc/PID/pagemap: about 25 ms per GiB, holes included.
    Classic,
}

/// Which method works here, tried on a page of our own. An empty range would succeed on any kernel that knows the file, so the
/// probe looks at a real page.
///
/// # Errors
/// When neither works: /proc is missing, or we are not allowed.
pub fn probe() -> io::Result<Method> {
    let page = vec![1u8; 2 * PAGE_SIZE];
    let address = (page.as_ptr() as u64).next_multiple_of(PAGE_SIZE as u64);
    let own = i32::try_from(std::process::id()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let pages = PageRange::of_addresses(address, address + PAGE_SIZE as u64);
    for method in [Method::Scan, Method::Classic] {
        let mut found = Vec::new();
        match Pagemap::open(own, method)?.populated(pages, false, &mut found) {
            Ok(()) if found == [pages] => return Ok(method),
            Ok(()) => return Err(io::Error::other("pagemap does not show a page that was just written")),
            Err(e) if method == Method::Scan && e.raw_os_error() == Some(libc::ENOTTY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Does this kernel tell guards from swap? One that does not has none.
fn knows_guards() -> bool {
    static KNOWS: OnceLock<bool> = OnceLock::new();
    *KNOWS.get_or_init(|| {
        let Ok(own) = File::open("/proc/self/pagemap") else { return false };
        let mut arg = ScanArg { size: size_of::<ScanArg>() as u64, return_mask: GUARD, ..ScanArg::default() };
        // SAFETY: `arg` is a pm_scan_arg of the size it states, for an empty range and without a vector: nothing is written but
        // itself. Categories that the kernel does not know are refused with EINVAL before anything else.
        unsafe { libc::ioctl(own.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) >= 0 }
    })
}

/// The page tables of one process, as they are while this is open.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    method: Method,
}

impl Pagemap {
    /// `task` is a process or thread id.
    ///
    /// # Errors
    /// What open(2) says: the process is gone, or we are not allowed to look.
    pub fn open(task: i32, method: Method) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{task}/pagemap"))?, method })
    }

    /// As [`Pagemap::open`], of a file that is open.
    pub(super) fn of(file: File, method: Method) -> Self {
        Self { file, method }
    }

    /// Appends the populated (present or swapped) runs of `pages`, ascending and merged. With `only_private`, pages that still
    /// belong to a file are left out: what remains of a private file mapping are its copied-on-write pages.
    ///
    /// # Errors
    /// What ioctl(2) or pread(2) says; ENOTTY from [`Method::Scan`] on a kernel before 6.7.
    pub fn populated(
        &self,
        pages: PageRange,
        only_private: bool,
        out: &mut Vec<PageRange>,
    ) -> io::Result<()> {
        match self.method {
            Method::Scan => self.scan(pages, only_private, out),
            Method::Classic => self.classic(pages, only_private, out),
        }
    }

    fn scan(&self, pages: PageRange, only_private: bool, out: &mut Vec<PageRange>) -> io::Result<()> {
        // Asking for FILE makes the kernel look at every folio and is some times slower: only where it matters.
        let return_mask = PRESENT | SWAPPED | if only_private { FILE } else { 0 };
        self.walk(pages, 0, return_mask, &mut Scratch::default(), |region, run| {
            if !(only_private && region & FILE != 0) {
                push_merged(out, run);
            }
        })
    }

    /// Appends the pages of a private mapping that are the process's own: neither a file's nor the zero page that all share.
    /// [`Method::Scan`] only, and some times slower than [`Pagemap::populated`].
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn own(&self, pages: PageRange, out: &mut Vec<PageRange>) -> io::Result<()> {
        let return_mask = PRESENT | SWAPPED | FILE | PFNZERO;
        self.walk(pages, 0, return_mask, &mut Scratch::default(), |region, run| {
            if region & (FILE | PFNZERO) == 0 {
                push_merged(out, run);
            }
        })
    }

    /// Appends what of `pages` is populated and what was written, and protects the written pages again if asked. The pages must be
    /// under asynchronous write protection (see [`super::uffd_wp`]) and of one mapping. `file`: of a private mapping of a file,
    /// whose pages that still belong to the file are left out, and where a page that is not in memory counts as written: what
    /// looks like swap may be a mark that outlived its page.
    ///
    /// Holes get no page tables and no marks by this way of asking, which would make CRIU's images grow.
    ///
    /// # Errors
    /// EPERM when a page is not under write protection. Then written pages before it may have been protected again without
    /// being reported: all pages of the range have to be taken for written.
    pub fn marks(
        &self,
        pages: PageRange,
        file: bool,
        rearm: Rearm,
        scratch: &mut Scratch,
        out: &mut Marks,
    ) -> io::Result<()> {
        let flags = CHECK_WPASYNC | if rearm == Rearm::Yes { WP_MATCHING } else { 0 };
        let return_mask = WRITTEN | PRESENT | SWAPPED | if file { FILE } else { 0 };
        self.walk(pages, flags, return_mask, scratch, |region, run| {
            if file && region & FILE != 0 {
                return;
            }
            push_merged(&mut out.populated, run);
            if region & WRITTEN != 0 || (file && region & PRESENT == 0) {
                push_merged(&mut out.written, run);
            }
        })
    }

    fn walk(
        &self,
        pages: PageRange,
        flags: u64,
        return_mask: u64,
        scratch: &mut Scratch,
        mut each: impl FnMut(u64, PageRange),
    ) -> io::Result<()> {
        let without = if knows_guards() { GUARD } else { 0 };
        let regions = &mut scratch.0;
        regions.resize(REGIONS, Region::default());
        let end = pages.end().address();
        let mut start = pages.first.address();
        while start < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                category_inverted: without,
                category_mask: without,
                category_anyof_mask: PRESENT | SWAPPED,
                return_mask,
                ..ScanArg::default()
            };
            // SAFETY: `arg` is a pm_scan_arg of the size it states; `vec` points to REGIONS page_regions that live and are not
            // borrowed for the length of the call; the kernel writes at most `vec_len` of them.
            let got = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let count = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
            for region in &regions[..count] {
                each(region.categories, PageRange::of_addresses(region.start, region.end));
            }
            // `walk_end` is stale when the kernel flushed its own buffer; a vector that is not full means the walk is complete, and
            // a full one is continued behind its last region.
            match regions[..count].last() {
                Some(last) if count == REGIONS => start = last.end,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn classic(&self, pages: PageRange, only_private: bool, out: &mut Vec<PageRange>) -> io::Result<()> {
        let mut bytes = vec![0u8; CLASSIC_ENTRIES * 8];
        let mut next = pages.first.0;
        while next < pages.end().0 {
            let want = usize::try_from(pages.end().0 - next).unwrap_or(usize::MAX).min(CLASSIC_ENTRIES);
            let got = self.file.read_at(&mut bytes[..want * 8], next * 8)? / 8;
            if got == 0 {
                return Ok(());
            }
            for entry in bytes[..got * 8].as_chunks::<8>().0 {
                let entry = u64::from_ne_bytes(*entry);
                let file = entry & (1 << 61) != 0;
                if entry & (0b11 << 62) != 0 && !(only_private && file) {
                    push_merged(out, PageRange { first: PageIndex(next), count: 1 });
                }
                next += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use std::num::NonZeroUsize;

    /// Anonymous memory of which every `step`-th page is touched.
    fn with_mapping(pages: usize, step: usize, check: impl FnOnce(PageRange)) {
        let length = NonZeroUsize::new(pages * PAGE_SIZE).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, unmapped below, touched only inside.
        unsafe {
            let start =
                mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags).unwrap();
            libc::madvise(start.as_ptr(), length.get(), libc::MADV_NOHUGEPAGE);
            for page in (0..pages).step_by(step) {
                start.cast::<u8>().add(page * PAGE_SIZE).write_volatile(1);
            }
            let address = start.as_ptr() as u64;
            check(PageRange::of_addresses(address, address + length.get() as u64));
            munmap(start, length.get()).unwrap();
        }
    }

    fn populated(method: Method, pages: PageRange) -> Vec<PageRange> {
        let mut out = Vec::new();
        let own = i32::try_from(std::process::id()).unwrap();
        Pagemap::open(own, method).unwrap().populated(pages, false, &mut out).unwrap();
        out
    }

    #[test]
    fn both_methods_agree_also_beyond_one_buffer() {
        assert_eq!(probe().unwrap(), Method::Scan);
        // More than REGIONS runs, and more than CLASSIC_ENTRIES pages.
        with_mapping(10_000, 2, |pages| {
            let scan = populated(Method::Scan, pages);
            assert_eq!(scan.len(), 5000);
            assert!(scan.iter().all(|run| run.count == 1));
            assert_eq!(scan, populated(Method::Classic, pages));
        });
    }

    #[test]
    fn a_guard_is_no_page() {
        /// `MADV_GUARD_INSTALL`, include/uapi/asm-generic/mman-common.h.
        const MADV_GUARD_INSTALL: i32 = 102;
        with_mapping(8, 1, |pages| {
            let guard = pages.first.address() + 2 * PAGE_SIZE as u64;
            // SAFETY: two pages of the mapping that was just made; nothing reads them afterwards.
            let installed =
                unsafe { libc::madvise(guard as *mut libc::c_void, 2 * PAGE_SIZE, MADV_GUARD_INSTALL) };
            if installed != 0 {
                println!("skipped: this kernel has no guards");
                return;
            }
            let first = pages.first.0;
            let range = |first, count| PageRange { first: PageIndex(first), count };
            assert_eq!(populated(Method::Scan, pages), [range(first, 2), range(first + 4, 4)]);
        });
    }

    #[test]
    fn an_untouched_hole_shows_nothing_and_a_full_one_is_one_run() {
        with_mapping(1 << 18, 1 << 18, |pages| {
            assert_eq!(populated(Method::Scan, pages), [PageRange { first: pages.first, count: 1 }]);
        });
        with_mapping(1000, 1, |pages| assert_eq!(populated(Method::Scan, pages), [pages]));
    }
}
