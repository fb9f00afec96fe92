//! The topology as an indented tree: for each engine its networks, with what is connected, then the
//! namespaces with the containers in them.

use super::{
    graph::{Container, Engine, Graph, HostInterface, Key, Namespace, Network, RelationKind, Topology},
    words,
};
use crate::{model::InterfaceKind, output::format::escape};

/// Lines end in `\n`.
pub fn tree(topology: &Topology) -> String {
    let graph = &topology.graph;
    let mut roots: Vec<Branch> = graph.engines.iter().map(|engine| of_engine(graph, engine)).collect();
    roots.extend(others(graph));
    let mut text = String::new();
    for root in &roots {
        root.write(&mut text, "", "");
    }
    text
}

struct Branch {
    text: String,
    below: Vec<Branch>,
}

impl Branch {
    fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }

    /// `first` goes before its own line, `rest` before those below.
    fn write(&self, to: &mut String, first: &str, rest: &str) {
        to.push_str(&format!("{first}{}\n", self.text));
        for (at, branch) in self.below.iter().enumerate() {
            let (fork, bar) =
                if at + 1 == self.below.len() { ("└── ", "    ") } else { ("├── ", "│   ") };
            branch.write(to, &format!("{rest}{fork}"), &format!("{rest}{bar}"));
        }
    }
}

fn of_engine(graph: &Graph, engine: &Engine) -> Branch {
    let networks = graph.networks.iter().filter(|network| network.engine == engine.name);
    let mut below: Vec<Branch> = networks.map(|network| of_network(graph, network)).collect();
    // One that containers of two engines are in is shown once, with the first of them.
    let first = |namespace: &&Namespace| {
        members(graph, namespace).next().is_some_and(|container| container.engine == engine.name)
    };
    below.extend(graph.namespaces.iter().filter(first).map(|namespace| of_namespace(graph, namespace)));
    Branch { text: words::engine(engine), below }
}

fn of_network(graph: &Graph, network: &Network) -> Branch {
    let mut below: Vec<Branch> = words::isolation(graph, network).into_iter().map(Branch::leaf).collect();
    if !network.options.is_empty() {
        let options: Vec<String> =
            network.options.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
        below.push(Branch::leaf(format!("options: {}", options.join(", "))));
    }
    let bridge = graph.to(RelationKind::Bridge, &network.key).next();
    let bridge = bridge.and_then(|relation| graph.interface(&relation.to));
    let on_bridge = bridge.map(|bridge| ports_of(graph, bridge)).unwrap_or_default();
    below.extend(connected(graph, network, &on_bridge));
    match (bridge, &network.bridge) {
        (Some(bridge), _) => below.push(of_bridge(graph, bridge)),
        (None, Some(name)) => below.push(Branch::leaf(format!("bridge {}, not observed", escape(name)))),
        (None, None) => {}
    }
    Branch { text: words::network(network), below }
}

/// Containers on a network, but for what is seen at a port of its bridge.
fn connected(graph: &Graph, network: &Network, on_bridge: &[&HostInterface]) -> Vec<Branch> {
    let is_port = |veth: Option<&str>| on_bridge.iter().any(|port| Some(port.name.as_str()) == veth);
    let mut branches = Vec::new();
    for container in graph.containers_on(&network.key) {
        let name = escape(&container.name);
        let on_it = container.interfaces.iter().filter(|one| one.network.as_ref() == Some(&network.key));
        let (at_ports, elsewhere): (Vec<_>, Vec<_>) =
            on_it.partition(|interface| is_port(interface.host_interface.as_deref()));
        if at_ports.is_empty() && elsewhere.is_empty() {
            branches.push(Branch::leaf(name));
            continue;
        }
        for interface in elsewhere {
            branches.push(Branch::leaf(format!("{name} {}", words::attachment(interface))));
        }
    }
    branches
}

fn of_bridge(graph: &Graph, bridge: &HostInterface) -> Branch {
    let ports = ports_of(graph, bridge).into_iter().map(|veth| Branch::leaf(of_veth(graph, veth)));
    Branch { text: words::host_interface(bridge), below: ports.collect() }
}

fn ports_of<'a>(graph: &'a Graph, bridge: &HostInterface) -> Vec<&'a HostInterface> {
    graph
        .from(RelationKind::PortOf, &bridge.key)
        .filter_map(|relation| graph.interface(&relation.from))
        .collect()
}

/// A veth and what is at its other end.
fn of_veth(graph: &Graph, veth: &HostInterface) -> String {
    let text = words::host_interface(veth);
    let behind = graph.to(RelationKind::LeadsTo, &veth.key).next();
    match behind.and_then(|relation| graph.container(&relation.to)) {
        None => format!("{text}: of no known container"),
        Some(container) => {
            let inside =
                container.interfaces.iter().find(|one| one.host_interface.as_ref() == Some(&veth.name));
            let inside = inside.map(words::attachment).unwrap_or_default();
            format!("{text} → {} {inside}", escape(&container.name))
        }
    }
}

fn of_namespace(graph: &Graph, namespace: &Namespace) -> Branch {
    let containers = members(graph, namespace).map(|container| of_container(graph, container));
    Branch { text: words::namespace(namespace), below: containers.collect() }
}

fn members<'a>(graph: &'a Graph, namespace: &Namespace) -> impl Iterator<Item = &'a Container> {
    // The one that the others were put with comes first.
    let key = namespace.key.clone();
    let inside = move |container: &&Container| container.namespace == key;
    let owners = graph.containers.iter().filter(|container| container.shares.is_none());
    owners.chain(graph.containers.iter().filter(|container| container.shares.is_some())).filter(inside)
}

fn of_container(graph: &Graph, container: &Container) -> Branch {
    let shares = container.shares.as_ref();
    let shares = shares.map(|owner| format!("shares the network of {}", words::name_of(graph, owner)));
    let interfaces = container.interfaces.iter().map(|interface| words::inside(graph, interface));
    let ports = graph.ports.iter().filter(|port| port.container == container.key).map(words::port);
    let below = shares.into_iter().chain(interfaces).chain(ports).map(Branch::leaf).collect();
    Branch { text: words::container(container), below }
}

/// Bridges that are no known network's, and veths on no bridge that lead to no known container.
fn others(graph: &Graph) -> Option<Branch> {
    let is_network = |bridge: &Key| graph.from(RelationKind::Bridge, bridge).next().is_some();
    let mut below = Vec::new();
    for interface in &graph.interfaces {
        let on_bridge = graph.to(RelationKind::PortOf, &interface.key).next().is_some();
        if interface.kind == InterfaceKind::Bridge {
            if !is_network(&interface.key) {
                below.push(of_bridge(graph, interface));
            }
        } else if !on_bridge {
            below.push(Branch::leaf(of_veth(graph, interface)));
        }
    }
    (!below.is_empty()).then(|| Branch { text: "other interfaces of the host".to_owned(), below })
}
