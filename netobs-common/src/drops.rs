//! Dropped packets: what is told of one event of the tracepoint `skb:kfree_skb`, and how events are counted.

/// What events have in common that are counted together. Zero where nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropKey {
    /// Return address of who freed the packet.
    pub location: u64,
    /// IPv6, or IPv4 as `::ffff:a.b.c.d`; network byte order.
    pub source: [u8; 16],
    /// As `source`.
    pub destination: [u8; 16],
    /// The kernel's number of the reason.
    pub reason: u32,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The device that the packet was at, as numbered in that namespace.
    pub ifindex: u32,
    /// The device that it was to leave by, if it had been routed.
    pub out_ifindex: u32,
    /// All zero if there is none.
    pub source_mac: [u8; 6],
    /// As `skb->protocol`, in host byte order.
    pub ethertype: u16,
    /// Destination port; of ICMP type (high byte) and code. See [`flag::PORT`].
    pub port: u16,
    /// IANA number of IPv4's protocol or IPv6's next header. See [`flag::ADDRESSES`].
    pub protocol: u8,
    /// [`flag`]
    pub flags: u8,
    /// 0.
    pub reserved: u32,
}

impl DropKey {
    pub const ZERO: Self = Self {
        location: 0,
        source: [0; 16],
        destination: [0; 16],
        reason: 0,
        netns: 0,
        ifindex: 0,
        out_ifindex: 0,
        source_mac: [0; 6],
        ethertype: 0,
        port: 0,
        protocol: 0,
        flags: 0,
        reserved: 0,
    };
}

/// How many events there were of a key. What netfilter had to do with them is the first one's: it is found
/// by unwinding the stack, which takes several times as long as all else, and those of one key differ in it
/// only if the same packet is dropped at two hooks without its devices being others by then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    pub packets: u64,
    /// The return address of who called the netfilter hook; 0 if that was not found.
    pub hook: u64,
    /// The return address in what the hook had called.
    pub hook_function: u64,
}

/// Bits of [`DropKey::flags`].
pub mod flag {
    /// `source`, `destination` and `protocol` were read.
    pub const ADDRESSES: u8 = 1;
    /// `port` was read.
    pub const PORT: u8 = 2;
    /// An ordinary end of a packet's life by [`super::rule`].
    pub const ORDINARY: u8 = 4;
}

/// When a reason is an ordinary end of a packet's life: any of the bits set for it applies.
pub mod rule {
    /// Always.
    pub const ALWAYS: u8 = 1;
    /// If it was broadcast or multicast (`skb->pkt_type`).
    pub const GROUP: u8 = 2;
    /// If it is an ICMP echo reply.
    pub const ECHO_REPLY: u8 = 4;
    /// In one of the places given.
    pub const PLACE: u8 = 8;
    /// If it was for another host (`skb->pkt_type`). So are frames on their way through a bridge.
    pub const OTHER_HOST: u8 = 16;
}

/// Reasons that are told apart in [`DropTotals`]; the last one stands for all others.
pub const REASONS: usize = 256;

/// Ranges of addresses that [`rule::PLACE`] knows.
pub const MAX_PLACES: usize = 64;

/// What one CPU has counted since the start. `seen` is all events; of each reason, `seen` is what is
/// `hidden`, what was `lost`, and what is counted by [`DropKey`] or is in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropTotals {
    pub seen: [u64; REASONS],
    /// Ordinary ends.
    pub hidden: [u64; REASONS],
    /// No room for another key, or in the ring.
    pub lost_full: u64,
    /// The map could not be written, or the packet could not be read.
    pub lost_busy: u64,
}

impl DropTotals {
    /// The same memory as 64-bit words, the unit in which userspace reads it.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();
}

/// Where a struct's members are, in bytes, by the running kernel's type information; and what it has.
/// Set by userspace before loading.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLayout {
    /// What is read of `struct sk_buff` in one go; the offsets below count from here.
    pub skb_start: u32,
    pub skb_len: u32,
    pub skb_dev: u32,
    pub skb_sk: u32,
    pub skb_refdst: u32,
    pub skb_iif: u32,
    pub skb_protocol: u32,
    pub skb_network_header: u32,
    pub skb_mac_header: u32,
    pub skb_tail: u32,
    pub skb_head: u32,
    /// `len`.
    pub skb_length: u32,
    /// Of the struct, whose `data` is read by itself where it is wanted.
    pub skb_data: u32,
    /// The byte that `pkt_type` is in, and how far it is shifted there.
    pub skb_pkt_type: u32,
    pub skb_pkt_type_shift: u32,
    pub dev_ifindex: u32,
    pub dev_net: u32,
    pub net_inum: u32,
    pub sock_net: u32,
    pub dst_dev: u32,
    /// Not 0 if the tracepoint tells the reason (kernel 5.17).
    pub has_reason: u32,
    /// Not 0 if the tracepoint tells the receiving socket (kernel 6.11).
    pub has_socket: u32,
}

/// What is before the bytes of a dropped packet in the ring, where each is told by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropHeader {
    /// `CLOCK_BOOTTIME`, when the program ran.
    pub time_ns: u64,
    /// As in [`DropCount`].
    pub hook: u64,
    pub hook_function: u64,
    pub key: DropKey,
    /// Of the packet from its first byte that is told on.
    pub len: u32,
    /// Bytes that follow, of those in the linear part; the rest of the record is padding.
    pub captured: u32,
    /// 1: the bytes begin with an Ethernet header; 0: with the network header.
    pub link: u32,
    /// 0.
    pub reserved: u32,
}

/// Bytes of a dropped packet that the records of the ring have room for, smallest first, as
/// [`crate::trace::ROOMS`]. What is in the linear part is seldom more.
pub const DROP_ROOMS: [usize; 3] = [128, 512, 2048];

/// Most bytes of a dropped packet that are captured.
pub const MAX_DROP_SNAPLEN: u32 = DROP_ROOMS[2] as u32;

/// Most that is read of `struct sk_buff`.
pub const MAX_SKB_LEN: usize = 208;

const _: () = assert!(size_of::<DropKey>() == 72);
const _: () = assert!(size_of::<DropHeader>() == 112 && align_of::<DropHeader>() == 8);
const _: () = assert!(size_of::<DropTotals>() == (2 * REASONS + 2) * 8);
