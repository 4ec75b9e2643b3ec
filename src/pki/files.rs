//! Certificate files on disk: written whole or not at all, keys for their owner's eyes only.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::PkiError;
use super::issue::Issued;

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

/// Puts a key and its certificate into `dir`. Each is written beside its place, flushed, and moved there whole; without
/// `force` nothing that exists is replaced, not even when it appears in between.
pub(super) fn publish(issued: &Issued, cert: &str, key: &str, force: bool) -> Result<(), PkiError> {
    let dir = issued.key.parent().unwrap_or_else(|| Path::new("."));
    private_directory(dir)?;
    if let Some(taken) =
        [&issued.key, &issued.cert].into_iter().find(|path| fs::symlink_metadata(path).is_ok())
        && !force
    {
        return Err(PkiError::Exists { path: taken.clone() });
    }
    put(dir, &issued.key, key, KEY_MODE, force)?;
    put(dir, &issued.cert, cert, CERTIFICATE_MODE, force)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("flush", dir))
}

fn put(dir: &Path, path: &Path, text: &str, mode: u32, force: bool) -> Result<(), PkiError> {
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)
        .map_err(io_error("create a file in", dir))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all());
    written.map_err(io_error("write", path))?;
    let placed = if force { file.persist(path) } else { file.persist_noclobber(path) };
    match placed {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            Err(PkiError::Exists { path: path.to_owned() })
        }
        Err(error) => Err(io_error("create", path)(error.error)),
    }
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
