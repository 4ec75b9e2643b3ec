//! rustls settings: TLS 1.3 only, both sides show a certificate of the CA, nothing is resumed. A resumed session would
//! skip the check of the peer's certificate, so that one expired or replaced meanwhile would go on being good.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::PkiError;
use super::identity::Identity;

/// The cryptography, named: rustls must not have to guess when another package brings a second provider along. AES-128-GCM
/// goes first: it is the fastest of the three on hosts with AES instructions, and bulk is what a link is for.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::ring::default_provider() })
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, PkiError> {
    let mut store = RootCertStore::empty();
    for root in &identity.roots {
        store.add(root.clone()).map_err(|source| PkiError::Tls { what: "the CA's certificate", source })?;
    }
    Ok(Arc::new(store))
}

/// Checks clients: a certificate is demanded, of our CA, valid now, for clients.
pub(super) fn client_verifier(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(PkiError::Verifier)
}

/// Checks servers: a certificate of our CA, valid now, for servers, and with the name that was called.
///
/// # Errors
/// [`PkiError::Tls`] or [`PkiError::Verifier`] when the CA's certificate cannot serve for that.
pub fn server_verifier(identity: &Identity) -> Result<Arc<WebPkiServerVerifier>, PkiError> {
    WebPkiServerVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(PkiError::Verifier)
}

/// Settings of the accepting side.
///
/// # Errors
/// [`PkiError::Tls`], [`PkiError::Verifier`].
pub fn server_config(identity: &Identity, alpn: &[&[u8]]) -> Result<ServerConfig, PkiError> {
    let failed = |source| PkiError::Tls { what: "the accepting side", source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(client_verifier(identity)?)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.certified))));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Settings of the calling side. `verifier` is [`server_verifier`], or something that asks it.
///
/// # Errors
/// [`PkiError::Tls`].
pub fn client_config(
    identity: &Identity,
    alpn: &[&[u8]],
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| PkiError::Tls { what: "the calling side", source })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.certified))));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
