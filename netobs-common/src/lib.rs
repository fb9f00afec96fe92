//! What the kernel programs and userspace share: map values, indexes and read-only globals.
//!
//! Everything here is `#[repr(C)]` with fixed-width integers in host byte order. A change of any size,
//! offset or meaning is a change of [`ABI_VERSION`].
#![no_std]

/// Version of everything in this crate that crosses the kernel boundary.
pub const ABI_VERSION: u32 = 8;

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

/// One direction of an attachment.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook(u32);

impl Hook {
    /// Slots that there can be, so that a class ID fits into the 16 bits that the kernel hands over.
    pub const SLOTS: u32 = 32_767;

    /// `direction` is [`INGRESS`] or [`EGRESS`].
    pub const fn new(slot: u32, direction: u32) -> Self {
        Self(slot * DIRECTIONS + direction)
    }

    /// Of a filter's class ID; none of 0, which is nobody's.
    pub const fn of_class_id(class_id: u32) -> Option<Self> {
        if class_id == 0 { None } else { Some(Self(class_id - 1)) }
    }

    /// By which a filter's program knows where it runs.
    pub const fn class_id(self) -> u32 {
        self.0 + 1
    }

    /// Into what there is once for each slot and direction.
    pub const fn index(self) -> u32 {
        self.0
    }

    /// See [`Self::index`].
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }

    pub const fn slot(self) -> u32 {
        self.0 / DIRECTIONS
    }

    pub const fn direction(self) -> u32 {
        self.0 % DIRECTIONS
    }
}

/// Index into the counter array. Per-CPU blocks, so that no cache line is written by two CPUs.
pub const fn counter_index(cpu: u32, max_interfaces: u32, hook: Hook) -> u32 {
    cpu * max_interfaces * DIRECTIONS + hook.index()
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
    /// Frames as the stack counts them (a GSO super-packet is one), by [`class`].
    pub class: [Count; class::COUNT],
    /// Wire packets by size, see [`SIZE_BOUNDS`]. A super-packet counts as its segments.
    pub size: [u64; SIZE_BUCKETS],
    /// What unfolding adds: wire bytes = sum of `class` + this. (Wire packets are the sum of `size`.)
    pub unfolded_bytes: u64,
    /// Stack packets with a TCP window of 0 and neither SYN nor RST: who sends it takes nothing more for now.
    pub tcp_zero_window: u64,
    /// Frames to a group address other than broadcast. The rest, less `broadcast`, is unicast.
    pub multicast: Count,
    pub broadcast: Count,
    /// Stack packets whose TCP header has the flag.
    pub tcp_syn: u64,
    pub tcp_fin: u64,
    pub tcp_rst: u64,
    /// Frames that ended inside a header that was needed; they are counted in `class` as far as known.
    pub truncated: u64,
    /// IP packets that are in no flow: there was no room for one more, or their IP header was cut.
    pub unflowed: Count,
    /// How many of these had their IP header cut.
    pub unflowed_truncated: u64,
}

impl Counters {
    pub const ZERO: Self = Self {
        class: [Count { packets: 0, bytes: 0 }; class::COUNT],
        size: [0; SIZE_BUCKETS],
        unfolded_bytes: 0,
        tcp_zero_window: 0,
        multicast: Count { packets: 0, bytes: 0 },
        broadcast: Count { packets: 0, bytes: 0 },
        tcp_syn: 0,
        tcp_fin: 0,
        tcp_rst: 0,
        truncated: 0,
        unflowed: Count { packets: 0, bytes: 0 },
        unflowed_truncated: 0,
    };

    /// The same memory as 64-bit words, the unit in which userspace reads it.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();
}

/// Who sends the frames of one direction of one interface, by their source MAC address; all CPUs together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// [`mac_word`] of the first frame, or what userspace knows better; 0 before there was one,
    /// [`ANY_SENDER`] where it is not looked at.
    pub mac: u64,
    /// Frames from any other address, as the stack counts them.
    pub other: Count,
    /// Frames that passed until userspace knew better. Written by userspace.
    pub unjudged: u64,
}

/// [`Sender::mac`] where frames may be from anybody.
pub const ANY_SENDER: u64 = u64::MAX;

/// A MAC address as [`Sender::mac`]: never 0.
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    mac_word_of([u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])])
}

