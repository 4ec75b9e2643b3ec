//! A descriptor, checked. What arrives from a peer is text; nothing of it reaches the kernel before every name, number and
//! count in it has been held against a rule here. No I/O.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::error::reason;
use crate::model::ContainerId;
use crate::model::limits::{NETWORK_ADDRESSES_MAX, NETWORK_INTERFACES_MAX, NETWORK_ROUTES_MAX};
use crate::rpc::v1::network_descriptor::Kind;
use crate::rpc::v1::{InterfaceDescriptor, NetworkDescriptor, Reason, RouteDescriptor};

/// Longest interface name: the kernel's IFNAMSIZ without the final NUL.
const INTERFACE_NAME_MAX: usize = 15;
/// Smallest MTU of a veth (`ETH_MIN_MTU`).
const MTU_MIN: u32 = 68;
/// Smallest MTU that carries IPv6 (RFC 8200 section 5); below it the kernel turns IPv6 off on the interface.
const MTU_MIN_V6: u32 = 1280;
/// Largest MTU of a veth (`ETH_MAX_MTU`).
const MTU_MAX: u32 = 65_535;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl Mac {
    /// The link-local IPv6 address that the kernel makes of this MAC (RFC 4291 appendix A).
    pub(super) fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let tail = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(u64::from_be_bytes(tail)))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const BAD: &str = "not six two-digit hexadecimal numbers joined by colons";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(BAD)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(BAD);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| BAD)?;
        }
        if parts.next().is_some() {
            return Err(BAD);
        }
        if bytes[0] & 1 == 1 {
            return Err("a group address, not one of an interface");
        }
        if bytes == [0; 6] {
            return Err("all zero");
        }
        Ok(Self(bytes))
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Cidr {
    pub(super) address: IpAddr,
    pub(super) prefix_len: u8,
}

impl Cidr {
    fn bits(self) -> (u128, u32) {
        match self.address {
            // In the top bits, so that prefixes of both families compare alike.
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        }
    }

    /// True when `other` is an address of this network.
    pub(super) fn contains(self, other: IpAddr) -> bool {
        if self.address.is_ipv4() != other.is_ipv4() {
            return false;
        }
        let (mine, _) = self.bits();
        let (theirs, _) = Self { address: other, prefix_len: 0 }.bits();
        self.prefix_len == 0 || (mine ^ theirs) >> (128 - u32::from(self.prefix_len)) == 0
    }

    /// True when no bit after the prefix is set, as the kernel demands of a route.
    pub(super) fn is_network(self) -> bool {
        let (mine, _) = self.bits();
        self.prefix_len == 128 || mine << self.prefix_len == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl FromStr for Cidr {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = text.split_once('/').ok_or("has no prefix length")?;
        let address: IpAddr = address.parse().map_err(|_| "not an IP address")?;
        let prefix_len: u8 = length.parse().map_err(|_| "its prefix length is not a number")?;
        let cidr = Self { address, prefix_len };
        if u32::from(prefix_len) > cidr.bits().1 {
            return Err("its prefix is longer than the address");
        }
        Ok(cidr)
    }
}

/// One interface to make.
#[derive(Debug, Clone)]
pub(super) struct PlannedInterface {
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) addresses: Vec<Cidr>,
    /// Bridge on this host.
    pub(super) bridge: String,
    /// Name of the host end on this host.
    pub(super) host_end: String,
}

/// One route to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedRoute {
    pub(super) to: Cidr,
    pub(super) via: Option<IpAddr>,
    /// Position of the interface in the plan.
    pub(super) interface: usize,
    /// The gateway is in no network of the interface: the kernel is to believe that it is a neighbour.
    pub(super) onlink: bool,
}

impl fmt::Display for PlannedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        self.via.map_or(Ok(()), |via| write!(f, " via {via}"))
    }
}

/// A descriptor in the kernel's terms.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) interfaces: Vec<PlannedInterface>,
    /// Routes without a gateway first: the others may need them.
    pub(super) routes: Vec<PlannedRoute>,
}

/// The name of the host end of `interface` of the namespace `netns` on any destination: short, the same every time, so that
/// an agent that has forgotten everything can still find and remove it.
#[must_use]
pub fn host_end_name(netns: &str, interface: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(netns.as_bytes()).update(&[0]).update(interface.as_bytes());
    format!("dc{}", &hasher.finalize().to_hex()[..12])
}

