//! Which packets are asked for. The values are read-only when the verifier comes to see the program, so it
//! removes what is not asked for.

use aya_ebpf::bindings::__sk_buff;
use netobs_ebpf::{
    headers::{
        ETH_LEN, EXTENSIONS_CUT, MAX_OFFSET, VLAN_LEN, ethertype, extension_unit, extensions, protocol,
    },
    source::{Linear, Source, Whole},
};

use crate::event::global;

/// Ethertype of a tag or of what is behind the tags; 0: any.
#[unsafe(no_mangle)]
static ETHERTYPE: u32 = 0;

/// IP protocol number plus one; 0: any.
#[unsafe(no_mangle)]
static PROTOCOL: u32 = 0;

/// TCP, UDP or SCTP port of either side; 0: any.
#[unsafe(no_mangle)]
static PORT: u32 = 0;

/// Family of the host or network that is one of the two ends (4 or 6); 0: any.
#[unsafe(no_mangle)]
static HOST_FAMILY: u32 = 0;

/// Its address as numbers of 16 bits, an IPv4 address in the first two; and the bits of it that count.
#[unsafe(no_mangle)]
static HOST_ADDRESS: [u16; 8] = [0; 8];
#[unsafe(no_mangle)]
static HOST_MASK: [u16; 8] = [0; 8];

/// Where addresses begin in an ARP packet of IPv4 over Ethernet (RFC 826), an IPv4 header (RFC 791) and
/// an IPv6 header (RFC 8200).
const ARP_SENDER: usize = 14;
const ARP_TARGET: usize = 24;
const IPV4_SOURCE: usize = 12;
const IPV4_DESTINATION: usize = 16;
const IPV6_SOURCE: usize = 8;
const IPV6_DESTINATION: usize = 24;

/// Whether the packet is asked for. One that ends before that can be told is not.
#[inline(always)]
pub fn matches<const LINK: bool>(skb: *mut __sk_buff) -> bool {
    if global(&raw const ETHERTYPE) == 0 && !asks_beyond_link() {
        return true;
    }
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len as usize) };
    match look::<LINK>(&Linear { data, end }, skb) {
        Some(matches) => matches,
        None => data + len > end && look_at_whole::<LINK>(skb) != 0,
    }
}

#[inline(never)]
fn look_at_whole<const LINK: bool>(skb: *mut __sk_buff) -> u64 {
    u64::from(look::<LINK>(&Whole { skb, start: 0 }, skb) == Some(true))
}

#[inline(always)]
fn asks_beyond_link() -> bool {
    global(&raw const HOST_FAMILY) != 0 || asks_for_transport()
}

#[inline(always)]
fn asks_for_transport() -> bool {
    global(&raw const PROTOCOL) != 0 || global(&raw const PORT) != 0
}

/// `None` if the bytes end before it can be told.
#[inline(always)]
fn look<const LINK: bool>(source: &impl Source, skb: *mut __sk_buff) -> Option<bool> {
    let (ethertype, offset, is_asked_for) = if LINK { of_frame(source, skb)? } else { of_packet(source)? };
    if !is_asked_for {
        return Some(false);
    }
    if !has_host(source, ethertype, offset)? {
        return Some(false);
    }
    if !asks_for_transport() {
        return Some(true);
    }
    has_transport(source, skb, ethertype, offset)
}

/// Behind at most two tags in the frame: ethertype, where its header begins, and whether that or a tag's
/// is the one asked for.
#[inline(always)]
fn of_frame(source: &impl Source, skb: *mut __sk_buff) -> Option<(u16, usize, bool)> {
    let wanted = global(&raw const ETHERTYPE);
    let mut ethertype = source.be16(ETH_LEN - 2)?;
    let mut offset = ETH_LEN;
    let mut found = wanted == 0 || wanted == u32::from(ethertype);
    if wanted != 0 {
        // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
        let (present, tag) = unsafe { ((*skb).vlan_present, u16::from_be((*skb).vlan_proto as u16)) };
        found |= present != 0 && u32::from(tag) == wanted;
    }
    for _ in 0..2 {
        if ethertype != ethertype::VLAN && ethertype != ethertype::QINQ {
            break;
        }
        ethertype = source.be16(offset + 2)?;
        offset += VLAN_LEN;
        found |= wanted == u32::from(ethertype);
    }
    Some((ethertype, offset, found))
}

