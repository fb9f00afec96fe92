//! What changes the state: each thing that the kernel, netlink, `/proc` or an engine has told.

use std::{fmt, net::IpAddr, time::Duration};

use netobs_common::Counters;
use serde::Serialize;

use super::snapshot::{Baseline, Compose, Endpoint, EngineStatus, Subnet};

/// One attachment of netobs to one interface, never used twice in a run (an ifindex may be).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceKey(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceKind {
    /// The host's end of a pair; what it receives, the container has sent.
    Veth,
    /// A bridge device: what the host itself exchanges with the network behind it.
    Bridge,
}

/// An attached interface, as netlink describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceInfo {
    pub key: InterfaceKey,
    pub ifindex: u32,
    pub name: String,
    pub kind: InterfaceKind,
    /// ifindex of the bridge that it is a port of.
    pub master: Option<u32>,
    /// The other end of a veth pair: its ifindex in its own namespace.
    pub peer_ifindex: Option<u32>,
    /// The other end's namespace, as numbered by the host's (`IFLA_LINK_NETNSID`); none: the host's own.
    pub peer_nsid: Option<i32>,
}

/// The kernel's own counters of an interface (`IFLA_STATS64`), as the device counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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

/// What was read of one interface at one time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub key: InterfaceKey,
    pub ingress: Counters,
    pub egress: Counters,
    /// None if the interface was gone when the kernel was asked.
    pub kernel: Option<KernelStats>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
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
    /// Which engine told: `docker`, `podman`, `proc` or `demo`.
    pub engine: String,
    /// First process, as numbered in the host's PID namespace; none when not running.
    pub pid: Option<u32>,
    pub compose: Option<Compose>,
    /// As the engine says: `bridge`, `host`, `none`, `container:ID`, a network's name; empty: not known.
    pub network_mode: String,
    pub endpoints: Vec<Endpoint>,
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
}

/// One interface inside a container's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerLink {
    /// As numbered inside.
    pub ifindex: u32,
    pub name: String,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    pub addresses: Vec<IpAddr>,
}

/// The network namespace of a container, read while its process was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `(dev, inode)` of `/proc/PID/ns/net`.
    pub identity: (u64, u64),
    /// As numbered by the host's namespace; none while the host has not numbered it (nothing of the
    /// host's is connected to it).
    pub nsid: Option<i32>,
    /// It is the host's own.
    pub host: bool,
    pub links: Vec<InnerLink>,
}

#[derive(Clone, Debug)]
pub enum Update {
    /// netobs counts on this interface from now on; `kernel` is what the kernel's own counters said then,
    /// `latency` the time since netlink told of the interface.
    Attached {
        interface: InterfaceInfo,
        baseline: Baseline,
        kernel: KernelStats,
        latency: Duration,
    },
    /// An interface that could not be attached is gone.
    Vanished {
        ifindex: u32,
    },
    /// Same attachment, something about the interface is new.
    Changed(InterfaceInfo),
    /// The interface is gone or has left the host's namespace; its last counters.
    Detached(Box<Sample>),
    /// An interface that should be observed and is not.
    AttachFailed {
        name: String,
        ifindex: u32,
        reason: String,
    },
    Samples(Vec<Sample>),
    Engine(EngineStatus),
    /// All containers of an engine; any other that it had is removed.
    Containers {
        engine: String,
        containers: Vec<ContainerInfo>,
    },
    Container(ContainerInfo),
    Removed {
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
