//! Tells the neighbours where an address lives now: gratuitous ARP, unsolicited neighbour advertisements. And asks for neighbours
//! that the container's kernel asked for in vain.
//!
//! The MAC moves with the container, so neighbours' caches stay right; what must be told is every bridge and switch on the way,
//! and the frames do that by their source address. They are sent from inside the container's namespace, so that the bridge
//! learns the port too. The frames are repeated the way QEMU repeats them after a migration (`net/announce.c`, defaults
//! announce-initial 50 ms, announce-step 100 ms, announce-rounds 5), because each may be lost.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket};
use tokio::sync::oneshot;

use super::error::NetworkError;
use super::netns::enter;
use super::plan::{Mac, Plan, PlannedInterface};

/// Pauses between the five rounds.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
];

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;
/// Types of ICMPv6 messages (RFC 4861 sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The override flag of an advertisement: the neighbour's cache is to be changed.
const OVERRIDE: u8 = 0x20;

/// Operation of an ARP packet (RFC 826).
#[derive(Clone, Copy)]
enum Operation {
    Request = 1,
    Reply = 2,
    /// RFC 903: "who am I".
    ReverseRequest = 3,
}

fn ethernet(to: [u8; 6], from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn arp(
    mac: Mac,
    operation: Operation,
    sender: Ipv4Addr,
    (target_mac, target): ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let ethertype =
        if matches!(operation, Operation::ReverseRequest) { ETHERTYPE_RARP } else { ETHERTYPE_ARP };
    let mut frame = ethernet(BROADCAST, mac, ethertype);
    // Ethernet, IPv4, lengths 6 and 4.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation as u8]);
    frame.extend(mac.0);
    frame.extend(sender.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame
}

/// A message of neighbour discovery with the sender's MAC in its option. To all nodes, or to the few that share the last 24
/// bits of the target (RFC 4291 section 2.7.1).
fn discovery(mac: Mac, kind: u8, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    const LENGTH: u8 = 32;
    let [.., x, y, z] = target.octets();
    let (to_mac, to, flags, option) = if kind == SOLICITATION {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
        ([0x33, 0x33, 0xff, x, y, z], group, 0, 1)
    } else {
        (ALL_NODES_MAC, ALL_NODES, OVERRIDE, 2)
    };
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    // Source or target link-layer address; its length in units of eight bytes.
    message.extend([option, 1]);
    message.extend(mac.0);
    let mut summed = Vec::new();
    summed.extend(sender.octets());
    summed.extend(to.octets());
    summed.extend([0, 0, 0, LENGTH, 0, 0, 0, ICMPV6]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());

    let mut frame = ethernet(to_mac, mac, ETHERTYPE_IPV6);
    // Version 6; payload length; ICMPv6; hop limit 255, which receivers insist on.
    frame.extend([0x60, 0, 0, 0, 0, LENGTH, ICMPV6, 255]);
    frame.extend(sender.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// All frames of one round for one interface.
fn frames(interface: &PlannedInterface) -> Vec<Vec<u8>> {
    let mac = interface.mac;
    let mut frames = Vec::new();
    for cidr in &interface.addresses {
        match cidr.address {
            // RFC 5227 section 3 wants the request; some stacks only listen to the reply.
            IpAddr::V4(v4) => {
                frames.push(arp(mac, Operation::Request, v4, ([0; 6], v4)));
                frames.push(arp(mac, Operation::Reply, v4, (mac.0, v4)));
            }
            IpAddr::V6(v6) => frames.push(discovery(mac, ADVERTISEMENT, v6, v6)),
        }
    }
    if frames.is_empty() {
        // As QEMU does, which knows no addresses: enough for the switches.
        frames.push(arp(
            mac,
            Operation::ReverseRequest,
            Ipv4Addr::UNSPECIFIED,
            (mac.0, Ipv4Addr::UNSPECIFIED),
        ));
    }
    frames
}

/// Asks, in the calling thread's namespace, for neighbours by whose silence packets are held up. What the container's kernel asked
/// while the gate was closed is lost, and it repeats the question only after a second (sysctl `retrans_time_ms`); an answer
/// to our question releases the packets at once.
///
/// # Errors
/// When the frames could not be sent.
pub(super) fn solicit(interface: &PlannedInterface, missing: &[IpAddr]) -> Result<(), NetworkError> {
    let own: Vec<IpAddr> = interface.addresses.iter().map(|cidr| cidr.address).collect();
    let near =
        |target: IpAddr| interface.addresses.iter().find(|cidr| cidr.contains(target)).map(|c| c.address);
    let frames: Vec<_> = missing
        .iter()
        .filter_map(|target| {
            let sender =
                near(*target).or_else(|| own.iter().copied().find(|ip| ip.is_ipv4() == target.is_ipv4()));
            match (*target, sender?) {
                (IpAddr::V4(target), IpAddr::V4(sender)) => {
                    Some(arp(interface.mac, Operation::Request, sender, ([0; 6], target)))
                }
                (IpAddr::V6(target), IpAddr::V6(sender)) => {
                    Some(discovery(interface.mac, SOLICITATION, sender, target))
                }
                _ => None,
            }
        })
        .collect();
    if frames.is_empty() {
        return Ok(());
    }
    first_round(vec![(interface.name.clone(), frames)]).map(drop)
}

/// A packet socket on one interface of the calling thread's namespace. Its protocol is 0: it never receives
/// (packet(7)), and on sending the kernel reads the protocol from the frame.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let link: LinkAddr = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface is not there"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &link)?;
    Ok(socket)
}

struct Sender {
    interface: String,
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Sender {
    fn send(&self) -> Result<(), NetworkError> {
        for frame in &self.frames {
            send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT).map_err(|errno| {
                NetworkError::Announce { interface: self.interface.clone(), source: errno.into() }
            })?;
        }
        Ok(())
    }
}

/// Sends the first round and returns; a thread sends the others during the next 800 ms. It ends early, quietly, when the
/// interface goes away.
pub(super) async fn announce(plan: &Plan, netns: Arc<File>) -> Result<(), NetworkError> {
    let interfaces: Vec<_> = plan.interfaces.iter().map(|i| (i.name.clone(), frames(i))).collect();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("announce".to_owned())
        .spawn(move || {
            let first = enter(&netns).and_then(|()| first_round(interfaces));
            // The rest must not keep the namespace's file open.
            drop(netns);
            match first {
                Ok(senders) => {
                    drop(sender.send(Ok(())));
                    repeat(&senders);
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        })
        .map_err(|source| NetworkError::Thread { doing: "starting", source })?;
    receiver
        .await
        .map_err(|_| NetworkError::Thread { doing: "waiting for", source: io::Error::other("it panicked") })?
}

fn first_round(interfaces: Vec<(String, Vec<Vec<u8>>)>) -> Result<Vec<Sender>, NetworkError> {
    let mut senders = Vec::new();
    for (interface, frames) in interfaces {
        let socket = open(&interface)
            .map_err(|source| NetworkError::Announce { interface: interface.clone(), source })?;
        let sender = Sender { interface, socket, frames };
        sender.send()?;
        senders.push(sender);
    }
    Ok(senders)
}

fn repeat(senders: &[Sender]) {
    for pause in PAUSES {
        std::thread::sleep(pause);
        for sender in senders {
            if let Err(error) = sender.send() {
                tracing::debug!(%error, "the announcement ends early");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_frames_are_as_rfc_5227_shows_them() {
        let mac = Mac([2, 0, 10, 77, 0, 50]);
        let own = Ipv4Addr::new(10, 77, 0, 50);
        let frame = arp(mac, Operation::Request, own, ([0; 6], own));
        assert_eq!(frame.len(), 42);
        assert_eq!(&frame[..14], &[255, 255, 255, 255, 255, 255, 2, 0, 10, 77, 0, 50, 8, 6]);
        assert_eq!(&frame[14..22], &[0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(&frame[22..32], &[2, 0, 10, 77, 0, 50, 10, 77, 0, 50]);
        assert_eq!(&frame[32..], &[0, 0, 0, 0, 0, 0, 10, 77, 0, 50]);
    }

    #[test]
    fn checksums_close() {
        let own: Ipv6Addr = "fd00::50".parse().unwrap();
        let other: Ipv6Addr = "fd00::12:3456".parse().unwrap();
        for (kind, target) in [(ADVERTISEMENT, own), (SOLICITATION, other)] {
            let frame = discovery(Mac([2, 0, 10, 77, 0, 50]), kind, own, target);
            assert_eq!(frame.len(), 14 + 40 + 32);
            let mut summed = frame[22..54].to_vec();
            summed.extend([0, 0, 0, 32, 0, 0, 0, ICMPV6]);
            summed.extend(&frame[54..]);
            assert_eq!(checksum(&summed), 0);
        }
        let frame = discovery(Mac([2, 0, 10, 77, 0, 50]), SOLICITATION, own, other);
        assert_eq!(&frame[..6], &[0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(frame[38..54], "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets());
    }
}
