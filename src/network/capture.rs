//! Describes the network of a running container, or says everything that keeps it from being described: what the descriptor
//! cannot say must not be dropped in silence.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use serde::{Deserialize, Serialize};

use super::error::{NetworkError, reason};
use super::netlink::{Link, Net};
use super::netns;
use super::plan::{Cidr, is_netns_name, plan};
use crate::rpc::v1::network_descriptor::Kind;
use crate::rpc::v1::{AddressDescriptor, InterfaceDescriptor, NetworkDescriptor, Reason, RouteDescriptor};

/// Interfaces that the kernel puts, down, into every new namespace while a tunnel module is loaded
/// (kernel documentation, `net.core.fb_tunnels_only_for_init_net`).
const FALLBACK_TUNNELS: [&str; 9] =
    ["tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0"];
/// The table in which the kernel keeps what is its own (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;
/// Priorities of the rules that every namespace is born with: local, main, default.
const BORN_RULES: [u32; 3] = [0, 32_766, 32_767];

/// The host's end of one of the container's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// Name of the container's end, inside.
    pub interface: String,
    /// Name of this end, on the host.
    pub name: String,
    /// The bridge that it is a port of.
    pub bridge: String,
}

/// A container's network as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Capture {
    /// What travels to the destination.
    pub descriptor: NetworkDescriptor,
    /// The namespace's file on this host, as it was given.
    pub netns: PathBuf,
    /// What stays here: the host's ends.
    pub host_ends: Vec<HostEnd>,
}

/// What netlink says inside the container's namespace.
struct Inside {
    links: Vec<Link>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
    neighbours: Vec<NeighbourMessage>,
}

/// What it says on the host.
struct Outside {
    links: Vec<Link>,
    /// The host's id for the container's namespace.
    nsid: Option<i32>,
}

/// Describes the network in the namespace at `path`, which must be `/run/netns/NAME` or `/var/run/netns/NAME`.
///
/// Left out on purpose: what the kernel makes by itself (link-local addresses that follow from the MAC, connected networks,
/// routes learned from router advertisements).
///
/// # Errors
/// [`NetworkError::Refused`] with every reason when this is not the plain case: veth ends whose other ends are ports of bridges
/// in the caller's namespace, addresses and routes that the descriptor can say.
pub async fn capture(path: &Path) -> Result<Capture, NetworkError> {
    let name = name_of(path)?;
    let file = netns::open(path)?;
    if is_own(&file)? {
        let remedy = "give the container a network namespace of its own";
        let what = format!("{} is the host's own network namespace", path.display());
        return Err(NetworkError::Refused {
            reasons: vec![reason("network-kind", what, "same inode", remedy)],
        });
    }
    let inside = netns::netlink_inside(file.clone(), look_inside).await?;
    let net = Net::open()?;
    // The listing comes first: it makes the kernel give the other namespace an id.
    let links = net.links().await?;
    let outside = Outside { links, nsid: net.nsid(&file).await? };
    let mut examiner =
        Examiner { inside: &inside, outside: &outside, reasons: Vec::new(), host_ends: Vec::new() };
    let interfaces = examiner.interfaces();
    let routes = examiner.routes();
    examiner.what_cannot_be_said();
    let Examiner { reasons, host_ends, .. } = examiner;
    if !reasons.is_empty() {
        return Err(NetworkError::Refused { reasons });
    }
    let descriptor = NetworkDescriptor { kind: Kind::Named.into(), name, interfaces, routes };
    // Better refused here than at the destination: too many routes, for instance.
    plan(&descriptor, None).map_err(|reasons| NetworkError::Refused { reasons })?;
    Ok(Capture { descriptor, netns: path.to_owned(), host_ends })
}

fn name_of(path: &Path) -> Result<String, NetworkError> {
    let known = [Path::new(netns::NETNS_DIR), Path::new("/var/run/netns")];
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_netns_name(name));
    match (path.parent(), name) {
        (Some(parent), Some(name)) if known.contains(&parent) => Ok(name.to_owned()),
        _ => {
            let remedy =
                "name the namespace in config.json as /run/netns/NAME, as `ip netns add NAME` makes it";
            let what = "the network namespace cannot be made again under the same path";
            let reasons = vec![reason("network-path", what, path.display().to_string(), remedy)];
            Err(NetworkError::Refused { reasons })
        }
    }
}

