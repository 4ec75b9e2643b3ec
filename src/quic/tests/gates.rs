//! Who gets in, who does not, and what each is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::ServerCertVerifier;

use super::relay::Relay;
use super::*;
use crate::model::limits::HANDSHAKES_MAX;
use crate::pki;
use crate::protocol::ALPN;

async fn call(caller: &Endpoint, callee: &Endpoint, name: &str) -> ConnectError {
    let address = callee.local_address().unwrap();
    match soon(caller.connect(address, &host(name))).await {
        Err(QuicError::Connect(error)) => *error,
        other => panic!("this caller must not get in: {other:?}"),
    }
}

/// The endpoint has let nobody in, and still lets somebody good in.
async fn nobody_got_in(a: &Endpoint, fleet: &Fleet) {
    let good = endpoint(&fleet.host("node-b"), &[]);
    let (first, _theirs) = link(a, &good).await;
    assert_eq!(first.peer().as_str(), "node-b", "the first to get in is the good one");
    let nobody = tokio::time::timeout(Duration::from_millis(50), a.accept()).await;
    assert!(nobody.is_err(), "and the only one");
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let (at_a, at_b) = link(&a, &b).await;
    assert_eq!((at_a.peer(), at_b.peer()), (&host("node-b"), &host("node-a")));
    assert_eq!(at_b.address(), a.local_address().unwrap());
    assert_eq!(at_a.address(), b.local_address().unwrap());
}

#[tokio::test]
async fn a_host_of_another_ca_is_not_called() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let a = endpoint(&other.host("node-a"), &["node-b"]);
    let b = endpoint(&fleet.host("node-b"), &[]);
    let error = call(&b, &a, "node-a").await;
    assert!(matches!(error, ConnectError::OtherCa { .. }), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_caller_of_another_ca_gets_nothing() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let a = endpoint(&fleet.host("node-a"), &["node-b"]);
    let b = endpoint(&fleet.host_of_another_ca(&other, "node-b"), &[]);
    let error = call(&b, &a, "node-a").await;
    assert!(matches!(error, ConnectError::OurCertificateRefused { alert: 48, .. }), "{error:?}");
    nobody_got_in(&a, &fleet).await;
}

#[tokio::test]
async fn expired_certificates_are_told_apart() {
    let fleet = Fleet::new();
    let a = endpoint(&fleet.expired_host("node-a"), &["node-b"]);
    let b = endpoint(&fleet.host("node-b"), &[]);
    let error = call(&b, &a, "node-a").await;
    assert!(matches!(error, ConnectError::Expired { .. }), "{error:?}");

    let a = endpoint(&fleet.host("node-a"), &["node-b"]);
    let b = endpoint(&fleet.expired_host("node-b"), &[]);
    let error = call(&b, &a, "node-a").await;
    assert!(matches!(error, ConnectError::OurCertificateRefused { alert: 45, .. }), "{error:?}");
    nobody_got_in(&a, &fleet).await;
}

#[tokio::test]
async fn somebody_else_at_the_address_is_named() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let error = call(&b, &a, "node-z").await;
    assert!(matches!(&error, ConnectError::WrongName { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("node-z") && text.contains("node-a"), "{text}");
    nobody_got_in(&a, &fleet).await;
}

/// With two names in it, its holder could choose who to be.
#[tokio::test]
async fn a_certificate_with_two_names_is_no_identity() {
    let fleet = Fleet::new();
    let two_names = fleet.odd_host("node-b", |params| {
        params.subject_alt_names.push(rcgen::SanType::DnsName("node-c".try_into().unwrap()));
    });
    let allowed = BTreeSet::from([host("node-b"), host("node-c")]);
    let usual = Transport { idle_timeout: USUAL.idle_timeout };
    let bound = Endpoint::bind(loopback(), &two_names, allowed, usual);
    assert!(
        matches!(&bound, Err(QuicError::Bind(error)) if matches!(**error, BindError::Unnamed { .. })),
        "{bound:?}"
    );
    let a = endpoint(&fleet.host("node-a"), &["node-b", "node-c"]);
    assert_eq!(
        application_code(raw_call(&a, &two_names, Some(&two_names)).await),
        close::NOT_A_HOST.var_int()
    );
    nobody_got_in(&a, &fleet).await;
}

#[tokio::test]
async fn an_unlisted_host_is_told_so() {
    let fleet = Fleet::new();
    let (a, _) = two(&fleet);
    let c = endpoint(&fleet.host("node-c"), &[]);
    let error = call(&c, &a, "node-a").await;
    assert!(matches!(&error, ConnectError::NotListed { .. }), "{error:?}");
    assert!(error.to_string().contains("[peers.node-c]"), "{error}");
    nobody_got_in(&a, &fleet).await;
}

/// A caller that is not built from an [`Endpoint`]: shows `identity`, or nothing.
async fn raw_call(a: &Endpoint, trusts: &Identity, shows: Option<&Identity>) -> quinn::ConnectionError {
    let verifier: Arc<dyn ServerCertVerifier> = pki::server_verifier(trusts).unwrap();
    let tls = if let Some(identity) = shows {
        pki::client_config(identity, &[ALPN], verifier).unwrap()
    } else {
        let mut tls = pki::client_config(trusts, &[ALPN], verifier).unwrap();
        tls.client_auth_cert_resolver = Arc::new(Nothing);
        tls
    };
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let raw = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let attempt = async {
        let connection = raw.connect_with(config, a.local_address().unwrap(), "node-a").unwrap().await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        let _ = send.write_all(b"let me in").await;
        let _ = receive.read_to_end(100).await;
        Err(connection.closed().await)
    };
    let outcome: Result<(), _> = soon(attempt).await;
    outcome.unwrap_err()
}

fn application_code(error: quinn::ConnectionError) -> quinn::VarInt {
    match error {
        quinn::ConnectionError::ApplicationClosed(closed) => closed.error_code,
        other => panic!("{other:?}"),
    }
}

/// Has no certificate to show.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_caller_without_a_certificate_gets_nothing() {
    let fleet = Fleet::new();
    let (a, _) = two(&fleet);
    match raw_call(&a, &fleet.host("node-b"), None).await {
        quinn::ConnectionError::ConnectionClosed(closed) => {
            assert_eq!(u64::from(closed.error_code), 0x100 + 116)
        }
        other => panic!("{other:?}"),
    }
    nobody_got_in(&a, &fleet).await;
}

