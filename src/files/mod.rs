//! File trees that travel with a container: the upper directory of its overlay (or its whole root file system) and copied bind
//! mounts, in rounds over a byte stream. Early rounds run while the container runs; the last one runs while it is frozen, and
//! proves that both trees are equal.
//!
//! ```text
//!  TreeSource                                                     TreeSink
//!      │  FilesHello{tree, round, last, base_round} ─────────────────▶ │ (read by the caller, handed in)
//!  scan│  ManifestPart* (difference to the base round's manifest) ───▶ │ checked; deletions, new names, blocks found here
//!      │ ◀──────────────────────────── NeedPart* (or an error) ─────── │
//!  read│  FileBlock* in exactly the order asked, FilesDone ──────────▶ │ digest checked, written; owners, modes, times
//!      │ ◀──────────────────────────── FilesApplied (or an error) ──── │ last round: the tree is read back and compared
//! ```
//!
//! What makes a file itself travels: type, mode with setuid, owner, modification time in ns, extended attributes with ACLs and
//! capabilities, hard links, holes, devices, fifos, sockets, whiteouts. Not carried: access and change times, inode numbers,
//! file attributes (`chattr`), attributes outside `user.`, `trusted.`, `security.` and POSIX ACLs.
//!
//! This room must never write outside the root that it was given, follow a symbolic link inside a tree, cross into another
//! mount, or believe a digest that it did not compute itself.

mod attributes;
mod beneath;
mod blocks;
mod content;
mod digest;
mod entry;
mod error;
mod manifest;
mod memory;
mod overlay;
mod prepare;
mod scan;
mod sink;
mod source;
mod walk;

#[cfg(test)]
mod tests;

pub use beneath::remove_tree;
pub use digest::{DigestCache, tree_bytes, tree_digest};
pub use error::FilesError;
pub use overlay::TreeKind;
pub use sink::TreeSink;
pub use source::TreeSource;
