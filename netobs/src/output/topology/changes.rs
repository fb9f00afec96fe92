//! What differs between two topologies, a line each: `+` is new, `-` is gone, `~` is different.

use std::collections::BTreeMap;

use super::{
    graph::{Container, Graph, HostInterface, Key, Network, Port, RelationKind, Topology},
    words,
};
use crate::output::format::escape;

/// From `old` to `new`. What is gone comes first: an address may pass from one to another.
pub fn changes(old: &Topology, new: &Topology) -> Vec<String> {
    let (before, after) = (facts(&old.graph), facts(&new.graph));
    let gone = before.iter().filter(|(key, _)| !after.contains_key(key)).map(|(_, fact)| fact.whole('-'));
    let come = after.iter().filter(|(key, _)| !before.contains_key(key)).map(|(_, fact)| fact.whole('+'));
    let other = after.iter().filter_map(|(key, fact)| fact.difference(before.get(key)?));
    gone.chain(come).chain(other).chain(isolation(&old.graph, &new.graph)).collect()
}

/// Something that is there, with what may change about it.
struct Fact {
    what: &'static str,
    name: String,
    /// The name is its own: told when it changes. Else it is made of others' names, which tell it.
    own_name: bool,
    /// Said of it in this order: what it is called, and its value; an empty one is not said.
    details: Vec<(&'static str, String)>,
}

impl Fact {
    fn whole(&self, sign: char) -> String {
        let details: Vec<&str> =
            self.details.iter().map(|(_, value)| value.as_str()).filter(|value| !value.is_empty()).collect();
        let subject = format!("{sign} {} {}", self.what, self.name);
        if details.is_empty() { subject } else { format!("{subject} ({})", details.join(", ")) }
    }

    fn difference(&self, before: &Self) -> Option<String> {
        let mut parts = Vec::new();
        if self.own_name && self.name != before.name {
            parts.push(format!("was {}", before.name));
        }
        for ((what, new), (_, old)) in
            self.details.iter().zip(&before.details).filter(|(new, old)| new != old)
        {
            let said = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
            parts.push(format!("{what} {} (was {})", said(new), said(old)));
        }
        (!parts.is_empty()).then(|| format!("~ {} {}: {}", self.what, self.name, parts.join(", ")))
    }
}

/// By kind, in the order in which things build on each other, then by what stays when they are renamed.
fn facts(graph: &Graph) -> BTreeMap<(u8, Key, String), Fact> {
    let mut facts = BTreeMap::new();
    let mut add = |rank: u8, key: &Key, part: &str, fact| {
        facts.insert((rank, key.clone(), part.to_owned()), fact);
    };
    for engine in &graph.engines {
        let fact = Fact { what: "engine", name: words::engine(engine), own_name: true, details: Vec::new() };
        add(0, &engine.key, "", fact);
    }
    for network in &graph.networks {
        add(1, &network.key, "", of_network(network));
    }
    for interface in &graph.interfaces {
        add(2, &interface.key, &interface.ifindex.to_string(), of_interface(graph, interface));
    }
    for container in &graph.containers {
        add(3, &container.key, "", of_container(graph, container));
        for (part, fact) in attachments(graph, container) {
            add(4, &container.key, &part, fact);
        }
    }
    for port in &graph.ports {
        add(5, &port.key, "", of_port(graph, port));
    }
    facts
}

fn of_network(network: &Network) -> Fact {
    let subnets: Vec<String> = network.subnets.iter().map(|subnet| escape(&subnet.subnet)).collect();
    let details = vec![
        ("driver", escape(&network.driver)),
        ("subnets", subnets.join(" ")),
        ("bridge", network.bridge.as_deref().map(escape).unwrap_or_default()),
    ];
    Fact { what: "network", name: escape(&network.name), own_name: true, details }
}

fn of_interface(graph: &Graph, interface: &HostInterface) -> Fact {
    let bridge = graph.to(RelationKind::PortOf, &interface.key).next();
    let bridge = bridge.and_then(|relation| graph.interface(&relation.to));
    let bridge = bridge.map(|bridge| format!("port of {}", escape(&bridge.name))).unwrap_or_default();
    Fact {
        what: interface.kind.name(),
        name: escape(&interface.name),
        own_name: true,
        details: vec![("now", bridge)],
    }
}

fn of_container(graph: &Graph, container: &Container) -> Fact {
    let namespace = graph.namespaces.iter().find(|namespace| namespace.key == container.namespace);
    let shares =
        container.shares.as_ref().map(|owner| format!("network of {}", words::name_of(graph, owner)));
    let details = vec![
        ("image", container.image.as_deref().map(escape).unwrap_or_default()),
        ("state", container.state.to_string()),
        ("engine", escape(&container.engine)),
        ("network", shares.unwrap_or_default()),
        ("in", namespace.map(words::namespace).unwrap_or_default()),
    ];
    Fact { what: "container", name: escape(&container.name), own_name: true, details }
}

/// A container's places: one for each interface, and for each network without one.
fn attachments(graph: &Graph, container: &Container) -> Vec<(String, Fact)> {
    let place = |network: Option<&Network>, details| {
        let on = network
            .map_or_else(|| "no known network".to_owned(), |one| format!("network {}", escape(&one.name)));
        Fact {
            what: "container",
            name: format!("{} on {on}", escape(&container.name)),
            own_name: false,
            details,
        }
    };
    let mut all = Vec::new();
    for inside in &container.interfaces {
        let veth = inside.host_interface.as_deref().map(escape).unwrap_or_default();
        let network = inside.network.as_ref().and_then(|key| graph.network(key));
        let details = vec![("as", words::attachment(inside)), ("host interface", veth)];
        let part = format!("{:?} {:?}", inside.network, inside.name);
        all.push((part, place(network, details)));
    }
    for relation in graph.to(RelationKind::Connected, &container.key) {
        if container.interfaces.iter().all(|inside| inside.network.as_ref() != Some(&relation.to)) {
            all.push((relation.to.to_string(), place(graph.network(&relation.to), Vec::new())));
        }
    }
    all
}

fn of_port(graph: &Graph, port: &Port) -> Fact {
    let of = format!("{} of {}", words::port_number(port), words::name_of(graph, &port.container));
    Fact { what: "port", name: of, own_name: false, details: vec![("on", words::bindings(&port.bindings))] }
}

/// Only of pairs that were there: with a network, all its pairs come and go.
fn isolation(old: &Graph, new: &Graph) -> Vec<String> {
    let before: BTreeMap<_, _> = old.isolation.iter().map(|pair| ((&pair.a, &pair.b), pair)).collect();
    let changed = |pair: &&super::isolation::Between| {
        before.get(&(&pair.a, &pair.b)).is_some_and(|before| {
            (before.isolated, before.why, &before.joined_by) != (pair.isolated, pair.why, &pair.joined_by)
        })
    };
    let name = |key: &Key| new.network(key).map(|network| escape(&network.name)).unwrap_or_default();
    let line = |pair: &super::isolation::Between| {
        let how = words::between(new, pair.isolated, pair.why, &pair.joined_by, &name(&pair.b));
        format!("~ network {}: {how}", name(&pair.a))
    };
    new.isolation.iter().filter(changed).map(line).collect()
}