/// Why `name` is no name for an interface (kernel `net/core/dev.c`, `dev_valid_name`, and a little stricter: printable).
fn bad_interface_name(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("it is empty"),
        "." | ".." | "lo" | "all" | "default" => Some("it has a meaning of its own"),
        _ if name.len() > INTERFACE_NAME_MAX => Some("it is longer than 15 bytes"),
        // '%' asks the kernel to choose a number.
        _ if name.bytes().any(|c| !c.is_ascii_graphic() || b"/:%".contains(&c)) => {
            Some("it has a forbidden character")
        }
        _ => None,
    }
}

/// True when `name` can be the name of a namespace: a plain file name of letters, digits and a few marks.
pub(super) fn is_netns_name(name: &str) -> bool {
    ContainerId::try_from(name).is_ok()
}

/// Cuts what a peer sent to what fits on a line.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Collects complaints about a descriptor.
#[derive(Default)]
struct Complaints(Vec<Reason>);

impl Complaints {
    fn add(&mut self, what: impl Into<String>, evidence: impl Into<String>) {
        let remedy = "such a network cannot be made again: change it at the source, or report a bug if it is an ordinary one";
        self.0.push(reason("network-descriptor", what, evidence, remedy));
    }
}

/// Checks a descriptor and turns it into a plan for this host.
///
/// # Errors
/// Every complaint at once.
pub(super) fn plan(descriptor: &NetworkDescriptor, bridge: Option<&str>) -> Result<Plan, Vec<Reason>> {
    let mut complaints = Complaints::default();
    if descriptor.kind() != Kind::Named {
        complaints.add("the network is not a named namespace", format!("kind {}", descriptor.kind));
    }
    if !is_netns_name(&descriptor.name) {
        complaints.add("the namespace's name is not usable", shown(&descriptor.name));
    }
    let addresses: usize = descriptor.interfaces.iter().map(|interface| interface.addresses.len()).sum();
    let counts = [
        ("interfaces", descriptor.interfaces.len(), NETWORK_INTERFACES_MAX),
        ("addresses", addresses, NETWORK_ADDRESSES_MAX),
        ("routes", descriptor.routes.len(), NETWORK_ROUTES_MAX),
    ];
    for (what, count, max) in counts {
        if count > max {
            complaints.add(format!("too many {what}"), format!("{count}, allowed are {max}"));
            return Err(complaints.0);
        }
    }
    let interfaces: Vec<_> = descriptor
        .interfaces
        .iter()
        .filter_map(|interface| plan_interface(&descriptor.name, interface, bridge, &mut complaints))
        .collect();
    repeated("interface name", interfaces.iter().map(|interface| interface.name.clone()), &mut complaints);
    repeated("MAC address", interfaces.iter().map(|interface| interface.mac), &mut complaints);
    let all = interfaces.iter().flat_map(|interface| interface.addresses.iter().map(|cidr| cidr.address));
    repeated("address", all, &mut complaints);
    // With an interface missing, its routes would add noise.
    let mut routes = Vec::new();
    if complaints.0.is_empty() {
        routes = plan_routes(&descriptor.routes, &interfaces, &mut complaints);
    }
    if complaints.0.is_empty() {
        Ok(Plan { name: descriptor.name.clone(), interfaces, routes })
    } else {
        Err(complaints.0)
    }
}

fn repeated<T: std::hash::Hash + Eq + fmt::Display>(
    what: &str,
    items: impl Iterator<Item = T>,
    complaints: &mut Complaints,
) {
    let mut seen = HashSet::new();
    for item in items {
        let text = item.to_string();
        if !seen.insert(item) {
            complaints.add(format!("the same {what} twice"), text);
        }
    }
}

