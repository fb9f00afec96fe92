//! How TCP connections fare: whose they were, added up; and how single ones stand.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::AddAssign,
    time::{Duration, Instant},
};

use netobs_common::tcp::TCP_BUCKETS;
use serde::Serialize;

use super::{
    snapshot::TcpStatus,
    state::{ContainerEntry, State, is_live, shares_namespace},
    update::{FlowEnd, Namespace},
};

/// What is degraded where a part cannot be had.
pub mod feature {
    /// Handshakes, round-trip times, connects that fail.
    pub const CONNECTIONS: &str = "tcp connections";
    pub const RETRANSMITS: &str = "tcp retransmits";
    pub const RESETS: &str = "tcp resets";
}

/// A network namespace, as the kernel tells of it where its sockets are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpNamespace {
    /// Which another may have after it.
    pub inode: u64,
    /// Which no other ever has; 0 where the kernel gives none.
    pub cookie: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSubject {
    Connected,
    Accepted,
    RoundTrip,
    Refused,
    TimedOut,
    Failed,
    GivenUp,
    Retransmitted,
    ResetSent,
    ResetReceived,
}

/// What was counted since it was last told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAmount {
    pub namespace: TcpNamespace,
    pub subject: TcpSubject,
    /// Of what has a duration, if that is known: into which bucket it falls.
    pub bucket: Option<usize>,
    pub count: u64,
    pub sum_us: u64,
}

/// How one connection stands, as the socket of one of its ends has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConnection {
    pub namespace: TcpNamespace,
    pub local: FlowEnd,
    pub remote: FlowEnd,
    pub begins: bool,
    pub ends: bool,
    pub handshake_us: Option<u32>,
    pub rtt_us: Option<u32>,
    pub retransmitted: u64,
}

/// What was read at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpSample {
    pub amounts: Vec<TcpAmount>,
    /// In the order in which it happened.
    pub connections: Vec<TcpConnection>,
    /// Events that are in neither, by cause, since the start.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Durations, by [`netobs_common::tcp::TCP_BOUNDS_US`]; the last bucket has no bound. Not cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Distribution {
    pub buckets: [u64; TCP_BUCKETS],
    pub sum_us: u64,
    /// How many more there were, of which the duration is not known.
    pub unmeasured: u64,
}

impl Distribution {
    fn add(&mut self, amount: &TcpAmount) {
        match amount.bucket.and_then(|bucket| self.buckets.get_mut(bucket)) {
            Some(bucket) => *bucket += amount.count,
            None => self.unmeasured += amount.count,
        }
        self.sum_us += amount.sum_us;
    }

    pub fn measured(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn all(&self) -> u64 {
        self.measured() + self.unmeasured
    }
}

/// What the sockets of one container did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TcpCounts {
    connections: TcpConnections,
    retransmitted_segments: u64,
    resets: TcpResets,
}

/// Connections that a container opened and accepted, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TcpConnections {
    /// Of connections that it opened: SYN to SYN-ACK.
    pub client_handshake: Distribution,
    /// Of connections that it accepted: SYN-ACK to ACK.
    pub server_handshake: Distribution,
    /// The kernel's smoothed figure, when a connection begins and when it ends.
    pub rtt: Distribution,
    /// Connects that failed: refused, not answered in time, with another error, ended by the program itself.
    pub refused: u64,
    pub timed_out: u64,
    pub failed: u64,
    pub given_up: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TcpResets {
    pub sent: u64,
    pub received: u64,
}

/// How the connections of a container fared, as far as the kernel lets it be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TcpHealth {
    pub connections: Option<TcpConnections>,
    /// SYN and SYN-ACK among them.
    pub retransmitted_segments: Option<u64>,
    pub resets: Option<TcpResets>,
}

impl TcpCounts {
    fn add(&mut self, amount: &TcpAmount) {
        let connections = &mut self.connections;
        let counter = match amount.subject {
            TcpSubject::Connected => return connections.client_handshake.add(amount),
            TcpSubject::Accepted => return connections.server_handshake.add(amount),
            TcpSubject::RoundTrip => return connections.rtt.add(amount),
            TcpSubject::Refused => &mut connections.refused,
            TcpSubject::TimedOut => &mut connections.timed_out,
            TcpSubject::Failed => &mut connections.failed,
            TcpSubject::GivenUp => &mut connections.given_up,
            TcpSubject::Retransmitted => &mut self.retransmitted_segments,
            TcpSubject::ResetSent => &mut self.resets.sent,
            TcpSubject::ResetReceived => &mut self.resets.received,
        };
        *counter += amount.count;
    }
}

impl AddAssign<&Distribution> for Distribution {
    fn add_assign(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += more;
        }
        self.sum_us += other.sum_us;
        self.unmeasured += other.unmeasured;
    }
}

