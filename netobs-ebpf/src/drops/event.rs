//! One event: whether it is told of, and its key.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_stack, programs::RawTracePointContext};
use netobs_common::drops::{DropCount, DropKey, MAX_PLACES, REASONS, flag, rule};
use netobs_ebpf::headers::{ETH_LEN, IPV4_LEN, ethertype, protocol};

use crate::{
    count,
    kernel::{self, Device, Skb, layout, packet_type},
    ring,
};

/// [`rule`] for each reason.
#[unsafe(no_mangle)]
static RULES: [u8; REASONS] = [0; REASONS];

/// Not 0: ordinary ends are told of, too.
#[unsafe(no_mangle)]
static ALL: u32 = 0;

/// The number of the reason that netfilter gives.
#[unsafe(no_mangle)]
static NETFILTER_DROP: u32 = u32::MAX;

/// First address of each place of [`rule::PLACE`] and of what comes after it; as many as [`PLACES_LEN`].
#[unsafe(no_mangle)]
static PLACES: [u64; 2 * MAX_PLACES] = [0; 2 * MAX_PLACES];

/// See [`PLACES`].
#[unsafe(no_mangle)]
static PLACES_LEN: u32 = 0;

/// First address of `nf_hook_slow` and of what comes after it.
#[unsafe(no_mangle)]
static HOOK_CALLER: [u64; 2] = [0; 2];

/// Of a static of the program's read-only data: the verifier knows it as a constant.
macro_rules! global {
    ($($place:tt)+) => {
        // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
        unsafe { core::ptr::read_volatile(&raw const $($place)+) }
    };
}

/// `EACH` says whether the event is told by itself, or counted with others of its kind.
#[inline(always)]
pub fn record<const EACH: bool>(ctx: &RawTracePointContext) {
    let Some(totals) = count::totals() else { return };
    let mut key = DropKey::ZERO;
    if layout!(has_reason) != 0 {
        key.reason = ctx.arg(2);
    }
    let reason = (key.reason as usize).min(REASONS - 1);
    count::seen(totals, reason);
    key.location = ctx.arg(1);
    let tells_all = global!(ALL) != 0;
    let rules = global!(RULES[reason & (REASONS - 1)]);
    let mut ordinary = rules & rule::ALWAYS != 0 || rules & rule::PLACE != 0 && in_places(key.location);
    if ordinary && !tells_all {
        return count::hidden(totals, reason);
    }
    let socket = if layout!(has_socket) != 0 { ctx.arg(3) } else { 0 };
    let mut skb = Skb::unread();
    if skb.read(ctx.arg(0)) {
        key.ethertype = skb.ethertype();
        // Without an EtherType it is none of a network's: local sockets, netlink.
        ordinary |= key.ethertype == 0 || rules & rule_of(skb.packet_type()) != 0;
        if ordinary && !tells_all {
            return count::hidden(totals, reason);
        }
        key.flags = read_headers(&skb, &mut key) as u8;
        ordinary |= rules & rule::ECHO_REPLY != 0 && is_echo_reply(&key);
        if ordinary && !tells_all {
            return count::hidden(totals, reason);
        }
        // Here and without a branch: behind the next call, as a branch, it was never taken on 6.1, whatever the
        // packet (the verifier removes what it believes to be unreachable).
        key.flags |= u8::from(ordinary) * flag::ORDINARY;
        key.netns = read_place(&skb, socket, &mut key) as u32;
        if EACH {
            return if ring::send(ctx.as_ptr(), &skb, &key) == 0 {
                count::lost_full(totals)
            };
        }
    }
    if EACH {
        return count::lost_busy(totals);
    }
    let by_netfilter = is_by_netfilter(&key);
    count::event(totals, &key, || {
        let mut count = DropCount { packets: 1, hook: 0, hook_function: 0 };
        if by_netfilter {
            count.hook = read_hook(ctx.as_ptr(), &mut count.hook_function);
        }
        count
    });
}

/// Whether the stack is to tell more.
#[inline(always)]
pub fn is_by_netfilter(key: &DropKey) -> bool {
    key.reason == global!(NETFILTER_DROP) && global!(HOOK_CALLER[0]) != 0
}

/// What makes a packet of this type an ordinary end; 0 if its type does not.
#[inline(always)]
fn rule_of(packet_type: u8) -> u8 {
    match packet_type {
        packet_type::BROADCAST | packet_type::MULTICAST => rule::GROUP,
        packet_type::OTHER_HOST => rule::OTHER_HOST,
        _ => 0,
    }
}

#[inline(always)]
fn in_places(location: u64) -> bool {
    let len = (global!(PLACES_LEN) as usize).min(MAX_PLACES);
    for at in 0..len {
        if location > global!(PLACES[2 * at]) && location <= global!(PLACES[2 * at + 1]) {
            return true;
        }
    }
    false
}

