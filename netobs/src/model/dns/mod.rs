//! DNS as containers see it: queries, responses by code, how long they took, what was never answered.

pub mod message;
pub mod stream;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::message::Message;
use super::{
    capture::Way,
    event::{Datagram, Event},
    snapshot::ByName,
    update::{FlowEnd, InterfaceKey},
};

/// A query without a response for so long is unanswered.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Queries that may wait for their response at a time.
const MAX_OUTSTANDING: usize = 16_384;

/// Names that are kept, of all containers together.
pub const MAX_NAMES: usize = 1000;

/// Upper bounds (inclusive, microseconds) of [`DnsLatency::buckets`]; the last bucket has no bound.
pub const DNS_BOUNDS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000,
];

/// Which end the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It asks.
    Client,
    /// It is asked.
    Server,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Where messages are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// At the container's interface, from or to port 53.
    Wire,
    /// In its namespace: Docker's name server at 127.0.0.11. What that asks others is on the wire.
    Embedded,
}

impl Path {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Embedded => "embedded",
        }
    }
}

/// What carries messages. Those of one are counted with those of the other, and do not answer them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Messages of one role by one way. Queries are `retransmitted + untracked + latency's count + unanswered` and
/// those that are still waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct DnsCounts {
    /// Every one, those that were sent again included.
    pub queries: u64,
    /// Of these, by TCP.
    pub tcp_queries: u64,
    /// Sent again (same ends and ID) while the first was waited for.
    pub retransmitted: u64,
    /// By response code: every one.
    pub responses: ByName,
    /// Of these, not the first to a query that was waited for: sent again, too late, never asked for.
    pub unmatched: u64,
    /// Of these, only part of the answer, which is to be asked for by TCP.
    pub truncated: u64,
    /// No response within [`TIMEOUT`] of the first query.
    pub unanswered: u64,
    /// Queries that there was no room to wait for; their responses are `unmatched`.
    pub untracked: u64,
    /// From the first query to the first response.
    pub latency: DnsLatency,
}

/// A distribution of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct DnsLatency {
    /// By [`DNS_BOUNDS_US`], not cumulative.
    pub buckets: [u64; DNS_BOUNDS_US.len() + 1],
    pub sum_ns: u64,
}

impl DnsLatency {
    fn observe(&mut self, ns: u64) {
        let bucket = DNS_BOUNDS_US.partition_point(|bound| bound * 1000 < ns);
        self.buckets[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl DnsCounts {
    /// Queries that may yet be answered.
    pub fn pending(&self) -> u64 {
        let done = self.retransmitted + self.untracked + self.latency.count() + self.unanswered;
        self.queries.saturating_sub(done)
    }
}

impl std::ops::AddAssign<&Self> for DnsCounts {
    fn add_assign(&mut self, other: &Self) {
        self.queries += other.queries;
        self.tcp_queries += other.tcp_queries;
        self.retransmitted += other.retransmitted;
        for (code, count) in &other.responses {
            *self.responses.entry(code.clone()).or_default() += count;
        }
        self.unmatched += other.unmatched;
        self.truncated += other.truncated;
        self.unanswered += other.unanswered;
        self.untracked += other.untracked;
        for (sum, more) in self.latency.buckets.iter_mut().zip(other.latency.buckets) {
            *sum += more;
        }
        self.latency.sum_ns += other.latency.sum_ns;
    }
}

/// What was seen at one place, or of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSeen {
    pub counts: BTreeMap<(Role, Path), DnsCounts>,
    /// Datagrams from or to port 53, and what TCP has there as messages, that are none of DNS.
    pub malformed: u64,
    /// TCP segments with a payload from or to port 53 that could not be read, or not to their end: a connection's
    /// beginning was not seen, or a part of it; more is in one than was told of; more connections than are followed.
    pub unread_segments: u64,
    /// DNS messages that are neither queries nor their responses.
    pub other: u64,
    /// Names that the container asked for, where these are kept, and those that there was no room for.
    pub names: BTreeMap<String, u64>,
    pub other_names: u64,
}

impl std::ops::AddAssign<&Self> for DnsSeen {
    fn add_assign(&mut self, other: &Self) {
        for (key, counts) in &other.counts {
            *self.counts.entry(*key).or_default() += counts;
        }
        self.malformed += other.malformed;
        self.unread_segments += other.unread_segments;
        self.other += other.other;
        for (name, count) in &other.names {
            *self.names.entry(name.clone()).or_default() += count;
        }
        self.other_names += other.other_names;
    }
}

/// One query as its response has it, too. The server's port is left out where it is translated on one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct QueryKey {
    interface: InterfaceKey,
    role: Role,
    path: Path,
    transport: Transport,
    local: FlowEnd,
    remote: FlowEnd,
    id: u16,
}

/// Queries that wait for their responses.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// When each was first sent.
    since_ns: HashMap<QueryKey, u64>,
    /// The same in the order in which they will be unanswered; those that were answered are here for longer.
    order: VecDeque<(u64, QueryKey)>,
}