impl AddAssign<&TcpCounts> for TcpCounts {
    fn add_assign(&mut self, other: &Self) {
        let (sum, more) = (&mut self.connections, &other.connections);
        sum.client_handshake += &more.client_handshake;
        sum.server_handshake += &more.server_handshake;
        sum.rtt += &more.rtt;
        sum.refused += more.refused;
        sum.timed_out += more.timed_out;
        sum.failed += more.failed;
        sum.given_up += more.given_up;
        self.retransmitted_segments += other.retransmitted_segments;
        self.resets.sent += other.resets.sent;
        self.resets.received += other.resets.received;
    }
}

/// One end of a connection, by its own socket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TcpEnd {
    /// The client's: SYN to SYN-ACK. The server's: SYN-ACK to ACK. None: not known.
    pub handshake_seconds: Option<f64>,
    /// The kernel's smoothed figure, as it was last told: when the connection began, sent again, or ended.
    pub rtt_seconds: Option<f64>,
    /// The kernel's count.
    pub retransmitted_segments: u64,
}

/// Namespaces of which it is not known whose they are, that are kept apart.
const MAX_PENDING: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct TcpState {
    lost: BTreeMap<&'static str, u64>,
    /// Containers by the cookies of namespaces that were theirs.
    owners: HashMap<TcpNamespace, String>,
    /// What was counted where it is not known yet whose it is, and since when.
    pending: HashMap<TcpNamespace, (TcpCounts, Instant)>,
    /// Counted in namespaces that there was no room for.
    unlisted: u64,
    connections: HashMap<(TcpNamespace, FlowEnd, FlowEnd), Connection>,
    /// Told of connections that there was no room for.
    unlisted_connections: u64,
    /// When it was last told anything; and the time before.
    told: [Option<Instant>; 2],
}

#[derive(Debug)]
struct Connection {
    handshake_us: Option<u32>,
    rtt_us: Option<u32>,
    retransmitted: u64,
    ended: bool,
    at: Instant,
}

impl State {
    /// Takes in what was counted. What is not known to be a container's waits.
    pub(super) fn tcp(&mut self, sample: TcpSample, now: Instant) {
        let mut tcp = self.tcp.take().unwrap_or_default();
        tcp.told = [Some(now), tcp.told[0]];
        tcp.lost = sample.lost;
        for amount in sample.amounts {
            if !tcp.pending.contains_key(&amount.namespace) && tcp.pending.len() >= MAX_PENDING {
                tcp.unlisted += amount.count;
                continue;
            }
            tcp.pending.entry(amount.namespace).or_insert_with(|| (TcpCounts::default(), now)).0.add(&amount);
        }
        for told in &sample.connections {
            tcp.connection(told, self.flows.capacity(), now);
        }
        self.settle_tcp(&mut tcp);
        self.tcp = Some(tcp);
    }

    /// Adds what waits to the containers that are known by now.
    fn settle_tcp(&mut self, tcp: &mut TcpState) {
        let since = tcp.told[1];
        let mut pending = std::mem::take(&mut tcp.pending);
        pending.retain(|namespace, (counts, _)| {
            let known = tcp.owners.get(namespace).cloned();
            let Some(owner) = known.or_else(|| self.owner(*namespace, since)) else { return true };
            let Some(container) = self.containers.get_mut(&owner) else { return true };
            container.tcp += counts;
            if namespace.cookie != 0 {
                tcp.owners.insert(*namespace, owner);
            }
            false
        });
        tcp.pending = pending;
    }

    /// Whose a namespace is, by its inode number. Nobody's where two may have had it: one has ended after `since`.
    fn owner(&self, namespace: TcpNamespace, since: Option<Instant>) -> Option<String> {
        let had = |entry: &ContainerEntry| {
            is_own(entry) && entry.namespace.as_ref().is_some_and(|of| of.identity.1 == namespace.inode)
        };
        let candidates: Vec<(&String, &ContainerEntry)> =
            self.containers.iter().filter(|(_, entry)| had(entry)).collect();
        let lives: Vec<&String> =
            candidates.iter().filter(|(_, entry)| is_live(&entry.info)).map(|(id, _)| *id).collect();
        let ended = |entry: &ContainerEntry| entry.ended.is_some_and(|at| since.is_none_or(|since| at >= since));
        let just_ended = candidates.iter().filter(|(_, entry)| !is_live(&entry.info) && ended(entry)).count();
        match (lives.as_slice(), candidates.as_slice()) {
            ([one], _) if just_ended == 0 => Some((*one).clone()),
            ([], [(one, _)]) => Some((*one).clone()),
            // Several that share it, of which no engine says how: it is theirs who has its interfaces.
            ([_, _, ..], _) if just_ended == 0 => lives.into_iter().find(|id| self.has_interface(id)).cloned(),
            _ => None,
        }
    }

    fn has_interface(&self, id: &str) -> bool {
        let owns = |owner: &super::update::Owner| owner.container == id;
        self.interfaces.values().any(|entry| entry.ended.is_none() && entry.owner.as_ref().is_some_and(owns))
    }