/// The device, and returns the namespace: the receiving socket's; else the device's that the packet is at; else
/// that of the socket or route that it has. (Functions of their own, as the stack has no room for all at once.)
#[inline(never)]
fn read_place(skb: &Skb, receiver: u64, key: &mut DropKey) -> u64 {
    let (device, out) = (Device::read(skb.device()), kernel::device_of(skb.destination()));
    let candidates =
        [kernel::net_of_socket(receiver), device.net, kernel::net_of_socket(skb.socket()), out.net];
    for net in candidates {
        let inum = kernel::inum(net);
        if inum != 0 {
            key.ifindex = if device.net == net { device.ifindex } else { skb.received_by() };
            key.out_ifindex = if out.net == net { out.ifindex } else { 0 };
            return u64::from(inum);
        }
    }
    0
}

const IPV6_LEN: u64 = 40;

/// Addresses, protocol and port; returns [`flag`] of what was read.
#[inline(never)]
fn read_headers(skb: &Skb, key: &mut DropKey) -> u64 {
    let (head, network, tail) = (skb.head(), skb.network_header(), skb.tail());
    let mac = skb.mac_header();
    if mac != Skb::NO_MAC_HEADER && mac + ETH_LEN as u64 <= network {
        kernel::read_into(&mut key.source_mac, head + mac, 6);
    }
    let header = head + network;
    let len = match key.ethertype {
        ethertype::IPV4 if network + IPV4_LEN as u64 <= tail => read_ipv4(header, key),
        ethertype::IPV6 if network + IPV6_LEN <= tail => read_ipv6(header, key),
        _ => NO_HEADER,
    };
    if len == NO_HEADER {
        return 0;
    }
    let flags = u64::from(flag::ADDRESSES);
    if len == NO_TRANSPORT || network + len + 4 > tail {
        return flags;
    }
    flags | read_port(header + len, key)
}

/// In place of a header's length: it is none, or no transport header follows.
const NO_HEADER: u64 = 0;
const NO_TRANSPORT: u64 = 1;

/// The length of the header.
#[inline(always)]
fn read_ipv4(header: u64, key: &mut DropKey) -> u64 {
    // Words, as in RFC 791's picture.
    let mut words = [0u32; IPV4_LEN / 4];
    if !kernel::read_into(&mut words, header, 0) {
        return NO_HEADER;
    }
    let first = words[0].to_ne_bytes()[0];
    if first >> 4 != 4 {
        return NO_HEADER;
    }
    map_ipv4(&mut key.source, words[3]);
    map_ipv4(&mut key.destination, words[4]);
    key.protocol = words[2].to_ne_bytes()[1];
    let is_first = u32::from_be(words[1]) & 0x1fff == 0;
    if is_first { u64::from(first & 0x0f) * 4 } else { NO_TRANSPORT }
}

/// As `::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2.
#[inline(always)]
fn map_ipv4(to: &mut [u8; 16], address: u32) {
    (to[10], to[11]) = (0xff, 0xff);
    let [.., a, b, c, d] = to;
    [*a, *b, *c, *d] = address.to_ne_bytes();
}

/// As above; behind extension headers no transport header is looked for.
#[inline(always)]
fn read_ipv6(header: u64, key: &mut DropKey) -> u64 {
    if kernel::read::<u8>(header, 0, 0) >> 4 != 6 {
        return NO_HEADER;
    }
    kernel::read_into(&mut key.source, header, 8);
    kernel::read_into(&mut key.destination, header, 24);
    key.protocol = kernel::read(header, 6, 0);
    IPV6_LEN
}

/// [`flag::PORT`] if the protocol has any.
#[inline(always)]
fn read_port(header: u64, key: &mut DropKey) -> u64 {
    let offset = match key.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => 2,
        protocol::ICMP | protocol::ICMPV6 => 0,
        _ => return 0,
    };
    key.port = u16::from_be(kernel::read(header, offset, 0));
    u64::from(flag::PORT)
}

/// RFC 792, RFC 4443.
#[inline(always)]
fn is_echo_reply(key: &DropKey) -> bool {
    let message = (key.port >> 8) as u8;
    key.flags & flag::PORT != 0
        && (key.protocol == protocol::ICMP && message == 0
            || key.protocol == protocol::ICMPV6 && message == 129)
}

/// How far up the hook is looked for: the packet filter's frames, and the hook's.
const FRAMES: usize = 8;

/// Frames at the beginning that are this program's and the tracepoint's own.
const OWN_FRAMES: u64 = 2;

/// Who called the netfilter hook, and what the hook called, from the stack: which hook it was is nowhere else.
/// 0 if it is not found.
#[inline(never)]
pub fn read_hook(ctx: *mut core::ffi::c_void, function: &mut u64) -> u64 {
    let mut frames = [0u64; FRAMES];
    // SAFETY: the destination is as long as is said.
    let read =
        unsafe { bpf_get_stack(ctx, frames.as_mut_ptr().cast(), size_of_val(&frames) as u32, OWN_FRAMES) };
    if read <= 0 {
        return 0;
    }
    let hook = global!(HOOK_CALLER[0])..=global!(HOOK_CALLER[1]);
    for at in 1..FRAMES - 1 {
        if hook.contains(&frames[at]) {
            *function = frames[at - 1];
            return frames[at + 1];
        }
    }
    0
}
