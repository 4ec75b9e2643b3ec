//! Where operators connect: a UNIX socket for root on this host, and, when configured, TCP with mutual TLS for operators on the
//! list. A certificate of the right CA is not enough: its operator's name must be allowed.

use std::collections::BTreeSet;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Certificate, Server, ServerTlsConfig};
use tonic::{Request, Status};

use super::control::ControlService;
use super::{Agent, AgentError};
use crate::config::Config;
use crate::pki::{self, Identity, PeerIdentity};
use crate::rpc::v1::control_server::ControlServer;

/// Starts both listeners; the future ends when they have ended.
pub(super) fn control(
    config: &Config,
    identity: &Identity,
    agent: Arc<Agent>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, AgentError> {
    let service = ControlServer::new(ControlService(agent));
    let local = serve_socket(config, service.clone(), stop.clone())?;
    let remote = serve_tcp(config, identity, service, stop)?;
    Ok(async move {
        for task in [Some(local), remote].into_iter().flatten() {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a control listener ended badly"),
                Err(error) => tracing::error!(%error, "a control listener was stopped"),
            }
        }
    })
}

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

fn serve_socket(
    config: &Config,
    service: ControlServer<ControlService>,
    stop: CancellationToken,
) -> Result<Serving, AgentError> {
    let path = &config.control.socket;
    let fail = |source| AgentError::Socket { path: path.clone(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    let incoming = UnixListenerStream::new(listener);
    Ok(tokio::spawn(async move {
        Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stop.cancelled()).await
    }))
}

fn serve_tcp(
    config: &Config,
    identity: &Identity,
    service: ControlServer<ControlService>,
    stop: CancellationToken,
) -> Result<Option<Serving>, AgentError> {
    let Some(address) = config.control.listen else { return Ok(None) };
    let fail = |source| AgentError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let incoming = TcpListenerStream::new(TcpListener::from_std(listener).map_err(fail)?);
    let tls = ServerTlsConfig::new()
        .identity(tonic::transport::Identity::from_pem(&identity.pem.cert, &identity.pem.key))
        .client_ca_root(Certificate::from_pem(&identity.pem.ca));
    let mut server = Server::builder().tls_config(tls).map_err(AgentError::Tls)?;
    let allowed: BTreeSet<String> = config.operators.allow.iter().cloned().collect();
    let guarded = InterceptedService::new(service, move |request: Request<()>| admit(&allowed, request));
    Ok(Some(tokio::spawn(async move {
        server.add_service(guarded).serve_with_incoming_shutdown(incoming, stop.cancelled()).await
    })))
}

/// Lets an operator in whose certificate names one on the list.
fn admit(allowed: &BTreeSet<String>, request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let certificates = info.and_then(TlsConnectInfo::peer_certs);
    let first = certificates.as_ref().and_then(|list| list.first());
    let name = first.map(|certificate| pki::peer_identity(certificate.as_ref()));
    match name {
        Some(Ok(PeerIdentity::Operator(name))) if allowed.contains(&name) => Ok(request),
        Some(Ok(other)) => {
            tracing::warn!(who = ?other, "refused on the control plane: not on the list of operators");
            Err(Status::permission_denied("this certificate's name is not in [operators] allow of the agent"))
        }
        _ => Err(Status::unauthenticated("no usable certificate")),
    }
}