/// The same where there is no link header.
#[inline(always)]
fn of_packet(source: &impl Source) -> Option<(u16, usize, bool)> {
    let ethertype = match source.be16(0)? >> 12 {
        4 => ethertype::IPV4,
        6 => ethertype::IPV6,
        _ => 0,
    };
    let wanted = global(&raw const ETHERTYPE);
    Some((ethertype, 0, wanted == 0 || wanted == u32::from(ethertype)))
}

/// Whether one of the two ends (of ARP: sender and target) is the host asked for.
#[inline(always)]
fn has_host(source: &impl Source, ethertype: u16, offset: usize) -> Option<bool> {
    match (global(&raw const HOST_FAMILY), ethertype) {
        (0, _) => Some(true),
        (4, ethertype::IPV4) => Some(
            is_host::<2>(source, offset + IPV4_SOURCE)? || is_host::<2>(source, offset + IPV4_DESTINATION)?,
        ),
        (4, ethertype::ARP) => {
            Some(is_host::<2>(source, offset + ARP_SENDER)? || is_host::<2>(source, offset + ARP_TARGET)?)
        }
        (6, ethertype::IPV6) => Some(
            is_host::<8>(source, offset + IPV6_SOURCE)? || is_host::<8>(source, offset + IPV6_DESTINATION)?,
        ),
        _ => Some(false),
    }
}

/// Whether the address of so many times 16 bits is the one asked for.
#[inline(always)]
fn is_host<const WORDS: usize>(source: &impl Source, offset: usize) -> Option<bool> {
    let (address, mask) = ((&raw const HOST_ADDRESS).cast::<u16>(), (&raw const HOST_MASK).cast::<u16>());
    let mut differs = 0;
    for word in 0..WORDS {
        // SAFETY: both arrays have eight words.
        let (address, mask) = unsafe { (global(address.add(word)), global(mask.add(word))) };
        differs |= (source.be16(offset + 2 * word)? ^ address) & mask;
    }
    Some(differs == 0)
}

/// Whether protocol and ports are those asked for. Later fragments have no ports.
#[inline(always)]
fn has_transport(source: &impl Source, skb: *mut __sk_buff, ethertype: u16, offset: usize) -> Option<bool> {
    let (protocol, transport, first_fragment) = match ethertype {
        ethertype::IPV4 => {
            let header_len = (source.byte(offset)? & 0x0f) as usize * 4;
            let fragment = source.be16(offset + 6)? & 0x1fff;
            let protocol = source.byte(offset + 9)?;
            if header_len < 20 {
                return Some(false);
            }
            (protocol, offset + header_len, fragment == 0)
        }
        ethertype::IPV6 => {
            let next = source.byte(offset + 6)?;
            if extension_unit(next) == 0 {
                (next, offset + 40, true)
            } else {
                let packed = extensions(skb, offset as u32 + 40, next);
                if packed == EXTENSIONS_CUT {
                    return Some(false);
                }
                (packed as u8, (packed >> 16) as usize & MAX_OFFSET, packed >> 8 & 1 != 0)
            }
        }
        _ => return Some(false),
    };
    let wanted = global(&raw const PROTOCOL);
    if wanted != 0 && wanted != u32::from(protocol) + 1 {
        return Some(false);
    }
    let port = global(&raw const PORT);
    if port == 0 {
        return Some(true);
    }
    if !first_fragment || !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return Some(false);
    }
    Some(u32::from(source.be16(transport)?) == port || u32::from(source.be16(transport + 2)?) == port)
}