    /// Forgets what nobody turned out to own, and connections that are over.
    pub(super) fn expire_tcp(&mut self, now: Instant) {
        let Some(mut tcp) = self.tcp.take() else { return };
        self.settle_tcp(&mut tcp);
        let (grace, idle) = (self.grace, self.flows.idle());
        let age = |at: Instant| now.saturating_duration_since(at);
        tcp.pending.retain(|_, (_, since)| age(*since) < grace);
        tcp.owners.retain(|_, container| self.containers.contains_key(container));
        // One that lasts is told of when it begins and when it ends; in between its flow tells that it is there.
        let old: HashSet<(FlowEnd, FlowEnd)> = tcp
            .connections
            .iter()
            .filter(|(_, connection)| age(connection.at) >= idle)
            .map(|((_, local, remote), _)| (*local, *remote))
            .collect();
        if !old.is_empty() {
            let flows = self.flows.flows.keys().map(|id| (id.local, id.remote));
            let there: HashSet<(FlowEnd, FlowEnd)> = flows.filter(|ends| old.contains(ends)).collect();
            tcp.connections.retain(|(_, local, remote), connection| {
                age(connection.at) < idle || there.contains(&(*local, *remote))
            });
        }
        self.tcp = Some(tcp);
    }

    /// What is known of a container's connections. None where nothing can be known: nobody looks, or its sockets
    /// are told apart from others' by nothing.
    pub(super) fn fold_tcp(&self, entry: &ContainerEntry) -> Option<TcpHealth> {
        self.tcp.as_ref()?;
        let counts = &entry.tcp;
        if *counts == TcpCounts::default() && (!is_own(entry) || entry.namespace.is_none()) {
            return None;
        }
        let is_known = |feature| !self.degraded.contains_key(feature);
        Some(TcpHealth {
            connections: is_known(feature::CONNECTIONS).then_some(counts.connections),
            retransmitted_segments: is_known(feature::RETRANSMITS).then_some(counts.retransmitted_segments),
            resets: is_known(feature::RESETS).then_some(counts.resets),
        })
    }

    pub(super) fn tcp_status(&self) -> Option<TcpStatus> {
        let tcp = self.tcp.as_ref()?;
        let mut lost = tcp.lost.clone();
        *lost.entry("full").or_default() += tcp.unlisted;
        *lost.entry("flow").or_default() += tcp.unlisted_connections;
        Some(TcpStatus { lost })
    }

    /// To look up ends of connections.
    pub(super) fn tcp_ends(&self) -> TcpEnds<'_> {
        let tcp = self.tcp.as_ref().filter(|tcp| !tcp.connections.is_empty());
        let mut namespaces: HashMap<&str, Vec<TcpNamespace>> = HashMap::new();
        for (namespace, container) in tcp.iter().flat_map(|tcp| &tcp.owners) {
            namespaces.entry(container).or_default().push(*namespace);
        }
        // Of kernels without cookies.
        for (id, entry) in tcp.iter().flat_map(|_| &self.containers).filter(|(_, entry)| is_own(entry)) {
            if let Some(namespace) = &entry.namespace {
                let namespace = TcpNamespace { inode: namespace.identity.1, cookie: 0 };
                namespaces.entry(id).or_default().push(namespace);
            }
        }
        TcpEnds { tcp, namespaces }
    }
}

/// Ends of connections, by whose they are.
pub(super) struct TcpEnds<'a> {
    tcp: Option<&'a TcpState>,
    namespaces: HashMap<&'a str, Vec<TcpNamespace>>,
}

impl TcpEnds<'_> {
    /// A container's end of a connection, as its packets have it.
    pub fn get(&self, container: &str, local: FlowEnd, remote: FlowEnd) -> Option<TcpEnd> {
        let connections = &self.tcp?.connections;
        let mut namespaces = self.namespaces.get(container)?.iter();
        let connection = namespaces.find_map(|namespace| connections.get(&(*namespace, local, remote)))?;
        let seconds = |us: Option<u32>| us.map(|us| Duration::from_micros(u64::from(us)).as_secs_f64());
        Some(TcpEnd {
            handshake_seconds: seconds(connection.handshake_us),
            rtt_seconds: seconds(connection.rtt_us),
            retransmitted_segments: connection.retransmitted,
        })
    }
}

impl TcpState {
    fn connection(&mut self, told: &TcpConnection, capacity: usize, now: Instant) {
        let key = (told.namespace, told.local, told.remote);
        if !self.connections.contains_key(&key) && self.connections.len() >= capacity {
            self.unlisted_connections += 1;
            return;
        }
        let new = || Connection { handshake_us: None, rtt_us: None, retransmitted: 0, ended: false, at: now };
        let connection = self.connections.entry(key).or_insert_with(new);
        if told.begins || connection.ended {
            *connection = new();
        }
        connection.handshake_us = told.handshake_us.or(connection.handshake_us);
        connection.rtt_us = told.rtt_us.or(connection.rtt_us);
        connection.retransmitted = told.retransmitted;
        connection.ended = told.ends;
        connection.at = now;
    }
}

/// Whether the container's sockets are those of its namespace.
fn is_own(entry: &ContainerEntry) -> bool {
    let on_host = entry.namespace.as_ref().is_some_and(|namespace: &Namespace| namespace.host);
    !on_host && !shares_namespace(&entry.info)
}
