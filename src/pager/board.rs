//! What the keeper must know when the worker is dead: a small file in memory that the worker writes and the keeper reads.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use super::convict::Convict;
use crate::sys::memfd::MemFile;

/// Two counters, the length of the JSON, the JSON.
const JSON_AT: u64 = 24;
const JSON_MAX: u64 = 64 << 10;

/// Counters of missing and of all pages, and what to kill.
#[derive(Debug)]
pub(super) struct Board {
    file: File,
}

impl Board {
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(OwnedFd::from(MemFile::create("decamp-pager-board")?));
        file.set_len(JSON_AT)?;
        Ok(Self { file })
    }

    pub(super) fn set_pages(&self, missing: u64, total: u64) -> io::Result<()> {
        let bytes = [missing.to_le_bytes(), total.to_le_bytes()].concat();
        self.file.write_all_at(&bytes, 0)
    }

    /// Pages missing and pages in all; not younger than a moment before the worker's end.
    pub(super) fn pages(&self) -> (u64, u64) {
        (self.word(0), self.word(8))
    }

    pub(super) fn set_convict(&self, convict: &Convict) -> io::Result<()> {
        let json = serde_json::to_vec(convict)?;
        // The length last: until it is there, nothing is.
        self.file.write_all_at(&json, JSON_AT)?;
        self.file.write_all_at(&(json.len() as u64).to_le_bytes(), JSON_AT - 8)
    }

    pub(super) fn convict(&self) -> Option<Convict> {
        let length = self.word(JSON_AT - 8);
        let mut json = vec![0; usize::try_from(length.min(JSON_MAX)).unwrap_or(0)];
        self.file.read_exact_at(&mut json, JSON_AT).ok()?;
        serde_json::from_slice(&json).ok()
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).map_or(0, |()| u64::from_le_bytes(bytes))
    }
}
