//! One event: whether it is told of, and its key.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_stack, programs::RawTracePointContext};
use netobs_common::drops::{DropCount, DropKey, MAX_PLACES, REASONS, flag, rule};
use netobs_ebpf::packet::{ETH_LEN, ethertype, protocol};

use crate::{
    count,
    kernel::{self, Device, Skb, layout},
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

#[inline(always)]
pub fn record(ctx: &RawTracePointContext) {
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
        ordinary |= key.ethertype == 0 || rules & rule::GROUP != 0 && skb.is_for_others();
        if ordinary && !tells_all {
            return count::hidden(totals, reason);
        }
        read_headers(&skb, &mut key);
        ordinary |= rules & rule::ECHO_REPLY != 0 && is_echo_reply(&key);
        if ordinary && !tells_all {
            return count::hidden(totals, reason);
        }
        read_place(&skb, socket, &mut key);
    }
    if ordinary {
        key.flags |= flag::ORDINARY;
    }
    let by_netfilter = key.reason == global!(NETFILTER_DROP) && global!(HOOK_CALLER[0]) != 0;
    count::event(totals, &key, || {
        let mut count = DropCount { packets: 1, hook: 0, hook_function: 0 };
        if by_netfilter {
            count.hook = read_hook(ctx.as_ptr(), &mut count.hook_function);
        }
        count
    });
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

/// Device and namespace: the receiving socket's; else the device's that the packet is at; else those of the
/// socket or route that it has.
#[inline(always)]
fn read_place(skb: &Skb, receiver: u64, key: &mut DropKey) {
    let device = Device::read(skb.device());
    let out = kernel::device_of(skb.destination());
    for net in [
        kernel::net_of_socket(receiver),
        device.as_ref().map(|device| device.net),
        kernel::net_of_socket(skb.socket()),
        out.as_ref().map(|out| out.net),
    ] {
        let Some(net) = net else { continue };
        key.netns = kernel::inum(net);
        if key.netns == 0 {
            continue;
        }
        key.ifindex = match device {
            Some(device) if device.net == net => device.ifindex,
            _ => skb.received_by(),
        };
        if let Some(out) = out
            && out.net == net
        {
            key.out_ifindex = out.ifindex;
        }
        return;
    }
}

const IPV4_LEN: u64 = 20;
const IPV6_LEN: u64 = 40;

#[inline(always)]
fn read_headers(skb: &Skb, key: &mut DropKey) {
    let (head, network, tail) = (skb.head(), skb.network_header(), skb.tail());
    if let Some(mac) = skb.mac_header()
        && mac + ETH_LEN as u64 <= network
        && let Some(source) = kernel::read::<[u8; 6]>(head + mac, 6)
    {
        key.source_mac = source;
    }
    let transport = match key.ethertype {
        ethertype::IPV4 if network + IPV4_LEN <= tail => read_ipv4(head + network, key),
        ethertype::IPV6 if network + IPV6_LEN <= tail => read_ipv6(head + network, key),
        _ => None,
    };
    if let Some(len) = transport
        && network + len + 4 <= tail
    {
        read_port(head + network + len, key);
    }
}

/// The length of the header if a transport header follows.
#[inline(always)]
fn read_ipv4(header: u64, key: &mut DropKey) -> Option<u64> {
    let bytes: [u8; IPV4_LEN as usize] = kernel::read(header, 0)?;
    if bytes[0] >> 4 != 4 {
        return None;
    }
    (key.source[10], key.source[11]) = (0xff, 0xff);
    (key.destination[10], key.destination[11]) = (0xff, 0xff);
    [key.source[12], key.source[13], key.source[14], key.source[15]] =
        [bytes[12], bytes[13], bytes[14], bytes[15]];
    [key.destination[12], key.destination[13], key.destination[14], key.destination[15]] =
        [bytes[16], bytes[17], bytes[18], bytes[19]];
    key.protocol = bytes[9];
    key.flags |= flag::ADDRESSES;
    let is_first = bytes[6] & 0x1f == 0 && bytes[7] == 0;
    is_first.then_some(u64::from(bytes[0] & 0x0f) * 4)
}

/// As above; behind extension headers no transport header is looked for.
#[inline(always)]
fn read_ipv6(header: u64, key: &mut DropKey) -> Option<u64> {
    if kernel::read::<u8>(header, 0)? >> 4 != 6 {
        return None;
    }
    key.source = kernel::read(header, 8)?;
    key.destination = kernel::read(header, 24)?;
    key.protocol = kernel::read(header, 6)?;
    key.flags |= flag::ADDRESSES;
    Some(IPV6_LEN)
}

#[inline(always)]
fn read_port(header: u64, key: &mut DropKey) {
    let offset = match key.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => 2,
        protocol::ICMP | protocol::ICMPV6 => 0,
        _ => return,
    };
    if let Some(port) = kernel::read::<u16>(header, offset) {
        key.port = u16::from_be(port);
        key.flags |= flag::PORT;
    }
}

/// RFC 792, RFC 4443.
#[inline(always)]
fn is_echo_reply(key: &DropKey) -> bool {
    let message = (key.port >> 8) as u8;
    key.flags & flag::PORT != 0
        && (key.protocol == protocol::ICMP && message == 0
            || key.protocol == protocol::ICMPV6 && message == 129)
}

/// How far up the hook is looked for: the tracepoint's own frames, the packet filter's, and the hook's.
const FRAMES: usize = 12;

/// Who called the netfilter hook, and what the hook called, from the stack: which hook it was is nowhere else.
/// 0 if it is not found.
#[inline(never)]
fn read_hook(ctx: *mut core::ffi::c_void, function: &mut u64) -> u64 {
    let mut frames = [0u64; FRAMES];
    // SAFETY: the destination is as long as is said.
    let read = unsafe { bpf_get_stack(ctx, frames.as_mut_ptr().cast(), size_of_val(&frames) as u32, 0) };
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
