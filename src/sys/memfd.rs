//! Sparse memory files: pages at `page * PAGE_SIZE`, holes where nothing was written. Offsets of pages are in pages, so that no
//! caller can be off by less than one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::limits::PAGE_INDEX_MAX;
use crate::model::page::{PAGE_SIZE, PageRange};

/// A sparse file in memory, without a name, gone with its last descriptor (memfd_create(2)).
#[derive(Debug)]
pub struct MemFile {
    file: File,
}

fn offset_of(page: u64) -> io::Result<u64> {
    if page >= PAGE_INDEX_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "page number beyond 57-bit addresses"));
    }
    Ok(page * PAGE_SIZE as u64)
}

impl From<OwnedFd> for MemFile {
    /// A file that somebody else made.
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }
}

impl From<MemFile> for OwnedFd {
    fn from(file: MemFile) -> Self {
        file.file.into()
    }
}

impl AsFd for MemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MemFile {
    /// An empty file; `name` is what /proc/PID/fd shows.
    ///
    /// # Errors
    /// What memfd_create(2) says: out of descriptors or of memory.
    pub fn create(name: &str) -> io::Result<Self> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        Ok(Self { file: File::from(fd) })
    }

    /// Writes whole pages from `first` on. The file grows as needed.
    ///
    /// # Errors
    /// What pwrite(2) says; a page number out of range is `InvalidInput`.
    pub fn write_pages(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len().is_multiple_of(PAGE_SIZE), "only whole pages are written");
        self.file.write_all_at(bytes, offset_of(first)?)
    }

    /// Writes anywhere, for what is smaller than a page.
    ///
    /// # Errors
    /// What pwrite(2) says.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Reads whole pages from `first` on; holes read as zero, also beyond the end of the file.
    ///
    /// # Errors
    /// What pread(2) says; a page number out of range is `InvalidInput`.
    pub fn read_pages(&self, first: u64, bytes: &mut [u8]) -> io::Result<()> {
        assert!(bytes.len().is_multiple_of(PAGE_SIZE), "only whole pages are read");
        let mut done = 0;
        let start = offset_of(first)?;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], start + done as u64) {
                Ok(0) => {
                    bytes[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives the memory of these pages back; they read as zero afterwards (fallocate(2), FALLOC_FL_PUNCH_HOLE).
    ///
    /// # Errors
    /// What fallocate(2) says.
    pub fn punch(&self, pages: PageRange) -> io::Result<()> {
        if pages.count == 0 {
            return Ok(());
        }
        let start = offset_of(pages.first.0)?;
        let end = offset_of(pages.end().0 - 1)? + PAGE_SIZE as u64;
        let signed =
            |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        fallocate(
            &self.file,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            signed(start)?,
            signed(end - start)?,
        )?;
        Ok(())
    }

    /// Memory that the file holds, bytes (fstat(2), st_blocks).
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits::PAGE_INDEX_MAX;
    use crate::model::page::PageIndex;

    #[test]
    fn a_page_at_the_top_of_the_address_space_costs_one_page() {
        let file = MemFile::create("decamp-test").unwrap();
        let top = PAGE_INDEX_MAX - 1;
        file.write_pages(top, &[7; PAGE_SIZE]).unwrap();
        assert_eq!(file.allocated_bytes().unwrap(), PAGE_SIZE as u64);
        let mut back = [0; 2 * PAGE_SIZE];
        file.read_pages(top - 1, &mut back).unwrap();
        assert_eq!(back[..PAGE_SIZE], [0; PAGE_SIZE]);
        assert_eq!(back[PAGE_SIZE..], [7; PAGE_SIZE]);
        file.punch(PageRange { first: PageIndex(top), count: 1 }).unwrap();
        assert_eq!(file.allocated_bytes().unwrap(), 0);
        assert!(file.write_pages(PAGE_INDEX_MAX, &[0; PAGE_SIZE]).is_err());
    }

    #[test]
    fn beyond_the_end_reads_zero() {
        let file = MemFile::create("decamp-test").unwrap();
        let mut back = [9; PAGE_SIZE];
        file.read_pages(123, &mut back).unwrap();
        assert_eq!(back, [0; PAGE_SIZE]);
    }
}
