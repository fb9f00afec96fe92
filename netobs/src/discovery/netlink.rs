//! Interfaces of the host's network namespace by rtnetlink: all there are, and what becomes of them.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Instant,
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkLayerType, LinkMessage, Stats64},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{
    model::{InterfaceKind, KernelStats},
    netlink::{self, Netlink, RECEIVE_BYTES},
};

/// `RTNLGRP_LINK` as the bit mask that `bind(2)` takes.
const LINK_GROUP: u32 = 1;

/// `RTNLGRP_TC`, as such a mask.
const TC_GROUP: u32 = 1 << 3;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`, as such a mask.
const ADDRESS_GROUPS: u32 = 1 << 4 | 1 << 8;

/// linux/rtnetlink.h: qdiscs and filters, made and deleted.
const TC_MESSAGES: [u16; 4] = [36, 37, 44, 45];

/// Asked for the event socket: some 10,000 messages. The kernel may give less.
const EVENT_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// An interface as the kernel describes it at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// None: of a kind that is never observed.
    pub kind: Option<InterfaceKind>,
    pub master: Option<u32>,
    /// The other end of a pair, or the interface below.
    pub peer_ifindex: Option<u32>,
    /// Where that is, if not in the same namespace: numbered by the namespace that asks.
    pub peer_nsid: Option<i32>,
    /// Where it has gone to.
    pub moved_to: Option<i32>,
    pub mac: Vec<u8>,
    pub stats: KernelStats,
}

#[derive(Debug)]
pub enum Event {
    /// Appeared, or something about it changed.
    Link(Link),
    /// Deleted, or moved into another namespace; as it was at the end.
    Gone(Link),
}

/// Link events of the namespace of the thread that subscribed.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What reading events gave.
pub enum Batch {
    /// In order, with the time at which they were read from the socket.
    Events(Vec<Event>, Instant),
    /// The kernel had more to say than the socket could hold: list everything again.
    Overrun,
}

impl Events {
    /// # Errors
    /// When netlink is not to be had.
    pub fn subscribe() -> io::Result<Self> {
        Ok(Self { socket: subscribe_with_room(LINK_GROUP)?, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// To poll for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as self.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }

    /// One datagram's events; none if nothing is waiting.
    ///
    /// # Errors
    /// Only when the socket has become unusable.
    pub fn read(&mut self) -> io::Result<Option<Batch>> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Some(Batch::Overrun)),
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        let mut events = Vec::new();
        for message in netlink::messages(&self.buffer) {
            // One that the library cannot read is as good as lost: look at everything again.
            let Ok(message) = message else { return Ok(Some(Batch::Overrun)) };
            // AF_BRIDGE messages tell of bridge ports, in another form.
            let ours = |link: &LinkMessage| link.header.interface_family == AddressFamily::Unspec;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if ours(&link) => {
                    events.push(Event::Link(Link::from(&link)));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if ours(&link) => {
                    events.push(Event::Gone(Link::from(&link)));
                }
                _ => {}
            }
        }
        Ok(Some(Batch::Events(events, now)))
    }
}

/// Where somebody has made or deleted filters or qdiscs, in the namespace of the thread that subscribed.
pub struct TcEvents {
    socket: Socket,
    buffer: Vec<u8>,
}

impl TcEvents {
    /// # Errors
    /// When netlink is not to be had.
    pub fn subscribe() -> io::Result<Self> {
        Ok(Self { socket: subscribe_with_room(TC_GROUP)?, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Interfaces of which it was told since the last call. None: of more than the socket could hold, it may be any.
    pub fn changed(&mut self) -> Option<BTreeSet<u32>> {
        let mut changed = BTreeSet::new();
        let all = drain(&self.socket, &mut self.buffer, |datagram| interfaces_of_tc(datagram, &mut changed));
        all.then_some(changed)
    }
}

/// Whether what there is in the namespace of the thread that subscribed is still as it was last listed.
pub struct Changes {
    socket: Socket,
    buffer: Vec<u8>,
    listed: bool,
}

impl Changes {
    /// Interfaces are given addresses, or lose them.
    ///
    /// # Errors
    /// When netlink is not to be had.
    pub fn of_addresses() -> io::Result<Self> {
        Self::subscribe(ADDRESS_GROUPS)
    }

    /// Interfaces come, go, or get another name.
    ///
    /// # Errors
    /// When netlink is not to be had.
    pub fn of_links() -> io::Result<Self> {
        Self::subscribe(LINK_GROUP)
    }

    fn subscribe(groups: u32) -> io::Result<Self> {
        Ok(Self { socket: subscribe(groups)?, buffer: Vec::with_capacity(RECEIVE_BYTES), listed: false })
    }

    /// Whether it is to be listed: there was a change, or may have been, or it has not been listed yet.
    pub fn to_list(&mut self) -> bool {
        let mut changed = false;
        let all = drain(&self.socket, &mut self.buffer, |_| changed = true);
        self.listed &= all && !changed;
        !self.listed
    }

    /// It has been listed since [`Self::to_list`] was asked.
    pub const fn listed(&mut self) {
        self.listed = true;
    }
}

/// Hands on what is waiting on a socket of [`subscribe`]; false if the kernel had more to say than it could hold.
fn drain(socket: &Socket, buffer: &mut Vec<u8>, mut each: impl FnMut(&[u8])) -> bool {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => each(buffer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                // What else is waiting is of no interest any more.
                while socket.recv(&mut [0u8; 64].as_mut_slice(), 0).is_ok() {}
                return false;
            }
        }
    }
}

/// Of the messages in a datagram. Not by the library: what others' filters do is of no interest, and they may be of
/// kinds that it cannot read.
fn interfaces_of_tc(mut datagram: &[u8], interfaces: &mut BTreeSet<u32>) {
    // nlmsghdr: length, type, flags, sequence number, port; tcmsg: family, padding, ifindex.
    while let [l0, l1, l2, l3, t0, t1, ..] = *datagram {
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        if TC_MESSAGES.contains(&u16::from_ne_bytes([t0, t1]))
            && let Some(&[i0, i1, i2, i3]) = datagram.get(20..24)
        {
            interfaces.insert(u32::from_ne_bytes([i0, i1, i2, i3]));
        }
        let Some(rest) = datagram.get(length.max(16).next_multiple_of(4)..) else { return };
        datagram = rest;
    }
}

/// A socket on which the kernel tells of these groups, in the namespace of the calling thread.
fn subscribe(groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The same, where each message counts.
fn subscribe_with_room(groups: u32) -> io::Result<Socket> {
    let socket = subscribe(groups)?;
    enlarge(&socket);
    Ok(socket)
}

/// Past the limit for everybody where the privilege is there, else up to it.
fn enlarge(socket: &Socket) {
    let bytes = libc::c_int::try_from(EVENT_BUFFER_BYTES).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: an integer option, passed with its size.
        let failed = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if failed == 0 {
            return;
        }
    }
}

/// All interfaces of the client's namespace, or of the one that it knows as `nsid`.
///
/// # Errors
/// What the kernel says; `ENODEV`-like errors if the namespace is gone.
pub fn links(netlink: &mut Netlink, nsid: Option<i32>) -> io::Result<Vec<Link>> {
    let mut request = LinkMessage::default();
    // Those of IPv6, which the kernel adds up over CPUs, are two thirds of an answer.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    if let Some(nsid) = nsid {
        request.attributes.push(LinkAttribute::IfNetnsId(nsid));
    }
    netlink.dump(&RouteNetlinkMessage::GetLink(request), |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from(&link)),
        _ => None,
    })
}

/// One interface of the client's namespace.
///
/// # Errors
/// `ENODEV` if there is none with the index.
pub fn link(netlink: &mut Netlink, ifindex: u32) -> io::Result<Link> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    match netlink.get(RouteNetlinkMessage::GetLink(request))? {
        RouteNetlinkMessage::NewLink(link) => Ok(Link::from(&link)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            kind: None,
            master: None,
            peer_ifindex: None,
            peer_nsid: None,
            moved_to: None,
            mac: Vec::new(),
            stats: KernelStats::default(),
        };
        let mut named_kind = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Link(peer) => link.peer_ifindex = Some(*peer),
                LinkAttribute::LinkNetNsId(nsid) => link.peer_nsid = Some(*nsid),
                LinkAttribute::NewNetnsId(nsid) => link.moved_to = Some(*nsid),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Stats64(stats) => link.stats = stats.into(),
                LinkAttribute::LinkInfo(infos) => named_kind = kind_name(infos),
                _ => {}
            }
        }
        link.kind = match named_kind {
            Some(InfoKind::Veth) => Some(InterfaceKind::Veth),
            Some(InfoKind::Bridge) => Some(InterfaceKind::Bridge),
            Some(InfoKind::MacVlan) => Some(InterfaceKind::Macvlan),
            Some(InfoKind::IpVlan) => Some(InterfaceKind::Ipvlan),
            Some(InfoKind::Vlan) => Some(InterfaceKind::Vlan),
            Some(_) => None,
            // Drivers of cards name no kind.
            None => (message.header.link_layer_type == LinkLayerType::Ether).then_some(InterfaceKind::Device),
        };
        link
    }
}

impl Link {
    /// Of a kind that is observed in the host's namespace.
    pub fn is_observed_on_host(&self) -> bool {
        matches!(self.kind, Some(InterfaceKind::Veth | InterfaceKind::Bridge))
    }

    /// As what an interface of a container has to be observed inside: none if it is not the container's way
    /// out, or if its other end is on the host (`host_nsid`: how the host numbers itself) and is observed
    /// there. `within` are the namespaces of containers within the container.
    pub fn observed_inside(&self, host_nsid: Option<i32>, within: &BTreeSet<i32>) -> Option<InterfaceKind> {
        self.kind.filter(|kind| match kind {
            // A port of a bridge inside is the way to a container within the container; one without may be.
            InterfaceKind::Veth => {
                self.master.is_none()
                    && self.peer_nsid.is_some_and(|peer| Some(peer) != host_nsid && !within.contains(&peer))
            }
            // On top of an interface of the same container it would be counted twice.
            InterfaceKind::Macvlan | InterfaceKind::Ipvlan | InterfaceKind::Vlan => self.peer_nsid.is_some(),
            InterfaceKind::Device => true,
            InterfaceKind::Bridge | InterfaceKind::Cgroup => false,
        })
    }
}

fn kind_name(infos: &[LinkInfo]) -> Option<InfoKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

impl From<&Stats64> for KernelStats {
    fn from(stats: &Stats64) -> Self {
        Self {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
            rx_errors: stats.rx_errors,
            tx_errors: stats.tx_errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<InterfaceKind>, peer_nsid: Option<i32>, master: Option<u32>) -> Link {
        Link { kind, peer_nsid, master, ..Link::from(&LinkMessage::default()) }
    }

    #[test]
    fn what_is_observed_inside() {
        use InterfaceKind::{Bridge, Device, Ipvlan, Macvlan, Veth};
        let (host, within) = (Some(3), BTreeSet::from([8]));
        for (link, expected, what) in [
            (link(Some(Veth), host, None), None, "its other end is on the host"),
            (link(Some(Veth), Some(0), None), Some(Veth), "overlay: the other end is the engine's"),
            (link(Some(Veth), Some(0), Some(7)), None, "a container within the container"),
            (link(Some(Veth), Some(8), None), None, "the same, without a bridge"),
            (link(Some(Veth), None, None), None, "both ends inside"),
            (link(Some(Macvlan), host, None), Some(Macvlan), "on an interface of the host"),
            (link(Some(Macvlan), None, None), None, "on an interface of its own"),
            (link(Some(Ipvlan), Some(5), None), Some(Ipvlan), "on an interface elsewhere"),
            (link(Some(Device), None, None), Some(Device), "a card"),
            (link(Some(Bridge), None, None), None, "a bridge inside"),
            (link(None, None, None), None, "a tunnel"),
        ] {
            assert_eq!(link.observed_inside(host, &within), expected, "{what}");
        }
    }

    #[test]
    fn whose_filters_a_datagram_tells_of() {
        let message = |kind: u16, ifindex: u32, more: usize| {
            let mut message = u32::try_from(36 + more).expect("short").to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.extend([0; 14]);
            message.extend(ifindex.to_ne_bytes());
            message.resize((36 + more).next_multiple_of(4), 0xff);
            message
        };
        let of = |datagram: &[u8]| {
            let mut found = BTreeSet::new();
            interfaces_of_tc(datagram, &mut found);
            found.into_iter().collect::<Vec<_>>()
        };
        // New and deleted filters and qdiscs; a class (40) and a link (16) are of no interest.
        let all =
            [(44, 7, 3), (45, 300_000, 0), (36, 9, 1), (37, 10, 8), (40, 11, 0), (16, 12, 0), (44, 7, 0)];
        let datagram = all.map(|(kind, ifindex, more)| message(kind, ifindex, more)).concat();
        assert_eq!(of(&datagram), [7, 9, 10, 300_000]);
        for end in 0..datagram.len() {
            assert!(of(&datagram[..end]).iter().all(|ifindex| [7, 9, 10, 300_000].contains(ifindex)));
        }
        assert_eq!(of(&[0; 24]), [0_u32; 0], "a length of nothing");
    }
}
