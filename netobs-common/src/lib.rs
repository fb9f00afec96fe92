//! What the kernel programs and userspace share: map values, indexes and read-only globals.
//!
//! Everything here is `#[repr(C)]` with fixed-width integers in host byte order. A change of any size,
//! offset or meaning is a change of [`ABI_VERSION`].
#![no_std]

/// Version of everything in this crate that crosses the kernel boundary.
pub const ABI_VERSION: u32 = 2;

/// Direction as the attached interface sees it: the value is the low bit of a counter index.
pub const INGRESS: u32 = 0;
/// See [`INGRESS`].
pub const EGRESS: u32 = 1;
/// Directions per interface.
pub const DIRECTIONS: u32 = 2;

/// Cells of the interface directory, indexed by `ifindex & (IFACE_CELLS - 1)`.
pub const IFACE_CELLS: u32 = 1 << 16;

/// One cell of the interface directory as the `u64` that both sides read and write in one access:
/// ifindex in the high half, counter slot in the low half. Zero is an empty cell (no ifindex is 0).
pub const fn iface_cell(ifindex: u32, slot: u32) -> u64 {
    ((ifindex as u64) << 32) | slot as u64
}

/// Index into the counter array. Per-CPU blocks, so that no cache line is written by two CPUs.
pub const fn counter_index(cpu: u32, max_interfaces: u32, slot: u32, direction: u32) -> u32 {
    (cpu * max_interfaces + slot) * DIRECTIONS + direction
}

/// L4 protocols that are told apart. The numbers are offsets into a block of [`Counters::class`].
pub mod l4 {
    pub const TCP: u32 = 0;
    pub const UDP: u32 = 1;
    pub const ICMP: u32 = 2;
    pub const ICMPV6: u32 = 3;
    pub const SCTP: u32 = 4;
    /// Any other protocol number, or a header chain that ended before one was found.
    pub const OTHER: u32 = 5;
    pub const COUNT: u32 = 6;
}

/// Where a frame is counted in [`Counters::class`]: each frame in exactly one place, so that the sum
/// over all classes is the number of frames.
pub mod class {
    use crate::l4;
    /// `IPV4 + l4::*`: untagged IPv4.
    pub const IPV4: u32 = 0;
    /// `IPV6 + l4::*`: untagged IPv6.
    pub const IPV6: u32 = l4::COUNT;
    /// `VLAN + l4::*`: IPv4 or IPv6 behind one or two VLAN tags.
    pub const VLAN: u32 = 2 * l4::COUNT;
    /// Anything but IP behind a VLAN tag.
    pub const VLAN_NOT_IP: u32 = 3 * l4::COUNT;
    pub const ARP: u32 = VLAN_NOT_IP + 1;
    pub const OTHER: u32 = ARP + 1;
    pub const COUNT: usize = OTHER as usize + 1;
}

/// Upper bounds (inclusive, bytes on the wire with the Ethernet header, without FCS) of the buckets of
/// [`Counters::size`]; the last bucket has no bound.
pub const SIZE_BOUNDS: [u32; 8] = [64, 128, 256, 512, 1024, 1518, 4096, 9018];
/// Buckets of the size histogram.
pub const SIZE_BUCKETS: usize = SIZE_BOUNDS.len() + 1;

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// What one CPU has counted in one direction of one interface. Only ever grows.
///
/// Bytes are `skb->len` at the hook. At TC that is the whole frame with its Ethernet header, without FCS
/// and without a VLAN tag that the kernel keeps outside the frame; for a cgroup the packet from its IP
/// header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Written by userspace: not 0 if the published ports of this attachment are counted. First, so that
    /// it is on a cache line with what most packets are counted in.
    pub published: u64,
    /// Frames as the stack counts them (a GSO super-packet is one), by [`class`].
    pub class: [Count; class::COUNT],
    /// Wire packets by size, see [`SIZE_BOUNDS`]. A super-packet counts as its segments.
    pub size: [u64; SIZE_BUCKETS],
    /// What unfolding adds: wire packets and bytes = sum of `class` + this.
    pub unfolded: Count,
    /// Frames to a group address other than broadcast. The rest, less `broadcast`, is unicast.
    pub multicast: Count,
    pub broadcast: Count,
    /// Stack packets whose TCP header has the flag.
    pub tcp_syn: u64,
    pub tcp_fin: u64,
    pub tcp_rst: u64,
    /// Frames that ended inside a header that was needed; they are counted in `class` as far as known.
    pub truncated: u64,
    /// Keeps the size a power of two, so that an array index is a shift.
    pub reserved: [u64; 2],
}

impl Counters {
    pub const ZERO: Self = Self {
        published: 0,
        class: [Count { packets: 0, bytes: 0 }; class::COUNT],
        size: [0; SIZE_BUCKETS],
        unfolded: Count { packets: 0, bytes: 0 },
        multicast: Count { packets: 0, bytes: 0 },
        broadcast: Count { packets: 0, bytes: 0 },
        tcp_syn: 0,
        tcp_fin: 0,
        tcp_rst: 0,
        truncated: 0,
        reserved: [0; 2],
    };

    /// The same memory as 64-bit words, the unit in which userspace reads it.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();
}

/// Published ports that can be counted at a time.
pub const MAX_PORTS: u32 = 4096;

/// Clients of published ports that can be told apart at a time.
pub const MAX_CLIENTS: u32 = 16 * 1024;

/// A published port, as the container has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Of the attachment to the container's interface.
    pub slot: u32,
    pub port: u16,
    /// IANA number: 6 is TCP, 17 is UDP.
    pub protocol: u8,
    /// 0.
    pub reserved: u8,
}

/// One client of a published port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey {
    pub port: PortKey,
    /// IPv6, or IPv4 as `::ffff:a.b.c.d`; network byte order.
    pub address: [u8; 16],
}

/// What passed a port, from the container's side: `rx` is what it receives. Frames and their bytes as the
/// stack counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    pub rx: Count,
    pub tx: Count,
}

impl PortCounters {
    pub const ZERO: Self = Self { rx: Count { packets: 0, bytes: 0 }, tx: Count { packets: 0, bytes: 0 } };
}

const _: () = assert!(size_of::<PortKey>() == 8 && size_of::<ClientKey>() == 24);
const _: () = assert!(size_of::<PortCounters>() == 32);
const _: () = assert!(size_of::<Counters>() == 512 && align_of::<Counters>() == 8);
const _: () = assert!(IFACE_CELLS.is_power_of_two());

pub mod drops;
