//! Whereto a flow goes, as its container sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;

use super::{
    published::contains,
    state::{State, is_live, shares_namespace},
    update::{FlowEnd, Place},
};

/// Decided once for a flow, and then for all of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// To or from a neighbour on the same network, or all of them (multicast, broadcast).
    SameNetwork,
    /// A container or an address of another network of an engine of this host.
    OtherNetwork,
    /// The host itself.
    Host,
    /// To a port of the container that is published, from outside of its network.
    PublishedPort,
    /// In a network that was named as the cluster's.
    Cluster,
    /// Anywhere else.
    External,
    /// Whose flow it was never became known.
    Unknown,
}

impl Class {
    pub const fn name(self) -> &'static str {
        match self {
            Self::SameNetwork => "same_network",
            Self::OtherNetwork => "other_network",
            Self::Host => "host",
            Self::PublishedPort => "published_port",
            Self::Cluster => "cluster",
            Self::External => "external",
            Self::Unknown => "unknown",
        }
    }
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// A container, by ID.
    Container(String),
    Elsewhere(Class),
}

/// A place where flows are counted: whose, and where.
#[derive(Clone, Debug, Default)]
pub struct Point {
    pub container: String,
    pub network: Option<String>,
    /// The container's own there; empty where not known.
    pub addresses: Vec<IpAddr>,
    /// It observes the sockets of a container that shares the host's network.
    pub of_cgroup: bool,
}

/// What classifying needs to know, gathered once for many flows.
pub struct Map<'a> {
    state: &'a State,
    /// Containers that have an address, with the network that they have it on.
    owners: BTreeMap<IpAddr, Vec<(&'a str, Option<String>)>>,
    host: &'a BTreeSet<IpAddr>,
}

impl<'a> Map<'a> {
    pub fn new(state: &'a State) -> Self {
        let mut owners: BTreeMap<IpAddr, Vec<(&str, Option<String>)>> = BTreeMap::new();
        for (id, entry) in &state.containers {
            let of_namespace = entry.namespace.as_ref().is_some_and(|namespace| namespace.host);
            if shares_namespace(&entry.info) || of_namespace || !is_live(&entry.info) {
                continue;
            }
            for endpoint in &entry.info.endpoints {
                for address in &endpoint.addresses {
                    owners.entry(*address).or_default().push((id, Some(endpoint.network.clone())));
                }
            }
        }
        // What no engine tells of: addresses as they are inside.
        for entry in state.interfaces.values().filter(|entry| entry.ended.is_none()) {
            let Some(owner) = &entry.owner else { continue };
            let Some(container) = state.containers.get(&owner.container) else { continue };
            for address in &owner.inner.addresses {
                let known = owners.entry(*address).or_default();
                if !known.iter().any(|(id, _)| *id == owner.container) {
                    known.push((&container.info.id, entry.network(&container.info)));
                }
            }
        }
        Self { state, owners, host: &state.host_addresses }
    }

    /// The other end of a flow of a container, and what kind of way leads there.
    pub fn classify(&self, point: &Point, protocol: u8, local: FlowEnd, remote: FlowEnd) -> (Class, Peer) {
        let address = remote.address;
        let elsewhere = |class| (class, Peer::Elsewhere(class));
        if is_for_neighbours(address) {
            return elsewhere(Class::SameNetwork);
        }
        if address.is_loopback() {
            return elsewhere(Class::Host);
        }
        let published = self.is_published(point, protocol, local.port);
        if self.is_hosts(point, address) {
            return elsewhere(if published { Class::PublishedPort } else { Class::Host });
        }
        if let Some((id, network)) = self.owner(point, address) {
            let same = network.is_some() && *network == point.network && !point.of_cgroup;
            let class = if same { Class::SameNetwork } else { Class::OtherNetwork };
            return (class, Peer::Container((*id).to_owned()));
        }
        if let Some(class) = self.by_subnet(point, address) {
            return elsewhere(class);
        }
        if published {
            return elsewhere(Class::PublishedPort);
        }
        if self.state.cluster.iter().any(|cidr| contains(cidr, address)) {
            return elsewhere(Class::Cluster);
        }
        elsewhere(Class::External)
    }

    /// The container that has an address: on the same network before any other; if several others have it, it
    /// cannot be told.
    fn owner(&self, point: &Point, address: IpAddr) -> Option<&(&'a str, Option<String>)> {
        let owners = self.owners.get(&address)?;
        owners
            .iter()
            .find(|(_, network)| network.is_some() && *network == point.network)
            .or(if let [only] = owners.as_slice() { Some(only) } else { None })
    }

    /// Of the host, or the gateway of the container's network, which is the host's there.
    fn is_hosts(&self, point: &Point, address: IpAddr) -> bool {
        self.host.contains(&address)
            || self.state.networks.values().any(|network| {
                Some(&network.name) == point.network.as_ref()
                    && network.bridge.is_some()
                    && network.subnets.iter().any(|subnet| {
                        subnet.gateway.as_ref().and_then(|gateway| gateway.parse().ok()) == Some(address)
                    })
            })
    }

    fn is_published(&self, point: &Point, protocol: u8, port: u16) -> bool {
        self.state.containers.get(&point.container).is_some_and(|entry| entry.info.publishes(protocol, port))
    }

    /// By the subnets of the engines' networks.
    fn by_subnet(&self, point: &Point, address: IpAddr) -> Option<Class> {
        let within = |network: &&super::NetworkInfo| {
            network.subnets.iter().any(|subnet| contains(&subnet.subnet, address))
        };
        let mut networks = self.state.networks.values().filter(within).peekable();
        networks.peek()?;
        let same = !point.of_cgroup && networks.any(|network| Some(&network.name) == point.network.as_ref());
        Some(if same { Class::SameNetwork } else { Class::OtherNetwork })
    }
}

/// Not for one address, or for the link alone.
pub(super) fn is_for_neighbours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Whether a point is known well enough to classify what passes it: by its engine, where there is any.
pub fn is_settled(state: &State, point: &Point) -> bool {
    let engine_to_come = || state.any_engine();
    state
        .containers
        .get(&point.container)
        .is_some_and(|entry| entry.info.engine != super::state::PROC || !engine_to_come())
}

impl State {
    /// Where an attachment that goes on counts.
    pub(super) fn point(&self, key: super::InterfaceKey) -> Option<Point> {
        let entry = self.interfaces.get(&key)?;
        let owner = entry.owner.as_ref()?;
        let container = self.containers.get(&owner.container)?;
        let of_engine = container.info.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        Some(Point {
            container: owner.container.clone(),
            network: entry.network(&container.info),
            addresses: owner.inner.addresses.iter().chain(of_engine).copied().collect(),
            of_cgroup: entry.info.place == Place::Cgroup,
        })
    }
}
