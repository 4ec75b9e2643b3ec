//! Certificates: who may talk to whom, and who somebody is.
//!
//! One private certificate authority per fleet. Every host has one certificate that serves both directions (it is client
//! and server at once) and carries the host's name as its only DNS name. Every operator has a certificate that can only be
//! a client. The two cannot stand in for each other: an operator's DNS name ends in [`OPERATOR_SUFFIX`], which no host may
//! use, and an operator's certificate lacks the server purpose.
//!
//! ```text
//! DIR/ca/          ca.pem  key.pem              stays with whoever issues; never copied to a host
//! DIR/hosts/NAME/      ca.pem  cert.pem  key.pem     copied as a whole to the host
//! DIR/operators/NAME/  ca.pem  cert.pem  key.pem     copied as a whole to the operator
//! ```
//!
//! There is no revocation list: a host or an operator is shut out by taking its name off the allow-lists in the agents'
//! configuration. This room must never print a key, weaken a file mode, or overwrite a key without being told to.

mod error;
mod files;
mod identity;
mod issue;
mod name;
mod tls;

pub use error::PkiError;
pub use identity::{Identity, IdentityFiles, load_identity};
pub use issue::{CaFiles, DAYS_OF_CA, DAYS_OF_CERTIFICATE, IssueRequest, Issued, init, issue};
pub use name::{OPERATOR_SUFFIX, PeerIdentity, peer_identity};
pub use tls::{client_config, server_config, server_verifier};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
