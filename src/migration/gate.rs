//! A restore that is started before its images are there. The first image that CRIU opens, the inventory, is a named pipe at
//! first: CRIU has started, the runtime has prepared everything, and it waits there.
//!
//! ```text
//! closed ── open(inventory) ──▶ the inventory's bytes in the pipe, the file itself in the pipe's place, then end of file
//!    └───── dropped, or the agent died ──▶ end of file without a byte: CRIU gives up, and the runtime cleans up after itself
//! ```
//! The agent has the pipe open for reading and writing: CRIU's open(2) returns at once, and its read(2) ends with the last writer,
//! which is the agent, whatever becomes of it (fifo(7)). CRIU must never wait at a pipe that nobody will write to: the pipe is
//! unlinked before it is closed, and [`release`] does the same for an agent that died before CRIU came that far.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::MigrationError;

/// The image that CRIU reads first (criu/cr-restore.c, `cr_restore_tasks`).
pub(super) const INVENTORY: &str = "inventory.img";

/// CRIU waits, or will wait when it comes so far.
#[derive(Debug)]
pub(super) struct Gate {
    pipe: File,
    path: PathBuf,
    opened: bool,
}

fn open_pipe(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

impl Gate {
    /// Puts the pipe into the images folder, before CRIU is started.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn close(images: &Path) -> Result<Self, MigrationError> {
        let path = images.join(INVENTORY);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| MigrationError::io("create", &path)(errno.into()))?;
        let pipe = open_pipe(&path).map_err(MigrationError::io("open", &path))?;
        Ok(Self { pipe, path, opened: false })
    }

    /// Everything is there: CRIU goes on.
    ///
    /// # Errors
    /// The file system's; an inventory that does not fit into a pipe.
    pub(super) fn open(mut self, inventory: &[u8]) -> Result<(), MigrationError> {
        // A pipe takes 64 KiB without a reader, an inventory has about a hundred bytes.
        self.pipe.write_all(inventory).map_err(MigrationError::io("write", &self.path))?;
        // Who opens it only now must find all of it too: what is in a pipe goes when nobody has it open.
        let whole = self.path.with_extension("new");
        std::fs::write(&whole, inventory).map_err(MigrationError::io("write", &whole))?;
        std::fs::rename(&whole, &self.path).map_err(MigrationError::io("replace", &self.path))?;
        self.opened = true;
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if !self.opened
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.path.display(), %error, "a restore may wait for ever");
        }
    }
}

/// Lets a CRIU that waits at the pipe of an agent that died give up.
pub(super) fn release(images: &Path) {
    let path = images.join(INVENTORY);
    if std::fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_fifo()) {
        match open_pipe(&path) {
            Ok(pipe) => drop(Gate { pipe, path, opened: false }),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a restore of an earlier agent may wait for ever");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn reader(images: &Path) -> std::thread::JoinHandle<Vec<u8>> {
        let path = images.join(INVENTORY);
        std::thread::spawn(move || {
            let mut all = Vec::new();
            File::open(path).unwrap().read_to_end(&mut all).unwrap();
            all
        })
    }

    #[test]
    fn who_waits_and_who_comes_late_read_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::close(dir.path()).unwrap();
        let mut early = File::open(dir.path().join(INVENTORY)).unwrap();
        gate.open(b"inventory").unwrap();
        let mut all = Vec::new();
        early.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"inventory");
        assert_eq!(reader(dir.path()).join().unwrap(), b"inventory");
    }

    #[test]
    fn who_waits_when_it_is_called_off_reads_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::close(dir.path()).unwrap();
        let mut early = File::open(dir.path().join(INVENTORY)).unwrap();
        drop(gate);
        let mut all = Vec::new();
        early.read_to_end(&mut all).unwrap();
        assert!(all.is_empty());
        assert!(!dir.path().join(INVENTORY).exists());
    }

    #[test]
    fn the_pipe_of_a_dead_agent_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INVENTORY);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        // Waits in open(2) or comes to it, because nobody writes.
        let waiting = std::thread::spawn(move || {
            let mut all = Vec::new();
            File::open(path).map(|mut file| file.read_to_end(&mut all).unwrap()).ok();
            all
        });
        release(dir.path());
        assert!(waiting.join().unwrap().is_empty());
        assert!(!dir.path().join(INVENTORY).exists());
    }
}
