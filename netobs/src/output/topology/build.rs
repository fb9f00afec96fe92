//! From a snapshot to its topology.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    graph::{
        Container, Engine, Graph, HostInterface, Inside, Key, Namespace, Network, Port, Relation,
        RelationKind, Topology, VERSION,
    },
    isolation::{Reach, isolation},
};
use crate::model::{
    self, ContainerState, InterfaceKind, Snapshot,
    snapshot::{ContainerInterface, EngineStatus},
};

/// Option of macvlan and ipvlan networks.
const PARENT: &str = "parent";

impl Topology {
    /// Of everything that has not ended.
    pub fn of(snapshot: &Snapshot) -> Self {
        let containers: Vec<&model::Container> =
            snapshot.containers.iter().filter(|container| !has_ended(container.state)).collect();
        let networks: Vec<Network> = snapshot.networks.iter().map(network).collect();
        let namespaces = Namespaces::of(&containers);
        let mut graph = Graph {
            engines: engines(snapshot, &containers),
            interfaces: snapshot.interfaces.iter().map(host_interface).collect(),
            namespaces: namespaces.nodes(),
            containers: containers.iter().map(|one| container(one, &networks, &namespaces)).collect(),
            ports: containers.iter().flat_map(|container| ports(container)).collect(),
            networks,
            ..Graph::default()
        };
        graph.relations = relations(snapshot, &graph, &containers);
        graph.isolation = {
            let mut on: BTreeMap<&Key, BTreeSet<&Key>> = BTreeMap::new();
            for relation in graph.relations.iter().filter(|one| one.kind == RelationKind::Connected) {
                on.entry(&relation.to).or_default().insert(&relation.from);
            }
            isolation(&graph.engines, &graph.networks, &on)
        };
        Self { version: VERSION, time: snapshot.time, graph }
    }
}

fn has_ended(state: ContainerState) -> bool {
    matches!(state, ContainerState::Exited | ContainerState::Dead | ContainerState::Removed)
}

/// Those that netobs follows, and the names that containers and networks carry without one.
fn engines(snapshot: &Snapshot, containers: &[&model::Container]) -> Vec<Engine> {
    let mut engines: Vec<Engine> = snapshot.engines.iter().map(engine).collect();
    let named = containers.iter().map(|container| &container.engine);
    for name in named.chain(snapshot.networks.iter().map(|network| &network.engine)) {
        if !engines.iter().any(|engine| engine.name == *name) {
            engines.push(Engine {
                key: Key::engine(name),
                name: name.clone(),
                endpoint: None,
                connected: None,
                version: None,
                problem: None,
            });
        }
    }
    engines
}

fn engine(status: &EngineStatus) -> Engine {
    Engine {
        key: Key::engine(&status.name),
        name: status.name.clone(),
        endpoint: Some(status.endpoint.clone()),
        connected: Some(status.connected),
        version: status.version.clone(),
        problem: status.problem.clone(),
    }
}

fn network(network: &model::Network) -> Network {
    Network {
        key: Key::network(&network.engine, &network.id),
        id: network.id.clone(),
        name: network.name.clone(),
        driver: network.driver.clone(),
        engine: network.engine.clone(),
        internal: network.internal,
        bridge: network.bridge.clone(),
        parent: network.options.get(PARENT).cloned(),
        reach: Reach::of(&network.driver, network.internal),
        subnets: network.subnets.clone(),
        options: network.options.clone(),
    }
}

fn host_interface(interface: &model::Interface) -> HostInterface {
    HostInterface {
        key: Key::interface(&interface.name),
        name: interface.name.clone(),
        ifindex: interface.ifindex,
        kind: interface.kind,
    }
}

fn container(container: &model::Container, networks: &[Network], namespaces: &Namespaces) -> Container {
    Container {
        key: Key::container(&container.id),
        id: container.id.clone(),
        name: container.name.clone(),
        image: container.image.clone(),
        state: container.state,
        engine: container.engine.clone(),
        compose: container.compose.clone(),
        pod: container.pod.clone(),
        network_mode: container.network_mode.clone(),
        namespace: namespaces.of_container(&container.id),
        shares: shares(container).map(Key::container),
        interfaces: container
            .interfaces
            .iter()
            .filter(|interface| is_there(interface))
            .map(|interface| inside(interface, &container.engine, networks))
            .collect(),
    }
}

/// A snapshot has interfaces that are gone as well.
fn is_there(interface: &ContainerInterface) -> bool {
    interface.ifindex.is_some()
        || interface.host_interface.is_some()
        || interface.kind == Some(InterfaceKind::Cgroup)
}

