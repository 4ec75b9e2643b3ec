//! What can go wrong with a link, told so that the reader knows where to look and what to change.

use std::net::SocketAddr;

use quinn::ConnectionError;

use super::close;
use crate::model::HostId;
use crate::pki::{PeerIdentity, PkiError};

/// Anything that goes wrong on the data plane.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The endpoint could not be opened.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// A peer could not be called.
    #[error(transparent)]
    Connect(Box<ConnectError>),
    /// A link that was up is gone.
    #[error(transparent)]
    Lost(#[from] LinkError),
    /// A stream was not taken to its end.
    #[error(transparent)]
    Finish(#[from] FinishError),
}

impl From<BindError> for QuicError {
    fn from(error: BindError) -> Self {
        Self::Bind(Box::new(error))
    }
}

impl From<ConnectError> for QuicError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Box::new(error))
    }
}

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("cannot listen on udp {address}: is another agent running, and does this host have the address")]
    Bind {
        /// The address from the configuration.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Our certificate is not a host's.
    #[error(
        "the certificate in {cert:?} is for {subject}, an agent needs one for a host: decamp pki issue HOST"
    )]
    NotAHost {
        /// The certificate.
        cert: std::path::PathBuf,
        /// Who it is for.
        subject: PeerIdentity,
    },
    /// Our certificate has no name that decamp gives.
    #[error("the certificate in {cert:?} is not a decamp certificate")]
    Unnamed {
        /// The certificate.
        cert: std::path::PathBuf,
        /// What is wrong with its name.
        #[source]
        source: Box<PkiError>,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS for the data plane")]
    Tls(#[source] PkiError),
    /// A setting that QUIC cannot take.
    #[error("{what} is not possible: {given}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// The value.
        given: String,
    },
    /// rustls has no cipher suite that QUIC needs: a build without the right cryptography.
    #[error("this build has no cipher suite for QUIC")]
    Cipher(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// A peer could not be called.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing came back.
    #[error(
        "no answer from {peer} at udp {address} within {waited_ms} ms: is the agent running there, is the address right, and does every firewall let UDP port {} through", address.port()
    )]
    NoAnswer {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// How long we waited.
        waited_ms: u128,
    },
    /// The certificate shown there is another CA's.
    #[error(
        "the certificate that {peer} at {address} shows is not from our CA: compare ca.pem on both hosts, or issue its certificate with: decamp pki issue {peer}"
    )]
    OtherCa {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// rustls' finding.
        #[source]
        source: rustls::Error,
    },
    /// The certificate shown there has run out, or has not begun.
    #[error(
        "the certificate that {peer} at {address} shows is expired or not valid yet: check the clocks of both hosts, or issue a new one with: decamp pki issue {peer} --force"
    )]
    Expired {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// rustls' finding.
        #[source]
        source: rustls::Error,
    },
    /// Somebody else answers there.
    #[error(
        "{address} was expected to be {expected}, but it shows a certificate for {presented}: correct the address of peer {expected}, or the name"
    )]
    WrongName {
        /// Whom we called.
        expected: HostId,
        /// Where.
        address: SocketAddr,
        /// The names in the certificate that was shown.
        presented: String,
    },
    /// The certificate shown there is no good for another reason.
    #[error("the certificate that {peer} at {address} shows cannot be accepted")]
    BadCertificate {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// rustls' finding.
        #[source]
        source: rustls::Error,
    },
    /// The peer does not accept our certificate.
    #[error("{peer} at {address} refuses our certificate (TLS alert {alert}, {why}): {remedy}")]
    OurCertificateRefused {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// Number of the TLS alert (RFC 8446, 6.2).
        alert: u64,
        /// Its meaning.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Our name is not on the peer's allow-list.
    #[error(
        "{peer} at {address} does not accept {us}: put [peers.{us}] with receive = true into the agent's configuration on {peer} and restart the agent there"
    )]
    NotListed {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// Who we are.
        us: HostId,
    },
    /// The two ends speak different generations of the protocol.
    #[error(
        "{peer} at {address} speaks no protocol that this decamp knows: run the same version of decamp on both hosts"
    )]
    OtherProtocol {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
    },
    /// Too much is going on there.
    #[error("{peer} at {address} has no room for another link now: try again later")]
    Busy {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
    },
    /// The address or name can never work.
    #[error("{peer} cannot be called at {address}")]
    Invalid {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// quinn's reason.
        #[source]
        source: quinn::ConnectError,
    },
    /// The link was lost before it was ready.
    #[error("the link to {peer} at {address} failed while it was being set up")]
    Lost {
        /// Whom we called.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// How.
        #[source]
        source: Box<LinkError>,
    },
}

impl ConnectError {
    /// May the same call succeed later without anybody changing anything?
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Busy { .. } | Self::Lost { .. })
    }
}

/// A link that was up is gone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The peer fell silent: its host or the network died, or its agent hangs.
    #[error("{peer} at {address} fell silent: nothing was heard for the idle timeout")]
    Silent {
        /// The other end.
        peer: HostId,
        /// Where.
        address: SocketAddr,
    },
    /// The peer's agent was restarted: it does not know the link any more.
    #[error("the agent on {peer} at {address} was restarted, or its process ended")]
    Restarted {
        /// The other end.
        peer: HostId,
        /// Where.
        address: SocketAddr,
    },
    /// The peer closed it and said why.
    #[error("{peer} closed the link: {} (code {code}){}{reason}", close::meaning(*code), if reason.is_empty() { "" } else { ": " })]
    ClosedByPeer {
        /// The other end.
        peer: HostId,
        /// One of [`close`]'s numbers.
        code: u64,
        /// The peer's words, bounded.
        reason: String,
    },
    /// We closed it ourselves.
    #[error("the link to {peer} was closed on this side")]
    ClosedHere {
        /// The other end.
        peer: HostId,
    },
    /// QUIC itself failed.
    #[error("the link to {peer} at {address} broke")]
    Broken {
        /// The other end.
        peer: HostId,
        /// Where.
        address: SocketAddr,
        /// quinn's finding.
        #[source]
        source: Box<ConnectionError>,
    },
}

/// Longest close reason that is repeated in errors and logs: the peer chose it.
const REASON_CHARS_MAX: usize = 200;

impl LinkError {
    pub(super) fn new(source: ConnectionError, peer: &HostId, address: SocketAddr) -> Self {
        let peer = peer.clone();
        match source {
            ConnectionError::TimedOut => Self::Silent { peer, address },
            ConnectionError::Reset => Self::Restarted { peer, address },
            ConnectionError::LocallyClosed => Self::ClosedHere { peer },
            ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                peer,
                code: close.error_code.into_inner(),
                reason: printable(&close.reason),
            },
            source => Self::Broken { peer, address, source: Box::new(source) },
        }
    }
}

/// A peer's words without control characters: they end up in terminals and logs.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * REASON_CHARS_MAX)]);
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// The peer did not take a stream to its end.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The peer stopped reading.
    #[error("the peer stopped reading the stream: {} (code {code})", close::meaning(*code))]
    Stopped {
        /// One of [`close`]'s numbers.
        code: u64,
    },
    /// The stream was reset here before.
    #[error("the stream was given up on this side before")]
    GivenUp,
    /// The link is gone.
    #[error("the link was lost before the peer had everything")]
    Lost(#[source] LinkError),
}
