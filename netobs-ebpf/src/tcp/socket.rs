//! Sockets and namespaces as the kernel has them.

use netobs_common::tcp::TcpLayout;
use netobs_ebpf::kernel::{INUMS, read_or_zero};

/// See [`TcpLayout`].
#[unsafe(no_mangle)]
pub static LAYOUT: TcpLayout = TcpLayout {
    sock_net: 0,
    sock_family: 0,
    sock_state: 0,
    sock_daddr: 0,
    sock_rcv_saddr: 0,
    sock_v6_daddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_dport: 0,
    sock_protocol: 0,
    sock_err: 0,
    inet_sport: 0,
    tcp_srtt_us: 0,
    tcp_total_retrans: 0,
    tcp_segs_out: 0,
    net_inum: 0,
    net_cookie: 0,
    skb_segments: 0,
    skb_refdst: 0,
    dst_dev: 0,
    dev_net: 0,
    has_cookie: 0,
    has_socketless_resets: 0,
};

/// Inode number of the host's namespace, of whose sockets nothing is told.
#[unsafe(no_mangle)]
static HOST_NETNS: u32 = 0;

/// A member of the layout; the verifier knows it as a constant.
macro_rules! layout {
    ($member:ident) => {
        // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
        unsafe { core::ptr::read_volatile(&raw const $crate::socket::LAYOUT.$member) }
    };
}
pub(crate) use layout;

/// What a member can be: integers, and addresses.
trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl<const N: usize> Plain for [u8; N] {}

/// 0 for a null pointer and for what cannot be read.
#[inline(always)]
fn read<T: Plain>(from: u64, offset: u32) -> T {
    // SAFETY: of such types any bytes are a value.
    unsafe { read_or_zero(from, offset) }
}

/// How many segments a packet stands for.
#[inline(always)]
pub fn segments(skb: u64) -> u64 {
    u64::from(read::<u16>(skb, layout!(skb_segments)).max(1))
}

const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;

/// The address of a `struct sock`, or 0.
#[derive(Clone, Copy)]
pub struct Socket(pub u64);

impl Socket {
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        read::<u16>(self.0, layout!(sock_protocol)) == IPPROTO_TCP
    }

    /// Of [`crate::state::tcp_state`].
    #[inline(always)]
    pub fn state(self) -> u32 {
        u32::from(read::<u8>(self.0, layout!(sock_state)))
    }

    /// What `getsockopt(SO_ERROR)` would say.
    #[inline(always)]
    pub fn error(self) -> u32 {
        read(self.0, layout!(sock_err))
    }

    /// The kernel keeps eight times the smoothed round-trip time.
    #[inline(always)]
    pub fn rtt_us(self) -> u32 {
        read::<u32>(self.0, layout!(tcp_srtt_us)) >> 3
    }

    #[inline(always)]
    pub fn retransmitted(self) -> u32 {
        read(self.0, layout!(tcp_total_retrans))
    }

    #[inline(always)]
    pub fn has_sent(self) -> bool {
        read::<u32>(self.0, layout!(tcp_segs_out)) != 0
    }

    /// Local and remote port.
    #[inline(always)]
    pub fn ports(self) -> (u16, u16) {
        // Not `skc_num`, which is 0 already when a socket is closed.
        let local: u16 = read(self.0, layout!(inet_sport));
        (u16::from_be(local), u16::from_be(read(self.0, layout!(sock_dport))))
    }

    /// Both addresses, IPv4 as `::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2.
    #[inline(always)]
    pub fn addresses(self, local: &mut [u8; 16], remote: &mut [u8; 16]) {
        if read::<u16>(self.0, layout!(sock_family)) == AF_INET {
            map_ipv4(local, read(self.0, layout!(sock_rcv_saddr)));
            map_ipv4(remote, read(self.0, layout!(sock_daddr)));
        } else {
            *local = read(self.0, layout!(sock_v6_rcv_saddr));
            *remote = read(self.0, layout!(sock_v6_daddr));
        }
    }
}

#[inline(always)]
fn map_ipv4(to: &mut [u8; 16], address: [u8; 4]) {
    (to[10], to[11]) = (0xff, 0xff);
    let [.., a, b, c, d] = to;
    [*a, *b, *c, *d] = address;
}

/// A network namespace.
#[derive(Clone, Copy)]
pub struct Namespace {
    pub cookie: u64,
    /// 0: none, or it could not be read.
    pub inum: u32,
}

impl Namespace {
    #[inline(always)]
    pub fn of_socket(socket: Socket) -> Self {
        Self::at(read(socket.0, layout!(sock_net)))
    }

    /// Of the device that a packet was routed to: for one that is received, the one that it came in by.
    #[inline(always)]
    pub fn of_packet(skb: u64) -> Self {
        // The lowest bit says whether the packet holds it.
        let destination = read::<u64>(skb, layout!(skb_refdst)) & !1;
        Self::at(read(read(destination, layout!(dst_dev)), layout!(dev_net)))
    }

    #[inline(always)]
    fn at(net: u64) -> Self {
        let inum: u32 = read(net, layout!(net_inum));
        let cookie = if layout!(has_cookie) != 0 { read(net, layout!(net_cookie)) } else { 0 };
        Self { cookie, inum: if INUMS.contains(&inum) { inum } else { 0 } }
    }

    /// Not the host's, of whose sockets it cannot be said which container's they are.
    #[inline(always)]
    pub fn is_told_of(&self) -> bool {
        // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
        self.inum != 0 && self.inum != unsafe { core::ptr::read_volatile(&raw const HOST_NETNS) }
    }
}
