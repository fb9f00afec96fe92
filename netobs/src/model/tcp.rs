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
    /// What was counted where it is not known yet whose it is.
    pending: HashMap<TcpNamespace, Pending>,
    /// Counted in namespaces that there was no room for.
    unlisted: u64,
    /// Counted in namespaces that may have been one container's or another's.
    ambiguous: u64,
    connections: HashMap<(TcpNamespace, FlowEnd, FlowEnd), Connection>,
    /// Told of connections that there was no room for.
    unlisted_connections: u64,
    /// When it was last told.
    told: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    counts: TcpCounts,
    /// All in one number.
    all: u64,
    first: Instant,
    /// The newest of it is no older; none if that is not known.
    since: Option<Instant>,
}

/// What is known of a namespace.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    One(String),
    /// One's who has just ended, or another's who has come after it.
    Either,
    Nobody,
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
        let since = tcp.told.replace(now);
        tcp.lost = sample.lost;
        for amount in sample.amounts {
            if !tcp.pending.contains_key(&amount.namespace) && tcp.pending.len() >= MAX_PENDING {
                tcp.unlisted += amount.count;
                continue;
            }
            let new = || Pending { counts: TcpCounts::default(), all: 0, first: now, since };
            let pending = tcp.pending.entry(amount.namespace).or_insert_with(new);
            pending.counts.add(&amount);
            pending.all += amount.count;
            pending.since = since;
        }
        for told in &sample.connections {
            tcp.connection(told, self.flows.capacity(), now);
        }
        self.settle_tcp(&mut tcp);
        self.tcp = Some(tcp);
    }

    /// Adds what waits to the containers that are known by now.
    fn settle_tcp(&mut self, tcp: &mut TcpState) {
        let mut waiting = std::mem::take(&mut tcp.pending);
        waiting.retain(|namespace, pending| {
            let whose = match tcp.owners.get(namespace) {
                Some(owner) => Whose::One(owner.clone()),
                None => self.whose(tcp, *namespace, pending.since),
            };
            match whose {
                Whose::One(owner) => {
                    let Some(container) = self.containers.get_mut(&owner) else { return true };
                    container.tcp += &pending.counts;
                    if namespace.cookie != 0 {
                        tcp.owners.insert(*namespace, owner);
                    }
                    false
                }
                // With a cookie the next that is counted tells who is left.
                Whose::Either if namespace.cookie == 0 => {
                    tcp.ambiguous += pending.all;
                    false
                }
                Whose::Either | Whose::Nobody => true,
            }
        });
        tcp.pending = waiting;
    }

    /// Whose a namespace is, by its inode number, that was last seen after `since`.
    fn whose(&self, tcp: &TcpState, namespace: TcpNamespace, since: Option<Instant>) -> Whose {
        let had = |entry: &ContainerEntry| {
            is_own(entry) && entry.namespace.as_ref().is_some_and(|of| of.identity.1 == namespace.inode)
        };
        // What has ended with another namespace of that number has not had this one.
        let had_another =
            |id: &String| tcp.owners.iter().any(|(of, owner)| of.inode == namespace.inode && owner == id);
        let candidates = self.containers.iter().filter(|(_, entry)| had(entry));
        let (live, ended): (Vec<_>, Vec<_>) = candidates.partition(|(_, entry)| is_live(&entry.info));
        let lately =
            |entry: &ContainerEntry| entry.ended.is_some_and(|at| since.is_none_or(|since| at >= since));
        let mut ended = ended.into_iter().filter(|(id, _)| !had_another(id));
        match live.as_slice() {
            [] => match (ended.next(), ended.next()) {
                (Some((id, _)), None) => Whose::One(id.clone()),
                (None, _) => Whose::Nobody,
                _ => Whose::Either,
            },
            _ if ended.any(|(_, entry)| lately(entry)) => Whose::Either,
            [(id, _)] => Whose::One((*id).clone()),
            // Several that share it, of which no engine says how: it is theirs who has its interfaces.
            several => {
                let owner = several.iter().find(|(id, _)| self.has_interface(id));
                owner.map_or(Whose::Nobody, |(id, _)| Whose::One((*id).clone()))
            }
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
        let mut over = std::mem::take(&mut tcp.pending);
        let waiting = over.extract_if(|_, pending| age(pending.first) < grace).collect();
        for (namespace, pending) in &over {
            if self.whose(&tcp, *namespace, pending.since) == Whose::Either {
                tcp.ambiguous += pending.all;
            }
        }
        tcp.pending = waiting;
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
        lost.insert("ambiguous", tcp.ambiguous);
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{ContainerInfo, ContainerState, Update};

    const INODE: u64 = 4_026_532_000;

    fn connects(inode: u64, cookie: u64, count: u64) -> TcpAmount {
        TcpAmount {
            namespace: TcpNamespace { inode, cookie },
            subject: TcpSubject::Connected,
            bucket: Some(3),
            count,
            sum_us: 700 * count,
        }
    }

    struct World {
        state: State,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { state: State::new("tcx", Duration::from_secs(60)), start: Instant::now() }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn container(&mut self, second: u64, id: &str, network_mode: &str, namespace: Option<(u64, bool)>) {
            let info = ContainerInfo {
                id: id.to_owned(),
                state: ContainerState::Running,
                engine: "docker".to_owned(),
                pid: Some(1),
                network_mode: network_mode.to_owned(),
                ..ContainerInfo::default()
            };
            let now = self.at(second);
            self.state.apply(Update::Container(info), now);
            if let Some((inode, host)) = namespace {
                let namespace = Namespace { identity: (4, inode), host, ..Namespace::default() };
                self.state.apply(Update::Namespace { id: id.to_owned(), namespace }, now);
            }
        }

        fn ends(&mut self, second: u64, id: &str) {
            let now = self.at(second);
            self.state.apply(Update::Ended { id: id.to_owned() }, now);
        }

        fn tell(&mut self, second: u64, amounts: &[TcpAmount]) {
            let sample = TcpSample { amounts: amounts.to_vec(), ..TcpSample::default() };
            let now = self.at(second);
            self.state.apply(Update::Tcp(Box::new(sample)), now);
        }

        /// Connects by container; none where it is not known.
        fn connects(&mut self, second: u64) -> Vec<Option<u64>> {
            let now = self.at(second);
            self.state.expire(now);
            let snapshot = self.state.snapshot(now, SystemTime::UNIX_EPOCH);
            let of = |tcp: TcpHealth| tcp.connections.map(|connections| connections.client_handshake.all());
            snapshot.containers.iter().map(|container| container.tcp.and_then(of)).collect()
        }
    }

    #[test]
    fn what_was_counted_waits_for_its_container() {
        let mut world = World::new();
        world.tell(0, &[connects(INODE, 7, 2), connects(INODE + 1, 8, 100)]);
        world.container(1, "a", "", None);
        assert_eq!(world.connects(1), [None]);
        world.container(2, "a", "", Some((INODE, false)));
        world.tell(3, &[connects(INODE, 7, 3)]);
        assert_eq!(world.connects(3), [Some(5)]);
    }

    fn ambiguous(state: &State) -> u64 {
        state.tcp_status().expect("a status").lost["ambiguous"]
    }

    #[test]
    fn of_two_that_had_the_same_inode_number_each_has_its_own() {
        let mut world = World::new();
        world.container(0, "a", "", Some((INODE, false)));
        world.tell(1, &[connects(INODE, 7, 2)]);
        world.ends(2, "a");
        world.container(2, "b", "", Some((INODE, false)));
        // The end of the one and the beginning of the other.
        world.tell(3, &[connects(INODE, 7, 4), connects(INODE, 9, 100)]);
        assert_eq!(world.connects(3), [Some(6), Some(100)]);
        assert_eq!(ambiguous(&world.state), 0);
    }

    /// One that nothing was known of when it ended: only what comes later tells which of the two is there.
    #[test]
    fn what_may_be_anothers_waits_until_that_is_known() {
        let mut world = World::new();
        world.tell(1, &[]);
        world.container(1, "a", "", Some((INODE, false)));
        world.ends(2, "a");
        world.container(2, "b", "", Some((INODE, false)));
        world.tell(3, &[connects(INODE, 7, 4), connects(INODE, 9, 100)]);
        world.tell(4, &[]);
        assert_eq!(world.connects(4), [Some(0), Some(0)]);
        world.tell(5, &[connects(INODE, 9, 1)]);
        assert_eq!(world.connects(5), [Some(0), Some(101)]);
        assert_eq!(ambiguous(&world.state), 0);
        world.connects(63);
        assert_eq!(ambiguous(&world.state), 4, "the first's, of which that is not known");
    }

    /// Of kernels without cookies.
    #[test]
    fn without_cookies_nobody_has_what_may_be_anothers() {
        let mut world = World::new();
        world.container(0, "a", "", Some((INODE, false)));
        world.tell(1, &[connects(INODE, 0, 2)]);
        world.ends(2, "a");
        world.container(2, "b", "", Some((INODE, false)));
        world.tell(3, &[connects(INODE, 0, 4)]);
        assert_eq!((world.connects(3), ambiguous(&world.state)), (vec![Some(2), Some(0)], 4));
        world.tell(4, &[connects(INODE, 0, 5)]);
        assert_eq!((world.connects(4), ambiguous(&world.state)), (vec![Some(2), Some(5)], 4));
    }

    #[test]
    fn on_the_hosts_network_and_on_anothers_it_is_not_known() {
        let mut world = World::new();
        world.container(0, "a", "", Some((INODE, false)));
        world.container(0, "b", "host", Some((INODE + 1, true)));
        world.container(0, "c", "container:a", Some((INODE, false)));
        world.tell(1, &[connects(INODE, 7, 2), connects(INODE + 1, 8, 3)]);
        assert_eq!(world.connects(1), [Some(2), None, None]);
        let degraded = Update::Degraded { feature: feature::CONNECTIONS, why: "no struct".to_owned() };
        let now = world.at(2);
        world.state.apply(degraded, now);
        assert_eq!(world.connects(2), [None, None, None]);
    }

    #[test]
    fn what_nobody_owns_is_forgotten() {
        let mut world = World::new();
        world.tell(0, &[connects(INODE, 7, 2)]);
        world.state.expire(world.start + Duration::from_secs(61));
        world.container(62, "a", "", Some((INODE, false)));
        world.tell(63, &[]);
        assert_eq!(world.connects(63), [Some(0)]);
    }

    #[test]
    fn the_newest_of_a_connection_counts() {
        let end = |port| FlowEnd { address: "10.0.0.1".parse().expect("an address"), port };
        let namespace = TcpNamespace { inode: INODE, cookie: 7 };
        let told = |begins, ends, handshake_us, retransmitted| TcpConnection {
            namespace,
            local: end(1),
            remote: end(2),
            begins,
            ends,
            handshake_us,
            rtt_us: None,
            retransmitted,
        };
        let mut world = World::new();
        world.container(0, "a", "", Some((INODE, false)));
        world.tell(0, &[connects(INODE, 7, 1)]);
        let mut apply = |second, told: TcpConnection| {
            let sample = TcpSample { connections: vec![told], ..TcpSample::default() };
            let now = world.at(second);
            world.state.apply(Update::Tcp(Box::new(sample)), now);
            let end = world.state.tcp_ends().get("a", end(1), end(2)).expect("an end");
            (end.handshake_seconds, end.retransmitted_segments)
        };
        assert_eq!(apply(1, told(true, false, Some(1500), 1)), (Some(0.0015), 1));
        assert_eq!(apply(2, told(false, false, None, 4)), (Some(0.0015), 4), "the handshake stays");
        assert_eq!(apply(3, told(false, true, None, 5)), (Some(0.0015), 5));
        assert_eq!(apply(4, told(false, false, None, 1)), (None, 1), "another one of the same ends");
        world.state.expire(world.at(4) + Duration::from_secs(29));
        assert!(world.state.tcp_ends().get("a", end(1), end(2)).is_some());
        world.state.expire(world.at(4) + Duration::from_secs(30));
        assert!(world.state.tcp_ends().get("a", end(1), end(2)).is_none(), "there is no such flow");
    }
}
