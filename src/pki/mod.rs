//! Certificates: making them (`decamp pki`), loading them, and reading who is who from them.
//!
//! One private certificate authority per fleet. A **host** certificate carries the host's name as its only DNS name and may
//! serve and call; an **operator** certificate carries `NAME.operator.decamp` and may only call. Neither can pass for the
//! other: no host may have a name below [`OPERATOR_SUFFIX`], and an operator's certificate lacks the server purpose.
//!
//! ```text
//! DIR/ca.crt  DIR/ca.key                               ca.key stays with whoever issues; it is never copied to a host
//! DIR/HOST.crt  DIR/HOST.key                           copied, with ca.crt, to the host
//! DIR/NAME.operator.crt  DIR/NAME.operator.key         copied, with ca.crt, to the operator
//! ```
//!
//! There is no revocation list: a host or an operator is shut out by taking its name off the allow-lists in the agents'
//! configuration. This room must never print a key, weaken a file mode, overwrite a key without being told to, or talk to a
//! network.

mod error;
mod files;
mod identity;
mod issue;
mod name;
mod tls;

pub use error::PkiError;
pub use identity::{Identity, Pem, TlsFiles};
pub use issue::{Issued, Validity, init, issue_host, issue_operator};
pub use name::{OPERATOR_SUFFIX, PeerIdentity, peer_identity};
pub use tls::{client_config, server_config, server_verifier};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
