//! TCP health: what is counted at the kernel's tracepoints of TCP, and what is told of single connections.

/// What is counted together: a network namespace and a [`cell`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpKey {
    /// The namespace's cookie, which no other namespace ever has; 0 where the kernel gives none.
    pub cookie: u64,
    /// The namespace's inode number, which another may have after it.
    pub netns: u32,
    /// [`cell::of`]
    pub cell: u32,
}

/// How often, and of what has a duration the durations' sum.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCount {
    pub count: u64,
    pub sum_us: u64,
}

/// What is counted: a subject, and of a distribution the bucket.
pub mod cell {
    /// Connections that the namespace's sockets opened: SYN to SYN-ACK.
    pub const CONNECTED: u32 = 0;
    /// Connections that they accepted: SYN-ACK to ACK.
    pub const ACCEPTED: u32 = 1;
    /// Smoothed round-trip times, at the begin and at the end of a connection.
    pub const RTT: u32 = 2;
    /// Connects that failed: `ECONNREFUSED`, `ETIMEDOUT`, any other error.
    pub const REFUSED: u32 = 3;
    pub const TIMED_OUT: u32 = 4;
    pub const FAILED: u32 = 5;
    /// Connects that the program itself ended before there was an answer.
    pub const GIVEN_UP: u32 = 6;
    /// Segments sent again, SYN and SYN-ACK among them.
    pub const RETRANSMITTED: u32 = 7;
    pub const RESET_SENT: u32 = 8;
    pub const RESET_RECEIVED: u32 = 9;

    /// In place of a bucket: the duration is not known, or there is none.
    pub const NO_BUCKET: u32 = 0xff;

    pub const fn of(subject: u32, bucket: u32) -> u32 {
        subject << 8 | bucket
    }

    /// Subject and bucket.
    pub const fn parts(cell: u32) -> (u32, u32) {
        (cell >> 8, cell & 0xff)
    }
}

/// Upper bounds (inclusive, microseconds) of the buckets of a distribution; the last bucket has none.
pub const TCP_BOUNDS_US: [u32; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000,
];
/// Buckets of a distribution.
pub const TCP_BUCKETS: usize = TCP_BOUNDS_US.len() + 1;

/// How one connection stands. Written whenever it begins or fails to, sends again, is reset, or ends: the newest has
/// all figures, each its own flags.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpEvent {
    /// As in [`TcpKey`].
    pub cookie: u64,
    pub netns: u32,
    /// 0 if it is not known.
    pub handshake_us: u32,
    /// The kernel's smoothed figure; 0 as long as it has none.
    pub rtt_us: u32,
    /// Segments sent again since it began.
    pub retransmitted: u32,
    /// The socket's end. IPv6, or IPv4 as `::ffff:a.b.c.d`; network byte order.
    pub local: [u8; 16],
    pub remote: [u8; 16],
    /// Host byte order.
    pub local_port: u16,
    pub remote_port: u16,
    /// [`event_flag`]
    pub flags: u32,
}

/// Bits of [`TcpEvent::flags`].
pub mod event_flag {
    /// It begins: there was none of these ends before, or it is over. One that has not come to be yet may have been
    /// told of before: what was sent again, a reset.
    pub const BEGINS: u32 = 1;
    pub const ENDS: u32 = 2;
    /// This end sends a reset, or has received one; also when it has ended already.
    pub const RESET_SENT: u32 = 4;
    pub const RESET_RECEIVED: u32 = 8;
    /// How its beginning went; with [`BEGINS`]. Of those but the first, as [`super::cell`] has them.
    pub const ESTABLISHED: u32 = 0x10;
    pub const REFUSED: u32 = 0x20;
    pub const TIMED_OUT: u32 = 0x40;
    pub const FAILED: u32 = 0x80;
    pub const GIVEN_UP: u32 = 0x100;
}

/// What one CPU has not counted, since the start; and whether there is anything to read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpTotals {
    /// All that was to be counted.
    pub events: u64,
    /// There was no room for another [`TcpKey`].
    pub lost_full: u64,
    /// The map could not be written at that moment.
    pub lost_busy: u64,
    /// Connects whose beginning could not be noted: counted, without their duration.
    pub lost_start: u64,
    /// [`TcpEvent`]s that there was no room for.
    pub lost_flow: u64,
    pub reserved: [u64; 3],
}

impl TcpTotals {
    /// The same memory as 64-bit words, the unit in which userspace reads it.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();
}

/// Where members are, in bytes, by the running kernel's type information. Set by userspace before loading.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpLayout {
    /// Of `struct sock_common`, with which every kind of socket begins.
    pub sock_net: u32,
    pub sock_family: u32,
    pub sock_state: u32,
    pub sock_daddr: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_dport: u32,
    /// Of `struct sock`, `inet_sock` and `tcp_sock`.
    pub sock_protocol: u32,
    pub sock_err: u32,
    pub inet_sport: u32,
    pub tcp_srtt_us: u32,
    pub tcp_total_retrans: u32,
    pub tcp_segs_out: u32,
    pub net_inum: u32,
    pub net_cookie: u32,
    /// Of `struct sk_buff`: how many segments it stands for, and where it was routed to.
    pub skb_segments: u32,
    pub skb_refdst: u32,
    pub dst_dev: u32,
    pub dev_net: u32,
    /// Not 0 if namespaces have cookies.
    pub has_cookie: u32,
    /// Not 0 if resets without a socket are told of (kernel 6.10).
    pub has_socketless_resets: u32,
}

const _: () = assert!(size_of::<TcpKey>() == 16 && size_of::<TcpCount>() == 16);
const _: () = assert!(size_of::<TcpEvent>() == 64 && size_of::<TcpTotals>() == 64);
const _: () = assert!(size_of::<TcpLayout>() == 88);
