//! Packets that the kernel tells of one by one, DNS messages and ARP: counted at the place where they were
//! seen, and with the container when it is known whose that is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use netobs_common::events::kind;
use serde::{Deserialize, Serialize};

use super::{
    arp::{Arp, ArpCounts, ArpReport},
    capture::Way,
    dns::{DnsCounts, DnsSeen, MAX_NAMES, Outstanding, Path, Role, Transport, message, stream::Streams},
    snapshot::Container,
    state::State,
    traffic::Count,
    update::{FlowEnd, InterfaceKey},
};

/// A UDP datagram as its container has it; a TCP segment from its header on; or a message in such segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub local: FlowEnd,
    pub remote: FlowEnd,
    /// Of a segment with its header; [`u16::MAX`]: that many at least.
    pub payload_len: u16,
    /// The first of that.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Dns(Path, Transport, Datagram),
    /// The frame.
    Arp(Vec<u8>),
}

/// One packet. From the container's side: `rx` is what it received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub interface: InterfaceKey,
    pub way: Way,
    /// By the kernel's monotonic clock.
    pub time_ns: u64,
    pub what: What,
}

/// What was read at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    pub events: Vec<Event>,
    /// All up to then is in this or an earlier one.
    pub read_ns: u64,
    /// All that found no room so far, by [`kind`].
    pub lost: [u64; kind::COUNT],
    /// Events so far of attachments that nobody knows any more.
    pub strays: u64,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    pub dns: bool,
    pub names: bool,
    pub arp: bool,
}

/// What was seen at one place, or of one container.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    dns: DnsSeen,
    arp: ArpCounts,
}

impl std::ops::AddAssign<&Self> for Seen {
    fn add_assign(&mut self, other: &Self) {
        self.dns += &other.dns;
        self.arp += other.arp;
    }
}

