//! Gives a file its owner, mode, extended attributes and times. The order matters: chown(2) clears setuid bits and file
//! capabilities, writing content does, too; setting an ACL changes the mode; everything changes the times. Nothing here follows
//! a symbolic link.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::beneath::Place;
use super::entry::{Entry, Kind};
use super::error::{Doing, FilesError};
use super::overlay::{is_label, travels};

/// Makes the file at `place` what `entry` says, content apart. The file exists, has the right type and its final content.
pub(super) fn apply(place: &Place, entry: &Entry) -> Result<FileStat, FilesError> {
    let path = &entry.path[..];
    let name = &place.name[..];
    let stat = place.stat().doing("look at", path)?;
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(&*place.dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .doing("change the owner of", path)?;
    }
    apply_xattrs(place, entry)?;
    if entry.kind != Kind::Symlink {
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(&*place.dir, name, mode, FchmodatFlags::NoFollowSymlink)
            .doing("change the mode of", path)?;
    }
    apply_times(place, entry)?;
    place.stat().doing("look at", path)
}

/// Only the modification time; the access time is left alone.
fn apply_times(place: &Place, entry: &Entry) -> Result<(), FilesError> {
    let mtime = TimeSpec::new(entry.mtime_s, i64::from(entry.mtime_ns));
    utimensat(&*place.dir, &place.name[..], &TimeSpec::UTIME_OMIT, &mtime, UtimensatFlags::NoFollowSymlink)
        .doing("set the modification time of", &entry.path)
}

fn apply_xattrs(place: &Place, entry: &Entry) -> Result<(), FilesError> {
    let path = &entry.path[..];
    let file = place.proc_path();
    let present = match xattr::list(&file) {
        Ok(names) => names.collect(),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported && entry.xattrs.is_empty() => {
            return Ok(());
        }
        Err(error) => return Err(error).doing("list the extended attributes of", path),
    };
    let present: Vec<_> = present;
    for name in &present {
        let bytes = name.as_bytes();
        let wanted = entry.xattrs.iter().any(|(wanted, _)| wanted == bytes);
        if !wanted && travels(bytes) && !is_label(bytes) {
            match xattr::remove(&file, name) {
                // Removing one ACL can take another attribute with it.
                Err(error) if error.raw_os_error() == Some(Errno::ENODATA as i32) => {}
                other => other.doing("remove an extended attribute of", path)?,
            }
        }
    }
    for (name, value) in entry.xattrs.iter() {
        let name = OsStr::from_bytes(name);
        let same = present.iter().any(|known| known == name)
            && xattr::get(&file, name).doing("read an extended attribute of", path)?.as_ref() == Some(value);
        if !same {
            xattr::set(&file, name, value).doing("set an extended attribute of", path)?;
        }
    }
    Ok(())
}
