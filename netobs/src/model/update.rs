//! What changes the state: each thing that the kernel, netlink, `/proc` or an engine has told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use netobs_common::Counters;
use serde::{Deserialize, Serialize};

use super::{
    drops::DropSample,
    event::EventBatch,
    flow::FlowId,
    reconcile::Reading,
    sender::Senders,
    snapshot::{Baseline, Compose, Endpoint, EngineStatus, Pod, Subnet},
    tcp::TcpSample,
    workload::{PodIdentity, ServiceInfo},
};

/// One attachment of netobs to one interface, never used twice in a run (an ifindex may be).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceKey(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceKind {
    /// One end of a pair. On the host: what it receives, the container has sent.
    Veth,
    /// A bridge device: what the host itself exchanges with the network behind it.
    Bridge,
    Macvlan,
    Ipvlan,
    /// A VLAN of another interface.
    Vlan,
    /// A device without a software kind that was moved into the container: a card, a virtual function.
    Device,
    /// No interface: the sockets of a container in the host's namespace.
    Cgroup,
}

impl InterfaceKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Vlan => "vlan",
            Self::Device => "device",
            Self::Cgroup => "cgroup",
        }
    }
}

/// From where something is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// At an interface of the host's namespace: a container's traffic is seen from the other end.
    Host,
    /// At the container's own interface, in its namespace.
    Inside,
    /// At the sockets of its cgroup: packets from the IP header on.
    Cgroup,
}

/// An attached interface, as netlink describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceInfo {
    pub key: InterfaceKey,
    pub ifindex: u32,
    pub name: String,
    pub kind: InterfaceKind,
    pub place: Place,
    /// ifindex of the bridge that it is a port of.
    pub master: Option<u32>,
    /// The other end of a veth pair: its ifindex in its own namespace.
    pub peer_ifindex: Option<u32>,
    /// The other end's namespace, as numbered by the host's (`IFLA_LINK_NETNSID`); none: the host's own.
    pub peer_nsid: Option<i32>,
}

impl Place {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Inside => "inside",
            Self::Cgroup => "cgroup",
        }
    }
}

/// The kernel's own counters of an interface (`IFLA_STATS64`), as the device counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct KernelStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
}

/// The container behind an attachment, and the end that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub container: String,
    pub inner: InnerLink,
}

/// Transport protocols that have published ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a container's port is reached on the host, as its engine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    pub protocol: Protocol,
    pub container_port: u16,
    /// None: not known; `0.0.0.0` and `::` are all of the host's.
    pub host_address: Option<IpAddr>,
    pub host_port: u16,
}

/// What was counted of one flow since it was last told of, from the container's side: `rx` is what it received.
/// One flow may be told of several times at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    pub interface: InterfaceKey,
    /// The container's end, as its packets have it. Of ICMP and ICMPv6 the port is the identifier of an echo.
    pub local: FlowEnd,
    /// The other end. Of ICMP and ICMPv6 the port is the message's type (of an echo: the request's) in the upper
    /// half and its code in the lower.
    pub remote: FlowEnd,
    /// IANA number.
    pub protocol: u8,
    pub rx: FlowCount,
    pub tx: FlowCount,
    /// TCP flags seen, [`netobs_common::FIRST`] and [`netobs_common::OPENED`].
    pub rx_flags: u8,
    pub tx_flags: u8,
    /// Packets of TCP with a window of 0, and neither SYN nor RST.
    pub rx_zero_windows: u64,
    pub tx_zero_windows: u64,
    /// When its first and its last packet passed, good to some milliseconds.
    pub first: Instant,
    pub last: Instant,
}

impl FlowRecord {
    pub const fn id(&self) -> FlowId {
        let Self { interface, local, remote, protocol, .. } = *self;
        FlowId { interface, local, remote, protocol }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowEnd {
    pub address: IpAddr,
    pub port: u16,
}

/// Packets as the stack counts them, and as on a wire: super-packets unfolded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowCount {
    pub packets: u64,
    pub bytes: u64,
    pub wire_packets: u64,
    pub wire_bytes: u64,
}

impl std::ops::AddAssign for FlowCount {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.wire_packets += other.wire_packets;
        self.wire_bytes += other.wire_bytes;
    }
}

