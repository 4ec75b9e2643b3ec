//! Tells the neighbours where an address lives now: gratuitous ARP, unsolicited neighbour advertisements.
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

fn arp(mac: Mac, operation: Operation, target_mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let ethertype =
        if matches!(operation, Operation::ReverseRequest) { ETHERTYPE_RARP } else { ETHERTYPE_ARP };
    let mut frame = ethernet(BROADCAST, mac, ethertype);
    // Ethernet, IPv4, lengths 6 and 4.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation as u8]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend(target_mac);
    frame.extend(address.octets());
    frame
}

/// An unsolicited neighbour advertisement with the override flag, to all nodes (RFC 4861 sections 4.4 and 7.2.6).
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const LENGTH: u8 = 32;
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    // Target link-layer address, in units of eight bytes.
    message.extend([2, 1]);
    message.extend(mac.0);
    let mut summed = Vec::new();
    summed.extend(address.octets());
    summed.extend(ALL_NODES.octets());
    summed.extend([0, 0, 0, LENGTH, 0, 0, 0, ICMPV6]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    // Version 6; payload length; ICMPv6; hop limit 255, which receivers insist on.
    frame.extend([0x60, 0, 0, 0, 0, LENGTH, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
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
                frames.push(arp(mac, Operation::Request, [0; 6], v4));
                frames.push(arp(mac, Operation::Reply, mac.0, v4));
            }
            IpAddr::V6(v6) => frames.push(neighbour_advertisement(mac, v6)),
        }
    }
    if frames.is_empty() {
        // As QEMU does, which knows no addresses: enough for the switches.
        frames.push(arp(mac, Operation::ReverseRequest, mac.0, Ipv4Addr::UNSPECIFIED));
    }
    frames
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
        let frame = arp(mac, Operation::Request, [0; 6], Ipv4Addr::new(10, 77, 0, 50));
        assert_eq!(frame.len(), 42);
        assert_eq!(&frame[..14], &[255, 255, 255, 255, 255, 255, 2, 0, 10, 77, 0, 50, 8, 6]);
        assert_eq!(&frame[14..22], &[0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(&frame[22..32], &[2, 0, 10, 77, 0, 50, 10, 77, 0, 50]);
        assert_eq!(&frame[32..], &[0, 0, 0, 0, 0, 0, 10, 77, 0, 50]);
    }

    #[test]
    fn the_advertisements_checksum_closes() {
        let address: Ipv6Addr = "fd00::50".parse().unwrap();
        let frame = neighbour_advertisement(Mac([2, 0, 10, 77, 0, 50]), address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let mut summed = frame[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, ICMPV6]);
        summed.extend(&frame[54..]);
        assert_eq!(checksum(&summed), 0);
    }
}