/// True when `file` is the namespace of the calling thread.
fn is_own(file: &File) -> Result<bool, NetworkError> {
    let failed = |source: io::Error| NetworkError::Namespace {
        doing: "comparing",
        path: PathBuf::from("/proc/thread-self/ns/net"),
        source,
    };
    let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(failed)?;
    let other = file.metadata().map_err(failed)?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

async fn look_inside(net: Net) -> Result<Inside, NetworkError> {
    let mut inside = Inside {
        links: net.links().await?,
        addresses: net.addresses().await?,
        routes: net.routes(AddressFamily::Inet).await?,
        rules: net.rules(IpVersion::V4).await?,
        neighbours: net.neighbours(AddressFamily::Inet).await?,
    };
    // A kernel booted with ipv6.disable=1 does not know the family.
    if let Ok(routes) = net.routes(AddressFamily::Inet6).await {
        inside.routes.extend(routes);
        inside.rules.extend(net.rules(IpVersion::V6).await?);
        inside.neighbours.extend(net.neighbours(AddressFamily::Inet6).await?);
    }
    Ok(inside)
}

/// Ports of `bridge` in the caller's namespace whose other ends are in the namespace with the id `nsid`: for each, the index there.
pub(super) fn ends_behind(links: &[Link], bridge: u32, nsid: i32) -> Vec<u32> {
    links
        .iter()
        .filter(|link| link.controller == Some(bridge) && link.peer_nsid == Some(nsid))
        .filter_map(|link| link.peer)
        .collect()
}

struct Examiner<'a> {
    inside: &'a Inside,
    outside: &'a Outside,
    reasons: Vec<Reason>,
    host_ends: Vec<HostEnd>,
}

