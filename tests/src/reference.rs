//! What netobs documents that a frame is counted as, written down a second time: over slices, without the
//! kernel program's constants or order. A test holds the programs against it.

use std::collections::HashMap;

use netobs_common::{Count, Counters, FIRST, OPENED, SIZE_BOUNDS, class, l4};

use crate::random_frames::Case;

/// By direction: what counters and flows must have counted.
pub struct Expected {
    pub counters: [Counters; 2],
    pub flows: HashMap<Key, Flow>,
    /// Ingress frames from another MAC address than [`OWN_MAC`].
    pub foreign: Count,
}

/// The interface's, as far as the frames are compared with one.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// As [`netobs_common::FlowKey`], without the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Who sends what the interface receives.
    pub a: [u8; 16],
    pub b: [u8; 16],
    pub a_port: u16,
    pub b_port: u16,
    pub protocol: u8,
}

/// By direction, ingress first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub stack: [Count; 2],
    pub wire: [Count; 2],
    /// With [`FIRST`] and [`OPENED`].
    pub flags: [u8; 2],
    pub zero_windows: [u64; 2],
}

#[derive(PartialEq, Eq)]
enum Cast {
    Unicast,
    Multicast,
    Broadcast,
}

/// What one frame is.
struct Told {
    class: u32,
    cast: Cast,
    tcp_flags: u8,
    zero_window: bool,
    truncated: bool,
    headers_len: usize,
    ip: Ip,
}

enum Ip {
    None,
    /// Its header is cut, or too short by its own word.
    Cut,
    Packet(Packet),
}

struct Packet {
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    ports: Ports,
}

/// What tells flows between two ends apart.
enum Ports {
    /// Of source and destination.
    Of(u16, u16),
    /// Identifier, type and code: the same in both directions.
    Message(u16, u16),
    None,
}

impl Default for Expected {
    fn default() -> Self {
        Self { counters: [Counters::ZERO; 2], flows: HashMap::new(), foreign: Count::default() }
    }
}

impl Expected {
    pub fn add(&mut self, case: Case<'_>) {
        let told = tell(case.frame, case.tag_outside);
        let direction = usize::from(!case.ingress);
        let stack = Count { packets: 1, bytes: case.frame.len() as u64 };
        if case.ingress && case.frame.get(6..12) != Some(&OWN_MAC) {
            add(&mut self.foreign, stack);
        }
        let counters = &mut self.counters[direction];
        let wire = unfold(counters, case, told.headers_len);
        add(&mut counters.class[told.class as usize], stack);
        match told.cast {
            Cast::Unicast => {}
            Cast::Multicast => add(&mut counters.multicast, stack),
            Cast::Broadcast => add(&mut counters.broadcast, stack),
        }
        counters.unfolded_bytes += wire.bytes - stack.bytes;
        counters.tcp_zero_window += u64::from(told.zero_window);
        counters.tcp_fin += u64::from(told.tcp_flags & 1);
        counters.tcp_syn += u64::from(told.tcp_flags >> 1 & 1);
        counters.tcp_rst += u64::from(told.tcp_flags >> 2 & 1);
        counters.truncated += u64::from(told.truncated);
        match told.ip {
            Ip::None => {}
            Ip::Cut => {
                add(&mut counters.unflowed, stack);
                counters.unflowed_truncated += 1;
            }
            Ip::Packet(packet) => {
                let flow = self.add_to_flow(&packet, told.tcp_flags, direction, stack, wire);
                flow.zero_windows[direction] += u64::from(told.zero_window);
            }
        }
    }

    fn add_to_flow(
        &mut self,
        packet: &Packet,
        tcp_flags: u8,
        direction: usize,
        stack: Count,
        wire: Count,
    ) -> &mut Flow {
        let sent = direction == 1;
        let (a, b) =
            if sent { (packet.destination, packet.source) } else { (packet.source, packet.destination) };
        let (a_port, b_port) = match packet.ports {
            Ports::Of(source, destination) if sent => (destination, source),
            Ports::Of(one, other) | Ports::Message(one, other) => (one, other),
            Ports::None => (0, 0),
        };
        let key = Key { a, b, a_port, b_port, protocol: packet.protocol };
        let flow = self.flows.entry(key).or_insert_with(|| {
            let mut flow = Flow::default();
            flow.flags[direction] = FIRST;
            flow
        });
        add(&mut flow.stack[direction], stack);
        add(&mut flow.wire[direction], wire);
        // SYN, and no ACK.
        let opened = if tcp_flags & 0x12 == 0x02 { OPENED } else { 0 };
        flow.flags[direction] |= tcp_flags & 0x3f | opened;
        flow
    }
}

fn add(sum: &mut Count, more: Count) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

/// As on a wire, each in the size histogram: a super-packet is cut into `gso_size` bytes of payload each, the last
/// one has the rest, and each has all headers. Every one has the tag.
fn unfold(counters: &mut Counters, case: Case<'_>, headers: usize) -> Count {
    let tag = if case.tag_outside { 4 } else { 0 };
    let length = case.frame.len();
    let size = case.gso.size as usize;
    let mut sizes = |packets: usize, length: usize| {
        let bucket =
            SIZE_BOUNDS.iter().position(|bound| length <= *bound as usize).unwrap_or(SIZE_BOUNDS.len());
        counters.size[bucket] += packets as u64;
    };
    if size == 0 {
        sizes(1, length + tag);
        return Count { packets: 1, bytes: (length + tag) as u64 };
    }
    let segments = match case.gso.segments as usize {
        0 => length.saturating_sub(headers).div_ceil(size).max(1),
        said => said,
    };
    sizes(segments - 1, headers + size + tag);
    sizes(1, length.saturating_sub((segments - 1) * size) + tag);
    Count { packets: segments as u64, bytes: (length + (segments - 1) * headers + segments * tag) as u64 }
}

