//! What a peer may and may not say about a network.

use proptest::prelude::*;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::plan::*;
use crate::model::limits::{NETWORK_INTERFACES_MAX, NETWORK_ROUTES_MAX};
use crate::rpc::v1::network_descriptor::Kind;
use crate::rpc::v1::{AddressDescriptor, InterfaceDescriptor, NetworkDescriptor, RouteDescriptor};

fn descriptor() -> NetworkDescriptor {
    NetworkDescriptor {
        kind: Kind::Named.into(),
        name: "ct-redis".to_owned(),
        interfaces: vec![InterfaceDescriptor {
            name: "eth0".to_owned(),
            mac: "02:00:0a:4d:00:32".to_owned(),
            mtu: 1500,
            addresses: vec![
                AddressDescriptor { address: "10.77.0.50/24".to_owned() },
                AddressDescriptor { address: "fd00::50/64".to_owned() },
            ],
            bridge: "br0".to_owned(),
        }],
        routes: vec![RouteDescriptor {
            to: String::new(),
            via: "10.77.0.1".to_owned(),
            interface: "eth0".to_owned(),
        }],
    }
}

fn route(to: &str, via: &str) -> RouteDescriptor {
    RouteDescriptor { to: to.to_owned(), via: via.to_owned(), interface: "eth0".to_owned() }
}

fn refused(change: impl FnOnce(&mut NetworkDescriptor)) -> Vec<String> {
    let mut changed = descriptor();
    change(&mut changed);
    let reasons = plan(&changed, None).expect_err("must be refused");
    reasons.into_iter().map(|reason| format!("{}: {}", reason.what, reason.evidence)).collect()
}

#[test]
fn a_good_descriptor_becomes_a_plan() {
    let plan = plan(&descriptor(), None).unwrap();
    assert_eq!(plan.interfaces[0].bridge, "br0");
    assert_eq!(plan.interfaces[0].addresses.len(), 2);
    assert_eq!(plan.routes[0].to.to_string(), "0.0.0.0/0");
    assert!(!plan.routes[0].onlink);
    assert!(plan.interfaces[0].host_end.len() <= 15);
}

#[test]
fn the_operators_bridge_wins() {
    assert_eq!(plan(&descriptor(), Some("vmbr3")).unwrap().interfaces[0].bridge, "vmbr3");
    assert!(plan(&descriptor(), Some("../br")).is_err());
}

#[test]
fn every_complaint_comes_at_once() {
    let complaints = refused(|d| {
        d.name = "../../etc/passwd".to_owned();
        d.interfaces[0].mac = "01:00:5e:00:00:01".to_owned();
        d.interfaces[0].mtu = 1000;
        d.interfaces[0].addresses[0].address = "224.0.0.1/24".to_owned();
    });
    assert_eq!(complaints.len(), 4, "{complaints:?}");
}

#[test]
fn hostile_names_are_refused() {
    for name in ["", "lo", "..", "a/b", "eth%d", "a b", "sixteen-bytes-xx", "e\0", "ä"] {
        assert_eq!(refused(|d| d.interfaces[0].name = name.to_owned()).len(), 1, "{name:?}");
        assert_eq!(refused(|d| d.interfaces[0].bridge = name.to_owned()).len(), 1, "{name:?}");
    }
    for name in ["", ".", "..", "a/b", "-x", "a\0"] {
        assert_eq!(refused(|d| d.name = name.to_owned()).len(), 1, "{name:?}");
    }
}

#[test]
fn bad_routes_are_refused() {
    for bad in [route("", ""), route("10.0.0.1/24", ""), route("fd00::/8", "10.77.0.1"), route("x", "")] {
        assert_eq!(refused(|d| d.routes.push(bad.clone())).len(), 1, "{bad:?}");
    }
    assert_eq!(refused(|d| d.routes.push(route("", "10.77.0.2"))), ["the same route twice: 0.0.0.0/0"]);
    assert_eq!(refused(|d| d.routes[0].interface = "eth9".to_owned()).len(), 1);
}

#[test]
fn too_many_of_anything_is_refused_before_it_is_looked_at() {
    assert_eq!(
        refused(|d| d.interfaces = vec![d.interfaces[0].clone(); NETWORK_INTERFACES_MAX + 1]).len(),
        1
    );
    assert_eq!(refused(|d| d.routes = vec![route("x", ""); NETWORK_ROUTES_MAX + 1]).len(), 1);
}

#[test]
fn direct_routes_come_first_and_spare_the_flag() {
    let mut direct = descriptor();
    direct.routes = vec![route("", "169.254.1.1"), route("169.254.1.1/32", "")];
    let routes = plan(&direct, None).unwrap().routes;
    assert_eq!(routes[0].via, None);
    assert!(!routes[1].onlink);
    direct.routes.pop();
    assert!(plan(&direct, None).unwrap().routes[0].onlink);
}

#[test]
fn link_local_addresses_follow_the_mac() {
    let mac: Mac = "02:00:0a:4d:00:32".parse().unwrap();
    assert_eq!(mac.link_local().to_string(), "fe80::aff:fe4d:32");
    assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,40}") {
        if let Ok(cidr) = text.parse::<Cidr>() {
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
            let _ = cidr.is_network();
        }
        let _ = text.parse::<Mac>();
    }

    #[test]
    fn a_network_contains_its_addresses(bits: u32, length in 0u8..=32) {
        let cidr = Cidr { address: Ipv4Addr::from_bits(bits).into(), prefix_len: length };
        prop_assert!(cidr.contains(cidr.address));
        if length > 0 {
            let outside = Ipv4Addr::from_bits(bits ^ 1 << (32 - length));
            prop_assert!(!cidr.contains(outside.into()));
        }
    }

    #[test]
    fn a_network_has_no_bits_after_its_prefix(bits: u128, length in 0u8..=127) {
        let address = Ipv6Addr::from_bits(bits | 1);
        let cidr = Cidr { address: address.into(), prefix_len: length };
        prop_assert!(!cidr.is_network());
        let masked = bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        let network = Cidr { address: Ipv6Addr::from_bits(masked).into(), prefix_len: length };
        prop_assert!(network.is_network());
    }

    #[test]
    fn no_descriptor_makes_the_plan_panic(
        texts in proptest::collection::vec("[0-9a-f.:/%]{0,20}|10\\.77\\.0\\.[0-9]/2[0-9]|fd00::[0-9]/6[0-9]|eth[0-9]|", 7),
        mtu: u32,
        kind: i32,
    ) {
        let mut given = descriptor();
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap_or_default();
        given.interfaces.push(InterfaceDescriptor {
            name: next(),
            mac: next(),
            mtu,
            addresses: vec![AddressDescriptor { address: next() }],
            bridge: next(),
        });
        given.routes.push(RouteDescriptor { to: next(), via: next(), interface: next() });
        for kind in [kind, Kind::Named.into()] {
            given.kind = kind;
            if let Err(reasons) = plan(&given, None) {
                prop_assert!(!reasons.is_empty());
            }
        }
    }
}
