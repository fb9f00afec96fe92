//! Traffic of published ports, by port and client: only for attachments that userspace has asked it for.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use netobs_common::{ClientKey, EGRESS, PortCounters, PortKey};
use netobs_ebpf::packet::{ETH_LEN, ethertype, protocol};

use crate::maps;

/// Where things are, from the Ethernet header on (RFC 791, RFC 8200).
const ETHERTYPE: u32 = 12;
const IPV4: u32 = ETH_LEN as u32;
const IPV4_FRAGMENT: u32 = IPV4 + 6;
const IPV4_PROTOCOL: u32 = IPV4 + 9;
const IPV4_SOURCE: u32 = IPV4 + 12;
const IPV4_DESTINATION: u32 = IPV4 + 16;
const IPV6: u32 = ETH_LEN as u32;
const IPV6_NEXT: u32 = IPV6 + 6;
const IPV6_SOURCE: u32 = IPV6 + 8;
const IPV6_DESTINATION: u32 = IPV6 + 24;
const IPV6_PAYLOAD: u32 = IPV6 + 40;

/// Counts an untagged TCP or UDP packet if it is to or from a published port of the container. At the
/// host's end of its pair: egress is what it receives. Not counted are later fragments, which have no
/// ports, and IPv6 packets with extension headers. Reads everything anew, and in a function of its own, so
/// that those who have no published ports don't pay for it.
#[inline(never)]
pub fn count(skb: *mut __sk_buff, slot: u32, len: u64, direction: u32) -> u64 {
    let received = direction == EGRESS;
    let mut ethertype = [0u8; 2];
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    if unsafe { (*skb).vlan_present } != 0 || !load(skb, ETHERTYPE, &mut ethertype) {
        return 0;
    }
    let is_ipv6 = match u16::from_be_bytes(ethertype) {
        ethertype::IPV4 => false,
        ethertype::IPV6 => true,
        _ => return 0,
    };
    let mut protocol = [0u8; 1];
    if !load(skb, if is_ipv6 { IPV6_NEXT } else { IPV4_PROTOCOL }, &mut protocol) {
        return 0;
    }
    let [protocol] = protocol;
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return 0;
    }
    let Some(transport) = transport(skb, is_ipv6) else { return 0 };
    // The container's port: where it goes to when received, where it comes from when sent.
    let mut port = [0u8; 2];
    if !load(skb, if received { transport + 2 } else { transport }, &mut port) {
        return 0;
    }
    let port = PortKey { slot, port: u16::from_be_bytes(port), protocol, reserved: 0 };
    let Some(total) = maps::port(&port) else { return 0 };
    add(total, received, len);
    let mut client = ClientKey { port, address: [0; 16] };
    let read = if is_ipv6 {
        load(skb, if received { IPV6_SOURCE } else { IPV6_DESTINATION }, &mut client.address)
    } else {
        // ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2.
        (client.address[10], client.address[11]) = (0xff, 0xff);
        let mut address = [0u8; 4];
        let read = load(skb, if received { IPV4_SOURCE } else { IPV4_DESTINATION }, &mut address);
        [client.address[12], client.address[13], client.address[14], client.address[15]] = address;
        read
    };
    if read && let Some(counters) = maps::client(&client) {
        add(counters, received, len);
    }
    0
}

/// Where the transport header of a first or only fragment begins.
#[inline(always)]
fn transport(skb: *mut __sk_buff, is_ipv6: bool) -> Option<u32> {
    if is_ipv6 {
        return Some(IPV6_PAYLOAD);
    }
    let mut first = [0u8; 1];
    let mut fragment = [0u8; 2];
    let is_first = load(skb, IPV4, &mut first)
        && load(skb, IPV4_FRAGMENT, &mut fragment)
        && u16::from_be_bytes(fragment) & 0x1fff == 0;
    is_first.then_some(IPV4 + u32::from(first[0] & 0x0f) * 4)
}

#[inline(always)]
fn add(counters: *mut PortCounters, received: bool, len: u64) {
    // SAFETY: points to this CPU's value, which no other CPU writes.
    let counters = unsafe { &mut *counters };
    let count = if received { &mut counters.rx } else { &mut counters.tx };
    count.packets += 1;
    count.bytes += len;
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, to: &mut [u8; N]) -> bool {
    // SAFETY: the destination has N bytes; the helper checks the offset.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.as_mut_ptr().cast(), N as u32) == 0 }
}
