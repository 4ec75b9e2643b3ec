//! Which extended attributes travel. Overlay's own ones are judged one by one, because some of them are bound to inodes of the
//! source host. Source: Documentation/filesystems/overlayfs.rst and fs/overlayfs/{util,namei,super}.c.

/// What a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeKind {
    /// The upper directory of an overlay mount, read directly (not through the mount).
    Upper {
        /// The overlay is mounted with `userxattr`: its marks are `user.overlay.*`, not `trusted.overlay.*`.
        userxattr: bool,
    },
    /// A plain directory, or a single file: everything travels as it is.
    Tree,
}

/// What to do with one extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is part of the file.
    Carry,
    /// It says something about the source host only.
    Drop,
    /// Overlay's count of the names that are still below; decided when all names are known.
    LinksBelow,
    /// The tree cannot be understood without it, and it cannot travel.
    Refuse(&'static str),
}

/// Judges an attribute of a file in a tree of this kind.
pub(super) fn judge(kind: TreeKind, name: &[u8]) -> Verdict {
    let mark = match kind {
        TreeKind::Upper { userxattr: false } => name.strip_prefix(b"trusted.overlay."),
        TreeKind::Upper { userxattr: true } => name.strip_prefix(b"user.overlay."),
        TreeKind::Tree => None,
    };
    match mark {
        Some(mark) => judge_mark(mark),
        None if travels(name) => Verdict::Carry,
        None => Verdict::Drop,
    }
}

fn judge_mark(mark: &[u8]) -> Verdict {
    match mark {
        // "This directory hides what is below" and "this file is a whiteout": the point of an upper directory. protattr holds
        // the immutable and append-only flags as letters. All three are plain values without any reference.
        b"opaque" | b"whiteout" | b"protattr" => Verdict::Carry,
        // A file handle of the lower file this one was copied from. At the destination the handle is dangling or, on a cloned
        // disk, names a wrong inode. It only keeps inode numbers constant; without it the upper inode's number is shown.
        b"origin" => Verdict::Drop,
        // "Some children have an origin": only tells readdir to look up inode numbers. No origins, nothing to look up.
        b"impure" => Verdict::Drop,
        // Identity of this upper directory as a file system; the destination's mount makes its own.
        b"uuid" => Verdict::Drop,
        // Entries of the index directory under the work directory, which does not travel.
        b"upper" => Verdict::Drop,
        b"nlink" => Verdict::LinksBelow,
        b"redirect" => Verdict::Refuse(
            "the directory was renamed under redirect_dir=on and takes its content from another name below; mount with redirect_dir=off",
        ),
        b"metacopy" => Verdict::Refuse(
            "only the file's attributes are here, its content is still below (metacopy=on); mount with metacopy=off",
        ),
        // Overlays inside the overlay: the kernel escapes their marks with one more "overlay." and gives them back unescaped.
        nested if nested.starts_with(b"overlay.") => Verdict::Carry,
        _ => Verdict::Refuse("this version does not know what the mark means"),
    }
}

/// Namespaces that belong to a file wherever it is. `security.evm` is a keyed digest over the inode number and the file system's
/// identity: it is worthless elsewhere and would make the file unreadable under EVM appraisal.
pub(super) fn travels(name: &[u8]) -> bool {
    if name == b"security.evm" {
        return false;
    }
    name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix))
}

/// Labels that a host's security modules may put on any file by themselves. They are carried when the source has them, but the
/// destination's own labels are neither removed nor counted as a difference.
pub(super) fn is_label(name: &[u8]) -> bool {
    matches!(name, b"security.selinux" | b"security.ima" | b"security.evm" | b"security.apparmor")
        || name.starts_with(b"security.SMACK64")
}

/// How many names a hard-linked file has in the merged view, from overlay's nlink mark ("U+1", "L-2": relative to the upper or
/// the lower inode's count; fs/overlayfs/util.c) and the upper inode's own count. `None`: cannot be known here.
pub(super) fn merged_names(mark: &[u8], upper_nlink: u64) -> Option<u64> {
    let relative = std::str::from_utf8(mark.strip_prefix(b"U")?).ok()?;
    upper_nlink.checked_add_signed(relative.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: TreeKind = TreeKind::Upper { userxattr: false };

    #[test]
    fn marks_are_judged_by_the_prefix_of_the_mount() {
        assert_eq!(judge(UPPER, b"trusted.overlay.opaque"), Verdict::Carry);
        assert_eq!(judge(UPPER, b"trusted.overlay.origin"), Verdict::Drop);
        assert!(matches!(judge(UPPER, b"trusted.overlay.redirect"), Verdict::Refuse(_)));
        assert!(matches!(judge(UPPER, b"trusted.overlay.news"), Verdict::Refuse(_)));
        assert_eq!(judge(UPPER, b"trusted.overlay.overlay.origin"), Verdict::Carry);
        // A process in the container may write this one: it must not be able to make its container immovable.
        assert_eq!(judge(UPPER, b"user.overlay.redirect"), Verdict::Carry);
        let user = TreeKind::Upper { userxattr: true };
        assert!(matches!(judge(user, b"user.overlay.metacopy"), Verdict::Refuse(_)));
        assert_eq!(judge(user, b"trusted.overlay.metacopy"), Verdict::Carry);
        assert_eq!(judge(TreeKind::Tree, b"trusted.overlay.origin"), Verdict::Carry);
        assert_eq!(judge(TreeKind::Tree, b"system.nfs4_acl"), Verdict::Drop);
        assert_eq!(judge(TreeKind::Tree, b"security.evm"), Verdict::Drop);
    }

    #[test]
    fn names_below_are_counted() {
        assert_eq!(merged_names(b"U+1", 2), Some(3));
        assert_eq!(merged_names(b"U-1", 3), Some(2));
        assert_eq!(merged_names(b"L+0", 3), None);
        assert_eq!(merged_names(b"U-9", 3), None);
        assert_eq!(merged_names(b"U", 3), None);
    }
}
