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

/// An edge that is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    pub count: EdgeCount,
    /// Each packet once: at its source, while that is observed, else at its destination.
    pub once: FlowCount,
}

impl Kept {
    fn sent(&mut self, count: FlowCount, observed: bool) {
        self.once += count;
        *self.count.sent.get_or_insert_default() += count;
        if observed {
            self.count.received.get_or_insert_default();
        }
    }

    fn received(&mut self, count: FlowCount, observed: bool) {
        *self.count.received.get_or_insert_default() += count;
        if observed {
            self.count.sent.get_or_insert_default();
        } else {
            self.once += count;
        }
    }
}

#[derive(Debug, Default)]
pub struct Edges {
    /// How many are kept apart.
    budget: usize,
    edges: BTreeMap<EdgeKey, Kept>,
    /// What the others are added up in: some are observed at their source, others at their destination alone.
    other: Kept,
}

impl Edges {
    pub fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// `observed`: whether the destination is, so that what it has not received is none, not unknown.
    pub fn sent(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        self.kept(key).sent(count, observed);
    }

    /// `observed`: whether the source is.
    pub fn received(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        self.kept(key).received(count, observed);
    }

    fn kept(&mut self, key: EdgeKey) -> &mut Kept {
        if self.edges.len() >= self.budget && !self.edges.contains_key(&key) {
            return &mut self.other;
        }
        self.edges.entry(key).or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EdgeKey, &Kept)> {
        self.edges.iter()
    }

    pub const fn other(&self) -> &Kept {
        &self.other
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

    fn container(name: &str) -> Peer {
        Peer::Container(name.to_owned())
    }

    fn packets(packets: u64) -> FlowCount {
        FlowCount { packets, ..FlowCount::default() }
    }

    #[test]
    fn over_the_budget_nothing_is_lost() {
        let edge = |port| EdgeKey { source: container("a"), destination: container("b"), protocol: 6, port };
        let mut edges = Edges::new(2);
        for port in 1..=5 {
            edges.sent(edge(port), packets(10), true);
            edges.received(edge(port), packets(9), true);
        }
        let kept: Vec<u16> = edges.iter().map(|(key, _)| key.port).collect();
        assert_eq!(kept, [1, 2]);
        let other = edges.other().count;
        assert_eq!(other.sent.zip(other.received), Some((packets(30), packets(27))));
        assert_eq!(edges.other().once, packets(30), "at the source, where that is observed");
        let from_outside = EdgeKey { source: Peer::Elsewhere(Class::External), ..edge(80) };
        edges.received(from_outside, packets(4), false);
        assert_eq!(edges.other().once, packets(34), "at the destination, where the source is not");
        // What is kept stays so, and there is room again when an end is gone.
        edges.sent(edge(1), packets(5), true);
        assert_eq!(edges.iter().next().and_then(|(_, kept)| kept.count.sent), Some(packets(15)));
        edges.retain(|id| id != "b");
        assert_eq!(edges.iter().count(), 0);
        edges.sent(edge(9), packets(1), true);
        assert_eq!(edges.iter().count(), 1);
    }

    /// A source that is observed only after its packets have arrived somewhere, and one that is no more.
    #[test]
    fn each_packet_once_whoever_is_observed() {
        let key = |port| EdgeKey { source: container("a"), destination: container("b"), protocol: 6, port };
        let mut edges = Edges::new(9);
        edges.received(key(1), packets(10), false);
        edges.received(key(1), packets(2), true);
        edges.sent(key(1), packets(3), true);
        edges.received(key(1), packets(4), false);
        assert_eq!(edges.iter().next().map(|(_, kept)| kept.once), Some(packets(10 + 3 + 4)));
    }
}
