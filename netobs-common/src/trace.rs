//! What the programs of `netobs trace` and userspace share.

/// What is before the bytes of each packet in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceHeader {
    /// `CLOCK_BOOTTIME`, when the program ran.
    pub time_ns: u64,
    /// Of the attachment.
    pub slot: u32,
    /// Of the packet as the stack has it, without a VLAN tag that it keeps outside the frame.
    pub len: u32,
    /// Bytes that follow; the rest of the record is padding.
    pub captured: u32,
    /// The VLAN tag that the kernel keeps outside the frame: what it has after the ethertype.
    pub vlan_tci: u16,
    /// Its ethertype; 0: there is no such tag.
    pub vlan_protocol: u16,
    /// [`crate::INGRESS`] or [`crate::EGRESS`], as the attached interface sees it.
    pub direction: u8,
    /// 1: the packet begins with an Ethernet header; 0: with the IP header.
    pub link: u8,
    /// Segments that a GSO or GRO super-packet stands for; 0: it is none, or its sender left it open.
    pub segments: u16,
    /// 0.
    pub reserved: u32,
}

/// Bytes of a packet that the records of the ring have room for, smallest first: a program must reserve
/// an amount that is known when it is loaded.
pub const ROOMS: [usize; 5] = [128, 512, 2048, 16 * 1024, 64 * 1024];

/// Most bytes of a packet that are captured (the largest room less one: what 16 bits can say).
pub const MAX_SNAPLEN: u32 = 65_535;

/// What became of the packets that the filter matched, in one direction of one attachment. When nothing is
/// under way, `matched` is the sum of the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    pub matched: u64,
    /// Put into the ring.
    pub delivered: u64,
    /// The ring was full.
    pub lost: u64,
    /// More than the rate that was asked for.
    pub limited: u64,
    /// Keeps one direction on one cache line.
    pub reserved: [u64; 4],
}

impl TraceCounts {
    pub const ZERO: Self = Self { matched: 0, delivered: 0, lost: 0, limited: 0, reserved: [0; 4] };

    /// The same memory as 64-bit words, the unit in which userspace reads it.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();
}

const _: () = assert!(size_of::<TraceHeader>() == 32 && align_of::<TraceHeader>() == 8);
const _: () = assert!(size_of::<TraceCounts>() == 64);
const _: () = assert!(ROOMS[ROOMS.len() - 1] > MAX_SNAPLEN as usize);
