//! The bounded layer: each IP packet in its flow. A flow has a cell of this CPU, found by a hash of its key
//! without any helper call; a flow that finds its cells taken is in the overflow map; and a packet that finds
//! that full is in the remainder, [`netobs_common::Counters::unflowed`].

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns, bpf_skb_load_bytes},
};
use netobs_common::{EGRESS, FIRST, FREE_CELL, FlowCell, FlowKey, Hook, LEAVING_CELL, OPENED, OverflowFlow};
use netobs_ebpf::{
    headers::{protocol, tcp_flag},
    packet::{Cast, MAX_NETWORK, Packet, Version},
    source::pointer,
};

use crate::{events, maps};

/// What one packet adds to its flow.
#[derive(Clone, Copy)]
pub struct Amount {
    pub bytes: u64,
    /// What unfolding a super-packet adds.
    pub unfolded: u32,
    pub unfolded_bytes: u32,
    /// [`ZERO_WINDOW`] if that is what it has, or 0.
    pub zero_window: u8,
}

/// Counts an IP packet in its flow; whether there was room.
#[inline(always)]
pub fn count<const LINK: bool>(
    skb: *mut __sk_buff,
    hook: Hook,
    cpu: u32,
    packet: &Packet,
    amount: Amount,
) -> bool {
    if packet.version == Version::NONE {
        return false;
    }
    let flags = packet.tcp_flags & TCP_FLAGS | amount.zero_window;
    // A cgroup's programs may be interrupted by others on their CPU: cells are not for them.
    if LINK && let Some(tag) = tag(skb, hook, packet) {
        if let Some(cell) = find(tag, cpu) {
            add(cell, hook, flags, amount);
            return true;
        }
        let key = packed_key(hook, packet);
        let taken = take(skb, tag, cpu, key);
        if taken != NO_CELL {
            if let Some(cell) = maps::flow_cell(cpu, taken) {
                // SAFETY: as above.
                let cell = unsafe { &mut *cell };
                cell.flags[hook.direction() as usize] |= FIRST;
                add(cell, hook, flags, amount);
            }
            return true;
        }
    }
    let unfolded = u64::from(amount.unfolded_bytes) << 32 | u64::from(amount.unfolded);
    overflow(skb, packed_key(hook, packet), amount.bytes, unfolded, u32::from(flags)) != 0
}

/// The lower six flags: FIN, SYN, RST, PSH, ACK, URG.
pub const TCP_FLAGS: u8 = 0x3f;

/// Beside these: a packet of those that [`netobs_common::Counters::tcp_zero_window`] counts.
pub const ZERO_WINDOW: u8 = 0x40;

/// Cells in which a flow may be: four that are next to each other. Where both ends of a flow are observed, both look in
/// the same four, each first in one of a pair of cache lines: what a packet meets at the other end is at hand then.
const WAYS: u32 = 4;

/// [`take`] found none.
const NO_CELL: u32 = u32::MAX;

#[inline(always)]
pub fn find(tag: u64, cpu: u32) -> Option<&'static mut FlowCell> {
    for way in 0..WAYS {
        if let Some(cell) = maps::flow_cell(cpu, first_cell(tag) ^ way) {
            // SAFETY: a cell of this CPU; userspace writes nothing but the tag of one that is taken.
            let cell = unsafe { &mut *cell };
            if cell.tag == tag {
                return Some(cell);
            }
        }
    }
    None
}

/// Where a flow is looked for first. What tells the ends apart is in the lowest bit.
#[inline(always)]
fn first_cell(tag: u64) -> u32 {
    (tag >> 32) as u32
}

#[inline(always)]
pub fn add(cell: &mut FlowCell, hook: Hook, flags: u8, amount: Amount) {
    let direction = hook.direction() as usize;
    cell.bytes[direction] += amount.bytes;
    cell.count[direction].packets = cell.count[direction].packets.wrapping_add(1);
    if amount.unfolded_bytes != 0 {
        let count = &mut cell.count[direction];
        count.unfolded = count.unfolded.wrapping_add(amount.unfolded);
        let bytes = &mut cell.unfolded_bytes[direction];
        *bytes = bytes.wrapping_add(amount.unfolded_bytes);
    }
    // SAFETY: takes no argument and cannot fail; inlined by the JIT.
    cell.last = unsafe { bpf_jiffies64() } as u32;
    // Only a few times in the life of a flow. Each SYN: one without ACK may follow one with it.
    if flags & (!cell.flags[direction] | tcp_flag::SYN | ZERO_WINDOW) != 0 {
        cell.flags[direction] |= flags & TCP_FLAGS | opened(flags);
        let zero_windows = &mut cell.zero_windows[direction];
        *zero_windows = zero_windows.wrapping_add(u32::from(flags & ZERO_WINDOW != 0));
    }
}

