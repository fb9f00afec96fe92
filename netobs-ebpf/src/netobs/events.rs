//! Packets that are told of one by one: DNS over UDP, segments of DNS over TCP, and ARP. All others pay a comparison
//! for it, TCP and UDP those of their ports, and none where nothing of it is asked for or [`crate::fast`] counts them in
//! their flow.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::read_volatile,
};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MMAPABLE},
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::map,
    maps::{Array, RingBuf},
};
use netobs_common::{
    Hook, class,
    events::{ARP_FRAME, DNS_HEADER, EventHeader, FRAME_ROOM, HEADER_ROOM, IP_BYTES, NAME_ROOM, kind},
    l4,
};
use netobs_ebpf::{
    headers::{ETH_LEN, IPV4_LEN, protocol, tcp_flag},
    packet::{Packet, opaque},
};

use crate::flows::load;

/// Bit by [`class`]: which packets are looked at. Set by userspace before loading, as the rest here.
#[unsafe(no_mangle)]
static EVENT_CLASSES: u32 = 0;

/// Not 0: of DNS queries as much is told as there is room for, so that their names are in it.
#[unsafe(no_mangle)]
static NAMES: u32 = 0;

/// Records with room for what they tell; sized by userspace. Full: counted in [`EVENTS_LOST`].
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// What found the ring full, by [`kind`]. Added to by all CPUs, atomically; userspace maps it and reads it.
#[map]
static EVENTS_LOST: Array<u64> = Array::with_max_entries(kind::COUNT as u32, BPF_F_MMAPABLE);

const DNS_PORT: u16 = 53;

/// 127.0.0.11, where Docker's name server is inside a container.
const EMBEDDED_SERVER: [u8; 4] = [127, 0, 0, 11];

/// A record of the ring.
#[repr(C)]
struct Record<const ROOM: usize> {
    header: EventHeader,
    bytes: [u8; ROOM],
}

/// Tells of a packet of a container's interface, if it is one that is told of.
#[inline(always)]
pub fn look<const LINK: bool>(skb: *mut __sk_buff, hook: Hook, packet: &Packet) {
    // SAFETY: a static; volatile, since userspace sets it.
    let classes = unsafe { read_volatile(&raw const EVENT_CLASSES) };
    if classes == 0 {
        return;
    }
    let class = opaque(packet.class.into()) as u32;
    if classes >> class & 1 == 0 {
        return;
    }
    if class == class::ARP {
        if LINK {
            arp(skb, hook);
        }
        return;
    }
    // The verifier knows the mask: without DNS, nothing of what follows is in the program.
    if classes & !(1 << class::ARP) == 0 {
        return;
    }
    let (network, transport) = (opaque(packet.network.into()) as u32, opaque(packet.transport.into()) as u32);
    if transport != 0 && may_be_dns::<LINK>(skb, transport) {
        on_wire(skb, ends(network, transport), hook, class);
    }
}

/// Whether a TCP or UDP packet is one that [`look`] may tell of, by its class and its two ports in network byte order.
#[inline(always)]
pub fn is_told_of(class: u32, ports: u32) -> bool {
    // SAFETY: a static; volatile, since userspace sets it.
    let classes = unsafe { read_volatile(&raw const EVENT_CLASSES) };
    // As in `look`: the verifier knows the mask, and not what it is shifted by.
    classes & !(1 << class::ARP) != 0 && classes >> class & 1 != 0 && has_dns_port(ports)
}

#[inline(always)]
fn has_dns_port(ports: u32) -> bool {
    let dns = u32::from(DNS_PORT.to_be());
    ports & 0xffff == dns || ports >> 16 == dns
}

/// Apart, so that there is one way to it.
#[inline(never)]
fn on_wire(skb: *mut __sk_buff, ends: u64, hook: Hook, class: u32) -> u64 {
    if TCP_CLASSES >> (class & 0x1f) & 1 == 0 {
        dns(skb, ends, hook, kind::DNS)
    } else {
        segment(skb, ends, hook, kind::DNS)
    }
}

/// Bit by [`class`].
const TCP_CLASSES: u32 =
    1 << (class::IPV4 + l4::TCP) | 1 << (class::IPV6 + l4::TCP) | 1 << (class::VLAN + l4::TCP);

