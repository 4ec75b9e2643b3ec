//! Our own identity: certificate, key and CA, loaded from files whose modes have been checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::PkiError;
use super::files::{read, read_key};
use super::name::{PeerIdentity, peer_identity};
use super::tls;

/// The three files that say who somebody is, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the CA, by which peers are checked.
    pub ca: PathBuf,
    /// Our certificate, followed by intermediate ones if there are any.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

/// The contents of the files, for tonic, which wants PEM.
#[derive(Clone)]
pub struct Pem {
    /// For `ServerTlsConfig::client_ca_root` and `ClientTlsConfig::ca_certificate`.
    pub ca: String,
    /// Our certificate chain, for `tonic::transport::Identity::from_pem`.
    pub cert: String,
    /// Our private key, for the same. Never log it.
    pub key: String,
}

impl fmt::Debug for Pem {
    /// Nothing: a key is among it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

/// Who we are, with the proof of it.
pub struct Identity {
    pub(super) files: TlsFiles,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The files' contents.
    pub pem: Pem,
}

impl fmt::Debug for Identity {
    /// Everything but the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Identity {
    /// Loads and checks the three files. Whether the certificate is valid now is asked with [`Identity::verify`].
    ///
    /// # Errors
    /// [`PkiError::KeyMode`] and [`PkiError::KeyOwner`] when others could have read the key; [`PkiError::KeyMismatch`] when
    /// it is not the certificate's; the others as they say.
    pub fn load(files: &TlsFiles) -> Result<Self, PkiError> {
        let pem = Pem { ca: read(&files.ca)?, cert: read(&files.cert)?, key: read_key(&files.key)? };
        let roots = certificates(&pem.ca, &files.ca)?;
        let chain = certificates(&pem.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|source| match source {
            rustls_pki_types::pem::Error::NoItemsFound => {
                PkiError::NothingInside { path: files.key.clone(), wanted: "private key" }
            }
            source => PkiError::Pem { path: files.key.clone(), source },
        })?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|source| {
            PkiError::KeyMismatch { cert: files.cert.clone(), key: files.key.clone(), source }
        })?;
        Ok(Self { files: files.clone(), certified: Arc::new(certified), roots, pem })
    }

    /// Who our certificate says we are.
    ///
    /// # Errors
    /// As [`peer_identity`]: it is not a certificate that decamp makes.
    pub fn name(&self) -> Result<PeerIdentity, PkiError> {
        peer_identity(self.end_entity())
    }

    fn end_entity(&self) -> &CertificateDer<'static> {
        self.certified.cert.first().expect("an identity is loaded with at least one certificate")
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// Last second of our certificate's validity, in seconds since 1970: worth a metric and an early warning.
    ///
    /// # Errors
    /// [`PkiError::Undecodable`].
    pub fn not_after_unix_s(&self) -> Result<u64, PkiError> {
        not_after_unix_s(self.end_entity())
    }

    /// Would a peer with our CA accept our certificate now? Tells at start what would otherwise be every peer's complaint.
    ///
    /// # Errors
    /// [`PkiError::NotTrusted`]: another CA's certificate, expired, not yet valid, not for clients.
    pub fn verify(&self, now: UnixTime) -> Result<(), PkiError> {
        let verifier = tls::client_verifier(self)?;
        let intermediates = self.certified.cert.get(1..).unwrap_or_default();
        verifier.verify_client_cert(self.end_entity(), intermediates, now).map(|_| ()).map_err(|source| {
            PkiError::NotTrusted { cert: self.files.cert.clone(), ca: self.files.ca.clone(), source }
        })
    }
}

/// Last second of a certificate's validity.
pub(super) fn not_after_unix_s(certificate: &CertificateDer<'_>) -> Result<u64, PkiError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| PkiError::Undecodable { why: e.to_string() })?;
    Ok(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0))
}

/// Every certificate of a PEM file, at least one.
pub(super) fn certificates(pem: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| PkiError::Pem { path: path.to_owned(), source })?;
    if found.is_empty() {
        return Err(PkiError::NothingInside { path: path.to_owned(), wanted: "certificate" });
    }
    Ok(found)
}
