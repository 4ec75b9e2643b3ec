//! Certificate files on disk: written whole or not at all, keys for their owner's eyes only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::error::PkiError;

/// Far above any chain of certificates.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// Mode of a key file.
const KEY_MODE: u32 = 0o600;
/// Mode of a certificate file: nothing in it is secret.
const CERTIFICATE_MODE: u32 = 0o644;

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { doing, path, source }
}

/// Reads a certificate file.
pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    read_open(File::open(path).map_err(io_error("read", path))?, path)
}

/// Reads a private key, unless anybody but its owner could have read or written it. The checks are made on the open file,
/// so that it cannot be exchanged between the check and the reading.
pub(super) fn read_key(path: &Path) -> Result<String, PkiError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let metadata = file.metadata().map_err(io_error("inspect", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PkiError::KeyMode { path: path.to_owned(), mode });
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != me {
        return Err(PkiError::KeyOwner { path: path.to_owned(), owner: metadata.uid(), me });
    }
    read_open(file, path)
}

fn read_open(file: File, path: &Path) -> Result<String, PkiError> {
    let mut text = String::new();
    let bytes = file.take(PEM_BYTES_MAX + 1).read_to_string(&mut text).map_err(io_error("read", path))?;
    if bytes as u64 > PEM_BYTES_MAX {
        return Err(PkiError::TooLarge { path: path.to_owned(), max: PEM_BYTES_MAX });
    }
    Ok(text)
}

/// A file about to be published.
pub(super) struct NewFile<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) is_key: bool,
}

/// Makes the directory `target` with these files inside, all or nothing: they are written beside it, flushed to the disk,
/// and moved into place by one rename. With `force` an older directory is moved out of the way and removed.
pub(super) fn publish(target: &Path, files: &[NewFile<'_>], force: bool) -> Result<(), PkiError> {
    let parent = target.parent().unwrap_or_else(|| Path::new("."));
    private_directory(parent)?;
    let exists = fs::symlink_metadata(target).is_ok();
    if exists && !force {
        return Err(PkiError::Exists { path: target.to_owned() });
    }
    let staging =
        tempfile::Builder::new().prefix(".new-").tempdir_in(parent).map_err(io_error("create in", parent))?;
    let fresh = staging.path().join("fresh");
    DirBuilder::new().mode(0o700).create(&fresh).map_err(io_error("create", &fresh))?;
    for file in files {
        write_new(&fresh.join(file.name), file)?;
    }
    sync_directory(&fresh)?;
    if exists {
        fs::rename(target, staging.path().join("old")).map_err(io_error("move away", target))?;
    }
    fs::rename(&fresh, target).map_err(io_error("create", target))?;
    sync_directory(parent)
}

fn write_new(path: &Path, file: &NewFile<'_>) -> Result<(), PkiError> {
    let mode = if file.is_key { KEY_MODE } else { CERTIFICATE_MODE };
    let mut open = OpenOptions::new();
    open.write(true).create_new(true).mode(mode);
    let mut out = open.open(path).map_err(io_error("create", path))?;
    out.write_all(file.text.as_bytes()).and_then(|()| out.sync_all()).map_err(io_error("write", path))
}

fn sync_directory(path: &Path) -> Result<(), PkiError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("flush", path))
}

/// Creates the directory, and those above it, for us alone; one that exists must not be writable by others, who could
/// exchange the files inside.
fn private_directory(path: &Path) -> Result<(), PkiError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))?;
    let mode = fs::metadata(path).map_err(io_error("inspect", path))?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(PkiError::DirectoryMode { path: path.to_owned(), mode });
    }
    Ok(())
}
