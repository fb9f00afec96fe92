//! What is said of a node, in the same words by every output for people. Names in it are escaped for a
//! terminal, and still have to be quoted for what else they are written into.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    graph::{Container, Engine, Graph, HostInterface, Inside, Key, Namespace, Network, Port},
    isolation::{Between, Reach, Why},
};
use crate::{
    model::{InterfaceKind, Place, snapshot::Binding},
    output::format::{escape, short_id},
};

pub fn engine(engine: &Engine) -> String {
    let mut text = escape(&engine.name);
    if let Some(version) = &engine.version {
        text += &format!(" {}", escape(version));
    }
    if let Some(endpoint) = &engine.endpoint {
        text += &format!(" ({})", escape(endpoint));
    }
    if engine.connected == Some(false) {
        text += ": not connected";
    }
    if let Some(problem) = &engine.problem {
        text += &format!(": {}", escape(problem));
    }
    text
}

/// Driver, subnets and gateways.
pub fn network(network: &Network) -> String {
    let mut text = format!("network {} ({})", escape(&network.name), escape(&network.driver));
    for (at, subnet) in network.subnets.iter().enumerate() {
        text += if at == 0 { ": " } else { ", " };
        text += &escape(&subnet.subnet);
        if let Some(gateway) = &subnet.gateway {
            text += &format!(" gateway {}", escape(gateway));
        }
    }
    text
}

/// How two networks are to each other, and the containers on both.
type How<'a> = (Option<bool>, Why, &'a [Key]);

/// What it reaches, and how it is to the others: a line each.
pub fn isolation(graph: &Graph, network: &Network) -> Vec<String> {
    let parent = network.parent.as_deref().map(|parent| format!(" (parent {})", escape(parent)));
    let reach = network.reach.text().map(|text| text.to_owned() + &parent.unwrap_or_default());
    let mut groups: BTreeMap<How, Vec<String>> = BTreeMap::new();
    for Between { a, b, isolated, why, joined_by } in &graph.isolation {
        let other = match (*a == network.key, *b == network.key) {
            (true, _) => b,
            (_, true) => a,
            _ => continue,
        };
        // What its own line, or that of the host's network, says of all.
        let is_host = network.reach == Reach::Host;
        if *why == Why::NoNetwork || (*why == Why::HostOnBridge && !is_host) {
            continue;
        }
        let name = graph.network(other).map(|network| escape(&network.name)).unwrap_or_default();
        groups.entry((*isolated, *why, joined_by)).or_default().push(name);
    }
    let lines = groups.into_iter().rev().map(|((isolated, why, joined_by), names)| {
        between(graph, isolated, why, joined_by, &names.join(", "))
    });
    reach.into_iter().chain(lines).collect()
}

/// Seen from one of the two networks; `others` says which.
pub fn between(graph: &Graph, isolated: Option<bool>, why: Why, joined_by: &[Key], others: &str) -> String {
    if why == Why::Joined {
        let names: Vec<String> = joined_by.iter().map(|key| name_of(graph, key)).collect();
        let plural = if names.len() == 1 { "" } else { "s" };
        return format!("shares container{plural} {} with: {others}", names.join(", "));
    }
    let how = match isolated {
        Some(true) => "isolated from",
        Some(false) => "not isolated from",
        None => "not known whether isolated from",
    };
    format!("{how}: {others} ({})", why.text())
}

pub fn host_interface(interface: &HostInterface) -> String {
    format!("{} {} (ifindex {})", interface.kind.name(), escape(&interface.name), interface.ifindex)
}

pub fn namespace(namespace: &Namespace) -> String {
    let name = namespace.name.as_deref().map_or_else(|| "not known".to_owned(), escape);
    if namespace.host { format!("namespace {name}, the host's") } else { format!("namespace {name}") }
}

/// Name, image, state and Compose service.
pub fn container(container: &Container) -> String {
    format!("container {} ({})", escape(&container.name), what_container(container).join(", "))
}

pub fn what_container(container: &Container) -> Vec<String> {
    let image = container.image.as_deref().map(escape);
    let state = container.state.to_string();
    let compose = container.compose.as_ref();
    let compose = compose.map(|compose| format!("{}/{}", escape(&compose.project), escape(&compose.service)));
    image.into_iter().chain([state]).chain(compose).collect()
}

/// The name, or the short ID of one that is not known.
pub fn name_of(graph: &Graph, container: &Key) -> String {
    match graph.container(container) {
        Some(container) => escape(&container.name),
        None => escape(short_id(container.to_string().trim_start_matches("container:"))),
    }
}

/// An interface of a container among others on the same network: `eth0 172.18.0.2`.
pub fn attachment(inside: &Inside) -> String {
    if inside.kind == Some(InterfaceKind::Cgroup) {
        return "by its sockets".to_owned();
    }
    let name = inside.name.as_deref().map_or_else(|| "?".to_owned(), escape);
    let addresses: Vec<String> = inside.addresses.iter().map(ToString::to_string).collect();
    format!("{name} {}", addresses.join(" ")).trim_end().to_owned()
}

/// An interface of a container with all that is known of it.
pub fn inside(graph: &Graph, inside: &Inside) -> String {
    if inside.kind == Some(InterfaceKind::Cgroup) {
        return "no interface of its own, observed at its sockets".to_owned();
    }
    let mut text = attachment(inside);
    let kinds = [inside.kind.map(|kind| kind.name().to_owned()), inside.mac.as_deref().map(escape)];
    let kinds: Vec<String> = kinds.into_iter().flatten().collect();
    if !kinds.is_empty() {
        text += &format!(" ({})", kinds.join(", "));
    }
    if let Some(network) = inside.network.as_ref().and_then(|key| graph.network(key)) {
        text += &format!(" on {}", escape(&network.name));
    }
    match (inside.observed, &inside.host_interface) {
        (Some(Place::Host), Some(veth)) => text += &format!(", observed at the host's {}", escape(veth)),
        (Some(Place::Host), None) => text += ", observed on the host",
        (Some(Place::Inside), _) => text += ", observed inside",
        (Some(Place::Cgroup), _) => text += ", observed at its sockets",
        (None, _) => {}
    }
    text
}

pub fn port(port: &Port) -> String {
    format!("port {} published on {}", port_number(port), bindings(&port.bindings))
}

/// `80/tcp`
pub fn port_number(port: &Port) -> String {
    format!("{}/{}", port.container_port, port.protocol.name())
}

pub fn bindings(bindings: &[Binding]) -> String {
    let one = |binding: &Binding| match binding.address {
        Some(address) => SocketAddr::new(address, binding.port).to_string(),
        None => binding.port.to_string(),
    };
    bindings.iter().map(one).collect::<Vec<_>>().join(", ")
}
