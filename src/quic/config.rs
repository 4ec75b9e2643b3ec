//! Settings of the data plane: the `[quic]` section of the agent's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// UDP port unless told otherwise.
pub const PORT: u16 = 7626;

/// Settings of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// UDP address to listen on and to call from.
    pub listen: SocketAddr,
    /// A peer that is silent for so long is gone. Keep-alives make sure that only a dead one is silent.
    pub idle_timeout: Duration,
    /// Time for a handshake, our own included, before we give up.
    pub handshake_timeout: Duration,
    /// Data streams of one migration.
    pub streams: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            streams: 4,
        }
    }
}
