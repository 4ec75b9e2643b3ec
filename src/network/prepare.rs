//! The destination's side: makes a container's network behind a closed gate, opens the gate, takes everything away again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rtnetlink::packet_route::link::{BridgePortState, InfoKind};

use super::announce;
use super::check::bridge_of;
use super::error::{NetworkError, reason};
use super::netlink::{Link, Net};
use super::netns;
use super::plan::{Cidr, Plan, is_netns_name, plan};
use crate::rpc::v1::NetworkDescriptor;

/// How long a link may take to come up; it takes about a millisecond.
const UP_MAX: Duration = Duration::from_secs(2);
/// Neighbours that are asked for when the gate opens; a connection may have one, usually all have the same.
const NEIGHBOURS_MAX: usize = 64;
/// Pause between two looks at a link that comes up.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A container's network on its destination, made and kept apart from every other network until [`Prepared::up`].
///
/// Dropping it changes nothing: what was made stays until [`Prepared::destroy`] or [`remove`].
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    netns: Arc<File>,
}

/// Makes the namespace, its interfaces, addresses and routes, with the gate closed.
///
/// `bridge` is this host's own choice; without it the source's bridge name is used. Bridges get their present MAC address set
/// for good, because otherwise it follows the lowest of their ports' (kernel `net/bridge/br_stp_if.c`,
/// `br_stp_recalculate_bridge_id`) and every neighbour's entry for the host would go stale. Run it to its end: a future
/// dropped half-way leaves what it had made, for [`remove`] to find.
///
/// # Errors
/// A bad descriptor or bridge ([`NetworkError::Refused`], every reason), a taken name, or what the kernel refused; then everything
/// that was made is gone again.
pub async fn prepare(descriptor: &NetworkDescriptor, bridge: Option<&str>) -> Result<Prepared, NetworkError> {
    let plan = plan(descriptor, bridge).map_err(|reasons| NetworkError::Refused { reasons })?;
    let net = Net::open()?;
    let links = net.links().await?;
    let found: Vec<_> =
        plan.interfaces.iter().map(|interface| bridge_of(&links, &interface.bridge)).collect();
    let mut reasons: Vec<_> = found.iter().filter_map(|bridge| bridge.clone().err()).collect();
    reasons.dedup();
    if !reasons.is_empty() {
        return Err(NetworkError::Refused { reasons });
    }
    let bridges: Vec<u32> = found.into_iter().flatten().collect();
    let netns = netns::create(&plan.name).await?;
    let mut made = Vec::new();
    match build(&net, &plan, &bridges, &links, &netns, &mut made).await {
        Ok(()) => Ok(Prepared { plan, netns }),
        Err(error) => {
            drop(netns);
            if let Err(cleanup) = remove(&plan.name, &made).await {
                tracing::warn!(error = %cleanup, "cleaning up after a network that could not be made");
            }
            Err(error)
        }
    }
}

async fn build(
    net: &Net,
    plan: &Plan,
    bridges: &[u32],
    links: &[Link],
    netns: &Arc<File>,
    made: &mut Vec<String>,
) -> Result<(), NetworkError> {
    for bridge in bridges.iter().collect::<BTreeSet<_>>() {
        let link = links.iter().find(|link| link.index == *bridge);
        if let Some((link, mac)) = link.and_then(|link| Some((link, link.mac?))) {
            net.set_mac(link.index, &link.name, mac).await?;
        }
    }
    for (interface, bridge) in plan.interfaces.iter().zip(bridges) {
        net.add_veth(interface, *bridge, netns).await?;
        made.push(interface.host_end.clone());
    }
    let plan = plan.clone();
    netns::netlink_inside(netns.clone(), async move |net: Net| furnish(&net, &plan).await).await
}

