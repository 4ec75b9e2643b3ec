//! Would this network fit here? Asked when a container is offered, before anything is made. Looks only, changes nothing, and
//! sends nothing.

use rtnetlink::packet_route::address::AddressMessage;

use super::capture::{ends_behind, parse_address};
use super::error::{NetworkError, reason};
use super::netlink::{Link, Net};
use super::netns;
use super::plan::{Plan, PlannedInterface, plan};
use crate::rpc::v1::{NetworkDescriptor, Reason};

/// Namespaces that are looked into for a taken address.
const NAMESPACES_MAX: usize = 4096;

/// Every reason why [`prepare`](fn@super::prepare) would fail or would make two holders of one address; empty when none is seen.
///
/// `bridge` is this host's own choice; without it the source's bridge name is used. Not asked: whether somebody elsewhere on
/// the network holds an address (the container at the source does, rightly).
pub async fn check(descriptor: &NetworkDescriptor, bridge: Option<&str>) -> Vec<Reason> {
    let plan = match plan(descriptor, bridge) {
        Ok(plan) => plan,
        Err(reasons) => return reasons,
    };
    match look(&plan).await {
        Ok(reasons) => reasons,
        Err(error) => error.into_reasons(),
    }
}

async fn look(plan: &Plan) -> Result<Vec<Reason>, NetworkError> {
    let net = Net::open()?;
    let links = net.links().await?;
    let addresses = net.addresses().await?;
    let mut reasons = Vec::new();
    let path = netns::path_of(&plan.name);
    if path.symlink_metadata().is_ok() {
        let remedy = format!("if nothing uses it: `ip netns del {}`", plan.name);
        let what = format!("the network namespace name {} is taken", plan.name);
        reasons.push(reason("name-taken", what, path.display().to_string(), remedy));
    }
    for interface in &plan.interfaces {
        match bridge_of(&links, &interface.bridge) {
            Ok(bridge) => reasons.extend(too_large(interface, bridge, &links)),
            Err(complaint) => reasons.push(complaint),
        }
        if links.iter().any(|link| link.name == interface.host_end) {
            let remedy = format!("left by an earlier migration? `ip link del {}`", interface.host_end);
            let what = format!("the interface name {} is taken", interface.host_end);
            reasons.push(reason("name-taken", what, format!("for {}", interface.name), remedy));
        }
    }
    // Two interfaces with the same bad bridge complain once.
    reasons.dedup();
    reasons.extend(taken(plan, "this host", &links, &addresses, |_| true));
    reasons.extend(taken_in_namespaces(plan, &net, &links).await?);
    Ok(reasons)
}

/// The index of the bridge called `name`, if a container can be attached to it.
pub(super) fn bridge_of(links: &[Link], name: &str) -> Result<u32, Reason> {
    let link = links.iter().find(|link| link.name == name);
    let (link, facts) = match link.map(|link| (link, link.bridge)) {
        Some((link, Some(facts))) => (link, facts),
        other => {
            let bridges: Vec<_> =
                links.iter().filter(|l| l.bridge.is_some()).map(|l| l.name.as_str()).collect();
            let evidence = format!(
                "{}; bridges here: {}",
                if other.is_some() { "that interface is not a bridge" } else { "no such interface" },
                if bridges.is_empty() { "none".to_owned() } else { bridges.join(", ") },
            );
            let remedy = "make it, or name another one in this agent's configuration";
            return Err(reason(
                "bridge-missing",
                format!("there is no bridge {name} here"),
                evidence,
                remedy,
            ));
        }
    };
    if !link.up {
        let remedy = format!("`ip link set {name} up`");
        return Err(reason("bridge-down", format!("bridge {name} is down"), "no UP flag", remedy));
    }
    if facts.stp {
        // Listening and learning take the forward delay each (IEEE 802.1D), 15 s by default.
        let remedy = format!("`ip link set {name} type bridge stp_state 0`, or name another bridge");
        let what =
            format!("bridge {name} runs the spanning tree protocol: a new port is dead for up to 30 s");
        return Err(reason("bridge-stp", what, "stp_state is not 0", remedy));
    }
    if facts.vlan_filtering {
        let remedy = "use one bridge per VLAN";
        return Err(reason(
            "bridge-vlan",
            format!("bridge {name} filters VLANs"),
            "vlan_filtering 1",
            remedy,
        ));
    }
    Ok(link.index)
}

