//! The container's network identity: its namespace, interfaces, MAC and IP addresses, routes. Described at the source, made again
//! at the destination behind a closed gate, switched over in about a millisecond.
//!
//! The plain case is carried: a namespace named by path in config.json, veth pairs whose other ends are ports of bridges.
//! CRIU restores the sockets but not such a namespace (it is "external" to the checkpoint), so it must be whole before the restore.
//! Anything else is refused, with every reason: it must never be moved in part and in silence.
//!
//! ```text
//!   source                              destination
//!   capture ─────── descriptor ───────▶ check ─▶ prepare          gate closed: nothing gets in or out
//!                                                   │             CRIU restores the sockets
//!   isolate  (after Commit, before up) ┄┄┄┄┄┄┄┄┄▶   up            gate open
//!      │                                            │
//!      ├─ moved:   remove                        announce         neighbours and switches learn
//!      └─ aborted: rejoin                           └─ aborted: destroy
//! ```
//!
//! **The gate** is the host end of each veth pair, kept down. What that leaves possible was tried on a kernel 6.18 and is held by
//! this room's tests: the container's end is up, without a carrier; its addresses are complete and usable (IPv6 without
//! duplicate address detection), its routes are installed and are found by lookups (flagged `linkdown`, which counts only with
//! the sysctl `ignore_routes_with_linkdown`); a socket in repair mode binds and connects, which is what CRIU does; no
//! packet leaves or arrives. With the container's end down as well, routes with a gateway are refused
//! ("Nexthop has invalid gateway"). Opening the gate is one netlink request for each interface.
//!
//! This room must never move a thread of the async runtime into another namespace, probe the network for an address, or touch an
//! interface that is not a veth (bridges excepted: their present MAC is pinned).

mod announce;
mod capture;
mod check;
mod error;
mod netlink;
mod netns;
mod plan;
mod prepare;
mod source;
#[cfg(test)]
mod tests;

pub use capture::{Capture, HostEnd, capture};
pub use check::check;
pub use error::NetworkError;
pub use plan::host_end_name;
pub use prepare::{Prepared, prepare, remove};
pub use source::{isolate, raise, rejoin};
