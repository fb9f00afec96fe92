//! Whereto a flow goes, as its container sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    published::contains,
    state::{State, is_live, shares_namespace},
    update::{FlowEnd, Place},
};

/// Decided once for a flow, and then for all of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
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
    /// A service of Kubernetes, or in a network that was named as the cluster's.
    Cluster,
    /// Anywhere else.
    External,
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
        }
    }
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// A container, by ID.
    Container(String),
    /// A service's address in the cluster (`NAMESPACE/NAME`): which of its pods is behind it is not seen here.
    Service(Arc<str>),
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

    /// Whether a container is told of, be it that it has ended.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.state.containers.contains_key(id)
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
        // With IPVS the host has these addresses itself.
        if let Some(service) = self.state.kubernetes.service_at(address) {
            return (Class::Cluster, Peer::Service(Arc::clone(service)));
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

    pub(super) fn is_published(&self, point: &Point, protocol: u8, port: u16) -> bool {
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

/// Whether a point is known well enough to classify what passes it: by its engine, where there is any, and not
/// before services are known, where they are asked for.
pub fn is_settled(state: &State, point: &Point) -> bool {
    let engine_to_come = || state.any_engine();
    !state.kubernetes.awaited
        && state
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::model::{
        ContainerInfo, ContainerState, Endpoint, NetworkInfo, Protocol, PublishedPort, ServiceInfo, Subnet,
        Update,
        flow::FlowOptions,
        state::{PODS, SERVICES},
    };

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn network(n: u8) -> NetworkInfo {
        NetworkInfo {
            id: format!("id{n}"),
            name: format!("net{n}"),
            driver: "bridge".to_owned(),
            engine: "docker".to_owned(),
            bridge: Some(format!("br{n}")),
            subnets: vec![Subnet { subnet: format!("10.{n}.0.0/24"), gateway: Some(format!("10.{n}.0.1")) }],
            ..NetworkInfo::default()
        }
    }

    fn container(name: &str, network: u8, address: &str) -> Update {
        Update::Container(ContainerInfo {
            id: name.to_owned(),
            name: name.to_owned(),
            state: ContainerState::Running,
            engine: "docker".to_owned(),
            pid: Some(1),
            endpoints: vec![Endpoint {
                network: format!("net{network}"),
                network_id: format!("id{network}"),
                addresses: vec![address.parse().expect("an address")],
                mac: None,
            }],
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_address: None,
                host_port: 8080,
            }],
            ..ContainerInfo::default()
        })
    }

    /// `web` and `db` on one network, `other` on another; the host is 192.168.0.5 as well.
    fn state() -> State {
        let options = FlowOptions { cluster: vec!["10.96.0.0/12".to_owned()], ..FlowOptions::default() };
        let mut state = State::new("auto", Duration::from_secs(300)).with_flows(options);
        let now = Instant::now();
        let host =
            ["10.1.0.1", "10.2.0.1", "192.168.0.5"].map(|address| address.parse::<IpAddr>().expect("one"));
        for update in [
            Update::Networks { engine: "docker".to_owned(), networks: vec![network(1), network(2)] },
            Update::HostAddresses(host.into()),
            container("web", 1, "10.1.0.2"),
            container("db", 1, "10.1.0.3"),
            container("other", 2, "10.2.0.2"),
        ] {
            state.apply(update, now);
        }
        state
    }

    #[test]
    fn where_the_other_end_is() {
        let state = state();
        let map = Map::new(&state);
        let point = Point {
            container: "web".to_owned(),
            network: Some("net1".to_owned()),
            addresses: vec!["10.1.0.2".parse().expect("an address")],
            of_cgroup: false,
        };
        let of = |protocol, port, remote: &str| {
            let end = |address: &str, port| FlowEnd { address: address.parse().expect("an address"), port };
            map.classify(&point, protocol, end("10.1.0.2", port), end(remote, 40000))
        };
        let is = |name: &str| Peer::Container(name.to_owned());
        let elsewhere = |class| (class, Peer::Elsewhere(class));
        assert_eq!(of(TCP, 5000, "10.1.0.3"), (Class::SameNetwork, is("db")));
        assert_eq!(of(TCP, 5000, "10.2.0.2"), (Class::OtherNetwork, is("other")));
        assert_eq!(of(UDP, 5353, "224.0.0.251"), elsewhere(Class::SameNetwork));
        assert_eq!(of(TCP, 5000, "10.1.0.99"), elsewhere(Class::SameNetwork), "nobody's, on its subnet");
        assert_eq!(of(TCP, 5000, "10.2.0.99"), elsewhere(Class::OtherNetwork));
        for host in ["10.1.0.1", "192.168.0.5", "127.0.0.1"] {
            assert_eq!(of(TCP, 5000, host), elsewhere(Class::Host), "{host}");
        }
        assert_eq!(of(TCP, 5000, "10.97.3.4"), elsewhere(Class::Cluster));
        assert_eq!(of(TCP, 5000, "203.0.113.9"), elsewhere(Class::External));
        // At the port that is published, whoever comes from elsewhere, or through the host; other containers come
        // as themselves.
        for client in ["203.0.113.9", "10.1.0.1", "10.97.3.4"] {
            assert_eq!(of(TCP, 80, client), elsewhere(Class::PublishedPort), "{client}");
        }
        assert_eq!(of(UDP, 80, "203.0.113.9"), elsewhere(Class::External), "TCP is published");
        assert_eq!(of(TCP, 80, "10.1.0.3"), (Class::SameNetwork, is("db")));
    }

    #[test]
    fn a_services_address_is_the_service() {
        let mut state = state();
        let now = Instant::now();
        // The first is in the cluster's network, the second one of the host's own, as with IPVS.
        let service = |name: &str, address: &str| {
            let addresses = vec![address.parse().expect("an address")];
            Update::Service(ServiceInfo { name: name.to_owned(), addresses })
        };
        state.apply(service("shop/web", "10.97.0.1"), now);
        state.apply(service("shop/db", "192.168.0.5"), now);
        let point = Point { container: "web".to_owned(), ..Point::default() };
        let end = |address: &str| FlowEnd { address: address.parse().expect("an address"), port: 1 };
        let of =
            |state: &State, remote: &str| Map::new(state).classify(&point, TCP, end("10.1.0.2"), end(remote));
        for (name, address) in [("shop/web", "10.97.0.1"), ("shop/db", "192.168.0.5")] {
            assert_eq!(of(&state, address), (Class::Cluster, Peer::Service(name.into())));
        }
        state.apply(Update::ServiceRemoved { name: "shop/web".to_owned() }, now);
        assert_eq!(of(&state, "10.97.0.1"), (Class::Cluster, Peer::Elsewhere(Class::Cluster)));
    }

    #[test]
    fn flows_wait_for_services_and_not_for_ever() {
        let point = Point { container: "web".to_owned(), ..Point::default() };
        let told = Update::Services(Vec::new());
        let refused = |feature| Update::Degraded { feature, why: "403".to_owned() };
        for (update, settled) in [(told, true), (refused(SERVICES), true), (refused(PODS), false)] {
            let mut state = state().on_node(None, true);
            assert!(!is_settled(&state, &point));
            state.apply(update, Instant::now());
            assert_eq!(is_settled(&state, &point), settled);
        }
    }

    #[test]
    fn on_the_hosts_network_no_other_is_the_same() {
        let state = state();
        let map = Map::new(&state);
        let point = Point {
            container: "onhost".to_owned(),
            network: Some("host".to_owned()),
            addresses: Vec::new(),
            of_cgroup: true,
        };
        let end = |address: &str| FlowEnd { address: address.parse().expect("an address"), port: 1 };
        let of = |remote: &str| map.classify(&point, TCP, end("192.168.0.5"), end(remote));
        assert_eq!(of("10.1.0.3"), (Class::OtherNetwork, Peer::Container("db".to_owned())));
        assert_eq!(of("127.0.0.1"), (Class::Host, Peer::Elsewhere(Class::Host)));
    }
}