/// The same of an address as a header has it.
pub const fn mac_word_of(mac: [u16; 3]) -> u64 {
    mac[0] as u64 | (mac[1] as u64) << 16 | (mac[2] as u64) << 32 | 1 << 48
}

/// What a flow is of: an attachment, two ends, a protocol. End `a` is the one that ingress packets come
/// from: at a container's veth on the host the container, inside a container its peer. So both
/// directions of a conversation have the same key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// IPv6, or IPv4 as `::ffff:a.b.c.d`; network byte order.
    pub a: [u8; 16],
    pub b: [u8; 16],
    /// Host byte order. Of ICMP and ICMPv6 the identifier of an echo, else 0. Of later fragments, of other
    /// protocols, and where the packet ended before: 0.
    pub a_port: u16,
    /// As `a_port`; of ICMP and ICMPv6 the type (of an echo: the request's) in the upper half and the code in
    /// the lower.
    pub b_port: u16,
    pub slot: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// 0.
    pub reserved: u8,
}

/// A flow's place in the cells of one CPU, which alone writes it; 64 bytes, a cache line. Counters only
/// grow, those of 32 bits wrap: userspace reads them often enough to see each wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowCell {
    /// Which flow it is: a hash of its key. [`FREE_CELL`] is nobody's, and [`LEAVING_CELL`] one that
    /// userspace is taking back. The kernel programs write it when it is free, userspace when it is not.
    pub tag: u64,
    /// By direction: packets of those that [`Counters::tcp_zero_window`] counts.
    pub zero_windows: [u32; 2],
    /// By direction: `skb->len` added up.
    pub bytes: [u64; 2],
    /// By direction: frames as the stack counts them, and what unfolding super-packets adds.
    pub count: [FlowCount; 2],
    /// By direction: what unfolding adds.
    pub unfolded_bytes: [u32; 2],
    /// When it last counted: the lower half of the kernel's jiffies.
    pub last: u32,
    /// By direction: TCP flags seen, [`FIRST`] and [`OPENED`].
    pub flags: [u8; 2],
    pub reserved: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowCount {
    pub packets: u32,
    pub unfolded: u32,
}

/// [`FlowCell::tag`] of a cell that is free.
pub const FREE_CELL: u64 = 0;
/// [`FlowCell::tag`] of a cell that userspace is taking back.
pub const LEAVING_CELL: u64 = 1;

/// In the flags of a flow's direction, beside the lower six TCP flags: the first packet seen of the flow went
/// this way.
pub const FIRST: u8 = 0x40;
/// Likewise: a TCP SYN without ACK was seen to go this way.
pub const OPENED: u8 = 0x80;

/// Whose a cell is; written when it is taken, before its tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowOwner {
    pub key: FlowKey,
    /// When the cell was taken, `CLOCK_MONOTONIC` in ns.
    pub first_ns: u64,
    /// The lower half of the jiffies then.
    pub first: u32,
    pub reserved: u32,
}

/// A flow that found no cell, in the overflow map; since it was made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct OverflowFlow {
    /// By direction.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub unfolded: [u64; 2],
    pub unfolded_bytes: [u64; 2],
    pub zero_windows: [u64; 2],
    /// `CLOCK_MONOTONIC` in ns.
    pub first_ns: u64,
    pub last_ns: u64,
    /// By direction, as [`FlowCell::flags`].
    pub flags: [u32; 2],
}

impl OverflowFlow {
    pub const ZERO: Self = Self {
        packets: [0; 2],
        bytes: [0; 2],
        unfolded: [0; 2],
        unfolded_bytes: [0; 2],
        zero_windows: [0; 2],
        first_ns: 0,
        last_ns: 0,
        flags: [0; 2],
    };
}

const _: () = assert!(size_of::<FlowKey>() == 40 && size_of::<FlowCell>() == 64);
const _: () = assert!(size_of::<FlowOwner>() == 56 && size_of::<OverflowFlow>() == 104);
const _: () = assert!(size_of::<Counters>() == 512 && align_of::<Counters>() == 8);
const _: () = assert!(size_of::<Sender>() == 32);
const _: () = assert!(Hook::new(Hook::SLOTS - 1, EGRESS).class_id() <= u16::MAX as u32);
const _: () = assert!(IFACE_CELLS.is_power_of_two());

pub mod drops;
pub mod events;
pub mod tcp;
pub mod trace;
