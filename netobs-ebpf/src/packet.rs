//! What one frame is: link, network and transport class and the length of its headers.
//!
//! Reads tolerate truncation at every byte: a header that is not there ends the parse with what is
//! known so far. Headers are read in place where they are in the linear part of the skb (nearly always)
//! and copied by a helper where they are not.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use netobs_common::{class, l4};

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
pub const VLAN_LEN: usize = 4;

/// EtherTypes in host byte order (IEEE 802 numbers).
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
}

/// IANA protocol numbers, as in IPv4's protocol and IPv6's next header.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
}

/// IPv6 extension headers that are followed before giving up.
const MAX_EXTENSIONS: usize = 8;

/// TCP flag bits (RFC 9293, byte 13 of the header).
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Destination of a frame at L2.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Cast(u32);

impl Cast {
    pub const UNICAST: Self = Self(0);
    pub const MULTICAST: Self = Self(1);
    pub const BROADCAST: Self = Self(2);
}

#[derive(Clone, Copy)]
pub struct Packet {
    /// One of [`class`].
    pub class: u32,
    pub cast: Cast,
    /// TCP flags of a first or only fragment, otherwise 0.
    pub tcp_flags: u8,
    /// Bytes before the payload that each segment of a super-packet repeats.
    pub headers_len: u32,
    pub truncated: bool,
    pub version: Version,
    /// IANA protocol number, of an IP packet whose fixed header is there.
    pub protocol: u8,
    /// Offset of the IP header.
    pub network: u32,
    /// Offset of what follows the IP headers; 0 in later fragments, which have no transport header.
    pub transport: u32,
}

/// Of the IP header, if there is one and its fixed part is all there.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Version(pub u32);

impl Version {
    pub const NONE: Self = Self(0);
    pub const V4: Self = Self(1);
    pub const V6: Self = Self(2);
}

/// Always 0, and the verifier does not know it.
static mut ZERO: u32 = 0;

/// The same value, of which the verifier no longer knows by which way it was found: else it walks what comes
/// after once for each.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    // SAFETY: nobody writes.
    value ^ unsafe { core::ptr::read_volatile(&raw const ZERO) }
}

/// Where the bytes of a packet are read. Offsets are from where it begins: with the
/// Ethernet header at TC hooks (`LINK`), with the IP header at cgroup hooks.
pub trait Source: Sized {
    /// The same packet, `offset` bytes on. Less than 32,768.
    fn at(&self, offset: usize) -> Self;
    /// None past the end.
    fn byte(&self, offset: usize) -> Option<u8>;
    /// Two bytes, most significant first.
    fn be16(&self, offset: usize) -> Option<u16>;
}

/// The linear part of the skb, read in place.
pub struct Linear {
    pub data: usize,
    pub end: usize,
}

impl Source for Linear {
    #[inline(always)]
    fn at(&self, offset: usize) -> Self {
        Self { data: pointer(self.data, offset), end: self.end }
    }

    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        let address = self.data + offset;
        if address + 1 > self.end {
            return None;
        }
        // SAFETY: inside the linear part, as just checked; the verifier holds us to it.
        Some(unsafe { *(address as *const u8) })
    }

    #[inline(always)]
    fn be16(&self, offset: usize) -> Option<u16> {
        let address = self.data + offset;
        if address + 2 > self.end {
            return None;
        }
        // SAFETY: as above. Unaligned, which the verifier allows for packet data where the CPU does.
        Some(unsafe { u16::from_be(*(address as *const u16)) })
    }
}

/// A pointer into a packet, as one value that the compiler takes as it is: taken apart and put together anew,
/// the verifier would not know that a check of one is a check of the other.
#[inline(always)]
pub fn pointer(data: usize, offset: usize) -> usize {
    let mut pointer = data + (offset & MAX_OFFSET);
    // SAFETY: a move to itself; with no instruction at all there would be line information for none, which
    // the kernel refuses.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    pointer
}

