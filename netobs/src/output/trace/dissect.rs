//! The headers of a packet, as far as they were captured.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use etherparse::{ArpPacketSlice, EtherType, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice};
use serde::{Serialize, Serializer};

use crate::model::Packet;

/// IANA protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// As `0x0800`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u16);

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Layers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ethernet: Option<Ethernet>,
    /// Outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<Vlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arp: Option<Arp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// The bytes end inside a header, or it makes no sense.
    pub truncated: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Ethernet {
    pub source: Mac,
    pub destination: Mac,
    /// Of what is behind all tags.
    pub ethertype: Hex,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Vlan {
    pub id: u16,
    pub priority: u8,
    /// 0x8100, or 0x88a8 for an outer tag.
    pub ethertype: Hex,
}

/// RFC 826, of IPv4 over Ethernet.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Behind IPv6 extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<Fragment>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Fragment {
    pub id: u32,
    pub offset_bytes: u32,
    pub more: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "protocol", rename_all = "lowercase")]
pub enum Transport {
    Tcp {
        source_port: u16,
        destination_port: u16,
        /// As tcpdump has them: `S`, `S.`, `P.`, `F.`, `R`, `.`.
        #[serde(skip_serializing_if = "Option::is_none")]
        flags: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sequence: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        acknowledgement: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        window: Option<u16>,
    },
    Udp {
        source_port: u16,
        destination_port: u16,
    },
    Sctp {
        source_port: u16,
        destination_port: u16,
    },
    Icmp(Icmp),
    Icmpv6(Icmp),
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Icmp {
    #[serde(rename = "type")]
    pub kind: u8,
    pub code: u8,
    /// Of an echo: identifier and sequence number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<Echo>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Echo {
    pub request: bool,
    pub id: u16,
    pub sequence: u16,
}

impl Layers {
    pub fn of(packet: &Packet) -> Self {
        let bytes = packet.bytes.as_slice();
        let sliced = if packet.link {
            LaxSlicedPacket::from_ethernet(bytes).ok()
        } else {
            LaxSlicedPacket::from_ip(bytes).ok()
        };
        let Some(sliced) = sliced else { return Self { truncated: true, ..Self::default() } };
        let mut layers = Self { truncated: sliced.stop_err.is_some(), ..Self::default() };
        layers.link(&sliced);
        match &sliced.net {
            Some(LaxNetSlice::Arp(arp)) => layers.arp = self::arp(arp),
            Some(net) => layers.network(net),
            None => {}
        }
        layers
    }

    fn link(&mut self, sliced: &LaxSlicedPacket<'_>) {
        let Some(LinkSlice::Ethernet2(link)) = &sliced.link else { return };
        let mut ethertype = link.ether_type();
        for tag in &sliced.link_exts {
            let LaxLinkExtSlice::Vlan(tag) = tag else { continue };
            self.vlan.push(Vlan {
                id: tag.vlan_identifier().value(),
                priority: tag.priority_code_point().value(),
                ethertype: Hex(ethertype.0),
            });
            ethertype = tag.ether_type();
        }
        self.ethernet = Some(Ethernet {
            source: Mac(link.source()),
            destination: Mac(link.destination()),
            ethertype: Hex(ethertype.0),
        });
    }

    fn network(&mut self, net: &LaxNetSlice<'_>) {
        let (source, destination, ttl, fragment) = match net {
            LaxNetSlice::Ipv4(slice) => {
                let header = slice.header();
                let (offset, more) = (header.fragments_offset().byte_offset(), header.more_fragments());
                let id = u32::from(header.identification());
                let fragment =
                    (offset != 0 || more).then_some(Fragment { id, offset_bytes: offset.into(), more });
                (header.source_addr().into(), header.destination_addr().into(), header.ttl(), fragment)
            }
            LaxNetSlice::Ipv6(slice) => {
                let header = slice.header();
                let fragment = ipv6_fragment(header.next_header().0, slice.extensions().slice());
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit(), fragment)
            }
            LaxNetSlice::Arp(_) => return,
        };
        let Some(payload) = net.ip_payload_ref() else { return };
        let protocol = payload.ip_number.0;
        let is_first = fragment.as_ref().is_none_or(|fragment| fragment.offset_bytes == 0);
        self.ip = Some(Ip { source, destination, protocol, ttl, fragment });
        if is_first && has_header(protocol) {
            self.transport = transport(protocol, payload.payload);
            self.truncated |= self.transport.is_none();
        }
    }
}

