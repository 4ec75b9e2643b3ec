//! The OCI runtime and what it knows: which containers exist, how to checkpoint, restore and delete one, its bundle, its
//! freezer. Containers are found from runc's own state files, so that whoever started them (podman, containerd, a shell) does
//! not matter. This room never decides *when* anything happens, and never edits a bundle that decamp did not make.

mod bundle;
mod command;
mod error;
mod freezer;
mod mounts;
mod orphans;
mod state;

pub use bundle::{BindMount, Bundle, Rewrite};
pub use command::{Checkpoint, Restore, Runc, RuntimeRun};
pub use error::RuntimeError;
pub use freezer::{Freezer, FreezerState};
pub use mounts::{
    OverlayMount, mount_overlay, mount_private_tmpfs, overlay_at, replace_bind, unmount_all_below,
};
pub use orphans::{Orphans, forget_half_made};
pub use state::{Container, Status};