/// [`OPENED`] for a SYN without ACK.
#[inline(always)]
fn opened(flags: u8) -> u8 {
    if flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN { OPENED } else { 0 }
}

/// Which flow a packet is of: 64 bits of a keyed hash over the attachment, the ends and the protocol. `None`
/// where that cannot be read in place. (Two of a million flows have the same with a chance of one in ten
/// million, and are counted as one then.)
#[inline(always)]
fn tag(skb: *mut __sk_buff, hook: Hook, packet: &Packet) -> Option<u64> {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let network = pointer(data, (packet.network & MAX_NETWORK) as usize);
    let in_place = match packet.transport {
        0 => 0,
        transport => ports_in_place(pointer(data, transport as usize), end, packet)?,
    };
    // What ICMP has is of the packet, not of its ends.
    let (ports, icmp) = if has_ports(packet.protocol) { (in_place, 0) } else { (0, in_place) };
    let ends = if packet.version == Version::V4 {
        if network + 20 > end {
            return None;
        }
        // SAFETY: inside the linear part, as just checked; unaligned as the verifier allows it.
        ipv4_ends(unsafe { *((network + 12) as *const u64) }, ports, packet.protocol)
    } else {
        if network + 40 > end {
            return None;
        }
        // SAFETY: as above.
        ipv6_ends(unsafe { core::ptr::read((network + 8) as *const [u64; 4]) }, ports, packet.protocol)
    };
    // What goes to many is at many attachments, which are not to look for the same cells.
    let many = if packet.cast == Cast::UNICAST { 0 } else { hook.slot() + 1 };
    let rest = u64::from(icmp) | u64::from(many) << 32;
    let rest = if rest == 0 { 0 } else { mix(maps::flow_seed() ^ rest) };
    let apart = if ports != 0 && events::is_told_of(packet.class, ports) { APART } else { 0 };
    Some(tag_of(hook, ends, rest) ^ apart)
}

/// The same of a TCP or UDP packet over IPv4 to one host: by its addresses and ports as they are in it, the source's in
/// the lower half. Nobody's, if it is one that is told of.
#[inline(always)]
pub fn usual_tag(hook: Hook, addresses: u64, ports: u32, protocol: u8) -> u64 {
    tag_of(hook, ipv4_ends(addresses, ports, protocol), 0)
}

/// In the tag of a flow whose packets are told of, so that [`usual_tag`] does not find it.
const APART: u64 = 1 << 62;

/// The hashes of both ends, the source's first, added up: the same whichever way a packet goes, with no branch for it.
/// What their difference is tells the ways apart.
#[inline(always)]
fn tag_of(hook: Hook, (source, destination): (u64, u64), rest: u64) -> u64 {
    // An ingress packet comes from the end that an egress packet goes to.
    let end = source.wrapping_sub(destination) >> 63 ^ u64::from(hook.direction());
    // Neither free nor leaving.
    (source.wrapping_add(destination).wrapping_add(rest) ^ end << 32 ^ u64::from(hook.slot()) << 2)
        | LEAVING_CELL << 1
}

#[inline(always)]
fn ipv4_ends(addresses: u64, ports: u32, protocol: u8) -> (u64, u64) {
    let key = maps::flow_seed() ^ u64::from(protocol) << 48;
    let source = addresses & 0xffff_ffff | u64::from(ports & 0xffff) << 32;
    let destination = addresses >> 32 | u64::from(ports >> 16) << 32;
    (mix(key ^ source), mix(key ^ destination))
}