const DNS_PORT: u16 = 53;

impl Outstanding {
    /// Counts a message that was seen at a place. `names`: whether the name of a query is kept, and of what is
    /// kept how much there is.
    pub fn message(
        &mut self,
        event: &Event,
        path: Path,
        transport: Transport,
        datagram: &Datagram,
        seen: &mut DnsSeen,
    ) -> Option<Role> {
        let Some(message) = message::read(&datagram.bytes, datagram.payload_len) else {
            seen.malformed += 1;
            return None;
        };
        let is_query = match message {
            Message::Query { .. } => true,
            Message::Response { .. } => false,
            Message::Other => {
                seen.other += 1;
                return None;
            }
        };
        let role = if is_query == (event.way == Way::Tx) { Role::Client } else { Role::Server };
        let (local, mut remote) = (datagram.local, datagram.remote);
        let server = if role == Role::Client { remote } else { local };
        match path {
            Path::Embedded => remote.port = 0,
            Path::Wire if server.port != DNS_PORT => {
                seen.other += 1;
                return None;
            }
            Path::Wire => {}
        }
        let counts = seen.counts.entry((role, path)).or_default();
        let key = |id| QueryKey { interface: event.interface, role, path, transport, local, remote, id };
        match message {
            Message::Query { id } => self.query(key(id), event.time_ns, counts),
            Message::Response { id, rcode, truncated } => {
                *counts.responses.entry(message::rcode_name(rcode).into()).or_default() += 1;
                counts.truncated += u64::from(truncated);
                match self.since_ns.remove(&key(id)) {
                    Some(since_ns) => counts.latency.observe(event.time_ns.saturating_sub(since_ns)),
                    None => counts.unmatched += 1,
                }
            }
            Message::Other => {}
        }
        is_query.then_some(role)
    }

    fn query(&mut self, key: QueryKey, time_ns: u64, counts: &mut DnsCounts) {
        counts.queries += 1;
        counts.tcp_queries += u64::from(key.transport == Transport::Tcp);
        if self.since_ns.contains_key(&key) {
            counts.retransmitted += 1;
            return;
        }
        if self.since_ns.len() >= MAX_OUTSTANDING {
            counts.untracked += 1;
            return;
        }
        if self.order.len() >= 2 * MAX_OUTSTANDING {
            let since_ns = &self.since_ns;
            self.order.retain(|(since, key)| since_ns.get(key) == Some(since));
        }
        self.since_ns.insert(key, time_ns);
        self.order.push_back((time_ns, key));
    }

    /// Counts those as unanswered that have waited for too long, by what was seen up to a time.
    pub fn expire(&mut self, read_ns: u64, mut unanswered: impl FnMut(InterfaceKey, Role, Path)) {
        let timeout_ns = u64::try_from(TIMEOUT.as_nanos()).unwrap_or(u64::MAX);
        while let Some((since_ns, key)) = self.order.front().copied()
            && since_ns.saturating_add(timeout_ns) <= read_ns
        {
            self.order.pop_front();
            if self.since_ns.get(&key) == Some(&since_ns) {
                self.since_ns.remove(&key);
                unanswered(key.interface, key.role, key.path);
            }
        }
    }
}