/// Works inside the new namespace.
async fn furnish(net: &Net, plan: &Plan) -> Result<(), NetworkError> {
    let links = net.links().await?;
    if let Some(lo) = links.iter().find(|link| link.loopback) {
        // Established connections to localhost cannot be restored without it: "Network is unreachable".
        net.set_up(lo.index, &lo.name).await?;
    }
    let mut indices = Vec::new();
    for interface in &plan.interfaces {
        let link = links.iter().find(|link| link.name == interface.name).ok_or_else(|| {
            NetworkError::Interface { name: interface.name.clone(), why: "is not where it was made" }
        })?;
        indices.push(link.index);
        let (v4, mut v6): (Vec<Cidr>, Vec<Cidr>) =
            interface.addresses.iter().partition(|cidr| cidr.address.is_ipv4());
        for address in v4 {
            net.add_address(link.index, address).await?;
        }
        if !v6.is_empty() {
            allow_ipv6(&interface.name)?;
            // The kernel lists the newest first, and on a tie chooses the first listed as a source.
            v6.reverse();
            let link_local = IpAddr::V6(interface.mac.link_local());
            if !v6.iter().any(|cidr| cidr.address == link_local) {
                // The kernel would make the same one when the link is up, and then spend a second on detecting duplicates.
                v6.push(Cidr { address: link_local, prefix_len: 64 });
            }
            for address in v6 {
                net.add_address(link.index, address).await?;
            }
        }
        net.set_up(link.index, &interface.name).await?;
    }
    for route in &plan.routes {
        net.add_route(indices[route.interface], route).await?;
    }
    Ok(())
}

/// A host may start namespaces with IPv6 off; this container has it on.
fn allow_ipv6(interface: &str) -> Result<(), NetworkError> {
    let key = format!("net.ipv6.conf.{interface}.disable_ipv6");
    // Not by the dotted key: interface names may have dots.
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == "0" => Ok(()),
        Ok(_) => std::fs::write(&path, "0").map_err(|source| NetworkError::Sysctl { key, source }),
        Err(source) => Err(NetworkError::Sysctl { key, source }),
    }
}

impl Prepared {
    /// Finds a network that an earlier run of the agent prepared.
    ///
    /// # Errors
    /// When the namespace or one of the host ends is not there, or the descriptor is bad.
    pub async fn adopt(descriptor: &NetworkDescriptor, bridge: Option<&str>) -> Result<Self, NetworkError> {
        let plan = plan(descriptor, bridge).map_err(|reasons| NetworkError::Refused { reasons })?;
        let netns = netns::open(&netns::path_of(&plan.name))?;
        let net = Net::open()?;
        for interface in &plan.interfaces {
            veth(&net, &interface.host_end).await?.ok_or_else(|| missing(&interface.host_end))?;
        }
        Ok(Self { plan, netns })
    }

    /// Name of the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Names of the ends on this host, for [`remove`].
    #[must_use]
    pub fn host_ends(&self) -> Vec<String> {
        self.plan.interfaces.iter().map(|interface| interface.host_end.clone()).collect()
    }

    /// Sets the container's `net.*` kernel parameters, as its config.json lists them (`linux.sysctl`): the runtime does it when it
    /// creates a container, not when it restores one. Other parameters belong to other namespaces and are left alone.
    ///
    /// # Errors
    /// The first parameter that has a malformed name, does not exist here, or does not take its value.
    pub async fn set_sysctls(&self, sysctls: Vec<(String, String)>) -> Result<(), NetworkError> {
        netns::run_inside(self.netns.clone(), move || {
            for (key, value) in sysctls.into_iter().filter(|(key, _)| key.starts_with("net.")) {
                write_sysctl(&key, &value).map_err(|source| NetworkError::Sysctl { key, source })?;
            }
            Ok(())
        })
        .await
    }

    /// Opens the gate: when it returns, packets flow both ways.
    ///
    /// # Errors
    /// When a host end is gone or does not come up within two seconds.
    pub async fn up(&self) -> Result<(), NetworkError> {
        open_gate(&self.plan, self.netns.clone(), &self.host_ends()).await
    }

    /// Tells the neighbours that the addresses live here now. Returns after the first of five rounds; the others follow by
    /// themselves during the next 800 ms.
    ///
    /// # Errors
    /// When the first round could not be sent.
    pub async fn announce(&self) -> Result<(), NetworkError> {
        announce::announce(&self.plan, self.netns.clone()).await
    }

    /// Takes everything away again.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed nevertheless.
    pub async fn destroy(self) -> Result<(), NetworkError> {
        let Self { plan, netns } = self;
        drop(netns);
        let host_ends: Vec<_> = plan.interfaces.into_iter().map(|interface| interface.host_end).collect();
        remove(&plan.name, &host_ends).await
    }
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(&c))
    };
    if !key.split('.').all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "malformed name"));
    }
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn missing(name: &str) -> NetworkError {
    NetworkError::Interface { name: name.to_owned(), why: "is not there" }
}