/// A process of the engine that passes on connections to a container's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxy {
    pub protocol: Protocol,
    pub container_address: IpAddr,
    pub container_port: u16,
}

/// What was read of one interface at one time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub key: InterfaceKey,
    pub ingress: Counters,
    pub egress: Counters,
    /// None where source MAC addresses are not compared.
    pub senders: Option<Senders>,
    /// None if the interface was gone when the kernel was asked.
    pub kernel: Option<KernelStats>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
    Dead,
    /// Removed from its engine; shown until its grace period ends.
    Removed,
    /// Found without an engine's help: it has a process, more is not known.
    #[default]
    Unknown,
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        })
    }
}

/// A container as an engine (or `/proc`) describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Full ID (64 hex digits with Docker).
    pub id: String,
    /// Without the engine's leading slash; empty where not known.
    pub name: String,
    pub image: String,
    pub state: ContainerState,
    /// Which engine told: `docker`, `podman`, `containerd`, `cri-o`, `proc` or `demo`.
    pub engine: String,
    /// First process, as numbered in the host's PID namespace; none when not running.
    pub pid: Option<u32>,
    pub compose: Option<Compose>,
    /// The pod that it is of, or the sandbox of.
    pub pod: Option<Pod>,
    /// As the engine says: `bridge`, `host`, `none`, `container:ID`, a network's name; empty: not known.
    pub network_mode: String,
    pub endpoints: Vec<Endpoint>,
    pub published: Vec<PublishedPort>,
}

impl ContainerInfo {
    /// Whether a port of it, by IANA protocol number, is reached through the host.
    pub fn publishes(&self, protocol: u8, port: u16) -> bool {
        self.published
            .iter()
            .any(|published| published.protocol.number() == protocol && published.container_port == port)
    }
}

/// A container network as its engine describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkInfo {
    pub id: String,
    pub name: String,
    pub driver: String,
    pub engine: String,
    /// Name of the bridge device on the host, where the driver has one.
    pub bridge: Option<String>,
    pub internal: bool,
    pub subnets: Vec<Subnet>,
    /// The driver's, as given when the network was made.
    pub options: BTreeMap<String, String>,
}

/// One interface inside a container's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InnerLink {
    /// As numbered inside.
    pub ifindex: u32,
    /// Set if the host has no interface of its own to observe it at: it is observed inside, as this.
    pub inside: Option<InterfaceKind>,
    pub name: String,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    pub addresses: Vec<IpAddr>,
}

/// The network namespace of a container, read while its process was there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `(dev, inode)` of `/proc/PID/ns/net`.
    pub identity: (u64, u64),
    /// As numbered by the host's namespace; none while the host has not numbered it (nothing of the
    /// host's is connected to it).
    pub nsid: Option<i32>,
    /// It is the host's own.
    pub host: bool,
    pub links: Vec<InnerLink>,
    /// Docker's name server is in it, at 127.0.0.11.
    pub embedded_dns: bool,
    /// Why what is in it could not be seen.
    pub unseen: Option<String>,
}

/// What others have done to netobs's programs at an interface or cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removal {
    /// Removed a filter.
    FilterRemoved,
    /// Removed the clsact qdisc, with all filters.
    QdiscRemoved,
    /// Detached a link.
    LinkDetached,
    /// Put a program of theirs first, which may end the chain.
    Displaced,
}

impl Removal {
    pub const ALL: [Self; 4] = [Self::FilterRemoved, Self::QdiscRemoved, Self::LinkDetached, Self::Displaced];

