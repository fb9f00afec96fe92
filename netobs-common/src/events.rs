//! DNS messages and ARP packets: what is told of each, one by one, in a ring.

/// What is before the bytes of each record. Zero where a kind has no such thing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventHeader {
    /// `CLOCK_MONOTONIC`, when the program ran.
    pub time_ns: u64,
    /// Of the attachment; those of [`kind::EMBEDDED`] are numbered apart.
    pub slot: u32,
    /// One of [`kind`].
    pub kind: u8,
    /// [`crate::INGRESS`] or [`crate::EGRESS`], as the attached interface sees it.
    pub direction: u8,
    /// Bytes that follow; the rest of the record is padding.
    pub captured: u16,
    /// The first bytes from the IP header on: the addresses are in it. Zero where the packet has not so many.
    pub network: [u8; IP_BYTES],
    /// Host byte order.
    pub source_port: u16,
    pub destination_port: u16,
    /// Of UDP, bytes of the payload as its header says. Of TCP, bytes from its header on as the IP header says;
    /// [`u16::MAX`]: that many at least. The first of them follow.
    pub payload_len: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// 0.
    pub reserved: u8,
}

impl EventHeader {
    pub const ZERO: Self = Self {
        time_ns: 0,
        slot: 0,
        kind: 0,
        direction: 0,
        captured: 0,
        network: [0; IP_BYTES],
        source_port: 0,
        destination_port: 0,
        payload_len: 0,
        protocol: 0,
        reserved: 0,
    };
}

/// What a record tells of: an index into the counts of what was lost.
pub mod kind {
    /// From or to port 53: a UDP datagram, whose payload follows, as far as it is asked for; or a TCP segment that
    /// begins or ends a connection or has a payload, and follows from its header on.
    pub const DNS: u32 = 0;
    /// The same from or to 127.0.0.11, at `lo` of a container's namespace.
    pub const EMBEDDED: u32 = 1;
    /// An ARP packet. The frame follows.
    pub const ARP: u32 = 2;
    pub const COUNT: usize = 3;
}

/// Bytes that a record has room for: a DNS header; a frame with an ARP packet, or a TCP header and how its payload
/// begins; a DNS query with its name, or a short segment.
pub const HEADER_ROOM: usize = 16;
pub const FRAME_ROOM: usize = 64;
pub const NAME_ROOM: usize = 512;

/// Bytes of an IPv6 header (RFC 8200).
pub const IP_BYTES: usize = 40;

/// Bytes of a DNS header (RFC 1035, section 4.1.1), which is all that is told without names.
pub const DNS_HEADER: usize = 12;

/// Bytes of an Ethernet header and an ARP packet of IPv4 behind it (RFC 826).
pub const ARP_FRAME: usize = 14 + 28;

const _: () = assert!(size_of::<EventHeader>() == 64 && align_of::<EventHeader>() == 8);
const _: () = assert!(DNS_HEADER <= HEADER_ROOM && ARP_FRAME <= FRAME_ROOM);