fn tell(frame: &[u8], tag_outside: bool) -> Told {
    let cast = match frame {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => Cast::Broadcast,
        [first, ..] if first % 2 == 1 => Cast::Multicast,
        _ => Cast::Unicast,
    };
    let mut told = Told {
        class: class::OTHER,
        cast,
        tcp_flags: 0,
        zero_window: false,
        truncated: false,
        headers_len: 14,
        ip: Ip::None,
    };
    let mut rest = &frame[12..];
    let mut tagged = tag_outside;
    let mut tags = 0;
    while tags < 2 && matches!(rest, [0x81, 0x00, ..] | [0x88, 0xa8, ..]) {
        tagged = true;
        if rest.len() < 6 {
            return Told { class: class::VLAN_NOT_IP, truncated: true, ..told };
        }
        rest = &rest[4..];
        tags += 1;
        told.headers_len += 4;
    }
    match rest {
        [0x08, 0x00, packet @ ..] => tell_ipv4(packet, if tagged { class::VLAN } else { class::IPV4 }, told),
        [0x86, 0xdd, packet @ ..] => tell_ipv6(packet, if tagged { class::VLAN } else { class::IPV6 }, told),
        _ if tagged => Told { class: class::VLAN_NOT_IP, ..told },
        [0x08, 0x06, ..] => Told { class: class::ARP, ..told },
        _ => told,
    }
}

fn tell_ipv4(packet: &[u8], base: u32, told: Told) -> Told {
    let header = packet.first_chunk::<20>().filter(|header| header[0] % 16 >= 5);
    let Some(header) = header else {
        return Told { class: base + l4::OTHER, truncated: true, ip: Ip::Cut, ..told };
    };
    let length = usize::from(header[0] % 16) * 4;
    let is_later = u16::from_be_bytes([header[6], header[7]]) % 0x2000 != 0;
    let [.., a, b, c, d, e, f, g, h] = *header;
    let ends = (mapped([a, b, c, d]), mapped([e, f, g, h]));
    let behind = packet.get(length..).unwrap_or_default();
    tell_transport((!is_later).then_some(behind), header[9], length, ends, base, told)
}

fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// RFC 8200 and those that define further headers; eight of them are followed.
fn tell_ipv6(packet: &[u8], base: u32, told: Told) -> Told {
    let Some((header, behind)) = packet.split_first_chunk::<40>() else {
        return Told { class: base + l4::OTHER, truncated: true, ip: Ip::Cut, ..told };
    };
    let address = |at: usize| std::array::from_fn(|byte| header[at + byte]);
    let ends: ([u8; 16], [u8; 16]) = (address(8), address(24));
    let mut next = header[6];
    let mut at = 0;
    for _ in 0..8 {
        let unit = match next {
            0 | 43 | 60 | 135 => 8,
            51 => 4,
            44 => 0,
            _ => break,
        };
        // What is needed of it: the next header, its length, where a fragment belongs.
        let Some(&[then, units, high, low]) = behind.get(at..).and_then(|rest| rest.first_chunk::<4>())
        else {
            let packet =
                Packet { source: ends.0, destination: ends.1, protocol: header[6], ports: Ports::None };
            return Told { class: base + l4::OTHER, truncated: true, ip: Ip::Packet(packet), ..told };
        };
        let is_later = next == 44 && u16::from_be_bytes([high, low]) >> 3 != 0;
        next = then;
        at += 8 + usize::from(units) * unit;
        if is_later {
            return tell_transport(None, next, 40 + at, ends, base, told);
        }
    }
    tell_transport(Some(behind.get(at..).unwrap_or_default()), next, 40 + at, ends, base, told)
}

/// `header`: what follows the IP headers, of which `ip_len` bytes are; later fragments have none.
fn tell_transport(
    header: Option<&[u8]>,
    protocol: u8,
    ip_len: usize,
    (source, destination): ([u8; 16], [u8; 16]),
    base: u32,
    mut told: Told,
) -> Told {
    let (l4, fixed_len) = match protocol {
        6 => (l4::TCP, 0),
        17 => (l4::UDP, 8),
        1 => (l4::ICMP, 0),
        58 => (l4::ICMPV6, 0),
        132 => (l4::SCTP, 0),
        _ => (l4::OTHER, 0),
    };
    told.class = base + l4;
    told.headers_len += ip_len;
    let mut ports = Ports::None;
    if let Some(header) = header {
        told.headers_len += fixed_len;
        if protocol == 6 {
            // As far as the window; the checksum after it is not needed.
            match header.get(..16) {
                Some(known) => {
                    told.headers_len += usize::from(known[12] >> 4) * 4;
                    told.tcp_flags = known[13];
                    // Neither SYN nor RST.
                    told.zero_window = known[14..] == [0, 0] && known[13] & 0x06 == 0;
                }
                None => told.truncated = true,
            }
        }
        ports = match (protocol, header) {
            (6 | 17 | 132, &[a, b, c, d, ..]) => {
                Ports::Of(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            (1, &[0 | 8, code, _, _, a, b, _, _, ..]) => {
                Ports::Message(u16::from_be_bytes([a, b]), 8 << 8 | u16::from(code))
            }
            (58, &[128 | 129, code, _, _, a, b, _, _, ..]) => {
                Ports::Message(u16::from_be_bytes([a, b]), 128 << 8 | u16::from(code))
            }
            (1 | 58, &[kind, code, _, _, _, _, _, _, ..]) => {
                Ports::Message(0, u16::from_be_bytes([kind, code]))
            }
            _ => Ports::None,
        };
    }
    told.ip = Ip::Packet(Packet { source, destination, protocol, ports });
    told
}