impl Examiner<'_> {
    fn complain(&mut self, code: &str, what: String, evidence: impl Into<String>, remedy: &str) {
        self.reasons.push(reason(code, what, evidence, remedy));
    }

    fn interfaces(&mut self) -> Vec<InterfaceDescriptor> {
        let mut interfaces = Vec::new();
        for link in &self.inside.links {
            let fallback = FALLBACK_TUNNELS.contains(&link.name.as_str()) && !link.up;
            if link.loopback || fallback {
                self.no_addresses_but_the_kernels(link);
            } else if let Some(interface) = self.interface(link) {
                interfaces.push(interface);
            }
        }
        interfaces
    }

    fn interface(&mut self, link: &Link) -> Option<InterfaceDescriptor> {
        let name = &link.name;
        let before = self.reasons.len();
        if link.kind != Some(InfoKind::Veth) {
            let kind = link.kind.as_ref().map_or_else(|| "a physical device".to_owned(), ToString::to_string);
            let remedy = "only veth interfaces with the other end in a bridge can be moved";
            self.complain("network-kind", format!("interface {name} is not a veth"), kind, remedy);
            return None;
        }
        if !link.up {
            let remedy = "bring it up or delete it";
            self.complain("network-down", format!("interface {name} is down"), "no UP flag", remedy);
        }
        let bridge = self.host_end(link);
        let addresses = self.addresses(link);
        let mac = link.mac?;
        (self.reasons.len() == before).then(|| InterfaceDescriptor {
            name: name.clone(),
            mac: mac.to_string(),
            mtu: link.mtu,
            addresses,
            bridge: bridge.unwrap_or_default(),
        })
    }

    /// Finds the host's end of a veth and the bridge behind it.
    fn host_end(&mut self, link: &Link) -> Option<String> {
        let name = &link.name;
        let outside = self.outside;
        let host_end = outside.nsid.zip(link.peer).and_then(|(nsid, peer)| {
            outside.links.iter().find(|candidate| {
                candidate.index == peer
                    && candidate.kind == Some(InfoKind::Veth)
                    && candidate.peer == Some(link.index)
                    && candidate.peer_nsid == Some(nsid)
            })
        });
        let Some(host_end) = host_end else {
            let evidence = format!("other end: index {:?} in namespace id {:?}", link.peer, link.peer_nsid);
            let remedy = "the other end must be in the agent's own network namespace";
            self.complain(
                "network-peer",
                format!("the other end of interface {name} is not here"),
                evidence,
                remedy,
            );
            return None;
        };
        let bridge = host_end
            .controller
            .and_then(|index| outside.links.iter().find(|link| link.index == index))
            .and_then(|link| Some((link, link.bridge?)));
        let Some((bridge, facts)) = bridge else {
            let remedy = "attach it to a bridge: `ip link set NAME master BRIDGE`";
            let what = format!("the host's end of interface {name} is not a port of a bridge");
            self.complain("network-bridge", what, host_end.name.clone(), remedy);
            return None;
        };
        if facts.vlan_filtering {
            let remedy = "use one bridge per VLAN, or move the container without its network";
            let what = format!("bridge {} of interface {name} filters VLANs", bridge.name);
            self.complain("bridge-vlan", what, "vlan_filtering 1", remedy);
            return None;
        }
        self.host_ends.push(HostEnd {
            interface: name.clone(),
            name: host_end.name.clone(),
            bridge: bridge.name.clone(),
        });
        Some(bridge.name.clone())
    }

    fn no_addresses_but_the_kernels(&mut self, link: &Link) {
        let inside = self.inside;
        for message in inside.addresses.iter().filter(|message| message.header.index == link.index) {
            let Some((address, _)) = parse_address(message) else { continue };
            let born = match address.address {
                IpAddr::V4(v4) => v4.octets() == [127, 0, 0, 1],
                IpAddr::V6(v6) => v6.is_loopback(),
            };
            if !born {
                let remedy = "move the address to a veth interface";
                let what = format!("interface {} has an address of its own", link.name);
                self.complain("network-address", what, address.to_string(), remedy);
            }
        }
    }

    fn addresses(&mut self, link: &Link) -> Vec<AddressDescriptor> {
        let inside = self.inside;
        let mut addresses = Vec::new();
        for message in inside.addresses.iter().filter(|message| message.header.index == link.index) {
            let Some((address, flags)) = parse_address(message) else {
                let evidence = format!("{:?}", message.attributes);
                let remedy = "give it an ordinary address with a prefix";
                let what = format!("interface {} has a point-to-point address", link.name);
                self.complain("network-address", what, evidence, remedy);
                continue;
            };
            if flags.contains(AddressFlags::Noprefixroute) {
                let remedy = "add the address without noprefixroute";
                let what = format!("an address of interface {} makes no route to its network", link.name);
                self.complain("network-address", what, address.to_string(), remedy);
            }
            if let IpAddr::V6(v6) = address.address {
                let own = link.mac.map(super::plan::Mac::link_local) == Some(v6);
                let made = own || flags.contains(AddressFlags::StablePrivacy);
                if v6.is_unicast_link_local() && made {
                    continue;
                }
            }
            addresses.push(AddressDescriptor { address: address.to_string() });
        }
        addresses
    }

    fn routes(&mut self) -> Vec<RouteDescriptor> {
        let inside = self.inside;
        let mut seen = HashSet::new();
        let mut routes = Vec::new();
        for message in inside.routes.iter().filter(|message| !is_kernels(message)) {
            match self.route(message) {
                Ok((to, route)) if seen.insert(to) => routes.push(route),
                Ok((to, _)) => self.bad_route(&to.to_string(), "there are two with different metrics"),
                Err(why) => {
                    let to = destination(message).map_or_else(|| "?".to_owned(), |to| to.to_string());
                    self.bad_route(&to, why);
                }
            }
        }
        routes
    }

    fn bad_route(&mut self, to: &str, why: &str) {
        let remedy =
            "only routes of the form `to NETWORK [via GATEWAY] dev INTERFACE` in the main table can be moved";
        self.complain("network-route", format!("the route to {to} cannot be moved"), why, remedy);
    }

    fn route(&self, message: &RouteMessage) -> Result<(Cidr, RouteDescriptor), &'static str> {
        let header = &message.header;
        let mut table = u32::from(header.table);
        let (mut via, mut oif, mut preferred) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Gateway(gateway) => {
                    via = Some(address_of(gateway).ok_or("its gateway is not an IP address")?)
                }
                RouteAttribute::PrefSource(source) => preferred = address_of(source),
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Via(_) => return Err("its gateway is of the other family"),
                RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_) => {
                    return Err("it has several next hops");
                }
                RouteAttribute::Metrics(metrics) if !metrics.is_empty() => {
                    return Err("it has metrics of its own");
                }
                RouteAttribute::Encap(_) => return Err("it encapsulates"),
                _ => {}
            }
        }
        if header.kind != RouteType::Unicast {
            return Err("it is not a unicast route");
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return Err("it is not in the main table");
        }
        if header.tos != 0 || header.source_prefix_length != 0 {
            return Err("it depends on more than the destination");
        }
        let to = destination(message).ok_or("its destination is not an IP network")?;
        let link = self
            .inside
            .links
            .iter()
            .find(|link| Some(link.index) == oif && !link.loopback)
            .ok_or("it does not leave by an interface of the container")?;
        if preferred.is_some() && preferred != self.default_source(link.index, to, via) {
            return Err("it prefers a source address that the kernel would not choose");
        }
        let route = RouteDescriptor {
            to: if to.prefix_len == 0 && via.is_some() { String::new() } else { to.to_string() },
            via: via.map(|via| via.to_string()).unwrap_or_default(),
            interface: link.name.clone(),
        };
        Ok((to, route))
    }

    /// The source address that the kernel chooses for a route without a preferred one (`net/ipv4/devinet.c`,
    /// `inet_select_addr`; for IPv6 only the unambiguous case).
    fn default_source(&self, index: u32, to: Cidr, via: Option<IpAddr>) -> Option<IpAddr> {
        let candidates: Vec<Cidr> = self
            .inside
            .addresses
            .iter()
            .filter(|message| message.header.index == index)
            .filter_map(|message| Some(parse_address(message)?.0))
            .filter(|cidr| cidr.address.is_ipv4() == to.address.is_ipv4())
            .filter(|cidr| !matches!(cidr.address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .collect();
        if to.address.is_ipv6() {
            return (candidates.len() == 1).then(|| candidates[0].address);
        }
        let near = candidates.iter().find(|cidr| via.is_some_and(|via| cidr.contains(via)));
        near.or_else(|| candidates.first()).map(|cidr| cidr.address)
    }

    /// What changes how packets go and has no place in the descriptor.
    fn what_cannot_be_said(&mut self) {
        let inside = self.inside;
        for rule in &inside.rules {
            let priority = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Priority(priority) => Some(*priority),
                _ => None,
            });
            let priority = priority.unwrap_or(0);
            if !BORN_RULES.contains(&priority) {
                let remedy = "remove it: `ip netns exec NAME ip rule del priority ...`";
                let what = "the namespace has a routing rule".to_owned();
                self.complain("network-rule", what, format!("priority {priority}"), remedy);
            }
        }
        for neighbour in &inside.neighbours {
            if neighbour.header.state == NeighbourState::Permanent {
                let remedy = "remove it: `ip netns exec NAME ip neighbour del ...`";
                let what = "the namespace has a permanent neighbour".to_owned();
                self.complain("network-neighbour", what, format!("{:?}", neighbour.attributes), remedy);
            }
        }
    }
}