#[inline(always)]
fn ipv6_ends([a, b, c, d]: [u64; 4], ports: u32, protocol: u8) -> (u64, u64) {
    let address = |upper, lower| mix(mix(maps::flow_seed() ^ upper) ^ lower) ^ u64::from(protocol) << 48;
    let source = address(a, b) ^ u64::from(ports & 0xffff) << 32;
    let destination = address(c, d) ^ u64::from(ports >> 16) << 32;
    (mix(source), mix(destination))
}

/// Of what follows: the verifier must know that packet pointers stay near.
const MAX_TRANSPORT: u32 = 0x7fff;

/// A bijection that spreads bits (of splitmix64).
#[inline(always)]
fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// Both ports as they are in the packet; of ICMP and ICMPv6 [`icmp`].
#[inline(always)]
fn ports_in_place(transport: usize, end: usize, packet: &Packet) -> Option<u32> {
    if has_ports(packet.protocol) {
        if transport + 4 > end {
            return None;
        }
        // SAFETY: as in `tag`.
        return Some(unsafe { *(transport as *const u32) });
    }
    if packet.protocol == protocol::ICMP || packet.protocol == protocol::ICMPV6 {
        if transport + 8 > end {
            return None;
        }
        // SAFETY: as in `tag`.
        let [kind, code, _, _, id1, id0, _, _] = unsafe { *(transport as *const [u8; 8]) };
        return Some(icmp(packet.protocol, kind, code, u16::from_be_bytes([id1, id0])));
    }
    Some(0)
}

/// TCP, UDP and SCTP begin with the two ports.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    protocol == protocol::TCP || protocol == protocol::UDP || protocol == protocol::SCTP
}

/// `a_port` in the lower half, `b_port` in the upper, see [`FlowKey`].
#[inline(always)]
fn icmp(protocol: u8, kind: u8, code: u8, id: u16) -> u32 {
    let (request, reply) = if protocol == protocol::ICMP { (8, 0) } else { (128, 129) };
    let is_echo = kind == request || kind == reply;
    let (kind, id) = if is_echo { (request, id) } else { (kind, 0) };
    (u32::from(kind) << 8 | u32::from(code)) << 16 | u32::from(id)
}

/// What of a packet the functions below need, in one register.
#[inline(always)]
fn packed_key(hook: Hook, packet: &Packet) -> u64 {
    u64::from(hook.slot() & 0xffff)
        | u64::from(hook.direction()) << 16
        | u64::from(packet.version.0) << 17
        | u64::from(packet.protocol) << 24
        | u64::from(packet.network & MAX_NETWORK) << 32
        | u64::from(packet.transport & MAX_TRANSPORT) << 40
}

/// Takes a free cell for a new flow; its index, or [`NO_CELL`].
#[inline(never)]
fn take(skb: *mut __sk_buff, tag: u64, cpu: u32, packed: u64) -> u32 {
    for way in 0..WAYS {
        let index = first_cell(tag) ^ way;
        if let Some(cell) = maps::flow_cell(cpu, index)
            && let Some(owner) = maps::flow_owner(cpu, index)
        {
            // SAFETY: of this CPU; userspace keeps away from what is free.
            let (cell, owner) = unsafe { (&mut *cell, &mut *owner) };
            if cell.tag == FREE_CELL {
                // SAFETY: these take no argument and cannot fail.
                let (now, jiffies) = unsafe { (bpf_ktime_get_ns(), bpf_jiffies64() as u32) };
                owner.key = key(skb, packed);
                owner.first = jiffies;
                owner.first_ns = now;
                cell.zero_windows = [0; 2];
                cell.bytes = [0; 2];
                cell.count = Default::default();
                cell.unfolded_bytes = [0; 2];
                cell.last = jiffies;
                cell.flags = [0; 2];
                // SAFETY: an aligned word of the map. Last, and userspace waits until no program that may
                // have been at it still runs before it reads the rest.
                unsafe { core::ptr::write_volatile(&raw mut cell.tag, tag) };
                return index & 0x7fff_ffff;
            }
        }
    }
    NO_CELL
}

