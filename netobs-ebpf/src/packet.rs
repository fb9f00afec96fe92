//! What one frame is: link, network and transport class and the length of its headers.
//!
//! Reads tolerate truncation at every byte: a header that is not there ends the parse with what is
//! known so far. What nearly all packets are is read in place, anything else copied by a helper.

use aya_ebpf::bindings::__sk_buff;
use netobs_common::{class, l4};

use crate::{
    headers::{
        Be16, ETH_LEN, EXTENSIONS_CUT, Ethernet, Ipv4, Ipv6, MAX_OFFSET, Tcp, UDP_LEN, VLAN_LEN, VlanTag,
        ethertype, extension_unit, extensions, l4_of,
    },
    source::{Linear, Source, Whole},
};

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
    /// TCP window of a first or only fragment as the header has it, otherwise not 0.
    pub window: u32,
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

/// [`Packet::window`] of what has none.
const NO_WINDOW: u32 = 1;

/// Reads the headers of a packet. What nearly all packets are is read in place, with few ways to go; anything else
/// by [`parse_any`].
#[inline(always)]
pub fn parse<const LINK: bool>(skb: *mut __sk_buff) -> Packet {
    match usual::<LINK>(skb) {
        Some(packet) => packet,
        None => Packet::unpack(parse_any::<LINK>(skb)),
    }
}

/// To one host, untagged, IP without extension headers, not a later fragment, and with all headers in the linear
/// part; `None`: not so.
#[inline(always)]
fn usual<const LINK: bool>(skb: *mut __sk_buff) -> Option<Packet> {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end, is_tagged) =
        unsafe { ((*skb).data as usize, (*skb).data_end as usize, LINK && (*skb).vlan_present != 0) };
    let source = Linear { data, end };
    let (network, is_ipv4) = if LINK {
        let ethernet: Ethernet = source.read(0)?;
        let ethertype = ethernet.ethertype.get();
        if is_tagged || cast(ethernet.destination) != Cast::UNICAST {
            return None;
        }
        if ethertype != ethertype::IPV4 && ethertype != ethertype::IPV6 {
            return None;
        }
        (ETH_LEN, ethertype == ethertype::IPV4)
    } else {
        let (version, cast) = version_and_cast(&source)?;
        if version == Version::NONE || cast != Cast::UNICAST {
            return None;
        }
        (0, version == Version::V4)
    };
    let (version, base, headers, protocol) = if is_ipv4 {
        let header: Ipv4 = source.read(network)?;
        if !header.is_first_fragment() {
            return None;
        }
        (Version::V4, class::IPV4, header.header_len()?, header.protocol)
    } else {
        let next = source.read::<Ipv6>(network)?.next;
        if extension_unit(next) != 0 {
            return None;
        }
        (Version::V6, class::IPV6, size_of::<Ipv6>(), next)
    };
    let transport = network + headers;
    let l4 = l4_of(protocol);
    let (mut tcp_flags, mut window, mut headers_len) = (0, NO_WINDOW, transport as u32);
    if l4 == l4::TCP {
        let header: Tcp = source.at(transport).read(0)?;
        (tcp_flags, window) = (header.flags, u32::from(header.window));
        headers_len += header.header_len();
    } else if l4 == l4::UDP {
        headers_len += UDP_LEN;
    }
    Some(Packet {
        class: base + l4,
        cast: Cast::UNICAST,
        tcp_flags,
        window,
        headers_len,
        truncated: false,
        version,
        protocol,
        network: network as u32,
        transport: transport as u32,
    })
}

/// Always 0, and the verifier does not know it.
static mut ZERO: u64 = 0;

/// The same value, of which the verifier no longer knows by which way it was found: else it walks all that comes
/// after once for each.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    // SAFETY: nobody writes.
    value ^ unsafe { core::ptr::read_volatile(&raw const ZERO) }
}