#[derive(Debug, Default)]
struct Place {
    seen: Seen,
    /// Of a place that is no interface of the state, or not any more: its container, and when it was let go.
    container: Option<String>,
    ended: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct EventTable {
    looked: Looked,
    places: BTreeMap<InterfaceKey, Place>,
    outstanding: Outstanding,
    streams: Streams,
    arp: Arp,
    /// Names that are kept.
    names: usize,
    /// Why the name server inside a container is not observed.
    unobserved: BTreeMap<String, String>,
    lost: [u64; kind::COUNT],
    strays: u64,
    /// All up to then was taken in.
    read_ns: u64,
}

/// What is known of a container's DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct DnsReport {
    /// By role and path; what there was none of is not there.
    pub messages: Vec<DnsMessages>,
    /// Datagrams from or to port 53, and what TCP has there as messages, that are none of DNS.
    pub malformed: u64,
    /// DNS messages that are neither queries nor their responses.
    pub other: u64,
    /// Packets of TCP connections from and to port 53, both ways. None without flows.
    pub over_tcp: Option<Count>,
    /// TCP segments with a payload from or to port 53 whose messages could not be read, or not all of them.
    pub unread_segments: u64,
    /// Why the engine's name server in its namespace is not observed, if there is one.
    pub embedded_unobserved: Option<String>,
    /// What it asked for most, first; none where that was not asked for.
    pub names: Option<Vec<DnsName>>,
    /// Queries for names that there was no room for, or that were not all there.
    pub other_names: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DnsMessages {
    pub role: Role,
    pub via: Path,
    /// Queries that may yet be answered.
    pub pending: u64,
    #[serde(flatten)]
    pub counts: DnsCounts,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DnsName {
    pub name: String,
    pub queries: u64,
}

/// What of that was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EventHealth {
    /// That found the ring full.
    pub lost: LostEvents,
    /// Of attachments that nobody knew any more.
    pub strays: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LostEvents {
    pub dns: u64,
    pub embedded_dns: u64,
    pub arp: u64,
}

impl LostEvents {
    pub fn each(&self) -> [(&'static str, u64); kind::COUNT] {
        [("dns", self.dns), ("embedded_dns", self.embedded_dns), ("arp", self.arp)]
    }
}

impl EventTable {
    pub fn new(looked: Looked) -> Self {
        Self { looked, ..Self::default() }
    }

    fn segment(&mut self, event: &Event, path: Path, segment: &Datagram) {
        let found = self.streams.segment(event, segment);
        for message in &found.messages {
            self.message(event, path, Transport::Tcp, message);
        }
        let seen = &mut self.places.entry(event.interface).or_default().seen.dns;
        seen.unread_segments += u64::from(found.is_unread);
    }

    fn message(&mut self, event: &Event, path: Path, transport: Transport, datagram: &Datagram) {
        let seen = &mut self.places.entry(event.interface).or_default().seen.dns;
        let Self { outstanding, names, looked, .. } = self;
        let role = outstanding.message(event, path, transport, datagram, seen);
        if !looked.names || role != Some(Role::Client) {
            return;
        }
        let name = message::name(&datagram.bytes);
        match name {
            Some(name) if seen.names.contains_key(&name) || *names < MAX_NAMES => {
                *seen.names.entry(name).or_insert_with(|| {
                    *names += 1;
                    0
                }) += 1;
            }
            _ => seen.other_names += 1,
        }
    }

    /// What was seen at places goes to those that it is known to be of.
    fn expire_queries(&mut self, read_ns: u64) {
        self.streams.expire(read_ns);
        let Self { outstanding, places, .. } = self;
        outstanding.expire(read_ns, |interface, role, path| {
            let seen = &mut places.entry(interface).or_default().seen.dns;
            seen.counts.entry((role, path)).or_default().unanswered += 1;
        });
        self.arp.expire(read_ns, |interface| {
            places.entry(interface).or_default().seen.arp.unanswered += 1;
        });
    }
}

impl State {
    /// The same with packets that are told of one by one.
    #[must_use]
    pub fn with_events(mut self, looked: Looked) -> Self {
        self.events = EventTable::new(looked);
        self
    }

    pub(super) fn events(&mut self, batch: EventBatch) {
        let mut table = std::mem::take(&mut self.events);
        for event in &batch.events {
            table.expire_queries(event.time_ns);
            match &event.what {
                What::Dns(path, Transport::Tcp, segment) => table.segment(event, *path, segment),
                What::Dns(path, transport, datagram) => table.message(event, *path, *transport, datagram),
                What::Arp(frame) => {
                    let EventTable { arp, places, .. } = &mut table;
                    let scope = self.arp_scope(event.interface);
                    let is_there = |key| self.interfaces.get(&key).is_some_and(|entry| entry.ended.is_none());
                    let counts = &mut places.entry(event.interface).or_default().seen.arp;
                    let duplicates = arp.packet(event, frame, counts, scope, is_there);
                    for key in duplicates {
                        places.entry(key).or_default().seen.arp.duplicates += 1;
                    }
                }
            }
        }
        table.expire_queries(batch.read_ns);
        (table.lost, table.strays, table.read_ns) = (batch.lost, batch.strays, batch.read_ns);
        self.events = table;
        // What came late is its container's at once.
        for place in self.events.places.values_mut() {
            if let Some(container) = place.container.as_ref().and_then(|id| self.containers.get_mut(id)) {
                container.seen += &std::mem::take(&mut place.seen);
            }
        }
    }

    /// An attachment whose events may still come.
    pub(super) fn end_events(&mut self, key: InterfaceKey, now: Instant) {
        let owner = self.interfaces.get(&key).and_then(|entry| entry.owner.as_ref());
        let container = owner.map(|owner| owner.container.clone());
        let place = self.events.places.entry(key).or_default();
        place.ended = Some(now);
        place.container = container.or(place.container.take());
        if let Some(container) = place.container.as_ref().and_then(|id| self.containers.get_mut(id)) {
            container.seen += &std::mem::take(&mut place.seen);
        }
    }

    /// The name server inside a container's namespace is observed, or why it is not.
    pub(super) fn resolver(&mut self, container: String, observed: Result<InterfaceKey, String>) {
        match observed {
            Ok(key) => {
                self.events.unobserved.remove(&container);
                self.events.places.entry(key).or_default().container = Some(container);
            }
            Err(why) => drop(self.events.unobserved.insert(container, why)),
        }
    }

    /// Forgets places that ended longer than the grace period ago, and whose events have come by now.
    pub(super) fn expire_events(&mut self, now: Instant, grace: Duration) {
        let State { events, containers, interfaces, .. } = self;
        let EventTable { places, unobserved, names, .. } = events;
        places.retain(|key, place| {
            let over = place.ended.is_some_and(|at| now.duration_since(at) >= grace.max(LAST_EVENTS));
            !over || interfaces.contains_key(key)
        });
        unobserved.retain(|id, _| containers.contains_key(id));
        let kept = |seen: &Seen| seen.dns.names.len();
        *names = places.values().map(|place| kept(&place.seen)).sum::<usize>()
            + containers.values().map(|container| kept(&container.seen)).sum::<usize>();
    }

    /// Adds to each container what was seen of it.
    pub(super) fn fold_events(&self, containers: &mut [Container]) {
        let looked = self.events.looked;
        if !looked.dns && !looked.arp {
            return;
        }
        let mut conflicts = self.conflicts(&self.events.arp, self.events.read_ns);
        let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
        for (key, place) in &self.events.places {
            let owner = || Some(self.interfaces.get(key)?.owner.as_ref()?.container.as_str());
            if let Some(id) = place.container.as_deref().or_else(owner) {
                *seen.entry(id).or_default() += &place.seen;
            }
        }
        for container in containers {
            let mut all = seen.remove(container.id.as_str()).unwrap_or_default();
            if let Some(entry) = self.containers.get(&container.id) {
                all += &entry.seen;
            }
            container.dns = looked.dns.then(|| self.dns_report(&container.id, &all.dns));
            container.arp = looked.arp.then(|| ArpReport {
                counts: all.arp,
                conflicts: conflicts.remove(&container.id).unwrap_or_default(),
            });
        }
    }

    fn dns_report(&self, id: &str, seen: &DnsSeen) -> DnsReport {
        let messages = seen.counts.iter().map(|((role, via), counts)| DnsMessages {
            role: *role,
            via: *via,
            pending: counts.pending(),
            counts: counts.clone(),
        });
        let mut names: Vec<DnsName> = seen
            .names
            .iter()
            .map(|(name, queries)| DnsName { name: name.clone(), queries: *queries })
            .collect();
        names.sort_by(|a, b| (b.queries, &a.name).cmp(&(a.queries, &b.name)));
        DnsReport {
            messages: messages.collect(),
            malformed: seen.malformed,
            other: seen.other,
            over_tcp: self.containers.get(id).filter(|_| self.flows.is_on()).map(|entry| entry.dns_over_tcp),
            unread_segments: seen.unread_segments,
            embedded_unobserved: self.events.unobserved.get(id).cloned(),
            names: self.events.looked.names.then_some(names),
            other_names: seen.other_names,
        }
    }

    pub(super) fn event_health(&self) -> Option<EventHealth> {
        let EventTable { looked, lost, strays, .. } = &self.events;
        let [dns, embedded_dns, arp] = *lost;
        let lost = LostEvents { dns, embedded_dns, arp };
        (looked.dns || looked.arp).then_some(EventHealth { lost, strays: *strays })
    }
}

/// When nothing that was seen at a place is still waited for.
const LAST_EVENTS: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use netobs_common::Counters;

    use super::*;
    use crate::model::{
        ContainerInfo, ContainerState, InterfaceInfo, InterfaceKind, KernelStats, Owner, Place as At, Sample,
        Update,
    };

    const SECOND: u64 = 1_000_000_000;
    const ETH0: InterfaceKey = InterfaceKey(7);

    fn message(way: Way, time_ns: u64, flags: u8) -> Event {
        let end = |address: &str, port| FlowEnd { address: address.parse().expect("an address"), port };
        let bytes = vec![0, 1, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let datagram =
            Datagram { local: end("10.0.0.2", 4000), remote: end("10.0.0.1", 53), payload_len: 30, bytes };
        Event { interface: ETH0, way, time_ns, what: What::Dns(Path::Wire, Transport::Udp, datagram) }
    }

    fn batch(events: Vec<Event>, read_ns: u64) -> Update {
        Update::Events(EventBatch { events, read_ns, ..EventBatch::default() })
    }

    /// Answered, unanswered, pending.
    fn counts(state: &State, now: Instant) -> Option<(u64, u64, u64)> {
        let snapshot = state.snapshot(now, SystemTime::UNIX_EPOCH);
        let dns = snapshot.containers.first()?.dns.clone()?;
        let messages = dns.messages.first()?;
        Some((messages.counts.latency.count(), messages.counts.unanswered, messages.pending))
    }

    /// Events come before anybody knows of the attachment, and after it has been let go.
    #[test]
    fn early_and_late_events_are_their_containers() {
        let looked = Looked { dns: true, ..Looked::default() };
        let mut state = State::new("auto", Duration::from_secs(60)).with_events(looked);
        let now = Instant::now();
        let query = |second| message(Way::Tx, second * SECOND, 1);
        state.apply(batch(vec![query(1), message(Way::Rx, 2 * SECOND, 0x81)], 2 * SECOND), now);
        assert_eq!(counts(&state, now), None);
        let info = ContainerInfo {
            id: "a".repeat(64),
            state: ContainerState::Running,
            pid: Some(1),
            ..ContainerInfo::default()
        };
        let owner = Owner { container: info.id.clone(), inner: crate::model::InnerLink::default() };
        state.apply(Update::Container(info), now);
        let interface = InterfaceInfo {
            key: ETH0,
            ifindex: 3,
            name: "veth3".to_owned(),
            kind: InterfaceKind::Veth,
            place: At::Host,
            master: None,
            peer_ifindex: None,
            peer_nsid: None,
        };
        let attached = Update::Attached {
            interface,
            owner: Some(owner),
            baseline: None,
            kernel: KernelStats::default(),
            latency: None,
        };
        state.apply(attached, now);
        assert_eq!(counts(&state, now), Some((1, 0, 0)));
        let gone = Sample {
            key: ETH0,
            ingress: Counters::ZERO,
            egress: Counters::ZERO,
            senders: None,
            kernel: None,
        };
        state.apply(Update::Detached(Box::new(gone)), now);
        state.apply(batch(vec![query(10)], 11 * SECOND), now);
        assert_eq!(counts(&state, now), Some((1, 0, 1)));
        // Not before all up to then has been read.
        state.apply(batch(vec![], 15 * SECOND - 1), now);
        assert_eq!(counts(&state, now), Some((1, 0, 1)));
        state.apply(batch(vec![], 15 * SECOND), now);
        assert_eq!(counts(&state, now), Some((1, 1, 0)));
    }
}
