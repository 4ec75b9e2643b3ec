//! What keeps an agent from starting.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// CRIU, namespaces and cgroups need root.
    #[error("the agent must run as root")]
    NotRoot,
    /// Configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Logs or metrics.
    #[error(transparent)]
    Telemetry(#[from] crate::telemetry::TelemetryError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// The certificate is somebody else's.
    #[error(
        "the certificate of this agent is for {found}, the configuration says host = {host:?}; issue one with: decamp pki issue {host}"
    )]
    WrongCertificate {
        /// What the configuration says.
        host: String,
        /// What the certificate says.
        found: String,
    },
    /// A folder.
    #[error("cannot make the folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data plane.
    #[error(transparent)]
    Quic(#[from] crate::quic::QuicError),
    /// The journal.
    #[error("{0} (is another agent running on this host?)")]
    Journal(#[from] crate::journal::JournalError),
    /// The hook socket.
    #[error(transparent)]
    Hook(#[from] crate::hook::HookError),
    /// What an earlier run left.
    #[error("what an earlier run of the agent left could not be settled")]
    Recover(#[from] crate::migration::MigrationError),
    /// The control socket.
    #[error("cannot listen for operators on {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The control plane over TCP.
    #[error("cannot listen for operators on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS of the control plane.
    #[error("the certificates cannot be used for the control plane")]
    Tls(#[source] tonic::transport::Error),
    /// The async runtime, signals.
    #[error("the operating system refuses what every program needs")]
    Runtime(#[source] std::io::Error),
}