/// Any packet, by helper.
#[inline(never)]
fn parse_any<const LINK: bool>(skb: *mut __sk_buff) -> u64 {
    opaque(read::<LINK>(&Whole { skb, start: 0 }, skb).pack())
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
            | u64::from(self.window != 0) << 15
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
            network: (packed >> 10) as u32 & MAX_NETWORK,
            window: (packed >> 15) as u32 & 1,
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
        window: NO_WINDOW,
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
    let ethernet: Ethernet = source.read(0)?;
    let mut ethertype = ethernet.ethertype.get();
    packet.cast = cast(ethernet.destination);
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
        ethertype = source.read::<VlanTag>(offset)?.ethertype.get();
        offset += VLAN_LEN;
        packet.headers_len = offset as u32;
    }
    let (version, base) = match ethertype {
        ethertype::IPV4 => (Version::V4, class::IPV4),
        ethertype::IPV6 => (Version::V6, class::IPV6),
        other => {
            packet.class = match other {
                _ if vlan => class::VLAN_NOT_IP,
                ethertype::ARP => class::ARP,
                _ => class::OTHER,
            };
            return Some(());
        }
    };
    let base = opaque(u64::from(if vlan { class::VLAN } else { base })) as u32;
    let offset = opaque(offset as u64) as usize & MAX_NETWORK as usize;
    packet.cast = Cast(opaque(u64::from(packet.cast.0)) as u32);
    read_network(source, skb, packet, base, version, offset)
}

/// Largest offset of an IP header, and more.
pub const MAX_NETWORK: u32 = 0x1f;

/// From the IP header on, where there is no other.
#[inline(always)]
fn read_network_only(source: &impl Source, skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let (version, cast) = version_and_cast(source)?;
    packet.cast = cast;
    let base = if version == Version::V4 { class::IPV4 } else { class::IPV6 };
    if version == Version::NONE {
        return Some(());
    }
    read_network(source, skb, packet, base, version, 0)
}

/// Where there is no MAC address, the IP address says whether it is for a group.
#[inline(always)]
fn version_and_cast(source: &impl Source) -> Option<(Version, Cast)> {
    // Two bytes: a check for the first byte alone becomes one that the verifier learns nothing from.
    let version = source.be16(0)? >> 12;
    if version == 4 {
        let destination: [Be16; 2] = source.read(16)?;
        let cast = if destination[0].get() >> 12 == 0xe {
            Cast::MULTICAST
        } else if destination[0].0 & destination[1].0 == 0xffff {
            Cast::BROADCAST
        } else {
            Cast::UNICAST
        };
        Some((Version::V4, cast))
    } else if version == 6 {
        let is_multicast = source.byte(24)? == 0xff;
        Some((Version::V6, if is_multicast { Cast::MULTICAST } else { Cast::UNICAST }))
    } else {
        Some((Version::NONE, Cast::UNICAST))
    }
}

/// From the IP header at `offset` on.
#[inline(always)]
fn read_network(
    source: &impl Source,
    skb: *mut __sk_buff,
    packet: &mut Packet,
    base: u32,
    version: Version,
    offset: usize,
) -> Option<()> {
    packet.class = base + l4::OTHER;
    packet.network = offset as u32;
    let (headers, protocol, is_first_fragment) = if version == Version::V4 {
        let header: Ipv4 = source.read(offset)?;
        let header_len = header.header_len()?;
        packet.version = version;
        (header_len, header.protocol, header.is_first_fragment())
    } else {
        let next = source.read::<Ipv6>(offset)?.next;
        packet.version = version;
        packet.protocol = next;
        if extension_unit(next) != 0 {
            let packed = extensions(skb, (offset + size_of::<Ipv6>()) as u32, next);
            if packed == EXTENSIONS_CUT {
                return None;
            }
            let transport = (packed >> 16) as usize & MAX_OFFSET;
            (transport.wrapping_sub(offset) & MAX_OFFSET, packed as u8, packed >> 8 & 1 != 0)
        } else {
            (size_of::<Ipv6>(), next, true)
        }
    };
    packet.protocol = protocol;
    packet.headers_len = (offset + headers) as u32;
    let l4 = l4_of(protocol);
    packet.class = base + l4;
    if !is_first_fragment {
        return Some(());
    }
    packet.transport = (offset + headers) as u32;
    if l4 == l4::TCP {
        let header: Tcp = source.at(offset + headers).read(0)?;
        packet.tcp_flags = header.flags;
        packet.window = u32::from(header.window);
        packet.headers_len += header.header_len();
    } else if l4 == l4::UDP {
        packet.headers_len += UDP_LEN;
    }
    Some(())
}

/// By the destination's MAC address: the first bit on the wire is the group's.
#[inline(always)]
fn cast(destination: [u16; 3]) -> Cast {
    if u16::from_be(destination[0]) & 0x100 == 0 {
        Cast::UNICAST
    } else if destination[0] & destination[1] & destination[2] == 0xffff {
        Cast::BROADCAST
    } else {
        Cast::MULTICAST
    }
}
