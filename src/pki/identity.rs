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

/// The three files that make an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificate of the CA, by which peers are checked.
    pub ca: PathBuf,
    /// Our certificate, followed by intermediate ones if there are any.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

impl IdentityFiles {
    /// The names that [`issue`](super::issue) gives them: `ca.pem`, `cert.pem`, `key.pem`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem") }
    }
}

/// Who we are, with the proof of it.
pub struct Identity {
    pub(super) files: IdentityFiles,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    subject: PeerIdentity,
    not_after_unix_s: u64,
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
}

impl fmt::Debug for Identity {
    /// Everything but the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("subject", &self.subject)
            .field("files", &self.files)
            .field("not_after_unix_s", &self.not_after_unix_s)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Who our certificate says we are.
    #[must_use]
    pub fn subject(&self) -> &PeerIdentity {
        &self.subject
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn files(&self) -> &IdentityFiles {
        &self.files
    }

    /// Last second of our certificate's validity, in seconds since 1970: worth a metric and an early warning.
    #[must_use]
    pub fn not_after_unix_s(&self) -> u64 {
        self.not_after_unix_s
    }

    /// The CA's certificate in PEM form, for tonic's `ServerTlsConfig::client_ca_root` and `ClientTlsConfig::ca_certificate`.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Our certificate chain in PEM form, for tonic's `Identity::from_pem`.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Our private key in PEM form, for tonic's `Identity::from_pem`. Never log it.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Would a peer with our CA accept our certificate now? Tells at start what would otherwise be every peer's complaint.
    ///
    /// # Errors
    /// [`PkiError::NotTrusted`]: another CA's certificate, expired, not yet valid, not for clients.
    pub fn verify(&self, now: UnixTime) -> Result<(), PkiError> {
        let verifier = tls::client_verifier(self)?;
        let (end_entity, intermediates) =
            self.certified.cert.split_first().expect("an identity is loaded with at least one certificate");
        verifier.verify_client_cert(end_entity, intermediates, now).map(|_| ()).map_err(|source| {
            PkiError::NotTrusted { cert: self.files.cert.clone(), ca: self.files.ca.clone(), source }
        })
    }
}

/// Loads and checks an identity. Whether its certificate is valid now is asked with [`Identity::verify`].
///
/// # Errors
/// [`PkiError::KeyMode`] and [`PkiError::KeyOwner`] when others could have read the key; [`PkiError::KeyMismatch`] when it is
/// not the certificate's; [`PkiError::NotOneName`] and [`PkiError::BadName`] when the certificate is no decamp certificate.
pub fn load_identity(files: &IdentityFiles) -> Result<Identity, PkiError> {
    let (ca_pem, cert_pem) = (read(&files.ca)?, read(&files.cert)?);
    let key_pem = read_key(&files.key)?;
    let roots = certificates(&ca_pem, &files.ca)?;
    let chain = certificates(&cert_pem, &files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|source| match source {
        rustls_pki_types::pem::Error::NoItemsFound => {
            PkiError::NothingInside { path: files.key.clone(), wanted: "private key" }
        }
        source => PkiError::Pem { path: files.key.clone(), source },
    })?;
    let subject = peer_identity(&chain[0])?;
    let not_after_unix_s = not_after_unix_s(&chain[0])?;
    let certified = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|source| {
        PkiError::KeyMismatch { cert: files.cert.clone(), key: files.key.clone(), source }
    })?;
    Ok(Identity {
        files: files.clone(),
        certified: Arc::new(certified),
        roots,
        subject,
        not_after_unix_s,
        ca_pem,
        cert_pem,
        key_pem,
    })
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
