//! Loading what `decamp pki` made, and reading names from certificates.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use super::{OPERATOR_SUFFIX, PkiError};
use crate::model::HostId;

/// Where an agent's or operator's certificate, key and CA are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The operator's CA.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Our key.
    pub key: PathBuf,
}

/// Who we are, and whom we believe.
#[derive(Debug)]
pub struct Identity {
    /// Our certificate chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// Our key.
    pub key: PrivateKeyDer<'static>,
    /// Whom we believe.
    pub roots: RootCertStore,
    /// The same as PEM text, for tonic.
    pub pem: Pem,
}

/// PEM texts.
#[derive(Clone)]
pub struct Pem {
    /// CA.
    pub ca: Vec<u8>,
    /// Certificate.
    pub cert: Vec<u8>,
    /// Key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem { .. }")
    }
}

/// Who a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// An agent.
    Host(HostId),
    /// A person or program that asks agents.
    Operator(String),
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    std::fs::read(path).map_err(|source| PkiError::Io { doing: "read", path: path.to_owned(), source })
}

fn check_key_file(path: &Path) -> Result<(), PkiError> {
    let meta = std::fs::metadata(path).map_err(|source| PkiError::Io {
        doing: "look at",
        path: path.to_owned(),
        source,
    })?;
    if meta.mode() & 0o077 != 0 {
        return Err(PkiError::KeyMode { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(PkiError::KeyOwner { path: path.to_owned(), uid: meta.uid() });
    }
    Ok(())
}

impl Identity {
    /// Loads and checks the three files.
    ///
    /// # Errors
    /// A file is missing, is not PEM, or the key is readable by others.
    pub fn load(files: &TlsFiles) -> Result<Self, PkiError> {
        check_key_file(&files.key)?;
        let pem = Pem { ca: read(&files.ca)?, cert: read(&files.cert)?, key: read(&files.key)? };
        let malformed = |path: &Path, what: String| PkiError::Malformed { path: path.to_owned(), what };
        let certs = |path: &Path, bytes: &[u8]| -> Result<Vec<CertificateDer<'static>>, PkiError> {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            match parsed {
                Ok(list) if !list.is_empty() => Ok(list),
                Ok(_) => Err(malformed(path, "holds no certificate".to_owned())),
                Err(error) => Err(malformed(path, error.to_string())),
            }
        };
        let chain = certs(&files.cert, &pem.cert)?;
        let key =
            PrivateKeyDer::from_pem_slice(&pem.key).map_err(|e| malformed(&files.key, e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for cert in certs(&files.ca, &pem.ca)? {
            roots.add(cert)?;
        }
        Ok(Self { chain, key, roots, pem })
    }

    /// The name in our own certificate.
    ///
    /// # Errors
    /// It has none that decamp gives.
    pub fn name(&self) -> Result<PeerIdentity, PkiError> {
        let first = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        peer_identity(first)
    }
}

/// Reads the name from a certificate: the first DNS SAN.
///
/// # Errors
/// There is none, or it is not one that decamp gives.
pub fn peer_identity(der: &[u8]) -> Result<PeerIdentity, PkiError> {
    let malformed = |what: String| PkiError::Malformed { path: PathBuf::from("certificate"), what };
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|error| malformed(error.to_string()))?;
    let names = cert.subject_alternative_name().map_err(|error| malformed(error.to_string()))?;
    let name = names
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .ok_or_else(|| malformed("it names no host (no DNS name among its alternative names)".to_owned()))?;
    match name.strip_suffix(OPERATOR_SUFFIX) {
        Some(operator) => Ok(PeerIdentity::Operator(operator.to_owned())),
        None => HostId::try_from(name).map(PeerIdentity::Host).map_err(|error| malformed(error.to_string())),
    }
}

/// Ring, TLS 1.3 only, AES-128-GCM first: the fastest cipher on hosts with AES instructions.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::ring::default_provider() })
}

/// For the accepting side: the peer must show a certificate of our CA.
///
/// # Errors
/// Certificate, key and CA do not fit together.
pub fn server_config(identity: &Identity, alpn: &[u8]) -> Result<ServerConfig, PkiError> {
    let provider = crypto_provider();
    let roots = Arc::new(identity.roots.clone());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| PkiError::Verifier(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// For the calling side: we show our certificate and check the peer's name.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(identity: &Identity, alpn: &[u8]) -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pki::{Validity, init, issue_host, issue_operator};

    #[test]
    fn certificates_are_made_loaded_and_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Validity::default(), false).unwrap();
        assert!(init(dir.path(), Validity::default(), false).is_err(), "a CA must not be overwritten");
        let host = "node-a".try_into().unwrap();
        let issued = issue_host(dir.path(), &host, &[], Validity::default(), false).unwrap();
        let files = TlsFiles { ca: dir.path().join("ca.crt"), cert: issued.cert, key: issued.key.clone() };
        assert_eq!(Identity::load(&files).unwrap().name().unwrap(), PeerIdentity::Host(host));
        let operator = issue_operator(dir.path(), "ann", Validity::default(), false).unwrap();
        let ann = Identity::load(&TlsFiles { ca: files.ca.clone(), cert: operator.cert, key: operator.key })
            .unwrap();
        assert_eq!(ann.name().unwrap(), PeerIdentity::Operator("ann".to_owned()));
        let fake = "x.operator.decamp".try_into().unwrap();
        assert!(issue_host(dir.path(), &fake, &[], Validity::default(), false).is_err());
        std::fs::set_permissions(&issued.key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Identity::load(&files).unwrap_err().to_string();
        assert!(refused.contains("mode 0640") && refused.contains("chmod 600"), "{refused}");
    }
}