#[tokio::test]
async fn an_operator_is_no_host() {
    let fleet = Fleet::new();
    let operator = fleet.operator("alice");
    let usual = Transport { idle_timeout: USUAL.idle_timeout };
    let bound = Endpoint::bind(loopback(), &operator, BTreeSet::new(), usual);
    assert!(
        matches!(&bound, Err(QuicError::Bind(error)) if matches!(**error, BindError::NotAHost { .. })),
        "{bound:?}"
    );
    let (a, _) = two(&fleet);
    assert_eq!(application_code(raw_call(&a, &operator, Some(&operator)).await), close::NOT_A_HOST.var_int());
    nobody_got_in(&a, &fleet).await;
}

#[tokio::test]
async fn another_protocol_is_refused_both_ways() {
    let fleet = Fleet::new();
    let a = special(&fleet.host("node-a"), &["node-b"], &Settings { alpn: b"decamp/999", ..USUAL });
    let b = endpoint(&fleet.host("node-b"), &[]);
    let error = call(&b, &a, "node-a").await;
    assert!(matches!(error, ConnectError::OtherProtocol { .. }), "{error:?}");
}

#[tokio::test]
async fn silence_is_reported_with_the_address() {
    let fleet = Fleet::new();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let quick = Settings { handshake_within: Duration::from_millis(300), ..USUAL };
    let b = special(&fleet.host("node-b"), &[], &quick);
    let error = soon(b.connect(address, &host("node-a"))).await.unwrap_err();
    assert!(
        matches!(&error, QuicError::Connect(error) if matches!(**error, ConnectError::NoAnswer { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn addresses_that_cannot_work_are_refused_at_once() {
    let fleet = Fleet::new();
    let b = endpoint(&fleet.host("node-b"), &[]);
    for address in ["[::1]:7626", "127.0.0.1:0"] {
        let error = b.connect(address.parse().unwrap(), &host("node-a")).await.unwrap_err();
        assert!(
            matches!(&error, QuicError::Connect(error) if matches!(**error, ConnectError::Invalid { .. })),
            "{error:?}"
        );
    }
    let usual = Transport { idle_timeout: USUAL.idle_timeout };
    let taken = b.local_address().unwrap();
    let error = Endpoint::bind(taken, &fleet.host("node-b"), BTreeSet::new(), usual).unwrap_err();
    assert!(
        matches!(&error, QuicError::Bind(error) if matches!(**error, BindError::Bind { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

/// More stalled handshakes than there are places, and noise on top: a good caller gets in while they hang.
#[tokio::test]
async fn slow_handshakes_do_not_keep_others_out() {
    let fleet = Fleet::new();
    let patient = Settings { handshake_within: PATIENCE * 2, ..USUAL };
    let a = special(&fleet.host("node-a"), &["node-b"], &patient);
    let relay = Relay::to(a.local_address().unwrap()).await;
    relay.swallow_answers();
    let stalled = Arc::new(special(&fleet.host("node-c"), &[], &patient));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..HANDSHAKES_MAX + 10 {
        let (stalled, address) = (Arc::clone(&stalled), relay.address);
        calls.spawn(async move { stalled.connect(address, &host("node-a")).await });
    }
    soon(async {
        while relay.passed() < HANDSHAKES_MAX as u64 + 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let noise = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in 0..200_usize {
        let junk: Vec<u8> = (0..length * 7).map(|i| u8::try_from((i * 37 + length) % 256).unwrap()).collect();
        let _ = noise.send_to(&junk, a.local_address().unwrap()).await;
    }
    let b = endpoint(&fleet.host("node-b"), &[]);
    let (at_a, _at_b) = link(&a, &b).await;
    assert_eq!(at_a.peer(), &host("node-b"));
    assert!(calls.try_join_next().is_none(), "the slow ones are still hanging");
}

/// Links that nobody takes do not pile up.
#[tokio::test]
async fn a_full_queue_answers_busy() {
    let fleet = Fleet::new();
    let (a, b) = two(&fleet);
    let address = a.local_address().unwrap();
    let mut links = Vec::new();
    for _ in 0..crate::model::limits::LINKS_WAITING_MAX {
        links.push(soon(b.connect(address, &host("node-a"))).await.unwrap());
    }
    let error = soon(b.connect(address, &host("node-a"))).await.unwrap_err();
    assert!(
        matches!(&error, QuicError::Connect(error) if matches!(**error, ConnectError::Busy { .. })),
        "{error:?}"
    );
    a.accept().await.unwrap();
    soon(b.connect(address, &host("node-a"))).await.unwrap();
}
