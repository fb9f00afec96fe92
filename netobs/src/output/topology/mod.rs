//! How engines, networks, interfaces, namespaces, containers and ports hang together: as a tree, DOT,
//! Mermaid and JSON, and what differs between two times.

mod build;
mod changes;
mod dot;
mod graph;
mod isolation;
mod mermaid;
mod picture;
mod tree;
mod words;

pub use self::{changes::changes, dot::dot, graph::*, isolation::*, mermaid::mermaid, tree::tree};

/// One line of JSON without its end, described by `docs/topology.schema.json`.
pub fn json(topology: &Topology) -> serde_json::Result<String> {
    super::json::document(topology)
}

#[cfg(test)]
mod tests;