fn plan_interface(
    netns: &str,
    interface: &InterfaceDescriptor,
    bridge: Option<&str>,
    complaints: &mut Complaints,
) -> Option<PlannedInterface> {
    let before = complaints.0.len();
    let name = shown(&interface.name);
    if let Some(why) = bad_interface_name(&interface.name) {
        complaints.add(format!("the interface name \"{name}\" is not usable"), why);
    }
    let mac = interface.mac.parse();
    if let Err(why) = mac {
        complaints.add(
            format!("the MAC address of {name} is not usable"),
            format!("{}: {why}", shown(&interface.mac)),
        );
    }
    let mut addresses = Vec::new();
    for address in &interface.addresses {
        let parsed = address.address.parse().and_then(usable);
        match parsed {
            Ok(cidr) => addresses.push(cidr),
            Err(why) => complaints.add(
                format!("an address of {name} is not usable"),
                format!("{}: {why}", shown(&address.address)),
            ),
        }
    }
    let v6 = addresses.iter().any(|cidr: &Cidr| cidr.address.is_ipv6());
    let mtu_min = if v6 { MTU_MIN_V6 } else { MTU_MIN };
    if !(mtu_min..=MTU_MAX).contains(&interface.mtu) {
        complaints.add(
            format!("the MTU of {name} is not usable"),
            format!("{}, allowed are {mtu_min} to {MTU_MAX}", interface.mtu),
        );
    }
    let bridge = bridge.unwrap_or(&interface.bridge);
    if let Some(why) = bad_interface_name(bridge) {
        complaints.add(format!("the bridge name \"{}\" is not usable", shown(bridge)), why);
    }
    (complaints.0.len() == before).then(|| PlannedInterface {
        name: interface.name.clone(),
        mac: mac.expect("a bad MAC was complained about"),
        mtu: interface.mtu,
        addresses,
        bridge: bridge.to_owned(),
        host_end: host_end_name(netns, &interface.name),
    })
}

fn usable(cidr: Cidr) -> Result<Cidr, &'static str> {
    let bad = match cidr.address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => {
            v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.to_ipv4_mapped().is_some()
        }
    };
    if bad { Err("not an address of an interface") } else { Ok(cidr) }
}

fn plan_routes(
    routes: &[RouteDescriptor],
    interfaces: &[PlannedInterface],
    complaints: &mut Complaints,
) -> Vec<PlannedRoute> {
    let mut planned = Vec::new();
    for route in routes {
        match parse_route(route, interfaces) {
            Ok(route) => planned.push(route),
            Err(why) => {
                let text = format!(
                    "to {} via {} on {}",
                    shown(&route.to),
                    shown(&route.via),
                    shown(&route.interface)
                );
                complaints.add("a route is not usable", format!("{text}: {why}"));
            }
        }
    }
    repeated("route", planned.iter().map(|route| route.to), complaints);
    let direct: Vec<_> =
        planned.iter().filter(|route| route.via.is_none()).map(|route| (route.interface, route.to)).collect();
    for route in &mut planned {
        let Some(via) = route.via else { continue };
        let linked = interfaces[route.interface].addresses.iter().any(|cidr| cidr.contains(via))
            || direct.iter().any(|(interface, to)| *interface == route.interface && to.contains(via))
            || matches!(via, IpAddr::V6(v6) if v6.is_unicast_link_local());
        route.onlink = !linked;
    }
    planned.sort_by_key(|route| route.via.is_some());
    planned
}

fn parse_route(
    route: &RouteDescriptor,
    interfaces: &[PlannedInterface],
) -> Result<PlannedRoute, &'static str> {
    let interface = interfaces
        .iter()
        .position(|interface| interface.name == route.interface)
        .ok_or("there is no such interface")?;
    let via: Option<IpAddr> = match route.via.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| "its gateway is not an IP address")?),
    };
    let to = match (route.to.as_str(), via) {
        ("", Some(IpAddr::V4(_))) => Cidr { address: Ipv4Addr::UNSPECIFIED.into(), prefix_len: 0 },
        ("", Some(IpAddr::V6(_))) => Cidr { address: Ipv6Addr::UNSPECIFIED.into(), prefix_len: 0 },
        ("", None) => return Err("neither its destination nor its gateway says which family it is"),
        (text, _) => text.parse()?,
    };
    if !to.is_network() {
        return Err("its destination has bits after the prefix");
    }
    if via.is_some_and(|via| via.is_ipv4() != to.address.is_ipv4()) {
        return Err("its gateway is of the other family");
    }
    Ok(PlannedRoute { to, via, interface, onlink: false })
}
