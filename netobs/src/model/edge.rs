//! Who sends to whom: containers and what else there is, added up for as long as they are there.

use std::collections::BTreeMap;

use serde::Serialize;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
}

impl Edges {
    pub fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// `observed`: whether the destination is, so that what it has not received is none, not unknown.
    pub fn sent(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        let edge = self.count(key);
        *edge.sent.get_or_insert_default() += count;
        if observed {
            edge.received.get_or_insert_default();
        }
    }

    /// `observed`: whether the source is.
    pub fn received(&mut self, key: EdgeKey, count: FlowCount, observed: bool) {
        let edge = self.count(key);
        *edge.received.get_or_insert_default() += count;
        if observed {
            edge.sent.get_or_insert_default();
        }
    }

    fn count(&mut self, key: EdgeKey) -> &mut EdgeCount {
        if self.edges.len() >= self.budget && !self.edges.contains_key(&key) {
            return &mut self.other;
        }
        self.edges.entry(key).or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EdgeKey, &EdgeCount)> {
        self.edges.iter()
    }

    pub const fn other(&self) -> &EdgeCount {
        &self.other
    }

    /// Drops those with an end that is no more.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        let known = |peer: &Peer| match peer {
            Peer::Container(id) => is_known(id),
            Peer::Elsewhere(_) => true,
        };
        self.edges.retain(|key, _| known(&key.source) && known(&key.destination));
    }
}
