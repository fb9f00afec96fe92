//! Whose connections they were, and how single ones stand.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    TcpConnection, TcpCounts, TcpEnd, TcpHealth, TcpNamespace, TcpOutcome, TcpResets, TcpSample, feature,
};
use crate::model::{
    snapshot::{ByName, TcpStatus},
    state::{ContainerEntry, State, is_live, shares_namespace},
    update::{FlowEnd, Namespace, Owner},
};

/// Namespaces of which it is not known whose they are, that are kept apart.
const MAX_PENDING: usize = 4096;

#[derive(Debug, Default)]
pub(in crate::model) struct TcpState {
    lost: ByName,
    /// Containers by the cookies of namespaces that were theirs, and when something was last counted there.
    pub(super) owners: HashMap<TcpNamespace, (String, Instant)>,
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
    outcome: Option<TcpOutcome>,
    resets: TcpResets,
    ended: bool,
    at: Instant,
}

impl State {
    /// Takes in what was counted. What is not known to be a container's waits.
    pub(in crate::model) fn tcp(&mut self, sample: TcpSample, now: Instant) {
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
        self.settle_tcp(&mut tcp, now);
        self.tcp = Some(tcp);
    }

    /// Adds what waits to the containers that are known by now.
    fn settle_tcp(&mut self, tcp: &mut TcpState, now: Instant) {
        let mut waiting = std::mem::take(&mut tcp.pending);
        waiting.retain(|namespace, pending| {
            let whose = match tcp.owners.get(namespace) {
                Some((owner, _)) => Whose::One(owner.clone()),
                None => self.whose(tcp, *namespace, pending.since),
            };
            match whose {
                Whose::One(owner) => {
                    let Some(container) = self.containers.get_mut(&owner) else { return true };
                    container.tcp += &pending.counts;
                    if namespace.cookie != 0 {
                        tcp.owners.insert(*namespace, (owner, now));
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
        let had_another = |id: &String| {
            tcp.owners.iter().any(|(of, (owner, _))| of.inode == namespace.inode && owner == id)
        };
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
        let owns = |owner: &Owner| owner.container == id;
        self.interfaces.values().any(|entry| entry.ended.is_none() && entry.owner.as_ref().is_some_and(owns))
    }

    /// Forgets what nobody turned out to own, and connections that are over.
    pub(in crate::model) fn expire_tcp(&mut self, now: Instant) {
        let Some(mut tcp) = self.tcp.take() else { return };
        self.settle_tcp(&mut tcp, now);
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
        tcp.forget_owners(&self.containers, |at| age(at) < grace);
        // One that lasts is told of when it begins and when it ends; in between its flow tells that it is there.
        let old: HashSet<(FlowEnd, FlowEnd)> = tcp
            .connections
            .iter()
            .filter(|(_, connection)| age(connection.at) >= idle)
            .map(|((_, local, remote), _)| (*local, *remote))
            .collect();
        if !old.is_empty() {
            let flows = self.flows.flows.iter().map(|(id, _)| (id.local, id.remote));
            let there: HashSet<(FlowEnd, FlowEnd)> = flows.filter(|ends| old.contains(ends)).collect();
            tcp.connections.retain(|(_, local, remote), connection| {
                age(connection.at) < idle || there.contains(&(*local, *remote))
            });
        }
        self.tcp = Some(tcp);
    }

    /// What is known of a container's connections. None where nothing can be known: nobody looks, or its sockets
    /// are told apart from others' by nothing.
    pub(in crate::model) fn fold_tcp(&self, entry: &ContainerEntry) -> Option<TcpHealth> {
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

    pub(in crate::model) fn tcp_status(&self) -> Option<TcpStatus> {
        let tcp = self.tcp.as_ref()?;
        let mut lost = tcp.lost.clone();
        *lost.entry("full".into()).or_default() += tcp.unlisted;
        *lost.entry("flow".into()).or_default() += tcp.unlisted_connections;
        lost.insert("ambiguous".into(), tcp.ambiguous);
        Some(TcpStatus { lost })
    }

    /// To look up ends of connections.
    pub(in crate::model) fn tcp_ends(&self) -> TcpEnds<'_> {
        let tcp = self.tcp.as_ref().filter(|tcp| !tcp.connections.is_empty());
        let mut namespaces: HashMap<&str, Vec<TcpNamespace>> = HashMap::new();
        for (namespace, (container, _)) in tcp.iter().flat_map(|tcp| &tcp.owners) {
            namespaces.entry(container).or_default().push(*namespace);
        }
        // Of kernels without cookies.
        for (id, entry) in tcp.iter().flat_map(|_| &self.containers).filter(|(_, entry)| is_own(entry)) {
            if let Some(namespace) = &entry.namespace {
                let namespace = TcpNamespace { inode: namespace.identity.1, cookie: 0 };
                namespaces.entry(id).or_default().push(namespace);
            }
        }
        TcpEnds { tcp, namespaces, has_resets: !self.degraded.contains_key(feature::RESETS) }
    }
}

/// Ends of connections, by whose they are.
pub(in crate::model) struct TcpEnds<'a> {
    tcp: Option<&'a TcpState>,
    namespaces: HashMap<&'a str, Vec<TcpNamespace>>,
    has_resets: bool,
}

impl TcpEnds<'_> {
    /// A container's end of a connection, as its packets have it.
    pub fn get(&self, container: &str, local: FlowEnd, remote: FlowEnd) -> Option<TcpEnd> {
        let connections = &self.tcp?.connections;
        let mut namespaces = self.namespaces.get(container)?.iter();
        let connection = namespaces.find_map(|namespace| connections.get(&(*namespace, local, remote)))?;
        let seconds = |us: Option<u32>| us.map(|us| Duration::from_micros(u64::from(us)).as_secs_f64());
        Some(TcpEnd {
            outcome: connection.outcome,
            handshake_seconds: seconds(connection.handshake_us),
            rtt_seconds: seconds(connection.rtt_us),
            retransmitted_segments: connection.retransmitted,
            resets: self.has_resets.then_some(connection.resets),
        })
    }
}

impl Connection {
    const fn new(now: Instant) -> Self {
        Self {
            handshake_us: None,
            rtt_us: None,
            retransmitted: 0,
            outcome: None,
            resets: TcpResets { sent: 0, received: 0 },
            ended: false,
            at: now,
        }
    }

    /// Told of before it was known how it went: a SYN that was sent again, a reset that answered it.
    const fn is_connecting(&self) -> bool {
        self.outcome.is_none() && !self.ended
    }
}

impl TcpState {
    /// Forgets namespaces of containers that are not known any more, and those that a container had before others: of
    /// the one that it has, or had last, its cookie is kept, whose inode number others before may have had.
    fn forget_owners(
        &mut self,
        containers: &BTreeMap<String, ContainerEntry>,
        is_recent: impl Fn(Instant) -> bool,
    ) {
        let has = |container: &str, inode| {
            let namespace = containers.get(container).and_then(|entry| entry.namespace.as_ref());
            namespace.is_some_and(|namespace| namespace.identity.1 == inode)
        };
        // Not by cookies: the kernel gives them out to each CPU in portions.
        let mut newest: HashMap<String, (Instant, u64)> = HashMap::new();
        for (namespace, (container, at)) in &self.owners {
            if has(container, namespace.inode) {
                let this = (*at, namespace.cookie);
                let newest = newest.entry(container.clone()).or_insert(this);
                *newest = this.max(*newest);
            }
        }
        self.owners.retain(|namespace, (container, at)| {
            let is_newest = || newest.get(container).is_some_and(|(_, cookie)| *cookie == namespace.cookie);
            containers.contains_key(container) && (is_recent(*at) || is_newest())
        });
    }

    fn connection(&mut self, told: &TcpConnection, capacity: usize, now: Instant) {
        let key = (told.namespace, told.local, told.remote);
        if !self.connections.contains_key(&key) && self.connections.len() >= capacity {
            self.unlisted_connections += 1;
            return;
        }
        let new = || Connection::new(now);
        let connection = self.connections.entry(key).or_insert_with(new);
        let is_another = if told.begins {
            !connection.is_connecting()
        } else {
            connection.ended && !(told.reset_sent || told.reset_received)
        };
        if is_another {
            *connection = new();
        }
        connection.handshake_us = told.handshake_us.or(connection.handshake_us);
        connection.rtt_us = told.rtt_us.or(connection.rtt_us);
        connection.retransmitted = told.retransmitted;
        connection.outcome = told.outcome.or(connection.outcome);
        connection.resets.sent += u64::from(told.reset_sent);
        connection.resets.received += u64::from(told.reset_received);
        connection.ended = told.ends;
        connection.at = now;
    }
}

/// Whether the container's sockets are those of its namespace.
fn is_own(entry: &ContainerEntry) -> bool {
    let on_host = entry.namespace.as_ref().is_some_and(|namespace: &Namespace| namespace.host);
    !on_host && !shares_namespace(&entry.info)
}
