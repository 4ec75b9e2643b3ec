//! The data plane: QUIC between agents, TLS 1.3, both sides proven by a certificate of the fleet's CA.
//!
//! ```text
//! caller                                       accepting side
//!   │ ── handshake, ALPN decamp/1, certificate ──▶ │  TLS: our CA? valid now? ── no ──▶ TLS alert
//!   │ ◀── certificate: our CA? the name called? ── │
//!   │                                              │  a host's certificate? ── no ──▶ close NOT_A_HOST
//!   │                                              │  on the allow-list?    ── no ──▶ close NOT_ALLOWED
//!   │ ◀──────── greeting (one-way stream) ──────── │
//!   │ ═════════════ streams, either way ══════════ │
//! ```
//!
//! A peer that does not pass every gate gets nothing but a number ([`close`]) and leaves a line in the log. A peer that
//! vanishes is noticed within the idle timeout. This room knows nothing of migrations: it hands out byte streams. It must
//! never hand out a [`Link`] whose peer has not been proven and allowed.
//!
//! Metrics: `decamp_quic_accepted_total`, `decamp_quic_refused_total{reason}`.

mod accept;
pub mod close;
mod congestion;
mod connect;
mod endpoint;
mod error;
mod link;
mod stream;

pub use endpoint::{Endpoint, Transport};
pub use error::{BindError, ConnectError, FinishError, LinkError, QuicError};
pub use link::{Link, LinkStats};
pub use stream::{Stream, StreamReader, StreamWriter};

#[cfg(test)]
mod tests;