/// A bridge drops frames that are larger than the port they should leave by; connections that were made with large segments would
/// hang. A bridge without ports has no MTU of its own yet.
fn too_large(interface: &PlannedInterface, bridge: u32, links: &[Link]) -> Option<Reason> {
    let least = links.iter().filter(|link| link.controller == Some(bridge)).map(|link| link.mtu).min()?;
    (interface.mtu > least).then(|| {
        let what =
            format!("the MTU of {} is larger than that of bridge {}", interface.name, interface.bridge);
        let remedy =
            format!("raise the MTU of the bridge's ports to {}, or name another bridge", interface.mtu);
        reason("bridge-mtu", what, format!("{} > {least}", interface.mtu), remedy)
    })
}

/// MACs and addresses of the plan that interfaces in one namespace hold already.
fn taken(
    plan: &Plan,
    place: &str,
    links: &[Link],
    addresses: &[AddressMessage],
    matters: impl Fn(&Link) -> bool,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let remedy = "two holders of one address break each other's connections: remove one";
    for link in links.iter().filter(|link| !link.loopback && matters(link)) {
        let mut held = |code, what: String| {
            reasons.push(reason(code, what, format!("interface {} of {place}", link.name), remedy));
        };
        for interface in plan.interfaces.iter().filter(|interface| link.mac == Some(interface.mac)) {
            held("mac-taken", format!("the MAC address {} is in use", interface.mac));
        }
        let theirs = addresses.iter().filter(|message| message.header.index == link.index);
        for (cidr, _) in theirs.filter_map(parse_address) {
            for interface in &plan.interfaces {
                if interface.addresses.iter().any(|ours| ours.address == cidr.address) {
                    held("address-taken", format!("the address {} is in use", cidr.address));
                }
            }
        }
    }
    reasons
}

/// The same for named namespaces, as far as they are attached to the same bridge: the same address behind another bridge is another
/// network's business.
async fn taken_in_namespaces(plan: &Plan, net: &Net, links: &[Link]) -> Result<Vec<Reason>, NetworkError> {
    let bridges: Vec<u32> =
        plan.interfaces.iter().filter_map(|interface| bridge_of(links, &interface.bridge).ok()).collect();
    let mut reasons = Vec::new();
    for name in netns::names(NAMESPACES_MAX) {
        let Ok(file) = netns::open(&netns::path_of(&name)) else { continue };
        // A plain file or a namespace without a connection to this one.
        let Ok(Some(nsid)) = net.nsid(&file).await else { continue };
        let ends: Vec<u32> = bridges.iter().flat_map(|bridge| ends_behind(links, *bridge, nsid)).collect();
        if ends.is_empty() {
            continue;
        }
        let (theirs, addresses) =
            netns::netlink_inside(file, async |net: Net| Ok((net.links().await?, net.addresses().await?)))
                .await?;
        let place = format!("namespace {name}");
        reasons.extend(taken(plan, &place, &theirs, &addresses, |link| ends.contains(&link.index)));
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::super::netlink::BridgeFacts;
    use super::*;

    fn bridge(up: bool, stp: bool, vlan_filtering: bool) -> Link {
        Link {
            index: 7,
            name: "br0".to_owned(),
            loopback: false,
            kind: Some(InfoKind::Bridge),
            mac: None,
            mtu: 1500,
            up,
            running: up,
            controller: None,
            peer: None,
            peer_nsid: None,
            bridge: Some(BridgeFacts { stp, vlan_filtering }),
            port_state: None,
        }
    }

    fn code(link: Link) -> String {
        bridge_of(&[link], "br0").expect_err("must be refused").code
    }

    #[test]
    fn only_a_plain_bridge_will_do() {
        assert_eq!(bridge_of(&[bridge(true, false, false)], "br0"), Ok(7));
        assert_eq!(code(bridge(false, false, false)), "bridge-down");
        assert_eq!(code(bridge(true, true, false)), "bridge-stp");
        assert_eq!(code(bridge(true, false, true)), "bridge-vlan");
        assert_eq!(code(Link { bridge: None, ..bridge(true, false, false) }), "bridge-missing");
        assert!(bridge_of(&[], "br0").unwrap_err().evidence.contains("bridges here: none"));
    }
}
