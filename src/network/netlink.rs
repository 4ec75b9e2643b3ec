//! The few netlink requests that this room makes, with typed answers. A [`Net`] speaks for the namespace of the thread that
//! opened it, wherever it is used afterwards: a netlink socket stays in the namespace in which it was made.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::route::{RouteFlags, RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio_stream::{Stream, StreamExt};

use super::error::NetworkError;
use super::plan::{Cidr, Mac, PlannedInterface, PlannedRoute};

/// One interface, as far as this room cares.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) loopback: bool,
    pub(super) kind: Option<InfoKind>,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    /// Administratively up.
    pub(super) up: bool,
    /// Really up: carrier, and the queue active.
    pub(super) running: bool,
    /// Bridge (or other master) that it is a port of.
    pub(super) controller: Option<u32>,
    /// Index of the other end of a veth, valid in the namespace `peer_nsid`.
    pub(super) peer: Option<u32>,
    /// Id, in the namespace asked, of the namespace in which the other end is; none: the same.
    pub(super) peer_nsid: Option<i32>,
    /// Set on bridges.
    pub(super) bridge: Option<BridgeFacts>,
    /// Set on ports of bridges.
    pub(super) port_state: Option<BridgePortState>,
}

/// What matters about a bridge.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BridgeFacts {
    pub(super) stp: bool,
    pub(super) vlan_filtering: bool,
}

/// A netlink socket in one namespace.
#[derive(Debug, Clone)]
pub(super) struct Net {
    handle: Handle,
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn failed(doing: &'static str, what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.into();
    move |error| NetworkError::Netlink { doing, what, source: io_error(error) }
}

async fn all<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    let mut stream = std::pin::pin!(stream);
    let mut found = Vec::new();
    while let Some(item) = stream.next().await {
        found.push(item.map_err(failed("listing", what))?);
    }
    Ok(found)
}

