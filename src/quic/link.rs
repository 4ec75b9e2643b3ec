//! A link: one authenticated connection to one peer, carrying any number of streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::close::{self, Code};
use super::congestion;
use super::error::{LinkError, QuicError};
use super::stream::Stream;
use crate::model::HostId;

/// One connection to one peer whose identity has been proven. Clones are the same link, and so are its streams: when the
/// last of them is dropped, the link is closed with [`close::DROPPED`] and data still under way is lost.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connection: quinn::Connection,
    peer: HostId,
}

impl Inner {
    fn close(&self, code: Code, reason: &str) {
        congestion::let_close_out(&self.connection);
        self.connection.close(code.var_int(), reason.as_bytes());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(close::DROPPED, "");
    }
}

/// Numbers of a link since it was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Smallest round-trip time seen: what clock estimates should use.
    pub rtt_min: Duration,
    /// Bytes in UDP payloads sent, all overhead of QUIC's included.
    pub bytes_sent: u64,
    /// Bytes in UDP payloads received.
    pub bytes_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets declared lost and sent anew.
    pub packets_lost: u64,
    /// Congestion window in bytes.
    pub congestion_window_bytes: u64,
    /// Largest UDP payload that this path takes, in bytes.
    pub mtu_bytes: u16,
}

impl Link {
    pub(super) fn new(connection: quinn::Connection, peer: HostId) -> Self {
        Self(Arc::new(Inner { connection, peer }))
    }

    /// Who is at the other end, as proven by its certificate.
    #[must_use]
    pub fn peer(&self) -> &HostId {
        &self.0.peer
    }

    /// The other end's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        canonical(self.0.connection.remote_address())
    }

    /// Opens a stream; waits while the peer has as many open as it allows. The peer learns of the stream with the first
    /// bytes that are written to it.
    ///
    /// # Errors
    /// [`QuicError::Lost`]: the link is gone.
    pub async fn open_bi(&self) -> Result<Stream, QuicError> {
        let halves = self.0.connection.open_bi().await.map_err(|e| self.lost(e))?;
        Ok(Stream::new(halves, self))
    }

    /// The next stream that the peer opened, in the order in which it opened them.
    ///
    /// # Errors
    /// [`QuicError::Lost`]: the link is gone, which is also how a link ends normally: [`LinkError::ClosedByPeer`] with
    /// [`close::DONE`].
    pub async fn accept_bi(&self) -> Result<Stream, QuicError> {
        let halves = self.0.connection.accept_bi().await.map_err(|e| self.lost(e))?;
        Ok(Stream::new(halves, self))
    }

    /// Closes the link at once: data under way is dropped, so finish the streams first. The peer gets `code` and `reason`
    /// if the network lets it.
    pub fn close(&self, code: Code, reason: &str) {
        self.0.close(code, reason);
    }

    /// Waits until the link is gone and tells why.
    pub async fn closed(&self) -> LinkError {
        let why = self.0.connection.closed().await;
        self.lost(why)
    }

    /// Why the link is gone, if it is.
    #[must_use]
    pub fn close_reason(&self) -> Option<LinkError> {
        self.0.connection.close_reason().map(|why| self.lost(why))
    }

    /// Numbers since the link was set up.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let stats = self.0.connection.stats();
        LinkStats {
            rtt: stats.path.rtt,
            rtt_min: stats.path.min_rtt,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            congestion_window_bytes: stats.path.cwnd,
            mtu_bytes: stats.path.current_mtu,
        }
    }

    pub(super) fn lost(&self, why: quinn::ConnectionError) -> LinkError {
        LinkError::new(why, &self.0.peer, self.address())
    }
}

/// An IPv4 address that came through an IPv6 socket, written as people write it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
