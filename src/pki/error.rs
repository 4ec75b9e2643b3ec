//! What can be wrong with certificates and their files, told so that the reader knows which command to run next.

use std::path::PathBuf;

/// A certificate or key could not be made, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory could not be read or written.
    #[error("cannot {doing} {path:?}")]
    Io {
        /// What was being done: "read", "create", ...
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is far larger than any certificate or key.
    #[error("{path:?} is larger than {max} bytes: it is not a certificate or key file")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// Others can read a private key.
    #[error(
        "{path:?} has mode {mode:04o}: group or others can use this private key; run: chmod 600 {path:?}"
    )]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns a private key, and could read or replace it.
    #[error(
        "{path:?} belongs to uid {owner}, not to root or to uid {me} that decamp runs as; run: chown {me} {path:?}"
    )]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// Others can replace files in this directory.
    #[error("{path:?} has mode {mode:04o}: group or others can write to it; run: chmod 700 {path:?}")]
    DirectoryMode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A PEM file does not hold what it should.
    #[error("{path:?} holds no {wanted} in PEM form")]
    NothingInside {
        /// The file.
        path: PathBuf,
        /// "certificate" or "private key".
        wanted: &'static str,
    },
    /// A PEM file is damaged.
    #[error("{path:?} is not well-formed PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or the key is of an unknown kind.
    #[error("the key in {key:?} cannot be used with the certificate in {cert:?}")]
    KeyMismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// rustls' finding.
        #[source]
        source: rustls::Error,
    },
    /// The certificate cannot be used with this CA now: other CA, expired, not yet valid, wrong purpose.
    #[error(
        "the certificate in {cert:?} is not accepted by the CA in {ca:?}; issue a new one with: decamp pki issue"
    )]
    NotTrusted {
        /// The certificate file.
        cert: PathBuf,
        /// The CA file.
        ca: PathBuf,
        /// rustls' finding.
        #[source]
        source: rustls::Error,
    },
    /// There is a CA or certificate already.
    #[error("{path:?} exists already; --force replaces it (what a replaced CA has issued stops working)")]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// Nothing to issue with.
    #[error("there is no CA at {path:?}; make one first with: decamp pki init")]
    NoCa {
        /// Where its certificate should be.
        path: PathBuf,
    },
    /// A name that cannot be put into a certificate.
    #[error("{name:?} cannot be the name in a certificate: {why}")]
    Name {
        /// What was given.
        name: String,
        /// The rule it breaks.
        why: String,
    },
    /// A validity that cannot be.
    #[error("a certificate cannot be valid for {days} days, only for 1 to {max}")]
    BadValidity {
        /// What was given, in whole days.
        days: u64,
        /// The bound.
        max: u64,
    },
    /// The CA's own certificate has run out: whatever it issues now is refused by everybody.
    #[error(
        "the CA in {path:?} has expired; make a new one with: decamp pki init --force, then issue every certificate anew"
    )]
    CaExpired {
        /// The CA's certificate.
        path: PathBuf,
    },
    /// Making a key or certificate failed.
    #[error("cannot make {what}")]
    Generate {
        /// What was being made.
        what: &'static str,
        /// rcgen's reason.
        #[source]
        source: rcgen::Error,
    },
    /// Bytes that are not a certificate.
    #[error("the certificate cannot be decoded: {why}")]
    Undecodable {
        /// The decoder's reason.
        why: String,
    },
    /// A certificate that names nobody, or more than one.
    #[error("the certificate must hold exactly one DNS name, it holds {}: {names:?}", names.len())]
    NotOneName {
        /// The DNS names inside, at most a few.
        names: Vec<String>,
    },
    /// TLS settings that rustls does not take.
    #[error("cannot set up TLS for {what}")]
    Tls {
        /// Which side.
        what: &'static str,
        /// rustls' reason.
        #[source]
        source: rustls::Error,
    },
    /// The CA file cannot serve to check peers.
    #[error("cannot set up the check of peers' certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}