/// Counts in the overflow map; 0: it is full. `unfolded`: packets in the lower half, bytes in the upper. `flags`: of TCP,
/// and [`ZERO_WINDOW`].
#[inline(never)]
fn overflow(skb: *mut __sk_buff, packed: u64, bytes: u64, unfolded: u64, flags: u32) -> u64 {
    let key = key(skb, packed);
    // SAFETY: takes no argument and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    let direction = (packed >> 16 & 1) as usize;
    let mut first = 0;
    let flow = match maps::overflow_flow(&key) {
        Some(flow) => flow,
        None => {
            first = u32::from(FIRST);
            match maps::new_overflow_flow(&key, now) {
                Some(flow) => flow,
                None => return 0,
            }
        }
    };
    // SAFETY: the map's value; other CPUs add to it at the same time, so by atomics.
    let flow: &mut OverflowFlow = unsafe { &mut *flow };
    if direction == 0 {
        add_shared::<0>(flow, bytes, unfolded, flags)
    } else {
        add_shared::<1>(flow, bytes, unfolded, flags)
    }
    flow.last_ns = now;
    let flags = flags & u32::from(TCP_FLAGS) | first | u32::from(opened(flags as u8));
    let seen = if direction == 0 { &mut flow.flags[0] } else { &mut flow.flags[1] };
    *seen |= flags;
    1
}

#[inline(always)]
fn add_shared<const DIRECTION: usize>(flow: &mut OverflowFlow, bytes: u64, unfolded: u64, flags: u32) {
    maps::increase(&mut flow.packets[DIRECTION], 1);
    maps::increase(&mut flow.bytes[DIRECTION], bytes);
    maps::increase(&mut flow.unfolded[DIRECTION], unfolded & 0xffff_ffff);
    maps::increase(&mut flow.unfolded_bytes[DIRECTION], unfolded >> 32);
    if flags & u32::from(ZERO_WINDOW) != 0 {
        maps::increase(&mut flow.zero_windows[DIRECTION], 1);
    }
}

/// The key of a packet, read by helper: for the first of a flow and for the overflow map.
#[inline(always)]
fn key(skb: *mut __sk_buff, packed: u64) -> FlowKey {
    let egress = packed >> 16 & 1 == u64::from(EGRESS);
    let protocol = (packed >> 24) as u8;
    let network = (packed >> 32) as u32 & MAX_NETWORK;
    let transport = (packed >> 40) as u32 & MAX_TRANSPORT;
    let mut source = [0u8; 16];
    let mut destination = [0u8; 16];
    if packed >> 17 & 3 == u64::from(Version::V6.0) {
        load(skb, network + 8, &mut source);
        load(skb, network + 24, &mut destination);
    } else {
        load_ipv4(skb, network + 12, &mut source);
        load_ipv4(skb, network + 16, &mut destination);
    }
    let ports = if transport == 0 { 0 } else { ports(skb, transport, protocol, egress) };
    let (a, b) = if egress { (destination, source) } else { (source, destination) };
    FlowKey {
        a,
        b,
        a_port: ports as u16,
        b_port: (ports >> 16) as u16,
        slot: packed as u16,
        protocol,
        reserved: 0,
    }
}

/// As `::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2.
#[inline(always)]
fn load_ipv4(skb: *mut __sk_buff, offset: u32, to: &mut [u8; 16]) {
    let mut address = [0u8; 4];
    load(skb, offset, &mut address);
    (to[10], to[11]) = (0xff, 0xff);
    [to[12], to[13], to[14], to[15]] = address;
}

/// `a_port` in the lower half, `b_port` in the upper, in host byte order; 0 where the packet ended before.
#[inline(always)]
fn ports(skb: *mut __sk_buff, transport: u32, protocol: u8, egress: bool) -> u32 {
    let mut header = [0u8; 8];
    if has_ports(protocol) {
        let mut pair = [0u8; 4];
        load(skb, transport, &mut pair);
        let [s1, s0, d1, d0] = pair;
        let (source, destination) = (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]));
        let (a, b) = if egress { (destination, source) } else { (source, destination) };
        return u32::from(b) << 16 | u32::from(a);
    }
    if (protocol == protocol::ICMP || protocol == protocol::ICMPV6) && load(skb, transport, &mut header) {
        let [kind, code, _, _, id1, id0, _, _] = header;
        return icmp(protocol, kind, code, u16::from_be_bytes([id1, id0]));
    }
    0
}

#[inline(always)]
pub fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, to: &mut [u8; N]) -> bool {
    // SAFETY: the destination has N bytes; the helper checks the offset.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.as_mut_ptr().cast(), N as u32) == 0 }
}
