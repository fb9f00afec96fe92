//! Packets as pcapng (draft-ietf-opsawg-pcapng): an interface for each attachment, named by its container.

use std::collections::BTreeMap;

use super::{dissect::Layers, text};
use crate::{
    model::{Book, Dropped, InterfaceKey, Packet, TraceCounts, Way},
    output::{drops::words, format::visible},
};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// From the IP header on.
const LINKTYPE_RAW: u16 = 101;
/// Of times: 10 to the power of -9 seconds.
const NANOSECONDS: u8 = 9;

/// Options; numbers below 10 mean another thing in each kind of block.
mod option {
    pub const END: u16 = 0;
    pub const COMMENT: u16 = 1;
    pub const SECTION_APPLICATION: u16 = 4;
    pub const INTERFACE_NAME: u16 = 2;
    pub const INTERFACE_DESCRIPTION: u16 = 3;
    pub const INTERFACE_RESOLUTION: u16 = 9;
    pub const PACKET_FLAGS: u16 = 2;
    pub const STATISTICS_START: u16 = 2;
    pub const STATISTICS_END: u16 = 3;
    pub const STATISTICS_RECEIVED: u16 = 4;
    pub const STATISTICS_DROPPED: u16 = 5;
    pub const STATISTICS_ACCEPTED: u16 = 6;
    pub const STATISTICS_OS_DROPPED: u16 = 7;
    pub const STATISTICS_DELIVERED: u16 = 8;
}

/// Bytes of one block of statistics: header and trailer, interface and time, seven options, their end.
const STATISTICS_BYTES: usize = 12 + 12 + 7 * (4 + 8) + 4;

/// A name is cut at so many bytes; an option holds 65,535.
const TEXT_MAX: usize = 4096;

/// Interfaces that have been described so far.
pub struct Pcapng {
    names: bool,
    snaplen: u32,
    /// Number and packets of the interface, by attachment and whether packets begin with Ethernet.
    interfaces: BTreeMap<(Source, bool), (u32, u64)>,
}

/// What an interface of the file stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// None: one that is not known (any more).
    Attachment(Option<InterfaceKey>),
    /// Wherever packets were dropped.
    Dropped,
}

impl Pcapng {
    pub const fn new(names: bool, snaplen: u32) -> Self {
        Self { names, snaplen, interfaces: BTreeMap::new() }
    }

    pub const fn names(&self) -> bool {
        self.names
    }

    /// The packet, and before it its interface if that is new.
    pub fn packet(&mut self, packet: &Packet, book: &Book, into: &mut Vec<u8>) {
        let source = Source::Attachment(packet.point.as_ref().map(|point| point.key));
        let number =
            self.number((source, packet.link), into, |snaplen, into| interface(packet, snaplen, into));
        let comment = self.names.then(|| ends(packet, book)).flatten();
        let inbound_or_outbound: u32 = match packet.way {
            Way::Rx => 1,
            Way::Tx => 2,
        };
        enhanced(number, packet, Some(inbound_or_outbound), comment.as_deref(), into);
    }

    /// One that was dropped, at an interface of the file's own: why is in its comment.
    pub fn dropped(&mut self, dropped: &Dropped, into: &mut Vec<u8>) {
        let Dropped { packet, kind } = dropped;
        let number = self.number((Source::Dropped, packet.link), into, |snaplen, into| {
            let from = if packet.link { "the Ethernet header" } else { "the IP header" };
            let about = format!("what the kernel dropped, from {from} on");
            describe(packet.link, snaplen, "dropped", &about, None, into);
        });
        let (from, to) = (words::party(&kind.source), words::party(&kind.destination));
        let comment = format!("{}, {from} > {to}", text::end_of(kind));
        enhanced(number, packet, None, Some(&comment), into);
    }

    /// Of an interface, which is described if it is new; counts a packet of it.
    fn number(
        &mut self,
        key: (Source, bool),
        into: &mut Vec<u8>,
        describe: impl FnOnce(u32, &mut Vec<u8>),
    ) -> u32 {
        let next = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        let (number, packets) = self.interfaces.entry(key).or_insert_with(|| {
            describe(self.snaplen, into);
            (next, 0)
        });
        *packets += 1;
        *number
    }

    pub fn end_bytes(&self) -> usize {
        // One that is new with the next packet is thought of.
        (self.interfaces.len() + 1) * STATISTICS_BYTES
    }

