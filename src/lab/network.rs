//! The lab's own layer-2 network: one bridge in a namespace of its own, a veth to each host, a bridge in each host.
//!
//! ```text
//! hub: br0 ── p10 ═══ eth0 ── br0 (10.77.0.10) :node-a ── v1234 ═══ eth0 (10.77.0.50) :container
//!        ├─── p11 ═══ eth0 ── br0 (10.77.0.11) :node-b
//!        └─── p9  ═══ eth0 ── br0 (10.77.0.9)  :client
//! ```
//! Bridges are hubs (`ageing_time 0`): a forwarding entry that points to where a container was until a second ago would be
//! measured as downtime. Every bridge has a MAC of its own, because a bridge without one takes its lowest port's, and changes
//! it when a container comes or goes; its neighbours then talk to nobody for half a minute.
//!
//! Must never make or change an interface outside the lab's namespaces.

use std::fmt::Write as _;
use std::path::Path;

use super::entry::PEER_NETNS;
use super::error::LabError;
use super::host::Host;

/// Last byte of the client's address.
pub(super) const CLIENT_OCTET: u8 = 9;
/// Last byte of the first host's address.
pub(super) const FIRST_OCTET: u8 = 10;
/// Hosts in one lab; above the last one the addresses are the containers'.
pub const HOSTS_MAX: u8 = 30;

/// Is IPv6 there at all?
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// The bridge in the lab's own namespace.
pub(super) fn make_hub(hub: &Host) -> Result<(), LabError> {
    hub.network_batch(
        "ip",
        None,
        "link set lo up\n\
         link add br0 type bridge ageing_time 0 mcast_snooping 0 stp_state 0 forward_delay 0\n\
         link set br0 address 02:00:0a:4d:00:01 mtu 9000\n\
         link set br0 up\n",
    )
}

/// Joins a host to the hub. `rate`: bits per second each way, `None` for as fast as memory.
pub(super) fn join(hub: &Host, host: &Host, rate: Option<u64>) -> Result<(), LabError> {
    let n = host.octet;
    hub.network_batch(
        "ip",
        Some(host),
        &format!(
            "link add p{n} address 02:00:0a:4d:03:{n:02x} type veth peer name eth0 address 02:00:0a:4d:01:{n:02x} netns {PEER_NETNS}\n\
             link set p{n} mtu 9000 master br0\n\
             link set p{n} up\n",
        ),
    )?;
    let mut batch = format!(
        "link set lo up\n\
         link add br0 type bridge ageing_time 0 mcast_snooping 0 stp_state 0 forward_delay 0\n\
         link set br0 address 02:00:0a:4d:02:{n:02x} mtu 9000\n\
         link set eth0 mtu 9000 master br0\n\
         link set eth0 up\n\
         address add {}/24 broadcast 10.77.0.255 dev br0\n",
        host.address()
    );
    if has_ipv6() {
        // Infallible: writing to a String.
        let _ = writeln!(batch, "address add {}/64 dev br0 nodad", host.address6());
    }
    batch.push_str("link set br0 up\n");
    host.network_batch("ip", None, &batch)?;
    set_rate(hub, host, rate)
}

/// Waits until every host reaches the others: the kernel may take a second to notice a bridge's carrier (linkwatch).
pub(super) fn wait_until_joined(hosts: &[Host]) -> Result<(), LabError> {
    let Some((first, others)) = hosts.split_first() else { return Ok(()) };
    for host in others {
        // A probe that is lost costs a second; looking first costs nothing.
        host.shell(&format!(
            "until grep -q up /sys/class/net/br0/operstate; do sleep 0.01; done
             arping -q -f -w 15 -I br0 {}",
            first.address()
        ))?;
    }
    Ok(())
}

/// Limits a host's link, each way, or removes the limit.
pub(super) fn set_rate(hub: &Host, host: &Host, rate: Option<u64>) -> Result<(), LabError> {
    let line = |device: &str| match rate {
        // The burst is what 4 ms carry: less and the timer's resolution costs rate, more and the start is too fast.
        Some(rate) => {
            let burst = (rate / 8 / 250).max(32 << 10);
            format!("qdisc replace dev {device} root tbf rate {rate}bit burst {burst} latency 50ms\n")
        }
        None => format!("qdisc replace dev {device} root noqueue\n"),
    };
    hub.network_batch("tc", None, &line(&format!("p{}", host.octet)))?;
    host.network_batch("tc", None, &line("eth0"))
}

/// Cuts a host's link at the hub, or mends it: carrier is lost inside, as when a cable is pulled.
pub(super) fn set_link(hub: &Host, host: &Host, up: bool) -> Result<(), LabError> {
    hub.network_batch("ip", None, &format!("link set p{} {}\n", host.octet, if up { "up" } else { "down" }))
}
