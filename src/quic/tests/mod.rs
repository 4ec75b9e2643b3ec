//! Links over loopback: real sockets, real certificates, and a relay that can lose packets on demand.

mod gates;
mod relay;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;
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

fn config() -> Config {
    Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::default() }
}

fn endpoint(identity: Identity, allow: &[&str]) -> Endpoint {
    Endpoint::bind(&config(), Arc::new(identity), allow.iter().map(|name| host(name))).unwrap()
}

/// `node-a` accepts `node-b`.
fn two(fleet: &Fleet) -> (Endpoint, Endpoint) {
    (endpoint(fleet.host("node-a"), &["node-b"]), endpoint(fleet.host("node-b"), &[]))
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
    link_over(a, b, a.local_addr().unwrap()).await
}
