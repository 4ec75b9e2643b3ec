//! The UDP socket, and both directions of calling over it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use rustls_pki_types::UnixTime;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::accept::Door;
use super::close;
use super::congestion::Factory;
use super::connect::{Call, ClientTls};
use super::error::{BindError, QuicError};
use super::link::Link;
use crate::model::HostId;
use crate::model::limits::{LINKS_WAITING_MAX, STREAMS_PER_LINK_MAX};
use crate::pki::{self, Identity, PeerIdentity};
use crate::protocol::ALPN;

/// A handshake is a few round trips; a caller that takes longer is turned away, and a callee that does is not there.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long peers have to confirm that they know of our end.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);
/// Keep-alives go out this often, or three times in an idle timeout if that is shorter.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Bytes that one stream may have under way. At 10 Gbit/s this is 6.7 ms of round trip.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes that a link may have under way, all streams together. It also bounds what a peer can make us hold in memory.
const LINK_WINDOW: u32 = 32 << 20;
/// Wanted size of the socket's buffers. The usual 208 KiB hold 1.3 ms at 10 Gbit/s: too little to be late by one time slice.
const SOCKET_BUFFER: usize = 8 << 20;

/// Largest UDP payload that is tried where the path carries more than the usual 1452 bytes: quinn hands ten datagrams at a time to the
/// kernel (UDP_SEGMENT, udp(7)), and what is above 64 KiB in one call is refused there and thrown away by quinn-udp without a word.
const DATAGRAM_MAX: u16 = 6500;

/// How links behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// A peer that is silent for so long is gone. Keep-alives make sure that only a dead one is silent.
    pub idle_timeout: Duration,
}

/// Our end of the data plane: calls peers and is called by them, over one UDP socket.
pub struct Endpoint {
    inner: quinn::Endpoint,
    tls: ClientTls,
    us: HostId,
    transport: Arc<TransportConfig>,
    handshake_within: Duration,
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
    /// Opens the socket and begins to accept those in `allowed`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`]: the address is taken or not ours, the certificate is not a host's, TLS cannot be set up.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        allowed: BTreeSet<HostId>,
        settings: Transport,
    ) -> Result<Self, QuicError> {
        Ok(Self::bind_with(address, identity, allowed, settings, HANDSHAKE_WITHIN, &[ALPN])?)
    }

    pub(super) fn bind_with(
        address: SocketAddr,
        identity: &Identity,
        allowed: BTreeSet<HostId>,
        settings: Transport,
        handshake_within: Duration,
        alpn: &[&[u8]],
    ) -> Result<Self, BindError> {
        let us = name_of(identity)?;
        let congestion = Arc::new(Factory::default());
        let tls = pki::server_config(identity, alpn).map_err(BindError::Tls)?;
        let tls = QuicServerConfig::try_from(tls).map_err(BindError::Cipher)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        // The accepting side greets; only the calling side takes a one-way stream, the greeting.
        server.transport_config(Arc::new(transport(settings, &congestion, 0)?));
        let failed = |source| BindError::Bind { address, source };
        let socket = UdpSocket::bind(address).map_err(failed)?;
        enlarge_buffers(&socket);
        let runtime = Arc::new(TokioRuntime);
        let mut ours = EndpointConfig::default();
        // Cannot fail: it is above the smallest that QUIC allows (RFC 9000, section 18.2).
        let _ = ours.max_udp_payload_size(DATAGRAM_MAX);
        let inner = quinn::Endpoint::new(ours, Some(server), socket, runtime).map_err(failed)?;
        let (ready, accepted) = mpsc::channel(LINKS_WAITING_MAX);
        let door = tokio::spawn(Arc::new(Door::new(allowed, handshake_within, ready)).run(inner.clone()));
        Ok(Self {
            inner,
            tls: ClientTls::new(identity, alpn).map_err(BindError::Tls)?,
            us,
            transport: Arc::new(transport(settings, &congestion, 1)?),
            handshake_within,
            accepted: Mutex::new(accepted),
            door,
            congestion,
        })
    }

    /// The UDP address that was bound, with the real port when 0 was asked for.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Who we are to peers.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.us
    }

    /// Calls the peer `expected` at `address`. When this returns, both sides have proven who they are and the peer has
    /// found us on its allow-list.
    ///
    /// # Errors
    /// [`ConnectError`](super::ConnectError), which tells whose fault it is and what to do, after five seconds at the latest.
    pub async fn connect(&self, address: SocketAddr, expected: &HostId) -> Result<Link, QuicError> {
        let call = Call {
            endpoint: &self.inner,
            tls: &self.tls,
            us: &self.us,
            transport: Arc::clone(&self.transport),
            timeout: self.handshake_within,
            address,
            peer: expected,
        };
        Ok(call.run().await?)
    }

    /// The next peer that called and passed every gate. `None` when the endpoint is closed. Safe to cancel.
    pub async fn accept(&self) -> Option<Link> {
        self.accepted.lock().await.recv().await
    }

    /// Closes every link with [`close::STOPPING`] and waits, two seconds at most, until the peers have been told.
    pub async fn close(&self) {
        self.congestion.let_all_closes_out();
        self.inner.close(close::STOPPING.var_int(), b"");
        // When a peer does not answer there is nobody left to wait for.
        let _ = tokio::time::timeout(FAREWELL_WITHIN, self.inner.wait_idle()).await;
    }
}

/// Our name, and a look at our own certificate: better one line here than the same complaint from every peer.
fn name_of(identity: &Identity) -> Result<HostId, BindError> {
    let cert = &identity.files().cert;
    match identity.name() {
        Err(source) => Err(BindError::Unnamed { cert: cert.clone(), source: Box::new(source) }),
        Ok(subject @ PeerIdentity::Operator(_)) => Err(BindError::NotAHost { cert: cert.clone(), subject }),
        Ok(PeerIdentity::Host(us)) => {
            if let Err(error) = identity.verify(UnixTime::now()) {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(cause, "peers will refuse this host: {error}");
            }
            Ok(us)
        }
    }
}

fn transport(
    settings: Transport,
    congestion: &Arc<Factory>,
    one_way_streams: u32,
) -> Result<TransportConfig, BindError> {
    let setting = |what, given: Duration| BindError::Setting { what, given: format!("{given:?}") };
    if settings.idle_timeout.is_zero() {
        return Err(setting("an idle timeout of nothing", settings.idle_timeout));
    }
    let idle = IdleTimeout::try_from(settings.idle_timeout)
        .map_err(|_| setting("so long an idle timeout", settings.idle_timeout))?;
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE.min(settings.idle_timeout / 3)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(LINK_WINDOW))
        .send_window(u64::from(LINK_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_LINK_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(one_way_streams))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
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
