//! What can go wrong on the link, in words that say what to do.

use std::net::SocketAddr;

use super::close;

/// The link failed.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// No socket.
    #[error("cannot bind UDP {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS configuration.
    #[error("the TLS configuration is not usable for QUIC: {0}")]
    Tls(String),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// A connection could not be made.
    #[error("cannot connect to {host} at {address}: {why}")]
    Connect {
        /// Who should be there.
        host: String,
        /// Where.
        address: SocketAddr,
        /// In words.
        why: String,
    },
    /// A connection was lost.
    #[error("the connection to {host} was lost: {why}")]
    Lost {
        /// Who was there.
        host: String,
        /// In words.
        why: String,
    },
    /// A stream was cut by the peer.
    #[error("{host} stopped a stream (code {code})")]
    Stopped {
        /// Who.
        host: String,
        /// Its code.
        code: u64,
    },
    /// The endpoint was closed.
    #[error("the agent is stopping")]
    Closed,
}

/// A connection's end in words for the operator.
pub(super) fn explain(error: &quinn::ConnectionError) -> String {
    use quinn::ConnectionError as E;
    match error {
        E::TimedOut => {
            "no answer; check that the agent runs there, that the address is right, and that UDP passes"
                .to_owned()
        }
        E::ApplicationClosed(closed) => close::meaning(closed.error_code.into_inner()).to_owned(),
        E::TransportError(error) => tls_words(&error.reason, &error.to_string()),
        E::ConnectionClosed(closed) => {
            let reason = String::from_utf8_lossy(&closed.reason).into_owned();
            tls_words(&reason, &closed.to_string())
        }
        E::Reset => "it has forgotten the connection: its agent was restarted".to_owned(),
        E::VersionMismatch => "it speaks another version of QUIC".to_owned(),
        E::LocallyClosed => "it was closed here".to_owned(),
        E::CidsExhausted => "connection ids are exhausted".to_owned(),
    }
}

fn tls_words(reason: &str, whole: &str) -> String {
    let known = [
        (
            "UnknownIssuer",
            "its certificate is of another CA: issue both hosts' certificates with the same one",
        ),
        ("unknown certificate authority", "our certificate is of another CA in its eyes"),
        ("UnknownCA", "our certificate is of another CA in its eyes"),
        ("NotValidForName", "its certificate is for another host: check the address in [peers]"),
        ("not valid for name", "its certificate is for another host: check the address in [peers]"),
        ("Expired", "a certificate has expired: issue a new one with `decamp pki issue`"),
        ("expired", "a certificate has expired: issue a new one with `decamp pki issue`"),
        ("NotValidYet", "a certificate is not valid yet: compare the hosts' clocks"),
        ("certificate required", "it wants a certificate of its CA and got none"),
        ("application protocol", "it speaks another generation of decamp's protocol: upgrade the older one"),
        ("ApplicationProtocol", "it speaks another generation of decamp's protocol: upgrade the older one"),
    ];
    let hit = known.iter().find(|(mark, _)| reason.contains(mark) || whole.contains(mark));
    hit.map_or_else(|| format!("TLS failed ({whole})"), |(_, words)| format!("{words} ({whole})"))
}