/// Tells of a packet that passes `lo` of a container's namespace, if it is of the name server there. Its port
/// is not known: packets to it have it translated from 53 here, those from it not yet.
#[inline(always)]
pub fn look_at_loopback(skb: *mut __sk_buff, hook: Hook) {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let header = data + ETH_LEN;
    if header + 20 <= end {
        // SAFETY: inside the linear part, as just checked; unaligned as the verifier allows it.
        let (protocol, ends) = unsafe { (*((header + 9) as *const u8), *((header + 12) as *const u64)) };
        let server = u32::from_ne_bytes(EMBEDDED_SERVER);
        if (ends as u32 != server && (ends >> 32) as u32 != server) || !is_read(protocol) {
            return;
        }
    }
    loopback(skb, hook);
}

#[inline(never)]
fn loopback(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let mut header = [0u8; 20];
    let mut ethertype = [0u8; 2];
    if !load(skb, ETH_LEN as u32 - 2, &mut ethertype)
        || ethertype != [0x08, 0x00]
        || !load(skb, ETH_LEN as u32, &mut header)
        || !is_read(header[9])
        || (header[12..16] != EMBEDDED_SERVER && header[16..20] != EMBEDDED_SERVER)
        // A later fragment has no ports.
        || (header[6] & 0x1f) | header[7] != 0
    {
        return 0;
    }
    let ends = ends(ETH_LEN as u32, ETH_LEN as u32 + u32::from(header[0] & 0xf) * 4);
    if header[9] == protocol::UDP {
        dns(skb, ends, hook, kind::EMBEDDED)
    } else {
        segment(skb, ends, hook, kind::EMBEDDED)
    }
}

#[inline(always)]
const fn is_read(protocol: u8) -> bool {
    protocol == protocol::UDP || protocol == protocol::TCP
}

/// Whether either port is 53, or may be since they are not where they nearly always are. At a constant offset:
/// the verifier would walk what comes after once for each that a variable may have.
#[inline(always)]
fn may_be_dns<const LINK: bool>(skb: *mut __sk_buff, transport: u32) -> bool {
    let link = if LINK { ETH_LEN } else { 0 };
    if transport as usize == link + IPV4_LEN {
        is_dns(skb, link + IPV4_LEN)
    } else if transport as usize == link + IP_BYTES {
        is_dns(skb, link + IP_BYTES)
    } else {
        true
    }
}

#[inline(always)]
fn is_dns(skb: *mut __sk_buff, offset: usize) -> bool {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let ports = data + offset;
    if ports + 4 > end {
        return true;
    }
    // SAFETY: inside the linear part, as just checked; unaligned as the verifier allows it.
    has_dns_port(unsafe { *(ports as *const u32) })
}

/// `ends` is where the IP header begins, and in the upper half where the UDP header does.
#[inline(never)]
fn dns(skb: *mut __sk_buff, ends: u64, hook: Hook, kind: u32) -> u64 {
    let transport = (ends >> 32) as u32;
    let mut udp = [0u8; 8];
    if !load(skb, transport, &mut udp) {
        return 0;
    }
    let [s1, s0, d1, d0, l1, l0, _, _] = udp;
    let (source_port, destination_port) = (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]));
    if kind == kind::DNS && source_port != DNS_PORT && destination_port != DNS_PORT {
        return 0;
    }
    let mut header = header(kind, hook);
    (header.source_port, header.destination_port) = (source_port, destination_port);
    header.protocol = protocol::UDP;
    header.payload_len = u16::from_be_bytes([l1, l0]).saturating_sub(8);
    // SAFETY: a static; volatile, since userspace sets it.
    let names = unsafe { read_volatile(&raw const NAMES) } != 0;
    if names && (kind == kind::EMBEDDED || destination_port == DNS_PORT) {
        submit::<NAME_ROOM>(skb, ends as u32, transport + 8, NAME_ROOM as u32, &header)
    } else {
        submit::<HEADER_ROOM>(skb, ends as u32, transport + 8, DNS_HEADER as u32, &header)
    }
}