/// The veth called `name`, if there is one; an error when something else has the name.
async fn veth(net: &Net, name: &str) -> Result<Option<Link>, NetworkError> {
    match net.link(name).await? {
        Some(link) if link.kind == Some(InfoKind::Veth) => Ok(Some(link)),
        Some(_) => Err(NetworkError::Interface { name: name.to_owned(), why: "is not a veth, hands off" }),
        None => Ok(None),
    }
}

/// Brings up host ends, waits until both ends work, and asks for neighbours that were asked for in vain meanwhile.
pub(super) async fn open_gate(
    plan: &Plan,
    netns: Arc<File>,
    host_ends: &[String],
) -> Result<(), NetworkError> {
    raise_ends(host_ends).await?;
    let interfaces = plan.interfaces.clone();
    netns::netlink_inside(netns, async move |net: Net| {
        for interface in &interfaces {
            let index = wait(&net, &interface.name, |link| link.running).await?;
            let missing = net.missing_neighbours(index, NEIGHBOURS_MAX).await?;
            announce::solicit(interface, &missing)?;
        }
        Ok(())
    })
    .await
}

/// Brings host ends up and waits until their bridges forward.
pub(super) async fn raise_ends(host_ends: &[String]) -> Result<(), NetworkError> {
    let net = Net::open()?;
    for name in host_ends {
        let link = veth(&net, name).await?.ok_or_else(|| missing(name))?;
        net.set_up(link.index, name).await?;
    }
    let forwards = |link: &Link| link.running && link.port_state == Some(BridgePortState::Forwarding);
    for name in host_ends {
        wait(&net, name, forwards).await?;
    }
    Ok(())
}

/// Takes down host ends: neither end has a carrier then, and the bridge forgets what it learned on the ports.
pub(super) async fn close_gate(host_ends: &[String]) -> Result<(), NetworkError> {
    let net = Net::open()?;
    for name in host_ends {
        let link = veth(&net, name).await?.ok_or_else(|| missing(name))?;
        net.set_down(link.index, name).await?;
    }
    Ok(())
}

/// A link that was just brought up is `running` only after the kernel's link watcher has seen it
/// (`net/core/link_watch.c`); until then its queue throws packets away.
async fn wait(net: &Net, name: &str, ready: impl Fn(&Link) -> bool) -> Result<u32, NetworkError> {
    let begun = Instant::now();
    loop {
        let link = net.link(name).await?.ok_or_else(|| missing(name))?;
        if ready(&link) {
            return Ok(link.index);
        }
        if begun.elapsed() > UP_MAX {
            let state = format!("up {}, running {}, port {:?}", link.up, link.running, link.port_state);
            return Err(NetworkError::NotUp { name: name.to_owned(), waited_ms: UP_MAX.as_millis(), state });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Removes a container's network from this host: the veths by their host ends, then the namespace `name`. What is not there any
/// more is no error, so it can be repeated. Used at the source after a move, and to clean up after a crash (see
/// [`host_end_name`](super::host_end_name)).
///
/// The order matters: a namespace dies asynchronously, when the last process and socket in it has gone, and would keep the
/// host ends' names taken until then.
///
/// # Errors
/// The first thing that could not be removed; everything else is removed nevertheless.
pub async fn remove(name: &str, host_ends: &[String]) -> Result<(), NetworkError> {
    if !is_netns_name(name) {
        let remedy = "names are letters, digits, '_', '+', '.', '-'";
        let reasons = vec![reason("network-path", "the namespace's name is not usable", name, remedy)];
        return Err(NetworkError::Refused { reasons });
    }
    let net = Net::open()?;
    let mut outcomes = Vec::new();
    for host_end in host_ends {
        outcomes.push(remove_veth(&net, host_end).await);
    }
    outcomes.push(netns::unmount(&netns::path_of(name)));
    outcomes.into_iter().collect()
}

async fn remove_veth(net: &Net, name: &str) -> Result<(), NetworkError> {
    let Some(link) = veth(net, name).await? else { return Ok(()) };
    match net.delete(link.index, name).await {
        // Gone in between, with its other end.
        Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(()),
        other => other,
    }
}
