//! Headers as they are on the wire, and the numbers in them.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use netobs_common::l4;

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
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

/// TCP flag bits (RFC 9293, byte 13 of the header).
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A part of a packet as it is on the wire.
///
/// # Safety
///
/// Any bytes are a valid value, and there is no padding.
pub unsafe trait Header: Copy {}

/// A field of two bytes, most significant first. Not always where a `u16` belongs, which the verifier allows for
/// packet data where the CPU does.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Be16(pub u16);

impl Be16 {
    #[inline(always)]
    pub fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ethernet {
    pub destination: [u16; 3],
    pub source: [u16; 3],
    pub ethertype: Be16,
}

/// What follows the EtherType of a VLAN tag, IEEE 802.1Q.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VlanTag {
    control: u16,
    pub ethertype: Be16,
}

/// RFC 791 section 3.1, without options.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv4 {
    version_and_len: u8,
    service: u8,
    total_len: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    pub protocol: u8,
    checksum: Be16,
    source: [u16; 2],
    destination: [u16; 2],
}

impl Ipv4 {
    /// Bytes with the options. `None`: it would end before its fixed part does.
    #[inline(always)]
    pub fn header_len(self) -> Option<usize> {
        let len = usize::from(self.version_and_len & 0x0f) * 4;
        (len >= size_of::<Self>()).then_some(len)
    }

    /// Or the only one: what follows is the transport header.
    #[inline(always)]
    pub fn is_first_fragment(self) -> bool {
        self.fragment.get() & 0x1fff == 0
    }
}

/// RFC 8200 section 3.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv6 {
    version: [u16; 2],
    payload_len: Be16,
    pub next: u8,
    hop_limit: u8,
    source: [u16; 8],
    destination: [u16; 8],
}

/// RFC 9293 section 3.1, as far as the window.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tcp {
    ports: [u16; 2],
    sequence: [u16; 2],
    acknowledgment: [u16; 2],
    data_offset: u8,
    pub flags: u8,
    /// As it is on the wire: of interest is whether it is 0.
    pub window: u16,
}

impl Tcp {
    /// Bytes with the options, as it says.
    #[inline(always)]
    pub fn header_len(self) -> u32 {
        u32::from(self.data_offset >> 4) * 4
    }
}

/// Bytes of a UDP header, RFC 768.
pub const UDP_LEN: u32 = 8;

// SAFETY: of integers, with no padding.
unsafe impl Header for u8 {}
// SAFETY: as above.
unsafe impl Header for Be16 {}
// SAFETY: as above.
unsafe impl Header for [Be16; 2] {}
// SAFETY: as above.
unsafe impl Header for Ethernet {}
// SAFETY: as above.
unsafe impl Header for VlanTag {}
// SAFETY: as above.
unsafe impl Header for Ipv4 {}
// SAFETY: as above.
unsafe impl Header for Ipv6 {}
// SAFETY: as above.
unsafe impl Header for Tcp {}

const _: () = assert!(size_of::<Ethernet>() == ETH_LEN && size_of::<VlanTag>() == VLAN_LEN);
const _: () = assert!(size_of::<Ipv4>() == IPV4_LEN && size_of::<Ipv6>() == 40 && size_of::<Tcp>() == 16);

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
pub fn l4_of(protocol: u8) -> u32 {
    let table = (&raw const L4_BY_PROTOCOL).cast::<u8>();
    // SAFETY: a u8 is within the 256 entries; nobody writes.
    u32::from(unsafe { core::ptr::read_volatile(table.add(protocol as usize)) }) & 7
}

/// IPv6 extension headers that are followed before giving up.
const MAX_EXTENSIONS: usize = 8;

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
