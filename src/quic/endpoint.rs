//! Binding, calling, answering.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::error::explain;
use super::{QuicError, Stream, close};
use crate::model::HostId;
use crate::model::limits::STREAMS_MAX;
use crate::pki::{self, Identity, PeerIdentity};
use crate::protocol::ALPN;

/// Handshakes under way at once; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// A handshake is a few round trips.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Links that wait to be served.
const READY_QUEUE: usize = 16;
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// How connections behave.
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    /// A peer that is silent for this long is dead.
    pub idle_timeout: Duration,
}

/// One UDP socket that calls and answers.
#[derive(Debug)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    ready: Mutex<mpsc::Receiver<Link>>,
}

/// One connection to one peer, whose name is proven. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    peer: HostId,
    connection: quinn::Connection,
}

/// Numbers of a link.
#[derive(Debug, Clone, Copy)]
pub struct LinkStats {
    /// Round-trip time.
    pub rtt: Duration,
    /// Bytes of UDP payload sent.
    pub udp_bytes_sent: u64,
    /// Packets lost.
    pub lost_packets: u64,
}

fn transport(settings: Transport) -> Result<quinn::TransportConfig, QuicError> {
    let mut config = quinn::TransportConfig::default();
    let idle = settings
        .idle_timeout
        .try_into()
        .map_err(|_| QuicError::Tls("the idle timeout is too long".to_owned()))?;
    config.max_idle_timeout(Some(idle));
    config.keep_alive_interval(Some(settings.idle_timeout / 4));
    config.stream_receive_window(STREAM_WINDOW.into());
    config.receive_window(CONNECTION_WINDOW.into());
    config.send_window(CONNECTION_WINDOW.into());
    config.max_concurrent_bidi_streams((STREAMS_MAX * 2 + 8).into());
    config.max_concurrent_uni_streams(0u32.into());
    config.datagram_receive_buffer_size(None);
    Ok(config)
}

impl Endpoint {
    /// Binds and begins to answer peers that are on the allow-list.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificates are not usable.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        allowed: BTreeSet<HostId>,
        settings: Transport,
    ) -> Result<Self, QuicError> {
        let transport = Arc::new(transport(settings)?);
        let tls = |error: quinn::crypto::rustls::NoInitialCipherSuite| QuicError::Tls(error.to_string());
        let server = QuicServerConfig::try_from(pki::server_config(identity, ALPN)?).map_err(tls)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::clone(&transport));
        let client = QuicClientConfig::try_from(pki::client_config(identity, ALPN)?).map_err(tls)?;
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport);
        let mut endpoint =
            quinn::Endpoint::server(server, address).map_err(|source| QuicError::Bind { address, source })?;
        endpoint.set_default_client_config(client);
        let (sink, ready) = mpsc::channel(READY_QUEUE);
        tokio::spawn(answer(endpoint.clone(), Arc::new(allowed), sink));
        Ok(Self { endpoint, ready: Mutex::new(ready) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Calls a peer and checks that it is who we want.
    ///
    /// # Errors
    /// [`QuicError::Connect`] with what to do about it.
    pub async fn connect(&self, address: SocketAddr, expected: &HostId) -> Result<Link, QuicError> {
        let failed = |why: String| QuicError::Connect { host: expected.to_string(), address, why };
        let connecting =
            self.endpoint.connect(address, expected.as_str()).map_err(|error| failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| failed(explain(&error)))?;
        match name_of(&connection) {
            Ok(PeerIdentity::Host(peer)) if peer == *expected => Ok(Link { peer, connection }),
            Ok(other) => {
                connection.close(close::PROTOCOL.into(), b"another name");
                Err(failed(format!("its certificate is for {other:?}")))
            }
            Err(error) => {
                connection.close(close::PROTOCOL.into(), b"no name");
                Err(failed(error.to_string()))
            }
        }
    }

    /// The next peer that called and may. `None` when the endpoint is closed.
    pub async fn accept(&self) -> Option<Link> {
        self.ready.lock().await.recv().await
    }

    /// Closes every connection and waits until the peers know.
    pub async fn close(&self) {
        self.endpoint.close(close::STOPPING.into(), b"agent stops");
        let _peers_that_do_not_answer =
            tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
    }
}

fn name_of(connection: &quinn::Connection) -> Result<PeerIdentity, QuicError> {
    let shown = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok());
    let chain = shown.ok_or_else(|| QuicError::Tls("the peer showed no certificate".to_owned()))?;
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    Ok(pki::peer_identity(first)?)
}

async fn answer(endpoint: quinn::Endpoint, allowed: Arc<BTreeSet<HostId>>, sink: mpsc::Sender<Link>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (allowed, sink) = (Arc::clone(&allowed), sink.clone());
        tokio::spawn(async move {
            let address = incoming.remote_address();
            let handshake = tokio::time::timeout(HANDSHAKE_WITHIN, incoming).await;
            drop(permit);
            let connection = match handshake {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    tracing::warn!(%address, why = explain(&error), "a peer failed in the handshake and got nothing");
                    return;
                }
                Err(_) => return tracing::warn!(%address, "a peer did not finish its handshake"),
            };
            match name_of(&connection) {
                Ok(PeerIdentity::Host(peer)) if allowed.contains(&peer) => {
                    let _agent_is_stopping = sink.send(Link { peer, connection }).await;
                }
                Ok(other) => {
                    tracing::warn!(%address, peer = ?other, "refused: not on the allow-list");
                    connection.close(close::NOT_ALLOWED.into(), b"not on the allow-list");
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "refused: no usable name in the certificate");
                    connection.close(close::NOT_ALLOWED.into(), b"no name");
                }
            }
        });
    }
}

impl Link {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &HostId {
        &self.peer
    }

    fn lost(&self, error: &quinn::ConnectionError) -> QuicError {
        QuicError::Lost { host: self.peer.to_string(), why: explain(error) }
    }

    /// Opens a stream; the peer sees it with its first byte.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn open_bi(&self) -> Result<Stream, QuicError> {
        let pair = self.connection.open_bi().await.map_err(|error| self.lost(&error))?;
        Ok(Stream::new(self.peer.to_string(), pair))
    }

    /// The next stream that the peer opened.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn accept_bi(&self) -> Result<Stream, QuicError> {
        let pair = self.connection.accept_bi().await.map_err(|error| self.lost(&error))?;
        Ok(Stream::new(self.peer.to_string(), pair))
    }

    /// Closes with a code of [`close`].
    pub fn close(&self, code: u32, why: &str) {
        self.connection.close(code.into(), why.as_bytes());
    }

    /// Returns when the connection is gone, with the reason.
    pub async fn closed(&self) -> QuicError {
        let error = self.connection.closed().await;
        self.lost(&error)
    }

    /// Numbers so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let stats = self.connection.stats();
        LinkStats {
            rtt: self.connection.rtt(),
            udp_bytes_sent: stats.udp_tx.bytes,
            lost_packets: stats.path.lost_packets,
        }
    }
}