    /// A block for each interface.
    pub fn statistics(
        &self,
        counts: &BTreeMap<InterfaceKey, TraceCounts>,
        dropped: TraceCounts,
        [start_ns, end_ns]: [u64; 2],
        into: &mut Vec<u8>,
    ) {
        for ((source, _), (number, packets)) in &self.interfaces {
            let counts = match source {
                Source::Attachment(key) => key.and_then(|key| counts.get(&key)),
                Source::Dropped => Some(&dropped),
            };
            let Some(counts) = counts else { continue };
            block(STATISTICS, into, |body| {
                body.extend(number.to_le_bytes());
                time(end_ns, body);
                for (code, at) in [(option::STATISTICS_START, start_ns), (option::STATISTICS_END, end_ns)] {
                    let mut value = Vec::new();
                    time(at, &mut value);
                    option(code, &value, body);
                }
                for (code, count) in [
                    (option::STATISTICS_RECEIVED, counts.matched),
                    (option::STATISTICS_DROPPED, counts.lost + counts.limited),
                    (option::STATISTICS_ACCEPTED, counts.matched),
                    (option::STATISTICS_OS_DROPPED, counts.lost),
                    (option::STATISTICS_DELIVERED, *packets),
                ] {
                    option(code, &count.to_le_bytes(), body);
                }
                option(option::END, &[], body);
            });
        }
    }
}

/// The header of the file.
pub fn section(into: &mut Vec<u8>) {
    block(SECTION, into, |body| {
        body.extend(BYTE_ORDER.to_le_bytes());
        body.extend([1, 0, 0, 0]);
        // How long the section is: not known.
        body.extend(u64::MAX.to_le_bytes());
        text_option(option::SECTION_APPLICATION, concat!("netobs ", env!("CARGO_PKG_VERSION")), body);
        option(option::END, &[], body);
    });
}

fn interface(packet: &Packet, snaplen: u32, into: &mut Vec<u8>) {
    let name = match &packet.point {
        Some(point) => match &point.owner {
            Some(owner) => format!("{}/{}", owner.name, owner.interface),
            None => point.name().to_owned(),
        },
        None => "?".to_owned(),
    };
    describe(packet.link, snaplen, &name, &text::place(packet), about(packet).as_deref(), into);
}

fn describe(link: bool, snaplen: u32, name: &str, about: &str, comment: Option<&str>, into: &mut Vec<u8>) {
    block(INTERFACE, into, |body| {
        body.extend(if link { LINKTYPE_ETHERNET } else { LINKTYPE_RAW }.to_le_bytes());
        body.extend([0, 0]);
        body.extend(snaplen.to_le_bytes());
        text_option(option::INTERFACE_NAME, name, body);
        text_option(option::INTERFACE_DESCRIPTION, about, body);
        option(option::INTERFACE_RESOLUTION, &[NANOSECONDS], body);
        if let Some(comment) = comment {
            text_option(option::COMMENT, comment, body);
        }
        option(option::END, &[], body);
    });
}