/// The whole skb, by helper: for the few whose headers are not in the linear part.
pub struct Whole {
    pub skb: *mut __sk_buff,
    /// Where offsets count from.
    pub start: usize,
}

impl Source for Whole {
    #[inline(always)]
    fn at(&self, offset: usize) -> Self {
        Self { skb: self.skb, start: self.start + offset }
    }

    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        let mut value = 0u8;
        // SAFETY: the destination is one byte on the stack; the helper checks the offset.
        let failed = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), (self.start + offset) as u32, (&raw mut value).cast(), 1)
        };
        (failed == 0).then_some(value)
    }

    #[inline(always)]
    fn be16(&self, offset: usize) -> Option<u16> {
        let mut value = 0u16;
        // SAFETY: as above, two bytes.
        let failed = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), (self.start + offset) as u32, (&raw mut value).cast(), 2)
        };
        (failed == 0).then_some(u16::from_be(value))
    }
}

/// Reads the headers of a packet.
#[inline(always)]
pub fn parse<const LINK: bool>(skb: *mut __sk_buff) -> Packet {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let packet = read::<LINK>(&Linear { data, end }, skb);
    // Read anew: added to a pointer, each range that the verifier has for it would be a walk of its own.
    // SAFETY: as above.
    if packet.truncated && data + unsafe { core::ptr::read_volatile(&raw const (*skb).len) } as usize > end {
        return Packet::unpack(parse_whole::<LINK>(skb));
    }
    packet
}

#[inline(never)]
fn parse_whole<const LINK: bool>(skb: *mut __sk_buff) -> u64 {
    read::<LINK>(&Whole { skb, start: 0 }, skb).pack()
}