/// A TCP segment that begins or ends a connection, or has a payload. `ends` as above. A short one is told of whole, as
/// is what goes to port 53 as far as there is room; of a longer one the header and how its payload begins: it is
/// the middle of a message, or one begins there.
#[inline(never)]
fn segment(skb: *mut __sk_buff, ends: u64, hook: Hook, kind: u32) -> u64 {
    let (network, transport) = (ends as u32, (ends >> 32) as u32);
    let (mut ip, mut tcp) = ([0u8; 6], [0u8; 14]);
    if !load(skb, network, &mut ip) || !load(skb, transport, &mut tcp) {
        return 0;
    }
    let (source_port, destination_port) =
        (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
    if kind == kind::DNS && source_port != DNS_PORT && destination_port != DNS_PORT {
        return 0;
    }
    // As the IP header says: there may be padding behind. 0 of a packet that is too long for it.
    let (fixed, len) = if ip[0] >> 4 == 4 { (0, [ip[2], ip[3]]) } else { (IP_BYTES as u32, [ip[4], ip[5]]) };
    let len = u32::from(u16::from_be_bytes(len));
    let len = if len == 0 {
        // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
        unsafe { (*skb).len }.saturating_sub(transport)
    } else {
        (fixed + len).saturating_sub(transport - network)
    };
    let has_payload = len > u32::from(tcp[12] >> 4) * 4;
    if !has_payload && tcp[13] & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) == 0 {
        return 0;
    }
    let mut header = header(kind, hook);
    (header.source_port, header.destination_port) = (source_port, destination_port);
    header.protocol = protocol::TCP;
    header.payload_len = if len > u32::from(u16::MAX) { u16::MAX } else { len as u16 };
    if len <= FRAME_ROOM as u32 || (len > NAME_ROOM as u32 && destination_port != DNS_PORT) {
        submit::<FRAME_ROOM>(skb, network, transport, FRAME_ROOM as u32, &header)
    } else {
        submit::<NAME_ROOM>(skb, network, transport, NAME_ROOM as u32, &header)
    }
}

#[inline(never)]
fn arp(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let mut header = header(kind::ARP, hook);
    header.payload_len = ARP_FRAME as u16;
    submit::<FRAME_ROOM>(skb, 0, 0, ARP_FRAME as u32, &header)
}

#[inline(always)]
fn ends(network: u32, transport: u32) -> u64 {
    u64::from(network) | u64::from(transport) << 32
}

#[inline(always)]
fn header(kind: u32, hook: Hook) -> EventHeader {
    EventHeader {
        // SAFETY: takes no argument and cannot fail.
        time_ns: unsafe { bpf_ktime_get_ns() },
        slot: hook.slot(),
        kind: kind as u8,
        direction: hook.direction() as u8,
        ..EventHeader::ZERO
    }
}

/// With at most `wanted` bytes of what there is from `offset` on.
#[inline(always)]
fn submit<const ROOM: usize>(
    skb: *mut __sk_buff,
    network: u32,
    offset: u32,
    wanted: u32,
    header: &EventHeader,
) -> u64 {
    let Some(mut record) = EVENTS.reserve::<Record<ROOM>>(0) else {
        if let Some(lost) = EVENTS_LOST.get_ptr_mut(u32::from(header.kind)) {
            // SAFETY: a word of the map, which nobody accesses but whole.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(lost, 1) };
        }
        return 0;
    };
    let pointer = record.as_mut_ptr();
    // SAFETY: reserved with the size of the record; the helper writes no more than there is room for.
    unsafe {
        (*pointer).header = *header;
        // Of IPv4 it is header, UDP header and DNS header, or header and TCP header: nothing of DNS has less.
        bpf_skb_load_bytes(skb.cast(), network, (&raw mut (*pointer).header.network).cast(), IP_BYTES as u32);
        // From there and masked, so that neither the compiler nor the verifier has to know the way here: else
        // it walks it once for each. From 1 to ROOM: nothing to copy becomes too much to copy, which the helper
        // refuses.
        let there = u32::from(read_volatile(&raw const (*pointer).header.payload_len));
        let captured = if there < wanted { there } else { wanted };
        let size = (captured.wrapping_sub(1) & (ROOM as u32 - 1)) + 1;
        let failed = bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*pointer).bytes).cast(), size) != 0;
        (*pointer).header.captured = if failed { 0 } else { captured as u16 };
    }
    record.submit(0);
    1
}

const _: () = assert!(class::COUNT <= 32 && (class::VLAN + l4::UDP) < class::VLAN_NOT_IP);
