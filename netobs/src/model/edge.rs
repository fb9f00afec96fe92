//! Who sends to whom: containers and what else there is, added up for as long as they are there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{class::Peer, update::FlowCount};

/// Data that goes one way between two ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeKey {
    pub source: Peer,
    pub destination: Peer,
    /// IANA number.
    pub protocol: u8,
    /// The service's, whichever end that is; 0 where the protocol has none.
    pub port: u16,
}

/// The same packets at both ends, as far as they are observed there: what was sent and not received was lost
/// between, or is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EdgeCount {
    /// At the source; none where that is not observed.
    pub sent: Option<FlowCount>,
    /// At the destination; none where that is not observed.
    pub received: Option<FlowCount>,
}

impl EdgeCount {
    /// Each packet once: at its source, where that is observed.
    pub fn once(&self) -> FlowCount {
        self.sent.or(self.received).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub struct Edges {
    /// How many are kept apart.
    budget: usize,
    edges: BTreeMap<EdgeKey, EdgeCount>,
    /// What the others are added up in.
    other: EdgeCount,
    /// Of these, each packet once: some are observed at their source, others at their destination alone.
    other_once: FlowCount,
}

impl Edges {
    pub fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// `observed`: whether the destination is, so that what it has not received is none, not unknown.
    pub fn sent(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        let (edge, once) = self.count(key);
        if let Some(once) = once {
            *once += count;
        }
        *edge.sent.get_or_insert_default() += count;
        if observed {
            edge.received.get_or_insert_default();
        }
    }

    /// `observed`: whether the source is.
    pub fn received(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        let (edge, once) = self.count(key);
        if let Some(once) = once.filter(|_| !observed) {
            *once += count;
        }
        *edge.received.get_or_insert_default() += count;
        if observed {
            edge.sent.get_or_insert_default();
        }
    }

    /// Of one that is over the budget, also what has each packet once.
    fn count(&mut self, key: EdgeKey) -> (&mut EdgeCount, Option<&mut FlowCount>) {
        if self.edges.len() >= self.budget && !self.edges.contains_key(&key) {
            return (&mut self.other, Some(&mut self.other_once));
        }
        (self.edges.entry(key).or_default(), None)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EdgeKey, &EdgeCount)> {
        self.edges.iter()
    }

    pub const fn other(&self) -> &EdgeCount {
        &self.other
    }

    /// Of [`Self::other`], each packet once.
    pub const fn other_once(&self) -> FlowCount {
        self.other_once
    }

    /// Drops those with an end that is no more.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        let known = |peer: &Peer| match peer {
            Peer::Container(id) => is_known(id),
            Peer::Service(_) | Peer::Elsewhere(_) => true,
        };
        self.edges.retain(|key, _| known(&key.source) && known(&key.destination));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::class::Class;

    #[test]
    fn over_the_budget_nothing_is_lost() {
        let container = |name: &str| Peer::Container(name.to_owned());
        let edge = |port| EdgeKey { source: container("a"), destination: container("b"), protocol: 6, port };
        let packets = |packets| FlowCount { packets, ..FlowCount::default() };
        let mut edges = Edges::new(2);
        for port in 1..=5 {
            edges.sent(edge(port), packets(10), true);
            edges.received(edge(port), packets(9), true);
        }
        let kept: Vec<u16> = edges.iter().map(|(key, _)| key.port).collect();
        assert_eq!(kept, [1, 2]);
        let other = edges.other();
        assert_eq!(other.sent.zip(other.received), Some((packets(30), packets(27))));
        assert_eq!(edges.other_once(), packets(30), "at the source, where that is observed");
        let from_outside = EdgeKey { source: Peer::Elsewhere(Class::External), ..edge(80) };
        edges.received(from_outside, packets(4), false);
        assert_eq!(edges.other_once(), packets(34), "at the destination, where the source is not");
        // What is kept stays so, and there is room again when an end is gone.
        edges.sent(edge(1), packets(5), true);
        assert_eq!(edges.iter().next().and_then(|(_, count)| count.sent), Some(packets(15)));
        edges.retain(|id| id != "b");
        assert_eq!(edges.iter().count(), 0);
        edges.sent(edge(9), packets(1), true);
        assert_eq!(edges.iter().count(), 1);
    }
}