fn inside(interface: &ContainerInterface, engine: &str, networks: &[Network]) -> Inside {
    let network = interface.network.as_deref().and_then(|name| network_named(networks, engine, name));
    Inside {
        name: interface.name.clone(),
        ifindex: interface.ifindex,
        kind: interface.kind,
        observed: interface.observed,
        network: network.map(|network| network.key.clone()),
        driver: interface.driver.clone(),
        mac: interface.mac.clone(),
        addresses: interface.addresses.clone(),
        host_interface: interface.host_interface.clone(),
    }
}

/// The engine's own of that name; any engine's for a container that no engine told of.
fn network_named<'a>(networks: &'a [Network], engine: &str, name: &str) -> Option<&'a Network> {
    let mut named = networks.iter().filter(|network| network.name == name);
    let first = named.clone().next();
    named.find(|network| network.engine == engine).or(first)
}

fn ports(container: &model::Container) -> Vec<Port> {
    let port = |published: &model::Published| Port {
        key: Key::port(&container.id, published.protocol, published.container_port),
        container: Key::container(&container.id),
        protocol: published.protocol,
        container_port: published.container_port,
        bindings: published.bindings.clone(),
    };
    container.published.iter().map(port).collect()
}

/// The ID of the container whose namespace it was put into.
fn shares(container: &model::Container) -> Option<&str> {
    container.network_mode.as_deref()?.strip_prefix("container:")
}

/// Which namespace each container is in.
struct Namespaces {
    by_container: BTreeMap<String, Key>,
    nodes: BTreeMap<Key, Namespace>,
}

impl Namespaces {
    fn of(containers: &[&model::Container]) -> Self {
        let by_id: BTreeMap<&str, &model::Container> =
            containers.iter().map(|container| (container.id.as_str(), *container)).collect();
        let mut all = Self { by_container: BTreeMap::new(), nodes: BTreeMap::new() };
        for container in containers {
            // What could not be looked at itself is where the container is that it was put with.
            let owner = shares(container).and_then(|owner| by_id.get(owner));
            let name = container.namespace.as_ref().or(owner.and_then(|owner| owner.namespace.as_ref()));
            let key = match name {
                Some(name) => Key::namespace(name),
                None => Key::namespace_of(owner.map_or(&container.id, |owner| &owner.id)),
            };
            let namespace = all.nodes.entry(key.clone()).or_insert_with(|| Namespace {
                key: key.clone(),
                name: name.cloned(),
                host: false,
            });
            namespace.host |= is_on_host(container);
            all.by_container.insert(container.id.clone(), key);
        }
        all
    }

    fn nodes(&self) -> Vec<Namespace> {
        self.nodes.values().cloned().collect()
    }

    fn of_container(&self, id: &str) -> Key {
        self.by_container.get(id).cloned().unwrap_or_else(|| Key::namespace_of(id))
    }
}

/// Only a container in the host's namespace is observed by its cgroup.
fn is_on_host(container: &model::Container) -> bool {
    container.network_mode.as_deref() == Some("host")
        || container.interfaces.iter().any(|interface| interface.kind == Some(InterfaceKind::Cgroup))
}