    pub const fn name(self) -> &'static str {
        match self {
            Self::FilterRemoved => "filter_removed",
            Self::QdiscRemoved => "qdisc_removed",
            Self::LinkDetached => "link_detached",
            Self::Displaced => "displaced",
        }
    }
}

#[derive(Clone, Debug)]
pub enum Update {
    /// netobs counts here from now on.
    Attached {
        interface: InterfaceInfo,
        /// Known from the beginning where it was attached because of its container.
        owner: Option<Owner>,
        /// None where the kernel keeps no counters of its own: what passed before is not known.
        baseline: Option<Baseline>,
        /// What the kernel's own counters said then.
        kernel: KernelStats,
        /// Since netlink told of the interface.
        latency: Option<Duration>,
    },
    /// What others had removed or displaced is attached again.
    Reattached {
        /// None: a name server inside a container, where nothing is counted by the kernel.
        interface: Option<InterfaceKey>,
        why: Removal,
        /// What the kernel has counted by now and netobs has not. None where the kernel keeps no counters.
        baseline: Option<Baseline>,
    },
    /// What could not be attached is gone, or is attached now.
    Vanished {
        what: String,
    },
    /// Same attachment, something about the interface is new; its counters up to then.
    Changed(InterfaceInfo, Box<Sample>),
    /// The interface is gone or has left the host's namespace; its last counters.
    Detached(Box<Sample>),
    /// What should be observed and is not.
    AttachFailed {
        /// Tells it from others: its ifindex, or its container and name.
        what: String,
        name: String,
        reason: String,
    },
    /// An interface of the host was moved into another namespace, as the host numbers it.
    MovedInto {
        nsid: i32,
    },
    /// An engine has connected a container with a network; both by ID. When, by the engine's clock.
    Connected {
        container: String,
        network: String,
        at: Instant,
    },
    Samples(Vec<Sample>),
    /// Counters between two readings of the kernel's.
    Reconciled(Vec<Reading>),
    /// What flows have counted since they were last told of.
    Flows(Vec<FlowRecord>),
    /// All addresses that the host has.
    HostAddresses(BTreeSet<IpAddr>),
    /// Engines' proxies for published ports that run.
    Proxies(BTreeSet<Proxy>),
    /// Packets that are told of one by one.
    Events(EventBatch),
    /// The name server inside a container's namespace: where it is observed, or why it is not.
    Resolver {
        container: String,
        observed: Result<InterfaceKey, String>,
    },
    /// It is not observed any more.
    ResolverGone {
        key: InterfaceKey,
    },
    /// Packets that the kernel dropped.
    Drops(Box<DropSample>),
    /// How TCP connections fared.
    Tcp(Box<TcpSample>),
    Engine(EngineStatus),
    /// Who listens at this endpoint is no engine.
    NoEngine {
        endpoint: String,
    },
    /// All containers of an engine; any other that it had is removed.
    Containers {
        engine: String,
        containers: Vec<ContainerInfo>,
    },
    Container(ContainerInfo),
    Removed {
        id: String,
    },
    /// A container's process is gone, which no engine has told.
    Ended {
        id: String,
    },
    /// Where a container's process is. Fresh: it binds the host interfaces that lead there now.
    Namespace {
        id: String,
        namespace: Namespace,
    },
    /// All networks of an engine.
    Networks {
        engine: String,
        networks: Vec<NetworkInfo>,
    },
    /// The API's pods of this node; of any other nothing is known any more.
    Pods(Vec<PodIdentity>),
    Pod(PodIdentity),
    /// By UID.
    PodRemoved {
        uid: String,
    },
    /// All services of the cluster.
    Services(Vec<ServiceInfo>),
    Service(ServiceInfo),
    ServiceRemoved {
        name: String,
    },
    /// The kernel had more to tell of interfaces than could be taken in; all was listed anew.
    EventsLost,
    /// Something that netobs cannot do here at the moment.
    Degraded {
        feature: &'static str,
        why: String,
    },
    /// What was degraded works.
    Works {
        feature: &'static str,
    },
}