impl Net {
    /// Opens a socket in the calling thread's namespace; must be called inside an async runtime, which serves it.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| {
            NetworkError::Netlink { doing: "opening a socket for", what: "routes".to_owned(), source }
        })?;
        // Ends by itself when the last handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let messages = all("interfaces", self.handle.link().get().execute()).await?;
        Ok(messages.into_iter().map(parse_link).collect())
    }

    /// The interface called `name`, if there is one.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let request = self.handle.link().get().match_name(name).execute();
        let mut stream = std::pin::pin!(request);
        match stream.next().await {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(parse_link(message))),
            Some(Err(error)) => match failed("looking up interface", name)(error) {
                error if error.errno() == Some(nix::errno::Errno::ENODEV as i32) => Ok(None),
                error => Err(error),
            },
        }
    }

    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        all("addresses", self.handle.address().get().execute()).await
    }

    /// All routes of one family, all tables.
    pub(super) async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        all("routes", self.handle.route().get(message).execute()).await
    }

    pub(super) async fn rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, NetworkError> {
        all("routing rules", self.handle.rule().get(version).execute()).await
    }

    pub(super) async fn neighbours(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<NeighbourMessage>, NetworkError> {
        all("neighbours", self.handle.neighbours().get().set_address_family(family).execute()).await
    }

    /// Neighbours of one interface that have been asked for and have not answered.
    pub(super) async fn missing_neighbours(
        &self,
        index: u32,
        max: usize,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let mut missing = Vec::new();
        // Without a family: all of them.
        for message in self.neighbours(AddressFamily::Unspec).await? {
            if message.header.ifindex != index || message.header.state != NeighbourState::Incomplete {
                continue;
            }
            missing.extend(message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                _ => None,
            }));
        }
        missing.truncate(max);
        Ok(missing)
    }

    /// The id that this namespace has given to `netns`; none as long as no interface connects the two
    /// (kernel `net/core/net_namespace.c`, `rtnl_net_getid`).
    pub(super) async fn nsid(&self, netns: &File) -> Result<Option<i32>, NetworkError> {
        let failed = |source| NetworkError::Netlink {
            doing: "asking for the id of",
            what: "namespace".to_owned(),
            source,
        };
        let descriptor = u32::try_from(netns.as_raw_fd()).map_err(io::Error::other).map_err(failed)?;
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(descriptor)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(request).map_err(|error| failed(io_error(error)))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(error) => return Err(failed(error.to_io())),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    return Ok(answer.attributes.iter().find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                        _ => None,
                    }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Makes a veth pair: the host end here, down and a port of bridge `controller`; the container end in `netns`, down, with its
    /// name, MAC and MTU from the first moment.
    pub(super) async fn add_veth(
        &self,
        interface: &PlannedInterface,
        controller: u32,
        netns: &File,
    ) -> Result<(), NetworkError> {
        let container_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(interface.name.as_str())
            .address(interface.mac.0.to_vec())
            .mtu(interface.mtu)
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(interface.host_end.as_str())
            .mtu(interface.mtu)
            .controller(controller)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(container_end)))
            .build();
        let what = format!("{} to {}", interface.host_end, interface.name);
        self.handle.link().add(message).execute().await.map_err(failed("making veth", what))
    }

    async fn change(
        &self,
        message: LinkMessage,
        doing: &'static str,
        name: &str,
    ) -> Result<(), NetworkError> {
        self.handle.link().change(message).execute().await.map_err(failed(doing, name))
    }

    pub(super) async fn set_up(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        self.change(LinkUnspec::new_with_index(index).up().build(), "bringing up interface", name).await
    }

    pub(super) async fn set_down(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        self.change(LinkUnspec::new_with_index(index).down().build(), "taking down interface", name).await
    }

    pub(super) async fn set_mac(&self, index: u32, name: &str, mac: Mac) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build();
        self.change(message, "setting the MAC address of interface", name).await
    }

    pub(super) async fn delete(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        self.handle.link().del(index).execute().await.map_err(failed("deleting interface", name))
    }

    /// Adds an address; an IPv6 one without duplicate address detection, so that it is usable at once, also on a link that is
    /// down (kernel `net/ipv6/addrconf.c`, `addrconf_dad_begin`).
    pub(super) async fn add_address(&self, index: u32, address: Cidr) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(index, address.address, address.prefix_len);
        let message = request.message_mut();
        message.header.scope = match address.address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
            _ => AddressScope::Universe,
        };
        if address.address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed("adding address", address.to_string()))
    }

    pub(super) async fn add_route(&self, index: u32, route: &PlannedRoute) -> Result<(), NetworkError> {
        let bad = |_| NetworkError::Netlink {
            doing: "building route",
            what: route.to_string(),
            source: io::ErrorKind::InvalidInput.into(),
        };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.to.address, route.to.prefix_len)
            .map_err(bad)?
            .output_interface(index);
        builder = match route.via {
            Some(via) => builder.gateway(via).map_err(bad)?,
            None if route.to.address.is_ipv4() => builder.scope(RouteScope::Link),
            None => builder,
        };
        if route.onlink {
            builder.get_mut().header.flags |= RouteFlags::Onlink;
        }
        let request = self.handle.route().add(builder.build());
        request.execute().await.map_err(failed("adding route", route.to_string()))
    }
}

fn parse_link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        loopback: flags.contains(LinkFlags::Loopback),
        kind: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: false,
        controller: None,
        peer: None,
        peer_nsid: None,
        bridge: None,
        port_state: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_nsid = Some(id),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::OperState(state) => link.running = state == State::Up,
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_info(infos: Vec<LinkInfo>, link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind),
            LinkInfo::Data(InfoData::Bridge(data)) => {
                let mut facts = BridgeFacts::default();
                for item in data {
                    match item {
                        InfoBridge::StpState(state) => facts.stp = state != BridgeStpState::Disabled,
                        InfoBridge::VlanFiltering(on) => facts.vlan_filtering = on,
                        _ => {}
                    }
                }
                link.bridge = Some(facts);
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                link.port_state = data.into_iter().find_map(|item| match item {
                    InfoBridgePort::State(state) => Some(state),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}
