//! The fast path, for what nearly all packets are: TCP or UDP over IPv4 without options, not a later fragment, to one
//! host, from the usual one, without a VLAN tag, in a flow that has its cell and is not told of. Everything is looked
//! at first and counted then, so that of a packet with anything else about it nothing is counted here: that is for
//! [`exact`] to do. Few instructions without detours: between two packets the CPU has had other things to remember.

use aya_ebpf::bindings::__sk_buff;
use netobs_common::{ANY_SENDER, Counters, FlowCell, Hook, class, l4, mac_word_of};
use netobs_ebpf::headers::{ETH_LEN, IPV4_LEN, UDP_LEN, ethertype, protocol, tcp_flag};

use crate::{
    events, exact,
    flows::{self, Amount},
    maps,
};

const TRANSPORT: usize = ETH_LEN + IPV4_LEN;
/// As much of a TCP header as every segment has.
const TCP_LEN: usize = 20;

/// Of the first eight bytes of an IPv4 header: version and length, and where in the whole a fragment belongs.
const IPV4_FORM: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0x1f, 0xff]);
/// Version 4, five words, and at the begin.
const IPV4_USUAL: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);

/// Of the eight bytes from the source's MAC address on.
const ETHERTYPE: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0xff, 0xff]);
const IPV4: u64 = {
    let [first, second] = ethertype::IPV4.to_be_bytes();
    u64::from_ne_bytes([0, 0, 0, 0, 0, 0, first, second])
};
/// How much more these are than [`netobs_common::Sender::mac`], where they are of that address, and of IPv4.
const MORE_THAN_MAC: u64 = IPV4.wrapping_sub(mac_word_of([0; 3]));
const _: () = assert!(cfg!(target_endian = "little"), "or a MAC address is the other half of them");

/// A packet at an interface, of which so much is known.
struct Usual {
    skb: *mut __sk_buff,
    hook: Hook,
    cpu: u32,
    counters: *mut Counters,
    /// As they are in the packet, the source's in the lower half.
    addresses: u64,
    ports: u32,
}

/// Counts a packet, if it is one of these; false: nothing is counted yet. Nothing at a hook that there is not.
#[inline(always)]
pub fn count<const FLOWS: bool>(skb: *mut __sk_buff, hook: Hook) -> bool {
    let cpu = maps::cpu();
    let Some(counters) = maps::counters(cpu, hook) else { return true };
    let mut mac = ANY_SENDER;
    if FLOWS {
        let Some(sender) = maps::sender(hook) else { return false };
        // SAFETY: an aligned word of a map's value, which others write whole.
        mac = unsafe { core::ptr::read_volatile(&raw const (*sender).mac) };
    }
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end, is_tagged) =
        unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).vlan_present != 0) };
    if data + TRANSPORT + UDP_LEN as usize > end || is_tagged {
        return false;
    }
    // SAFETY: inside the linear part, as just checked; unaligned as the verifier allows it.
    let (to, from, form, protocol, addresses, ports) = unsafe {
        (
            *(data as *const u8),
            *((data + 6) as *const u64),
            *((data + ETH_LEN) as *const u64),
            *((data + ETH_LEN + 9) as *const u8),
            *((data + ETH_LEN + 12) as *const u64),
            *((data + TRANSPORT) as *const u32),
        )
    };
    // The first bit on the wire is the group's.
    if to & 1 != 0
        || form & IPV4_FORM != IPV4_USUAL
        || from & ETHERTYPE != IPV4
        || mac != ANY_SENDER && from.wrapping_sub(MORE_THAN_MAC) != mac
    {
        return false;
    }
    let packet = Usual { skb, hook, cpu, counters, addresses, ports };
    if protocol == protocol::UDP {
        return udp::<FLOWS>(&packet);
    }
    if protocol != protocol::TCP || data + TRANSPORT + TCP_LEN > end {
        return false;
    }
    // SAFETY: as above. Data offset, flags, window.
    let [offset, flags, window @ ..] = unsafe { *((data + TRANSPORT + 12) as *const u32) }.to_ne_bytes();
    if window == [0; 2] || flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0 {
        return false;
    }
    tcp::<FLOWS>(&packet, flags, TRANSPORT as u64 + u64::from(offset >> 4) * 4)
}

#[inline(always)]
fn udp<const FLOWS: bool>(packet: &Usual) -> bool {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    if unsafe { (*packet.skb).gso_size } != 0 {
        return false;
    }
    let Some(cell) = cell::<FLOWS>(packet, class::IPV4 + l4::UDP, protocol::UDP) else {
        return false;
    };
    // SAFETY: points into this CPU's block, which no other CPU writes.
    let counters = unsafe { &mut *packet.counters };
    // SAFETY: as above.
    let len = u64::from(unsafe { (*packet.skb).len });
    exact::bucket::<true>(counters, len, 1);
    exact::increment::<true>(&mut counters.class[(class::IPV4 + l4::UDP) as usize], len);
    if let Some(cell) = cell {
        flows::add(
            cell,
            packet.hook,
            0,
            Amount { bytes: len, unfolded: 0, unfolded_bytes: 0, zero_window: 0 },
        );
    }
    true
}

#[inline(always)]
fn tcp<const FLOWS: bool>(packet: &Usual, flags: u8, headers_len: u64) -> bool {
    let Some(cell) = cell::<FLOWS>(packet, class::IPV4 + l4::TCP, protocol::TCP) else {
        return false;
    };
    // SAFETY: points into this CPU's block, which no other CPU writes.
    let counters = unsafe { &mut *packet.counters };
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (len, gso_size) = unsafe { (u64::from((*packet.skb).len), u64::from((*packet.skb).gso_size)) };
    let mut amount = Amount { bytes: len, unfolded: 0, unfolded_bytes: 0, zero_window: 0 };
    if gso_size == 0 {
        exact::bucket::<true>(counters, len, 1);
    } else {
        let unfolded = exact::unfold::<true>(packet.skb, counters, len, gso_size, headers_len, 0);
        (amount.unfolded, amount.unfolded_bytes) = (unfolded.packets as u32, unfolded.bytes as u32);
    }
    exact::increment::<true>(&mut counters.class[(class::IPV4 + l4::TCP) as usize], len);
    if let Some(cell) = cell {
        flows::add(cell, packet.hook, flags & flows::TCP_FLAGS, amount);
    }
    true
}

/// That of its flow, or none where flows are not counted; `None`: the packet is not one of these.
#[inline(always)]
fn cell<const FLOWS: bool>(
    packet: &Usual,
    class: u32,
    protocol: u8,
) -> Option<Option<&'static mut FlowCell>> {
    if !FLOWS {
        return Some(None);
    }
    if !maps::flows() {
        return if events::is_told_of(class, packet.ports) { None } else { Some(None) };
    }
    let tag = flows::usual_tag(packet.hook, packet.addresses, packet.ports, protocol);
    flows::find(tag, packet.cpu).map(Some)
}
