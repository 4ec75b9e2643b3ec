//! Calling a peer, and telling why when it does not work.
//!
//! quinn reports a failed handshake as an alert number and a text. The person who has to repair it needs to know which of
//! the two certificates is at fault and how, so the verifier of the other end's certificate keeps its finding.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::accept::{GREETING, certificates_of};
use super::close;
use super::error::{ConnectError, LinkError, printable};
use super::link::Link;
use crate::model::HostId;
use crate::pki::{self, Identity, PeerIdentity, PkiError, peer_identity};

/// QUIC transport errors 0x100 to 0x1ff carry a TLS alert (RFC 9001, 4.8).
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;
/// "no application protocol" (RFC 7301, 3.2).
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 120;
/// "certificate expired" and "unknown CA" (RFC 8446, 6.2), the two that deserve an answer of their own.
const ALERT_CERTIFICATE_EXPIRED: u64 = 45;
const ALERT_UNKNOWN_CA: u64 = 48;

/// Asks rustls' own verifier, and keeps what it said no to.
#[derive(Debug)]
struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    finding: Mutex<Option<rustls::Error>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(finding) = &verdict {
            *self.finding.lock().unwrap_or_else(PoisonError::into_inner) = Some(finding.clone());
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// TLS of the calling side, made once.
#[derive(Debug)]
pub(super) struct ClientTls {
    config: rustls::ClientConfig,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ClientTls {
    pub(super) fn new(identity: &Identity, alpn: &[&[u8]]) -> Result<Self, PkiError> {
        let verifier = pki::server_verifier(identity)?;
        let config = pki::client_config(identity, alpn, Arc::clone(&verifier) as _)?;
        Ok(Self { config, verifier })
    }
}

/// One call.
pub(super) struct Call<'a> {
    pub(super) endpoint: &'a quinn::Endpoint,
    pub(super) tls: &'a ClientTls,
    pub(super) us: &'a HostId,
    pub(super) transport: Arc<quinn::TransportConfig>,
    pub(super) timeout: Duration,
    pub(super) address: SocketAddr,
    pub(super) peer: &'a HostId,
}

impl Call<'_> {
    /// Handshake, check of the name, and the peer's word that it takes us, within one timeout.
    pub(super) async fn run(self) -> Result<Link, ConnectError> {
        let witness = Arc::new(Witness { inner: Arc::clone(&self.tls.verifier), finding: Mutex::new(None) });
        let mut tls = self.tls.config.clone();
        tls.dangerous().set_certificate_verifier(Arc::clone(&witness) as _);
        let tls =
            QuicClientConfig::try_from(tls).expect("the pki room offers the cipher suite that QUIC needs");
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::clone(&self.transport));
        let connecting =
            self.endpoint.connect_with(config, self.address, self.peer.as_str()).map_err(|source| {
                ConnectError::Invalid { peer: self.peer.clone(), address: self.address, source }
            })?;
        let attempt = async {
            let connection = connecting.await?;
            let mut greeting = [0; GREETING.len()];
            let mut stream = connection.accept_uni().await?;
            match stream.read_exact(&mut greeting).await {
                Ok(()) => Ok(connection),
                Err(_) => Err(connection.closed().await),
            }
        };
        let connection = match tokio::time::timeout(self.timeout, attempt).await {
            Err(_) | Ok(Err(ConnectionError::TimedOut)) => return Err(self.no_answer()),
            Ok(Err(error)) => {
                let finding = witness.finding.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(finding.map_or_else(|| self.explain(error), |finding| self.blame_peer(finding)));
            }
            Ok(Ok(connection)) => connection,
        };
        self.check_identity(&connection)?;
        Ok(Link::new(connection, self.peer.clone()))
    }

    /// TLS has checked that the name called is among those of the certificate; here it must be the only one, and a host's.
    fn check_identity(&self, connection: &quinn::Connection) -> Result<(), ConnectError> {
        let shown = certificates_of(connection);
        let presented = shown.as_deref().and_then(<[_]>::first).map(|certificate| peer_identity(certificate));
        let presented = match presented {
            Some(Ok(PeerIdentity::Host(name))) if name == *self.peer => return Ok(()),
            Some(Ok(other)) => other.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "nobody".to_owned(),
        };
        connection.close(close::WRONG_PEER.var_int(), b"");
        Err(ConnectError::WrongName { expected: self.peer.clone(), address: self.address, presented })
    }

    fn no_answer(&self) -> ConnectError {
        let waited_ms = self.timeout.as_millis();
        ConnectError::NoAnswer { peer: self.peer.clone(), address: self.address, waited_ms }
    }

    /// The other end's certificate was refused by us.
    fn blame_peer(&self, source: rustls::Error) -> ConnectError {
        let (peer, address) = (self.peer.clone(), self.address);
        let rustls::Error::InvalidCertificate(certificate) = &source else {
            return ConnectError::BadCertificate { peer, address, source };
        };
        match certificate {
            // A CA of the same name with another key shows as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                ConnectError::OtherCa { peer, address, source }
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => ConnectError::Expired { peer, address, source },
            CertificateError::NotValidForNameContext { presented, .. } => {
                let presented = printable(presented.join(", ").as_bytes());
                ConnectError::WrongName { expected: peer, address, presented }
            }
            _ => ConnectError::BadCertificate { peer, address, source },
        }
    }

    /// The connection failed without us refusing the other end's certificate.
    fn explain(&self, error: ConnectionError) -> ConnectError {
        let (peer, address) = (self.peer.clone(), self.address);
        match &error {
            ConnectionError::ApplicationClosed(closed) => {
                let code = closed.error_code;
                if code == close::NOT_ALLOWED.var_int() {
                    return ConnectError::NotListed { peer, address, us: self.us.clone() };
                }
                if code == close::BUSY.var_int() {
                    return ConnectError::Busy { peer, address };
                }
            }
            ConnectionError::ConnectionClosed(closed) => {
                if closed.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED {
                    return ConnectError::Busy { peer, address };
                }
                if let Some(refused) = self.alert(closed.error_code.into()) {
                    return refused;
                }
            }
            ConnectionError::TransportError(failed)
                if u64::from(failed.code) == CRYPTO_ERRORS.start + ALERT_NO_APPLICATION_PROTOCOL =>
            {
                return ConnectError::OtherProtocol { peer, address };
            }
            ConnectionError::VersionMismatch => return ConnectError::OtherProtocol { peer, address },
            _ => {}
        }
        let source = Box::new(LinkError::new(error, self.peer, address));
        ConnectError::Lost { peer, address, source }
    }

    /// What a TLS alert from the other end says about us; `None` when the code is no alert.
    fn alert(&self, code: u64) -> Option<ConnectError> {
        let (peer, address) = (self.peer.clone(), self.address);
        if !CRYPTO_ERRORS.contains(&code) {
            return None;
        }
        let alert = code - CRYPTO_ERRORS.start;
        let (why, remedy) = match alert {
            ALERT_NO_APPLICATION_PROTOCOL => return Some(ConnectError::OtherProtocol { peer, address }),
            ALERT_UNKNOWN_CA => (
                "unknown CA",
                "our certificate is not from the CA that the peer trusts; compare ca.pem on both hosts",
            ),
            ALERT_CERTIFICATE_EXPIRED => (
                "certificate expired",
                "issue ours anew with: decamp pki issue OUR-NAME --force; and check the clocks of both hosts",
            ),
            116 => {
                ("certificate required", "this agent showed no certificate; check [tls] in its configuration")
            }
            42 | 43 | 46 | 49 | 51 => (
                "certificate not accepted",
                "see the log of the agent there; issue ours anew with: decamp pki issue OUR-NAME --force",
            ),
            _ => ("handshake failed", "see the log of the agent there"),
        };
        Some(ConnectError::OurCertificateRefused { peer, address, alert, why, remedy })
    }
}