fn enhanced(number: u32, packet: &Packet, flags: Option<u32>, comment: Option<&str>, into: &mut Vec<u8>) {
    block(PACKET, into, |body| {
        body.extend(number.to_le_bytes());
        time(packet.time_ns, body);
        body.extend(u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        body.extend(packet.length.to_le_bytes());
        body.extend(&packet.bytes);
        pad(body);
        if let Some(flags) = flags {
            option(option::PACKET_FLAGS, &flags.to_le_bytes(), body);
        }
        if let Some(comment) = comment {
            text_option(option::COMMENT, comment, body);
        }
        option(option::END, &[], body);
    });
}

/// What else is known of the place.
fn about(packet: &Packet) -> Option<String> {
    let point = packet.point.as_ref()?;
    let network = point.network.as_ref().map(|network| format!("network {network}"));
    let owner = point.owner.as_ref();
    let container = owner.map(|owner| format!("container {} ({})", owner.name, owner.id));
    let members = owner.filter(|owner| !owner.members.is_empty()).map(|owner| {
        let names: Vec<_> = owner.members.iter().map(|(name, _)| name.as_str()).collect();
        format!("shared with {}", names.join(", "))
    });
    let parts: Vec<_> = [container, network, members].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The containers at both ends, as far as they are known.
fn ends(packet: &Packet, book: &Book) -> Option<String> {
    if book.by_address.is_empty() {
        return None;
    }
    let layers = Layers::of(packet);
    let (source, destination) = match (&layers.ip, &layers.arp) {
        (Some(ip), _) => (ip.source, ip.destination),
        (None, Some(arp)) => (arp.sender.into(), arp.target.into()),
        (None, None) => return None,
    };
    let name = |address| book.by_address.get(&address);
    match (name(source), name(destination)) {
        (None, None) => None,
        (from, to) => {
            let told = |name: Option<&String>, address: std::net::IpAddr| {
                name.cloned().unwrap_or_else(|| address.to_string())
            };
            Some(format!("{} > {}", told(from, source), told(to, destination)))
        }
    }
}

/// Type, length, body, length.
fn block(kind: u32, into: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::with_capacity(256);
    write(&mut body);
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    into.extend(kind.to_le_bytes());
    into.extend(length);
    into.extend(body);
    into.extend(length);
}

/// High half first, whatever the byte order.
fn time(time_ns: u64, body: &mut Vec<u8>) {
    body.extend(((time_ns >> 32) as u32).to_le_bytes());
    body.extend((time_ns as u32).to_le_bytes());
}

fn text_option(code: u16, text: &str, body: &mut Vec<u8>) {
    let text = visible(text);
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    option(code, &text.as_bytes()[..end], body);
}

fn option(code: u16, value: &[u8], body: &mut Vec<u8>) {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend(value);
    pad(body);
}

/// To a multiple of four bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::trace::fixture::{self, HOSTILE, book, frame, packet, point};

    /// Kind and body of each block; lengths before and after agree.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word =
            |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a word"));
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = word(bytes, 4) as usize;
            assert_eq!((length % 4, word(bytes, length - 4) as usize), (0, length));
            found.push((word(bytes, 0), bytes[8..length - 4].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    #[test]
    fn an_interface_is_described_once() {
        let mut pcapng = Pcapng::new(true, 65_535);
        let mut out = Vec::new();
        section(&mut out);
        let mut bytes = frame::ethernet(0x0800);
        bytes.extend(frame::ipv4(17, 0, &[0; 8]));
        let mut packet = packet(bytes.clone());
        pcapng.packet(&packet, &book(), &mut out);
        pcapng.packet(&packet, &book(), &mut out);
        packet.point = Some(std::sync::Arc::new(point(HOSTILE, 8)));
        pcapng.packet(&packet, &book(), &mut out);
        let counts = BTreeMap::from([(InterfaceKey(7), TraceCounts { matched: 9, ..TraceCounts::ZERO })]);
        let before = out.len();
        pcapng.statistics(&counts, TraceCounts::ZERO, [1, 2], &mut out);
        assert_eq!(out.len() - before, STATISTICS_BYTES);
        assert_eq!(pcapng.end_bytes(), 3 * STATISTICS_BYTES);
        let blocks = blocks(&out);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, INTERFACE, PACKET, STATISTICS]);
        let packet = &blocks[3].1;
        assert_eq!(packet[..4], 0u32.to_le_bytes());
        let time = u64::from(u32::from_le_bytes(packet[4..8].try_into().expect("a word"))) << 32
            | u64::from(u32::from_le_bytes(packet[8..12].try_into().expect("a word")));
        assert_eq!(time, crate::output::trace::fixture::TIME_NS);
        assert_eq!(packet[20..20 + bytes.len()], bytes);
        let text = String::from_utf8_lossy(&out);
        assert!(
            text.contains("web/eth0") && text.contains("container web (0123456789abcdef), network front")
        );
        assert!(text.contains("we\\x1b[31mb\\n\"\\u{202e}/eth0"), "{text}");
        assert!(!text.contains("\x1b["));
    }

    #[test]
    fn drops_are_at_an_interface_of_their_own() {
        let mut pcapng = Pcapng::new(true, 65_535);
        let mut out = Vec::new();
        let mut bytes = frame::ethernet(0x0800);
        bytes.extend(frame::ipv4(6, 0, &frame::tcp(0x02)));
        pcapng.packet(&packet(bytes.clone()), &book(), &mut out);
        pcapng.dropped(&fixture::dropped(bytes.clone()), &mut out);
        pcapng.dropped(&fixture::dropped(bytes), &mut out);
        let counts = TraceCounts { matched: 5, delivered: 2, lost: 3, ..TraceCounts::ZERO };
        pcapng.statistics(&BTreeMap::new(), counts, [1, 2], &mut out);
        let blocks = blocks(&out);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [INTERFACE, PACKET, INTERFACE, PACKET, PACKET, STATISTICS]);
        let has = |at: usize, text: &str| String::from_utf8_lossy(&blocks[at].1).contains(text);
        assert!(has(2, "dropped") && !has(1, "dropped"));
        assert!(has(3, "dropped NETFILTER_DROP at eth0 in web by nft_do_chain+0x3e8 (nf_tables at input), "));
        assert!(has(3, "we\\x1b[31mb\\n\"\\u{202e} 10.0.0.1 > web 10.0.0.2"));
        assert_eq!(blocks[3].1[..4], 1u32.to_le_bytes());
        // Of the interface of drops: received, dropped, accepted, lost, written.
        let numbers: Vec<u64> = blocks[5].1[12 + 2 * 12..]
            .chunks_exact(12)
            .map(|option| u64::from_le_bytes(option[4..].try_into().expect("eight bytes")))
            .collect();
        assert_eq!(numbers, [5, 3, 5, 3, 2]);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let mut body = Vec::new();
        text_option(1, &"é".repeat(4000), &mut body);
        assert_eq!(body.len(), 4 + TEXT_MAX);
        assert!(std::str::from_utf8(&body[4..]).is_ok());
        let mut odd = Vec::new();
        text_option(1, &format!("x{}", "é".repeat(4000)), &mut odd);
        assert!(std::str::from_utf8(&odd[4..4 + TEXT_MAX - 1]).is_ok());
    }
}