/// True for routes that come by themselves with an address or from a router's advertisement.
fn is_kernels(message: &RouteMessage) -> bool {
    let made = [RouteProtocol::Kernel, RouteProtocol::Ra, RouteProtocol::IcmpRedirect];
    made.contains(&message.header.protocol)
        || message.header.table == TABLE_LOCAL
        || message.header.flags.contains(RouteFlags::Cloned)
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// No destination means everything.
fn destination(message: &RouteMessage) -> Option<Cidr> {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address_of(address)),
        _ => None,
    });
    let address = match (given, message.header.address_family) {
        (Some(address), _) => address?,
        (None, AddressFamily::Inet) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        (None, AddressFamily::Inet6) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        (None, _) => return None,
    };
    Some(Cidr { address, prefix_len: message.header.destination_prefix_length })
}

/// The address and its flags; none when the interface's own address and that of the network differ (point-to-point).
pub(super) fn parse_address(message: &AddressMessage) -> Option<(Cidr, AddressFlags)> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(bits) => flags = *bits,
            _ => {}
        }
    }
    if let (Some(local), Some(address)) = (local, address)
        && local != address
    {
        return None;
    }
    let cidr = Cidr { address: local.or(address)?, prefix_len: message.header.prefix_len };
    Some((cidr, flags))
}