/// The fragment header (RFC 8200, section 4.5) among IPv6's extension headers, of a packet that is not whole. The
/// library's own iterator over them reads past the end of what was captured (etherparse 0.21.0; fuzzing found it).
fn ipv6_fragment(first: u8, extensions: &[u8]) -> Option<Fragment> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let (mut kind, mut rest) = (first, extensions);
    loop {
        let (next, length) = (*rest.first()?, usize::from(*rest.get(1)?));
        let length = match kind {
            HOP_BY_HOP | ROUTING | DESTINATION | 135 | 139 | 140 => (length + 1) * 8,
            AUTHENTICATION => (length + 2) * 4,
            FRAGMENT => {
                let header: &[u8; 8] = rest.first_chunk()?;
                let [_, _, offset, flags, id @ ..] = *header;
                let offset_bytes = u32::from(u16::from_be_bytes([offset, flags]) & !7);
                let more = flags & 1 != 0;
                if offset_bytes != 0 || more {
                    return Some(Fragment { id: u32::from_be_bytes(id), offset_bytes, more });
                }
                header.len()
            }
            _ => return None,
        };
        (kind, rest) = (next, rest.get(length..)?);
    }
}

const fn has_header(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6)
}

/// Other kinds of addresses than IPv4 over Ethernet are not shown.
fn arp(arp: &ArpPacketSlice<'_>) -> Option<Arp> {
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let mac = |bytes: &[u8]| <[u8; 6]>::try_from(bytes).ok().map(Mac);
    Some(Arp {
        operation: arp.operation().0,
        sender_mac: mac(arp.sender_hw_addr())?,
        sender: address(arp.sender_protocol_addr())?,
        target_mac: mac(arp.target_hw_addr())?,
        target: address(arp.target_protocol_addr())?,
    })
}

/// From the transport header on; ports are told even if the rest of the header was not captured.
fn transport(number: u8, bytes: &[u8]) -> Option<Transport> {
    let be16 = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let be32 = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let ports = || Some((be16(0)?, be16(2)?));
    Some(match number {
        protocol::TCP => {
            let (source_port, destination_port) = ports()?;
            Transport::Tcp {
                source_port,
                destination_port,
                flags: bytes.get(13).map(|flags| tcp_flags(*flags)),
                sequence: be32(4),
                acknowledgement: be32(8),
                window: be16(14),
            }
        }
        protocol::UDP => {
            let (source_port, destination_port) = ports()?;
            Transport::Udp { source_port, destination_port }
        }
        protocol::SCTP => {
            let (source_port, destination_port) = ports()?;
            Transport::Sctp { source_port, destination_port }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
            let request = matches!((number, kind), (protocol::ICMP, 8) | (protocol::ICMPV6, 128));
            let reply = matches!((number, kind), (protocol::ICMP, 0) | (protocol::ICMPV6, 129));
            let echo = if request || reply {
                be16(4).zip(be16(6)).map(|(id, sequence)| Echo { request, id, sequence })
            } else {
                None
            };
            let icmp = Icmp { kind, code, echo };
            if number == protocol::ICMP { Transport::Icmp(icmp) } else { Transport::Icmpv6(icmp) }
        }
        _ => return None,
    })
}

