//! The way to an agent: a UNIX socket, or TCP with mutual TLS. It proves both sides or gives up; there is no plain TCP.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::args::{AgentAddress, AgentOptions};
use super::complaint::chain;
use super::{Complaint, Exit};
use crate::rpc::v1::control_client::ControlClient;

/// Connecting, and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One question with one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is asked for a sign of life this often, and is dead when none comes for that long.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// A connected agent. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// The generated client.
    pub(crate) client: ControlClient<Channel>,
    /// For sentences.
    pub(crate) address: AgentAddress,
}

impl Agent {
    /// Connects.
    ///
    /// # Errors
    /// [`Exit::Usage`] for certificates that cannot be used, [`Exit::Unreachable`] when nobody answers.
    pub(crate) async fn connect(options: &AgentOptions) -> Result<Self, Complaint> {
        let address = options.agent.clone();
        let connecting = async {
            match &address {
                AgentAddress::Unix(path) => over_unix(path).await,
                AgentAddress::Tcp { host, .. } => over_tcp(options, host).await,
            }
        };
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(channel) => channel?,
            Err(_) => {
                let what = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(unreachable(&address).fact("what", what));
            }
        };
        Ok(Self { client: ControlClient::new(channel), address })
    }

    /// Waits for one answer, and turns a refusal into a complaint.
    ///
    /// # Errors
    /// See [`Agent::refused`].
    pub(crate) async fn answer<T, F>(&self, action: &str, call: F) -> Result<T, Complaint>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(action, &status)),
            Err(_) => {
                let what =
                    format!("asked to {action}, it did not answer within {} s", ANSWER_TIMEOUT.as_secs());
                Err(unreachable(&self.address).fact("what", what))
            }
        }
    }

    /// What a gRPC status means when it is the answer to a question that changes nothing by failing.
    pub(crate) fn refused(&self, action: &str, status: &Status) -> Complaint {
        let exit = match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::OutOfRange => Exit::Usage,
            Code::FailedPrecondition | Code::AlreadyExists | Code::ResourceExhausted => Exit::Refused,
            Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let verb = if exit == Exit::Unreachable { "did not answer when asked" } else { "refused" };
        let next = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                "the agent's configuration lists who may ask: add this operator's certificate name there"
            }
            Code::Unimplemented => "the agent is older than this command line: update it",
            _ if exit == Exit::Unreachable => {
                "`systemctl status decamp` and the agent's log say whether it runs"
            }
            _ => "",
        };
        Complaint::new(exit, format!("the agent at {} {verb} to {action}", self.address))
            .fact("what", explain(status))
            .fact("next", next)
    }
}

/// A status without its noise: the message, or the causes below it when the transport failed.
pub(crate) fn explain(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => chain(source),
        None if status.message().is_empty() => format!("{:?}", status.code()),
        None => status.message().to_owned(),
    }
}

async fn over_unix(path: &Path) -> Result<Channel, Complaint> {
    // The address in the endpoint is only the HTTP authority; the connector decides where bytes go.
    let endpoint = lively(Endpoint::from_static("http://agent.invalid"));
    let socket = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let next = match io_kind(&error) {
            Some(std::io::ErrorKind::NotFound) => {
                "start the agent (`systemctl start decamp`), or name its socket with --agent unix:PATH"
            }
            Some(std::io::ErrorKind::ConnectionRefused) => {
                "the socket is there but nobody listens: the agent has stopped; `systemctl status decamp`"
            }
            Some(std::io::ErrorKind::PermissionDenied) => {
                "run this as root, or as a user who may use the socket"
            }
            _ => "`systemctl status decamp` says whether the agent runs",
        };
        unreachable(&AgentAddress::Unix(path.to_owned())).fact("what", chain(&error)).fact("next", next)
    })
}

async fn over_tcp(options: &AgentOptions, host: &str) -> Result<Channel, Complaint> {
    let address = &options.agent;
    let (Some(ca), Some(cert), Some(key)) = (&options.tls_ca, &options.tls_cert, &options.tls_key) else {
        let given = [
            ("--tls-ca", &options.tls_ca),
            ("--tls-cert", &options.tls_cert),
            ("--tls-key", &options.tls_key),
        ];
        let missing: Vec<_> =
            given.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        return Err(Complaint::new(Exit::Usage, format!("an agent over TCP ({address}) wants certificates"))
            .fact("what", format!("not given: {}", missing.join(", ")))
            .fact("next", "`decamp pki issue NAME --operator` makes them"));
    };
    let name = options.tls_name.as_deref().unwrap_or(host);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem(ca)?))
        .identity(Identity::from_pem(pem(cert)?, private_pem(key)?))
        .domain_name(name);
    let uri = format!("https://{address}");
    let endpoint = Endpoint::from_shared(uri).and_then(|endpoint| lively(endpoint).tls_config(tls));
    let endpoint = endpoint.map_err(|error| {
        Complaint::new(Exit::Usage, format!("the certificates for {address} cannot be used"))
            .fact("what", chain(&error))
            .fact("next", "--tls-ca, --tls-cert and --tls-key want PEM files, as `decamp pki` writes them")
    })?;
    endpoint.connect().await.map_err(|error| {
        unreachable(address).fact("what", chain(&error)).fact(
            "next",
            format!("check the address, that the agent serves TCP, and that its certificate names {name}"),
        )
    })
}

fn lively(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
}

fn unreachable(address: &AgentAddress) -> Complaint {
    Complaint::new(Exit::Unreachable, format!("the agent at {address} cannot be reached"))
}

fn pem(path: &Path) -> Result<Vec<u8>, Complaint> {
    std::fs::read(path).map_err(|error| {
        Complaint::new(Exit::Usage, format!("{} cannot be read", path.display()))
            .fact("what", error.to_string())
    })
}

/// A private key that others may read is not private: refused before it is used.
fn private_pem(path: &Path) -> Result<Vec<u8>, Complaint> {
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Err(Complaint::new(
            Exit::Usage,
            format!("the private key {} is readable by others", path.display()),
        )
        .fact("what", format!("its mode is {mode:03o}"))
        .fact("next", format!("chmod 600 {}", path.display())));
    }
    pem(path)
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = current.source();
    }
    None
}
