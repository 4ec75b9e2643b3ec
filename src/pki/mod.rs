//! Certificates: making them (`decamp pki`), loading them, and reading who is who from them.
//!
//! One CA of the operator. A **host** certificate names the host in a DNS SAN and may serve and call; an **operator** certificate
//! names `NAME.operator.decamp` and may only call, so neither can pass for the other. Keys are files of mode 0600; a key that
//! others can read is refused. This room never talks to a network.

mod identity;
mod issue;

pub use identity::{
    Identity, PeerIdentity, TlsFiles, client_config, crypto_provider, peer_identity, server_config,
};
pub use issue::{Issued, Validity, init, issue_host, issue_operator};

use std::path::PathBuf;

/// Suffix of an operator's name in a certificate.
pub const OPERATOR_SUFFIX: &str = ".operator.decamp";

/// Certificates could not be made, loaded or understood.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb phrase.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing is overwritten by accident.
    #[error(
        "{path} exists already; use --force to replace it (certificates issued with the old one stop working)"
    )]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A key that others can read is not a secret.
    #[error("{path} has mode {mode:04o}: others can read this key; run: chmod 600 {path}")]
    KeyMode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key that belongs to somebody else.
    #[error("{path} belongs to user {uid}; it must belong to root or to the user the agent runs as")]
    KeyOwner {
        /// Which.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// PEM or DER that is none.
    #[error("{path}: {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("{name:?} cannot be the name in a certificate: {why}")]
    Name {
        /// What was given.
        name: String,
        /// The rule.
        why: String,
    },
    /// Making a certificate failed.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// TLS does not accept what was loaded.
    #[error("the certificate, key and CA do not fit together")]
    Tls(#[from] rustls::Error),
    /// The CA is not usable for checking peers.
    #[error("the CA certificate cannot be used to check peers: {0}")]
    Verifier(String),
}
