//! The topology: what there is (nodes) and how it hangs together (relations). No counters are in it, so
//! that two of them differ only when something was connected, started, renamed or ended.
//!
//! Its JSON form is documented in `docs/topology.schema.json`.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::SystemTime};

use serde::Serialize;

use super::isolation::{Between, Reach};
use crate::model::{
    Compose, ContainerState, InterfaceKind, Place, Pod, Protocol, Subnet,
    snapshot::{Binding, unix_seconds},
};

/// Version of the JSON form: raised when a field is removed or changes its meaning.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Topology {
    /// [`VERSION`].
    pub version: u32,
    /// Seconds since the epoch, with fraction.
    #[serde(serialize_with = "unix_seconds::serialize")]
    pub time: SystemTime,
    #[serde(flatten)]
    pub graph: Graph,
}

/// All but the time: equal as long as nothing has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Graph {
    pub engines: Vec<Engine>,
    /// Sorted by name, then ID.
    pub networks: Vec<Network>,
    /// Of the host's namespace, sorted by name.
    pub interfaces: Vec<HostInterface>,
    /// Those that a known container is in.
    pub namespaces: Vec<Namespace>,
    /// Those that have not ended, sorted by name, then ID.
    pub containers: Vec<Container>,
    pub ports: Vec<Port>,
    pub relations: Vec<Relation>,
    /// Each pair of networks of one engine.
    pub isolation: Vec<Between>,
}

/// Names a node within one topology, and the same node in a later one: `container:ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    pub fn engine(name: &str) -> Self {
        Self(format!("engine:{name}"))
    }

    pub fn network(engine: &str, id: &str) -> Self {
        Self(format!("network:{engine}:{id}"))
    }

    /// Names of interfaces are unique on the host.
    pub fn interface(name: &str) -> Self {
        Self(format!("interface:{name}"))
    }

    /// As `readlink /proc/PID/ns/net` has it.
    pub fn namespace(name: &str) -> Self {
        Self(format!("namespace:{name}"))
    }

    /// The namespace of a container that could not be looked at.
    pub fn namespace_of(container: &str) -> Self {
        Self(format!("namespace:of:{container}"))
    }

    pub fn container(id: &str) -> Self {
        Self(format!("container:{id}"))
    }

    pub fn port(container: &str, protocol: Protocol, port: u16) -> Self {
        Self(format!("port:{container}:{}:{port}", protocol.name()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    pub key: Key,
    /// `docker`, `podman`, `proc`, `demo`.
    pub name: String,
    /// None for what stands in for an engine.
    pub endpoint: Option<String>,
    pub connected: Option<bool>,
    pub version: Option<String>,
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    pub key: Key,
    pub id: String,
    pub name: String,
    pub driver: String,
    pub engine: String,
    pub internal: bool,
    /// Name of the bridge device on the host.
    pub bridge: Option<String>,
    /// The host's interface that macvlan and ipvlan use.
    pub parent: Option<String>,
    pub reach: Reach,
    pub subnets: Vec<Subnet>,
    pub options: BTreeMap<String, String>,
}

/// A bridge or a veth of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostInterface {
    pub key: Key,
    pub name: String,
    pub ifindex: u32,
    pub kind: InterfaceKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    pub key: Key,
    /// `net:[4026532310]`; none where the container's process could not be looked at.
    pub name: Option<String>,
    /// It is the host's own.
    pub host: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    pub key: Key,
    pub id: String,
    pub name: String,
    pub image: Option<String>,
    pub state: ContainerState,
    pub engine: String,
    pub compose: Option<Compose>,
    /// The pod that it is of, or the sandbox of.
    pub pod: Option<Pod>,
    pub network_mode: Option<String>,
    pub namespace: Key,
    /// The container whose namespace it was put into (`container:NAME`, pods).
    pub shares: Option<Key>,
    pub interfaces: Vec<Inside>,
}

/// An interface in a container's namespace, or the sockets of one that is in the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inside {
    pub name: Option<String>,
    pub ifindex: Option<u32>,
    pub kind: Option<InterfaceKind>,
    pub observed: Option<Place>,
    pub network: Option<Key>,
    /// The network's.
    pub driver: Option<String>,
    pub mac: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// The veth on the host.
    pub host_interface: Option<String>,
}

/// A port of a container that is reached through the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub key: Key,
    pub container: Key,
    pub protocol: Protocol,
    pub container_port: u16,
    pub bindings: Vec<Binding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Relation {
    pub kind: RelationKind,
    pub from: Key,
    pub to: Key,
    /// Name inside the container, where it is by one of its interfaces.
    pub interface: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationKind {
    /// Engine to network.
    Manages,
    /// Engine to container.
    Runs,
    /// Network to the bridge device that it is.
    Bridge,
    /// Veth to the bridge that it is a port of.
    PortOf,
    /// Veth of the host to the container that its other end is in.
    LeadsTo,
    /// Container to network.
    Connected,
    /// Namespace to container.
    Holds,
    /// Container to published port.
    Publishes,
}

impl Graph {
    /// What relations of one kind lead to from a node.
    pub fn to(&self, kind: RelationKind, from: &Key) -> impl Iterator<Item = &Relation> {
        self.relations.iter().filter(move |relation| relation.kind == kind && relation.from == *from)
    }

    /// From where relations of one kind lead to a node.
    pub fn from(&self, kind: RelationKind, to: &Key) -> impl Iterator<Item = &Relation> {
        self.relations.iter().filter(move |relation| relation.kind == kind && relation.to == *to)
    }

    pub fn container(&self, key: &Key) -> Option<&Container> {
        self.containers.iter().find(|container| container.key == *key)
    }

    /// Each once, however many of its interfaces are on the network.
    pub fn containers_on(&self, network: &Key) -> Vec<&Container> {
        let is_on = |one: &&Container| self.to(RelationKind::Connected, &one.key).any(|r| r.to == *network);
        self.containers.iter().filter(is_on).collect()
    }

    pub fn network(&self, key: &Key) -> Option<&Network> {
        self.networks.iter().find(|network| network.key == *key)
    }

    pub fn interface(&self, key: &Key) -> Option<&HostInterface> {
        self.interfaces.iter().find(|interface| interface.key == *key)
    }
}
