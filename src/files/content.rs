//! Content of regular files in blocks: digests, holes, and writing a block so that holes stay holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::FileStat;
use nix::unistd::{Whence, lseek};

use super::entry::{ZEROS, block_count, block_len};
use crate::model::Digest;
use crate::model::limits::FILE_BLOCK;

/// Granularity of the holes that are kept inside a block: file systems allocate in pages or larger units.
const HOLE: usize = 4096;

/// What a file's content is known to be: as long as these values stay the same, and the last change was not too recent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileKey {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) mtime: (i64, i64),
    pub(super) ctime: (i64, i64),
}

impl FileKey {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// What stays the same when the file changes.
    pub(super) fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }
}

/// Digests of all blocks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) blocks: Arc<[Digest]>,
    pub(super) sparse: bool,
}

impl Content {
    pub(super) fn empty() -> Self {
        Self { blocks: Arc::from([]), sparse: false }
    }
}

/// Digest of one block.
pub(super) fn block_digest(data: &[u8]) -> Digest {
    if is_zero(data) { ZEROS } else { Digest(*blake3::hash(data).as_bytes()) }
}

fn is_zero(data: &[u8]) -> bool {
    data.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A buffer for one block.
pub(super) fn block_buffer() -> Vec<u8> {
    vec![0; FILE_BLOCK]
}

/// Digests of the first `size` bytes of a file. What a concurrent writer cut off reads as zeros; the caller compares lstat(2)
/// before and after.
pub(super) fn hash_file(file: &File, size: u64, buffer: &mut [u8]) -> io::Result<Content> {
    let count = block_count(size);
    let mut blocks = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let mut extents = Extents { file, size, start: 0, end: 0, holes: false };
    for block in 0..count {
        let (from, len) = (block * FILE_BLOCK as u64, block_len(size, block));
        blocks.push(if extents.has_data(from, from + len as u64)? {
            let data = &mut buffer[..len];
            let filled = read_full(file, data, from)?;
            data[filled..].fill(0);
            block_digest(data)
        } else {
            ZEROS
        });
    }
    Ok(Content { blocks: blocks.into(), sparse: extents.holes })
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, data: &mut [u8], from: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Walks over a file's data extents (SEEK_DATA, SEEK_HOLE: lseek(2)); the newest one is `start..end`.
struct Extents<'a> {
    file: &'a File,
    size: u64,
    start: u64,
    end: u64,
    holes: bool,
}

impl Extents<'_> {
    /// Whether there is data in `from..to`; called with ascending ranges.
    fn has_data(&mut self, from: u64, to: u64) -> io::Result<bool> {
        while self.end <= from && self.end < self.size {
            self.advance()?;
        }
        Ok(self.start < to && self.end > from)
    }

    fn advance(&mut self) -> io::Result<()> {
        let before = self.end;
        self.start = self.seek(before, Whence::SeekData)?;
        self.end = self.seek(self.start, Whence::SeekHole)?;
        self.holes |= self.start > before || self.end < self.size;
        Ok(())
    }

    fn seek(&self, from: u64, whence: Whence) -> io::Result<u64> {
        if from >= self.size {
            return Ok(self.size);
        }
        let offset = i64::try_from(from).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match lseek(self.file, offset, whence) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(self.size).min(self.size)),
            // No data (or the file became shorter) up to the end.
            Err(Errno::ENXIO) => Ok(self.size),
            // The file system does not know holes: all of it is data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                Ok(if matches!(whence, Whence::SeekData) { from } else { self.size })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes a block. `fresh`: nothing was ever written there, it reads as zeros and takes no room. In a sparse file, pages of
/// nothing but zeros become holes.
pub(super) fn write_block(file: &File, from: u64, data: &[u8], sparse: bool, fresh: bool) -> io::Result<()> {
    if !sparse || !(fresh || punch(file, from, data.len())?) {
        return file.write_all_at(data, from);
    }
    let mut at = 0;
    while at < data.len() {
        let end = next_run(data, at);
        if !is_zero(&data[at..end]) {
            file.write_all_at(&data[at..end], from + at as u64)?;
        }
        at = end;
    }
    Ok(())
}

/// The end of the run of pages, beginning at `at`, that are all zero or all not.
fn next_run(data: &[u8], at: usize) -> usize {
    let page = |from: usize| &data[from..(from + HOLE).min(data.len())];
    let zero = is_zero(page(at));
    let mut end = (at + HOLE).min(data.len());
    while end < data.len() && is_zero(page(end)) == zero {
        end = (end + HOLE).min(data.len());
    }
    end
}

/// Makes a range read as zeros: a hole when the file is sparse, real zeros otherwise.
pub(super) fn write_zeros(file: &File, from: u64, len: usize, sparse: bool, fresh: bool) -> io::Result<()> {
    if sparse && (fresh || punch(file, from, len)?) {
        return Ok(());
    }
    file.write_all_at(&vec![0; len], from)
}

/// Gives the range back to the file system; false when it does not know holes (fallocate(2)).
fn punch(file: &File, from: u64, len: usize) -> io::Result<bool> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (from, len) = (i64::try_from(from).map_err(invalid)?, i64::try_from(len).map_err(invalid)?);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, from, len) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = FILE_BLOCK as u64;

    #[test]
    fn holes_are_found_and_only_data_is_hashed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * B + 5).unwrap();
        file.write_all_at(b"x", 3 * B + 4096).unwrap();
        file.write_all_at(b"end", 10 * B + 2).unwrap();
        let content = hash_file(&file, 10 * B + 5, &mut block_buffer()).unwrap();
        assert!(content.sparse);
        let with_data: Vec<_> = (0..11).filter(|block| content.blocks[*block] != ZEROS).collect();
        assert_eq!(with_data, [3, 10]);
        assert_eq!(content.blocks[10], block_digest(b"\0\0end"));
    }

    #[test]
    fn a_dense_file_is_not_sparse_even_when_it_holds_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0; 3 * FILE_BLOCK], 0).unwrap();
        let content = hash_file(&file, 3 * B, &mut block_buffer()).unwrap();
        assert!(!content.sparse);
        assert_eq!(&content.blocks[..], [ZEROS; 3]);
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_gives_zeros_not_a_panic() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let content = hash_file(&file, 3 * B, &mut block_buffer()).unwrap();
        assert_eq!(content.blocks.len(), 3);
        assert_eq!(content.blocks[2], ZEROS);
    }

    #[test]
    fn zero_pages_in_a_sparse_block_take_no_room() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(B).unwrap();
        let mut data = block_buffer();
        data[5 * HOLE] = 1;
        data[FILE_BLOCK - 1] = 2;
        write_block(&file, 0, &data, true, true).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * HOLE as u64);
        let mut back = block_buffer();
        read_full(&file, &mut back, 0).unwrap();
        assert_eq!(back, data);
        write_zeros(&file, 0, FILE_BLOCK, false, false).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= B);
        write_block(&file, 0, &data, true, false).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * HOLE as u64);
        read_full(&file, &mut back, 0).unwrap();
        assert_eq!(back, data);
    }
}
