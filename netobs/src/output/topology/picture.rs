//! What a picture of the topology consists of, for every language that draws one: boxes with a few lines of
//! text, frames around some of them, and lines between them.

use std::collections::BTreeMap;

use super::{
    graph::{Graph, Key, RelationKind, Topology},
    words,
};
use crate::{model::InterfaceKind, output::format::escape};

pub struct Picture {
    pub boxes: Vec<Node>,
    /// Namespaces, with the boxes of what is in them.
    pub frames: Vec<Frame>,
    pub lines: Vec<Line>,
}

/// Its place in [`Picture::boxes`] names it: names of foreign things are only ever text.
pub struct Node {
    pub shape: Shape,
    pub text: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Engine,
    Network,
    Interface,
    Container,
    Port,
}

pub struct Frame {
    pub text: String,
    pub boxes: Vec<usize>,
}

pub struct Line {
    pub from: usize,
    pub to: usize,
    /// Empty: none.
    pub text: String,
}

impl Picture {
    pub fn of(topology: &Topology) -> Self {
        let graph = &topology.graph;
        let mut at = BTreeMap::new();
        let mut boxes = Vec::new();
        for (key, node) in nodes(graph) {
            at.insert(key, boxes.len());
            boxes.push(node);
        }
        Self { frames: frames(graph, &at), lines: lines(graph, &at), boxes }
    }
}

fn nodes(graph: &Graph) -> Vec<(&Key, Node)> {
    let node = |shape, text| Node { shape, text };
    let engines = graph.engines.iter().map(|one| (&one.key, node(Shape::Engine, vec![words::engine(one)])));
    let networks = graph.networks.iter().map(|one| {
        let mut text = vec![words::network(one)];
        text.extend(words::isolation(graph, one));
        (&one.key, node(Shape::Network, text))
    });
    let interfaces = graph
        .interfaces
        .iter()
        .map(|one| (&one.key, node(Shape::Interface, vec![words::host_interface(one)])));
    let containers = graph.containers.iter().map(|one| {
        let mut text = vec![words::container(one)];
        text.extend(one.interfaces.iter().map(words::attachment));
        (&one.key, node(Shape::Container, text))
    });
    let ports = graph.ports.iter().map(|one| (&one.key, node(Shape::Port, vec![words::port(one)])));
    engines.chain(networks).chain(interfaces).chain(containers).chain(ports).collect()
}

fn frames(graph: &Graph, at: &BTreeMap<&Key, usize>) -> Vec<Frame> {
    let frame = |namespace: &super::graph::Namespace| Frame {
        text: words::namespace(namespace),
        boxes: graph
            .to(RelationKind::Holds, &namespace.key)
            .filter_map(|relation| at.get(&relation.to).copied())
            .collect(),
    };
    graph.namespaces.iter().map(frame).collect()
}

/// From engine to network to bridge to veth to container to port; straight from network to container where
/// no interface of the host is between.
fn lines(graph: &Graph, at: &BTreeMap<&Key, usize>) -> Vec<Line> {
    let is_veth =
        |key: &Key| graph.interface(key).is_some_and(|interface| interface.kind == InterfaceKind::Veth);
    let by_veth = |container: &Key, network: &Key| {
        graph.from(RelationKind::LeadsTo, container).any(|relation| {
            is_veth(&relation.from)
                && graph
                    .to(RelationKind::PortOf, &relation.from)
                    .any(|port| graph.to(RelationKind::Bridge, network).any(|bridge| bridge.to == port.to))
        })
    };
    let mut lines = Vec::new();
    for relation in &graph.relations {
        let (from, to) = match relation.kind {
            RelationKind::Manages
            | RelationKind::Bridge
            | RelationKind::LeadsTo
            | RelationKind::Publishes => (&relation.from, &relation.to),
            RelationKind::PortOf => (&relation.to, &relation.from),
            RelationKind::Connected if !by_veth(&relation.from, &relation.to) => {
                (&relation.to, &relation.from)
            }
            // Frames are drawn for these, or the way by the veth is.
            RelationKind::Holds | RelationKind::Runs | RelationKind::Connected => continue,
        };
        if let (Some(from), Some(to)) = (at.get(from), at.get(to)) {
            let text = relation.interface.as_deref().map(escape).unwrap_or_default();
            lines.push(Line { from: *from, to: *to, text });
        }
    }
    lines
}