fn relations(snapshot: &Snapshot, graph: &Graph, containers: &[&model::Container]) -> Vec<Relation> {
    let relation = |kind, from: &Key, to: &Key, interface: Option<&String>| Relation {
        kind,
        from: from.clone(),
        to: to.clone(),
        interface: interface.cloned(),
    };
    let known: BTreeSet<&Key> = graph.interfaces.iter().map(|interface| &interface.key).collect();
    let mut all = Vec::new();
    for network in &graph.networks {
        all.push(relation(RelationKind::Manages, &Key::engine(&network.engine), &network.key, None));
        let bridge = network.bridge.as_deref().map(Key::interface);
        if let Some(bridge) = bridge.filter(|bridge| known.contains(bridge)) {
            all.push(relation(RelationKind::Bridge, &network.key, &bridge, None));
        }
    }
    for interface in &snapshot.interfaces {
        let bridge = interface.bridge.as_deref().map(Key::interface);
        if let Some(bridge) = bridge.filter(|bridge| known.contains(bridge)) {
            all.push(relation(RelationKind::PortOf, &Key::interface(&interface.name), &bridge, None));
        }
    }
    for (node, container) in graph.containers.iter().zip(containers) {
        all.push(relation(RelationKind::Runs, &Key::engine(&node.engine), &node.key, None));
        all.push(relation(RelationKind::Holds, &node.namespace, &node.key, None));
        let mut on = BTreeSet::new();
        for inside in &node.interfaces {
            if let Some(network) = &inside.network {
                on.insert(network.clone());
                all.push(relation(RelationKind::Connected, &node.key, network, inside.name.as_ref()));
            }
            let veth = inside.host_interface.as_deref().map(Key::interface);
            if let Some(veth) = veth.filter(|veth| known.contains(veth)) {
                all.push(relation(RelationKind::LeadsTo, &veth, &node.key, inside.name.as_ref()));
            }
        }
        // Where the engine says that it is, and no interface is known: `none`, and what is not observed.
        let told =
            container.endpoints.iter().filter(|endpoint| container.networks.contains(&endpoint.network));
        for endpoint in told {
            let key = Key::network(&container.engine, &endpoint.network_id);
            if graph.network(&key).is_some() && on.insert(key.clone()) {
                all.push(relation(RelationKind::Connected, &node.key, &key, None));
            }
        }
    }
    for port in &graph.ports {
        all.push(relation(RelationKind::Publishes, &port.container, &port.key, None));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    fn topology() -> Graph {
        Topology::of(&fixture::snapshot()).graph
    }

    fn has(graph: &Graph, kind: RelationKind, from: &Key, to: &Key, interface: Option<&str>) -> bool {
        graph.to(kind, from).any(|one| one.to == *to && one.interface.as_deref() == interface)
    }

    #[test]
    fn what_hangs_together_is_related() {
        let graph = topology();
        let (web, shop) = (Key::container(&fixture::id('a')), Key::network("docker", &fixture::id('e')));
        let (veth, bridge) = (Key::interface("vetha"), Key::interface("br-eeeeeeeeeeee"));
        assert!(has(&graph, RelationKind::Connected, &web, &shop, Some("eth0")));
        assert!(has(&graph, RelationKind::LeadsTo, &veth, &web, Some("eth0")));
        assert!(has(&graph, RelationKind::PortOf, &veth, &bridge, None));
        assert!(has(&graph, RelationKind::Bridge, &shop, &bridge, None));
        assert!(has(&graph, RelationKind::Manages, &Key::engine("docker"), &shop, None));
        let port = Key::port(&fixture::id('a'), model::Protocol::Tcp, 80);
        assert!(has(&graph, RelationKind::Publishes, &web, &port, None));
        assert_eq!(graph.from(RelationKind::Holds, &web).count(), 1);
    }

    #[test]
    fn what_has_ended_is_not_there() {
        let graph = topology();
        assert!(graph.containers.iter().all(|container| container.name != "job"));
        let mut snapshot = fixture::snapshot();
        let web = snapshot.containers.iter_mut().find(|container| container.name == "web-1").expect("web-1");
        web.interfaces[0].host_interface = None;
        web.interfaces[0].ifindex = None;
        let graph = Topology::of(&snapshot).graph;
        let web = graph.container(&Key::container(&fixture::id('a'))).expect("web-1");
        assert!(web.interfaces.is_empty(), "an interface that is gone: {web:?}");
    }

    #[test]
    fn counters_change_nothing() {
        let mut later = fixture::snapshot();
        for container in &mut later.containers {
            container.rx = fixture::traffic(12345);
            container.rates = None;
        }
        assert_eq!(Topology::of(&later).graph, topology());
    }

    #[test]
    fn members_are_in_the_namespace_of_the_one_they_were_put_with() {
        let mut snapshot = fixture::snapshot();
        let mut side = fixture::container('7', "side", "shop_default", 1);
        side.network_mode = Some(format!("container:{}", fixture::id('a')));
        side.interfaces.clear();
        side.endpoints.clear();
        snapshot.containers.push(side);
        for (own, theirs) in [(None, None), (None, Some("net:[7]")), (Some("net:[7]"), Some("net:[7]"))] {
            for (digit, namespace) in [('7', own), ('a', theirs)] {
                let id = fixture::id(digit);
                let container = snapshot.containers.iter_mut().find(|one| one.id == id).expect("container");
                container.namespace = namespace.map(str::to_owned);
            }
            let graph = Topology::of(&snapshot).graph;
            let of = |digit| graph.container(&Key::container(&fixture::id(digit))).expect("container");
            assert_eq!(of('7').namespace, of('a').namespace);
            assert_eq!(of('7').shares.as_ref(), Some(&of('a').key));
        }
    }

    #[test]
    fn the_hosts_namespace_is_told_from_others() {
        let mut snapshot = fixture::snapshot();
        for container in &mut snapshot.containers {
            let name = if container.name == "host-net" { "net:[1]" } else { "net:[2]" };
            container.namespace = Some(name.to_owned());
        }
        let hosts: Vec<_> = Topology::of(&snapshot).graph.namespaces.iter().map(|one| one.host).collect();
        assert_eq!(hosts, [true, false]);
    }
}
