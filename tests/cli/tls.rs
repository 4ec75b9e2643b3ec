//! An agent over TCP: both sides prove who they are, or nothing happens.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use decamp::rpc::v1::{ContainerInfo, ListReply};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::fake::{Service, State};
use crate::harness::{Ran, decamp, run};

/// An authority, and what it signed.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn serve(pki: &Pki) -> (Runtime, u16) {
    let runtime = Runtime::new().unwrap();
    let (cert, key) = pki.issue("node-a");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(&pki.pem));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let redis = ContainerInfo { id: "redis".into(), status: "running".into(), ..ContainerInfo::default() };
    let state = State { list: ListReply { containers: vec![redis] }, ..State::default() };
    let service = Service::new(Arc::new(Mutex::new(state)));
    let server = Server::builder().tls_config(tls).unwrap().add_service(service);
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (runtime, port)
}

fn write(folder: &Path, ca: &Pki, signer: &Pki, key_mode: u32) {
    let (cert, key) = signer.issue("alice");
    for (name, text, mode) in
        [("ca.pem", &ca.pem, 0o644), ("me.pem", &cert, 0o644), ("me.key", &key, key_mode)]
    {
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn ls(folder: &Path, port: u16, name: &str) -> Ran {
    let at = folder.display();
    let files = format!("--tls-ca {at}/ca.pem --tls-cert {at}/me.pem --tls-key {at}/me.key");
    run(decamp(&format!("ls --agent 127.0.0.1:{port} {files} --tls-name {name}")))
}

#[test]
fn both_sides_must_be_who_they_say() {
    let (ours, theirs, folder) = (Pki::new(), Pki::new(), tempfile::tempdir().unwrap());
    let (_runtime, port) = serve(&ours);
    write(folder.path(), &ours, &ours, 0o600);
    ls(folder.path(), port, "node-a").expect(0, &["redis"], &[]);
    ls(folder.path(), port, "node-z").expect(6, &[], &["cannot be reached", "its certificate names node-z"]);
    write(folder.path(), &ours, &theirs, 0o600);
    assert_eq!(ls(folder.path(), port, "node-a").code, 6, "a stranger's certificate must not be enough");
    write(folder.path(), &theirs, &ours, 0o600);
    assert_eq!(ls(folder.path(), port, "node-a").code, 6, "a stranger's agent must not be trusted");
}

#[test]
fn tcp_without_certificates_or_with_careless_ones_is_not_tried() {
    run(decamp("ls --agent 127.0.0.1:1")).expect(2, &[], &["not given: --tls-ca, --tls-cert, --tls-key"]);
    let (ours, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    write(folder.path(), &ours, &ours, 0o644);
    ls(folder.path(), 1, "node-a").expect(2, &[], &["readable by others", "its mode is 644", "chmod 600"]);
    write(folder.path(), &ours, &ours, 0o600);
    std::fs::write(folder.path().join("me.pem"), "not a certificate").unwrap();
    ls(folder.path(), 1, "node-a").expect(2, &[], &["cannot be used"]);
    std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
    ls(folder.path(), 1, "node-a").expect(2, &[], &["ca.pem cannot be read", "No such file"]);
}