impl Packet {
    /// In one register, since a BPF function returns no more.
    #[inline(always)]
    fn pack(self) -> u64 {
        u64::from(self.class)
            | u64::from(self.cast.0) << 5
            | u64::from(self.truncated) << 7
            | u64::from(self.version.0) << 8
            | u64::from(self.network) << 10
            | u64::from(self.tcp_flags) << 16
            | u64::from(self.protocol) << 24
            | u64::from(self.headers_len) << 32
            | u64::from(self.transport) << 48
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Self {
        Self {
            class: packed as u32 & 0x1f,
            cast: Cast((packed >> 5) as u32 & 3),
            truncated: packed >> 7 & 1 != 0,
            version: Version((packed >> 8) as u32 & 3),
            network: (packed >> 10) as u32 & 0x3f,
            tcp_flags: (packed >> 16) as u8,
            protocol: (packed >> 24) as u8,
            headers_len: (packed >> 32) as u32 & 0xffff,
            transport: (packed >> 48) as u32,
        }
    }
}

const _: () = assert!(class::COUNT <= 0x20);

#[inline(always)]
fn read<const LINK: bool>(source: &impl Source, skb: *mut __sk_buff) -> Packet {
    let mut packet = Packet {
        class: class::OTHER,
        cast: Cast::UNICAST,
        tcp_flags: 0,
        headers_len: if LINK { ETH_LEN as u32 } else { 0 },
        truncated: false,
        version: Version::NONE,
        protocol: 0,
        network: 0,
        transport: 0,
    };
    let read =
        if LINK { read_link(source, skb, &mut packet) } else { read_network_only(source, skb, &mut packet) };
    packet.truncated = read.is_none();
    packet
}

/// From the Ethernet header on. `None` if the frame ended inside a header.
#[inline(always)]
fn read_link(source: &impl Source, skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let mut ethertype = source.be16(ETH_LEN - 2)?;
    if source.byte(0)? & 1 != 0 {
        packet.cast = group_cast(source)?;
    }
    let mut offset = ETH_LEN;
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    let mut vlan = unsafe { (*skb).vlan_present } != 0;
    // A tag in the frame itself (raw sockets), or a second one behind it or behind the skb's own.
    for _ in 0..2 {
        if ethertype != ethertype::VLAN && ethertype != ethertype::QINQ {
            break;
        }
        vlan = true;
        packet.class = class::VLAN_NOT_IP;
        ethertype = source.be16(offset + 2)?;
        offset += VLAN_LEN;
        packet.headers_len = offset as u32;
    }
    let base = match ethertype {
        _ if vlan => class::VLAN,
        ethertype::IPV4 => class::IPV4,
        _ => class::IPV6,
    };
    match ethertype {
        ethertype::IPV4 | ethertype::IPV6 => {}
        other => {
            packet.class = match other {
                _ if vlan => class::VLAN_NOT_IP,
                ethertype::ARP => class::ARP,
                _ => class::OTHER,
            };
            return Some(());
        }
    }
    packet.cast = Cast(opaque(packet.cast.0));
    let offset = (opaque(offset as u32) & MAX_NETWORK) as usize;
    read_network(source, skb, packet, opaque(base), ethertype, offset)
}

/// Largest offset of an IP header, and more.
pub const MAX_NETWORK: u32 = 0x1f;

/// From the IP header on, where there is no other; the address says whether it is for a group.
#[inline(always)]
fn read_network_only(source: &impl Source, skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    // Two bytes: a check for the first byte alone becomes one that the verifier learns nothing from.
    let version = source.be16(0)? >> 12;
    if version == 4 {
        let destination = source.be16(16)?;
        if destination >> 12 == 0xe {
            packet.cast = Cast::MULTICAST;
        } else if destination == 0xffff && source.be16(18)? == 0xffff {
            packet.cast = Cast::BROADCAST;
        }
        read_network(source, skb, packet, class::IPV4, ethertype::IPV4, 0)
    } else if version == 6 {
        if source.byte(24)? == 0xff {
            packet.cast = Cast::MULTICAST;
        }
        read_network(source, skb, packet, class::IPV6, ethertype::IPV6, 0)
    } else {
        Some(())
    }
}

/// From the IP header at `offset` on.
#[inline(always)]
fn read_network(
    source: &impl Source,
    skb: *mut __sk_buff,
    packet: &mut Packet,
    base: u32,
    ethertype: u16,
    offset: usize,
) -> Option<()> {
    packet.class = base + l4::OTHER;
    packet.network = offset as u32;
    let ip = source.at(offset);
    let (headers, protocol, first_fragment) = match ethertype {
        ethertype::IPV4 => {
            let header_len = (ip.byte(0)? & 0x0f) as usize * 4;
            let fragment = ip.be16(6)? & 0x1fff;
            let protocol = ip.byte(9)?;
            // The last byte of the fixed header.
            ip.byte(19)?;
            if header_len < 20 {
                return None;
            }
            packet.version = Version::V4;
            (header_len, protocol, fragment == 0)
        }
        _ => {
            let next = ip.byte(6)?;
            ip.byte(39)?;
            packet.version = Version::V6;
            packet.protocol = next;
            if extension_unit(next) != 0 {
                let packed = extensions(skb, offset as u32 + 40, next);
                if packed == EXTENSIONS_CUT {
                    return None;
                }
                let transport = (packed >> 16) as usize & MAX_OFFSET;
                (transport.wrapping_sub(offset) & MAX_OFFSET, packed as u8, packed >> 8 & 1 != 0)
            } else {
                (40, next, true)
            }
        }
    };
    packet.protocol = protocol;
    packet.headers_len = (offset + headers) as u32;
    let l4 = l4_of(protocol);
    packet.class = base + l4;
    if !first_fragment {
        return Some(());
    }
    packet.transport = (offset + headers) as u32;
    let transport = ip.at(headers);
    if l4 == l4::TCP {
        let data_offset = transport.byte(12)?;
        packet.tcp_flags = transport.byte(13)?;
        packet.headers_len += (data_offset >> 4) as u32 * 4;
    } else if l4 == l4::UDP {
        packet.headers_len += 8;
    }
    Some(())
}

/// [`l4`] by protocol number. Mutable only in name: of read-only data the verifier would know each value
/// and walk the rest of the program once for each protocol, which takes it half a second.
static mut L4_BY_PROTOCOL: [u8; 256] = {
    let mut table = [l4::OTHER as u8; 256];
    table[protocol::TCP as usize] = l4::TCP as u8;
    table[protocol::UDP as usize] = l4::UDP as u8;
    table[protocol::ICMP as usize] = l4::ICMP as u8;
    table[protocol::ICMPV6 as usize] = l4::ICMPV6 as u8;
    table[protocol::SCTP as usize] = l4::SCTP as u8;
    table
};

#[inline(always)]
fn l4_of(protocol: u8) -> u32 {
    let table = (&raw const L4_BY_PROTOCOL).cast::<u8>();
    // SAFETY: a u8 is within the 256 entries; nobody writes.
    u32::from(unsafe { core::ptr::read_volatile(table.add(protocol as usize)) }) & 7
}

/// Of a frame whose destination has the group bit.
#[inline(always)]
fn group_cast(source: &impl Source) -> Option<Cast> {
    let all = source.be16(0)? & source.be16(2)? & source.be16(4)?;
    Some(if all == 0xffff { Cast::BROADCAST } else { Cast::MULTICAST })
}

/// What an IPv6 extension header's length is a multiple of, plus one; 0: no extension header. Its length
/// is 8 bytes and as many of these units as its second byte says. Mutable as [`L4_BY_PROTOCOL`] is.
static mut EXTENSION_UNIT: [u8; 256] = {
    let mut table = [0; 256];
    table[protocol::HOP_BY_HOP as usize] = 8 + 1;
    table[protocol::ROUTING as usize] = 8 + 1;
    table[protocol::DESTINATION as usize] = 8 + 1;
    table[protocol::MOBILITY as usize] = 8 + 1;
    table[protocol::AUTHENTICATION as usize] = 4 + 1;
    table[protocol::FRAGMENT as usize] = 1;
    table
};

#[inline(always)]
pub fn extension_unit(next: u8) -> u32 {
    let table = (&raw const EXTENSION_UNIT).cast::<u8>();
    // SAFETY: a u8 is within the 256 entries; nobody writes.
    u32::from(unsafe { core::ptr::read_volatile(table.add(next as usize)) })
}

/// Largest offset of a transport header that is followed; also what keeps the verifier sure that
/// packet pointers stay near.
pub const MAX_OFFSET: usize = 0x7fff;

/// What [`extensions`] returns when the frame ended inside the chain.
pub const EXTENSIONS_CUT: u64 = u64::MAX;

/// Follows IPv6 extension headers (RFC 8200 section 4) from `offset`. In one register: the protocol
/// (bits 0 to 7), whether this is a first or only fragment (bit 8), the transport header's offset (from
/// bit 16). Off the common path: always by helper.
#[inline(never)]
pub fn extensions(skb: *mut __sk_buff, offset: u32, next: u8) -> u64 {
    let mut offset = offset;
    let mut next = next;
    for _ in 0..MAX_EXTENSIONS {
        let unit = extension_unit(next);
        if unit == 0 {
            break;
        }
        let mut header = [0u8; 4];
        // SAFETY: four bytes on the stack; the helper checks the offset.
        let failed = unsafe { bpf_skb_load_bytes(skb.cast(), offset, header.as_mut_ptr().cast(), 4) };
        if failed != 0 {
            return EXTENSIONS_CUT;
        }
        let is_later_fragment =
            next == protocol::FRAGMENT && (u16::from(header[2]) << 8 | u16::from(header[3])) & 0xfff8 != 0;
        next = header[0];
        offset += 8 + u32::from(header[1]) * (unit - 1);
        if is_later_fragment {
            return packed(next, false, offset);
        }
    }
    packed(next, true, offset)
}

#[inline(always)]
fn packed(next: u8, first_fragment: bool, offset: u32) -> u64 {
    u64::from(next) | u64::from(first_fragment) << 8 | u64::from(offset) << 16
}
