//! Bytes between agents: framing, page frames, pacing. Generic over any byte stream, so that tests run it over an in-memory
//! pipe. This room never opens a connection and never touches a process or a file.

pub mod frame;
pub mod pace;
pub mod pages;

/// ALPN of this generation of framing; offers inside carry finer versions.
pub const ALPN: &[u8] = b"decamp/1";
/// Protocol versions that this build speaks, newest first.
pub const VERSIONS: &[u32] = &[1];
