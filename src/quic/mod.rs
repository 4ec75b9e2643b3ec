//! The data plane: QUIC between agents, mutual TLS 1.3, the protocol's generation in the ALPN. A peer without a certificate of
//! the operator's CA fails in the handshake; one that is not on the allow-list is closed right after it and gets nothing.
//! This room carries bytes; it never reads a message.

pub mod close;
mod endpoint;
mod error;
mod stream;

pub use endpoint::{Endpoint, Link, LinkStats, Transport};
pub use error::QuicError;
pub use stream::Stream;
