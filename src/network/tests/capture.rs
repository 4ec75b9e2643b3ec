//! What is described, and what is refused.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::{NetworkError, capture};
use super::{MAC, Place, V4, V6, World};
use crate::rpc::v1::Reason;

fn refused(place: &Place, path: &'static str) -> Vec<Reason> {
    match place.run(async move || capture(Path::new(path)).await) {
        Err(NetworkError::Refused { reasons }) => reasons,
        other => panic!("{other:?}"),
    }
}

fn codes(reasons: &[Reason]) -> BTreeSet<&str> {
    reasons.iter().map(|reason| reason.code.as_str()).collect()
}

#[test]
fn the_plain_case_is_described_in_full() {
    let world = World::new();
    world.container_on_a();
    let found = world.a.run(async || capture(Path::new("/var/run/netns/ct")).await.unwrap());
    assert_eq!(found.host_ends.len(), 1);
    assert_eq!((found.host_ends[0].name.as_str(), found.host_ends[0].bridge.as_str()), ("veth-ct", "br0"));
    let descriptor = found.descriptor;
    assert_eq!(descriptor.name, "ct");
    let [interface] = descriptor.interfaces.as_slice() else { panic!("{:?}", descriptor.interfaces) };
    assert_eq!((interface.name.as_str(), interface.mac.as_str(), interface.mtu), ("eth0", MAC, 1400));
    assert_eq!(interface.bridge, "br0");
    let addresses: Vec<_> = interface.addresses.iter().map(|a| a.address.clone()).collect();
    let expected =
        [format!("{V4}/24"), "10.99.0.51/24".to_owned(), format!("{V6}/64"), "fd99::51/64".to_owned()];
    assert_eq!(addresses, expected, "in the kernel's order, without the link-local one");
    let routes: BTreeSet<_> = descriptor.routes.iter().map(|r| (r.to.as_str(), r.via.as_str())).collect();
    let expected = [
        ("", "10.99.0.1"),
        ("192.0.2.0/24", "10.99.0.2"),
        ("198.51.100.7/32", ""),
        ("", "fd99::1"),
        ("2001:db8::/32", "fe80::1"),
    ];
    assert_eq!(routes, BTreeSet::from(expected));
}

#[test]
fn everything_odd_is_refused_at_once() {
    let host = Place::new();
    host.sh(
        "ip netns add odd; ip netns add other
         ip -n odd link add inner type bridge
         ip link add loose type veth peer name eth1 netns odd; ip -n odd link set eth1 up; ip link set loose up
         ip -n other link add far type veth peer name eth2 netns odd; ip -n odd link set eth2 up
         ip -n odd link add in1 type veth peer name in2; ip -n odd link set in1 up; ip -n odd link set in2 up
         ip link add down type veth peer name eth3 netns odd
         ip -n odd addr add 10.1.0.1 peer 10.1.0.2 dev eth1
         ip -n odd link set lo up; ip -n odd addr add 10.9.9.9/32 dev lo
         ip -n odd rule add from 10.1.0.1 table 100 priority 50
         ip -n odd route add 10.5.0.0/16 dev eth1 table 100
         ip -n odd route add blackhole 10.6.0.0/16
         ip -n odd neigh add 10.1.0.2 lladdr 02:00:00:00:00:01 dev eth1 nud permanent",
    );
    let reasons = refused(&host, "/run/netns/odd");
    let expected = [
        "network-address",
        "network-bridge",
        "network-down",
        "network-kind",
        "network-neighbour",
        "network-peer",
        "network-route",
        "network-rule",
    ];
    assert_eq!(codes(&reasons), BTreeSet::from(expected), "{reasons:#?}");
    let about = |code: &str| reasons.iter().filter(|reason| reason.code == code).count();
    // eth2 to another namespace, in1 and in2 to each other.
    assert_eq!(about("network-peer"), 3, "{reasons:#?}");
    assert_eq!(about("network-route"), 2, "{reasons:#?}");
    assert_eq!(about("network-address"), 2, "{reasons:#?}");
}

#[test]
fn routes_that_cannot_be_said_are_refused() {
    let world = World::new();
    world.container_on_a();
    world.a.sh("ip -n ct route del 192.0.2.0/24");
    world.a.sh("ip -n ct route add 192.0.2.0/24 via 10.99.0.2 dev eth0 src 10.99.0.50 metric 100");
    world
        .a
        .run(async || capture(Path::new("/run/netns/ct")).await.map(drop))
        .expect("the kernel's own choice of source");
    world.a.sh("ip -n ct route add 203.0.113.0/24 via 10.99.0.2 src 10.99.0.51
         ip -n ct route add default via 10.99.0.2 metric 50
         ip -n ct route add 10.7.0.0/16 nexthop via 10.99.0.1 nexthop via 10.99.0.2
         ip -n ct route add 10.8.0.0/16 via 10.99.0.1 mtu 1300");
    let reasons = refused(&world.a, "/run/netns/ct");
    assert_eq!(codes(&reasons), BTreeSet::from(["network-route"]));
    assert_eq!(reasons.len(), 4, "{reasons:#?}");
}

#[test]
fn a_namespace_that_cannot_be_made_again_is_refused() {
    let host = Place::new();
    assert_eq!(codes(&refused(&host, "/proc/thread-self/ns/net")), BTreeSet::from(["network-path"]));
    host.sh("ip netns add own; umount /run/netns/own; mount --bind /proc/$$/ns/net /run/netns/own");
    assert_eq!(codes(&refused(&host, "/run/netns/own")), BTreeSet::from(["network-kind"]));
    let missing = host.run(async || capture(Path::new("/run/netns/none")).await);
    assert!(matches!(missing, Err(NetworkError::Namespace { .. })), "{missing:?}");
}