fn tcp_flags(flags: u8) -> String {
    let letters = [(0x02, 'S'), (0x01, 'F'), (0x08, 'P'), (0x04, 'R'), (0x20, 'U'), (0x40, 'E'), (0x80, 'W')];
    let mut text: String =
        letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect();
    if flags & 0x10 != 0 {
        text.push('.');
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

/// As people call it, where they do.
pub fn ethertype_name(ethertype: u16) -> Option<&'static str> {
    Some(match EtherType(ethertype) {
        EtherType::IPV4 => "IPv4",
        EtherType::IPV6 => "IPv6",
        EtherType::ARP => "ARP",
        _ => return None,
    })
}

pub fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        protocol::ICMP => "ICMP",
        protocol::ICMPV6 => "ICMPv6",
        _ => return None,
    })
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::trace::fixture::{frame, packet};

    fn layers(bytes: Vec<u8>) -> Layers {
        Layers::of(&packet(bytes))
    }

    #[test]
    fn tags_and_what_is_behind() {
        let mut bytes = frame::ethernet(0x88a8);
        bytes.extend([0x20, 7, 0x81, 0, 0, 5, 0x08, 0x00]);
        bytes.extend(frame::ipv4(17, 0, &[0, 53, 0x30, 0x39, 0, 8, 0, 0]));
        let layers = layers(bytes);
        let tags: Vec<_> = layers.vlan.iter().map(|tag| (tag.id, tag.priority, tag.ethertype.0)).collect();
        assert_eq!(tags, [(7, 1, 0x88a8), (5, 0, 0x8100)]);
        assert_eq!(layers.ethernet.expect("a header").ethertype, Hex(0x0800));
        let udp = Transport::Udp { source_port: 53, destination_port: 12345 };
        assert_eq!((layers.transport, layers.truncated), (Some(udp), false));
    }

    #[test]
    fn of_fragments_the_first_has_ports() {
        for (fragment, ports) in [(0x2000, true), (0x2001, false), (0x0001, false)] {
            let mut bytes = frame::ethernet(0x0800);
            bytes.extend(frame::ipv4(17, fragment, &[0, 1, 0, 2, 0, 16, 0, 0]));
            let layers = layers(bytes);
            let told = layers.ip.expect("a header").fragment.expect("a fragment");
            assert_eq!(told.offset_bytes, u32::from(fragment & 0x1fff) * 8);
            assert_eq!((told.more, layers.truncated), (fragment & 0x2000 != 0, false));
            assert_eq!(layers.transport.is_some(), ports);
        }
        let mut bytes = frame::ethernet(0x86dd);
        bytes.extend(frame::ipv6(44, &[6, 0, 0, 8 << 3 | 1, 0, 0, 0, 9, 1, 2, 3, 4]));
        let layers = layers(bytes);
        let ip = layers.ip.expect("a header");
        assert_eq!((ip.protocol, layers.transport), (6, None));
        assert_eq!(ip.fragment, Some(Fragment { id: 9, offset_bytes: 64, more: true }));
    }

    #[test]
    fn cut_at_every_byte_it_says_so() {
        let mut bytes = frame::ethernet(0x0800);
        bytes.extend(frame::ipv4(6, 0, &frame::tcp(0x12)));
        for length in 0..=bytes.len() {
            let layers = layers(bytes[..length].to_vec());
            assert_eq!(layers.truncated, length < bytes.len(), "{length}: {layers:?}");
            assert_eq!(layers.ip.is_some(), length >= 34, "{length}");
            assert_eq!(layers.transport.is_some(), length >= 38, "{length}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        let mut seed = 1u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        for round in 0..20_000 {
            let mut bytes: Vec<u8> = (0..round % 160).map(|_| next()).collect();
            if let Some(ethertype) = bytes.get_mut(12..14) {
                let known = [[8, 0], [8, 6], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]];
                ethertype.copy_from_slice(&known[round % known.len()]);
            }
            let mut packet = packet(bytes);
            packet.link = round % 3 != 0;
            let layers = Layers::of(&packet);
            assert!(layers.vlan.len() <= 3);
        }
    }

    #[test]
    fn flags_are_tcpdumps() {
        for (flags, text) in [(0x02, "S"), (0x12, "S."), (0x18, "P."), (0x11, "F."), (0x04, "R"), (0, "none")]
        {
            assert_eq!(tcp_flags(flags), text);
        }
    }
}
