//! The UDP socket, and both directions of calling over it.

use std::collections::HashSet;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::accept::Door;
use super::close::Code;
use super::config::Config;
use super::congestion::Factory;
use super::connect::Call;
use super::error::{BindError, ConnectError};
use super::link::Link;
use crate::model::HostId;
use crate::model::limits::{LINKS_WAITING_MAX, STREAMS_PER_LINK_MAX};
use crate::pki::{self, Identity, PeerIdentity};
use crate::protocol::ALPN;

/// Keep-alives go out this often, or three times in an idle timeout if that is shorter.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Bytes that one stream may have under way. At 10 Gbit/s this is 6.7 ms of round trip.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes that a link may have under way, all streams together. It also bounds what a peer can make us hold in memory.
const LINK_WINDOW: u32 = 32 << 20;
/// Wanted size of the socket's buffers. The usual 208 KiB hold 1.3 ms at 10 Gbit/s: too little to be late by one time slice.
const SOCKET_BUFFER: usize = 8 << 20;

/// Our end of the data plane: calls peers and is called by them, over one UDP socket.
pub struct Endpoint {
    inner: quinn::Endpoint,
    identity: Arc<Identity>,
    us: HostId,
    transport: Arc<TransportConfig>,
    handshake_timeout: Duration,
    accepted: Mutex<mpsc::Receiver<Link>>,
    door: JoinHandle<()>,
    congestion: Arc<Factory>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("us", &self.us).field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Drop for Endpoint {
    /// Nobody is let in any more. Links that are up go on until they are dropped.
    fn drop(&mut self) {
        self.door.abort();
        self.inner.set_server_config(None);
    }
}

impl Endpoint {
    /// Opens the socket and begins to accept those on `allow`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`]: the address is taken or not ours, the certificate is not a host's, TLS cannot be set up.
    pub fn bind(
        config: &Config,
        identity: Arc<Identity>,
        allow: impl IntoIterator<Item = HostId>,
    ) -> Result<Self, BindError> {
        Self::bind_with(config, identity, allow, &[ALPN])
    }

    pub(super) fn bind_with(
        config: &Config,
        identity: Arc<Identity>,
        allow: impl IntoIterator<Item = HostId>,
        alpn: &[&[u8]],
    ) -> Result<Self, BindError> {
        let PeerIdentity::Host(us) = identity.subject().clone() else {
            let cert = identity.files().cert.clone();
            return Err(BindError::NotAHost { cert, subject: identity.subject().to_string() });
        };
        let allow: HashSet<HostId> = allow.into_iter().collect();
        let tls = pki::server_config(&identity, alpn).map_err(BindError::Tls)?;
        let tls = QuicServerConfig::try_from(tls).map_err(BindError::Cipher)?;
        let congestion = Arc::new(Factory::default());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        // The accepting side greets; only the calling side takes a one-way stream, the greeting.
        server.transport_config(Arc::new(transport(config, &congestion, 0)?));
        let failed = |source| BindError::Bind { address: config.listen, source };
        let socket = UdpSocket::bind(config.listen).map_err(failed)?;
        enlarge_buffers(&socket);
        let runtime = Arc::new(TokioRuntime);
        let inner =
            quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime).map_err(failed)?;
        let (ready, accepted) = mpsc::channel(LINKS_WAITING_MAX);
        let door = Arc::new(Door::new(allow, config.handshake_timeout, ready));
        let door = tokio::spawn(door.run(inner.clone()));
        Ok(Self {
            inner,
            identity,
            us,
            transport: Arc::new(transport(config, &congestion, 1)?),
            handshake_timeout: config.handshake_timeout,
            accepted: Mutex::new(accepted),
            door,
            congestion,
        })
    }

    /// The UDP address that was bound, with the real port when 0 was asked for.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Who we are to peers.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.us
    }

    /// Turns `HOST:PORT` from the configuration into an address that this socket can reach.
    ///
    /// # Errors
    /// [`ConnectError::Resolve`].
    pub async fn resolve(&self, address: &str) -> Result<SocketAddr, ConnectError> {
        let failed = |source| ConnectError::Resolve { address: address.to_owned(), source };
        let takes_ipv6 = self.local_addr().is_ok_and(|ours| ours.is_ipv6());
        let mut found = tokio::net::lookup_host(address).await.map_err(|e| failed(Some(e)))?;
        found.find(|candidate| candidate.is_ipv4() || takes_ipv6).ok_or_else(|| failed(None))
    }

    /// Calls the peer `expected` at `address`. When this returns, both sides have proven who they are and the peer has
    /// found us on its allow-list.
    ///
    /// # Errors
    /// [`ConnectError`], which tells whose fault it is and what to do. Never takes longer than the handshake timeout.
    pub async fn connect(&self, address: SocketAddr, expected: &HostId) -> Result<Link, ConnectError> {
        let call = Call {
            endpoint: &self.inner,
            identity: &self.identity,
            us: &self.us,
            transport: Arc::clone(&self.transport),
            timeout: self.handshake_timeout,
            address,
            peer: expected,
        };
        call.run().await
    }

    /// The next peer that called and passed every gate. `None` when the endpoint is closed. Safe to cancel.
    pub async fn accept(&self) -> Option<Link> {
        self.accepted.lock().await.recv().await
    }

    /// Closes every link with `code` and waits until the peers have been told, for at most `patience`.
    pub async fn shut_down(&self, code: Code, reason: &str, patience: Duration) {
        self.congestion.let_all_closes_out();
        self.inner.close(code.var_int(), reason.as_bytes());
        // When a peer does not answer there is nobody left to wait for.
        let _ = tokio::time::timeout(patience, self.inner.wait_idle()).await;
    }
}

fn transport(
    config: &Config,
    congestion: &Arc<Factory>,
    one_way_streams: u32,
) -> Result<TransportConfig, BindError> {
    let setting = |what, given: Duration| BindError::Setting { what, given: format!("{given:?}") };
    if config.idle_timeout.is_zero() {
        return Err(setting("an idle timeout of nothing", config.idle_timeout));
    }
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| setting("so long an idle timeout", config.idle_timeout))?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE.min(config.idle_timeout / 3)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(LINK_WINDOW))
        .send_window(u64::from(LINK_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_LINK_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(one_way_streams))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::clone(congestion) as _);
    Ok(transport)
}

/// Root may go beyond net.core.rmem_max (socket(7), SO_RCVBUFFORCE); others get what the host allows. A small buffer only
/// makes things slower, so nothing here is an error.
fn enlarge_buffers(socket: &UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    let forced = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
        .and_then(|()| setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER));
    if forced.is_ok() {
        return;
    }
    let asked = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER)
        .and_then(|()| setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER));
    if let Err(error) = asked {
        tracing::debug!(%error, "the UDP socket keeps its small buffers");
    }
}
