//! Links over loopback: real sockets, real certificates, and a relay that can lose packets on demand.

mod gates;
mod relay;
mod transfer;

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::model::HostId;
use crate::pki::Identity;
use crate::pki::testing::Fleet;

/// Nothing here takes this long; it only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(20);

fn host(name: &str) -> HostId {
    HostId::try_from(name).unwrap()
}

/// What an endpoint under test does differently from the usual.
struct Settings {
    idle_timeout: Duration,
    handshake_within: Duration,
    alpn: &'static [u8],
}

const USUAL: Settings = Settings {
    idle_timeout: Duration::from_secs(10),
    handshake_within: Duration::from_secs(5),
    alpn: crate::protocol::ALPN,
};

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn special(identity: &Identity, allowed: &[&str], settings: &Settings) -> Endpoint {
    let transport = Transport { idle_timeout: settings.idle_timeout };
    let allowed = allowed.iter().map(|name| host(name)).collect();
    let within = settings.handshake_within;
    Endpoint::bind_with(loopback(), identity, allowed, transport, within, &[settings.alpn]).unwrap()
}

fn endpoint(identity: &Identity, allowed: &[&str]) -> Endpoint {
    special(identity, allowed, &USUAL)
}

/// `node-a` accepts `node-b`.
fn two(fleet: &Fleet) -> (Endpoint, Endpoint) {
    (endpoint(&fleet.host("node-a"), &["node-b"]), endpoint(&fleet.host("node-b"), &[]))
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened long ago")
}

/// A link as both ends see it: at `a`, which accepts, and at `b`, which calls `address`.
async fn link_over(a: &Endpoint, b: &Endpoint, address: SocketAddr) -> (Link, Link) {
    let (at_a, at_b) = soon(async { tokio::join!(a.accept(), b.connect(address, a.host())) }).await;
    (at_a.unwrap(), at_b.unwrap())
}

async fn link(a: &Endpoint, b: &Endpoint) -> (Link, Link) {
    link_over(a, b, a.local_address().unwrap()).await
}
