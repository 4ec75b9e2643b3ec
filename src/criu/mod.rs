//! Driving CRIU: its per-migration configuration, its page-server protocol, its logs, its version.
//!
//! CRIU itself is started by the runtime; what reaches it from here is a configuration file named by `CRIU_CONFIG_FILE`
//! (honoured by `criu swrk` on dump and restore, in addition to what the runtime asks), so no global file is touched. This room
//! never starts a dump or a restore on its own and never writes an image.

mod config;
mod hide;
mod log;
mod page_server;
mod version;

pub use config::{CriuConfig, Lock, TcpPolicy};
pub use hide::{Hidden, HidePlan, stack_pointer_pages};
pub use log::{Diagnosis, diagnose};
pub use page_server::{PageEvent, PageRecord, PageServer, PageServerError, receive_pages};
pub use version::{CriuProblem, CriuVersion, MINIMUM, check, knows_nftables};
