//! Flows of containers: who talks to whom, and what follows from it: classes, edges, published ports.
//!
//! A flow's packets wait in it until it is known whose it is, and are then added to all that is made of flows:
//! so that what is attached first and named later misses nothing.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use netobs_common::{FIRST, OPENED};

use super::{
    class::{self, Class, Map, Peer, Point},
    edge::{EdgeKey, Edges},
    state::State,
    traffic::Count,
    update::{FlowCount, FlowEnd, FlowRecord, InterfaceKey},
};

/// Bounds of what is kept of flows.
#[derive(Clone, Debug)]
pub struct FlowOptions {
    /// Flows that are listed; what others count is in all sums all the same. 0: no flows are counted.
    pub max_flows: usize,
    /// A flow without a packet for so long is over.
    pub idle: Duration,
    /// Edges that are kept apart.
    pub max_edges: usize,
    /// CIDRs of [`Class::Cluster`].
    pub cluster: Vec<String>,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self { max_flows: 131_072, idle: Duration::from_secs(30), max_edges: 1000, cluster: Vec::new() }
    }
}

/// Both directions have the same; the ends are [`FlowRecord`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub interface: InterfaceKey,
    pub local: FlowEnd,
    pub remote: FlowEnd,
    pub protocol: u8,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub rx: FlowCount,
    pub tx: FlowCount,
    /// Of `rx` and `tx`, what is in no sum yet.
    pending: [FlowCount; 2],
    pub rx_flags: u8,
    pub tx_flags: u8,
    pub first: Instant,
    pub last: Instant,
    /// None until it is known whose it is.
    pub known: Option<Known>,
}

#[derive(Clone, Debug)]
pub struct Known {
    pub class: Class,
    pub container: String,
    pub network: Option<String>,
    pub peer: Peer,
    /// The container sends and receives it under an address of its own: it doesn't merely pass it on.
    pub own: bool,
    /// Of the service, if the protocol has ports.
    pub port: u16,
    /// Whether the container's end is the client.
    pub client: bool,
}

/// By network and class, from the container's side: received, sent.
pub type ByClass = BTreeMap<(Option<String>, Class), [Count; 2]>;

#[derive(Debug, Default)]
pub struct Table {
    options: FlowOptions,
    pub(super) flows: HashMap<FlowId, Flow>,
    pub(super) edges: Edges,
    /// Attachments that were let go, and when: their flows may yet be told of.
    ended: BTreeMap<InterfaceKey, (Point, Instant)>,
    /// Flows that were not listed, as there were too many.
    pub(super) unlisted: u64,
}

/// TCP flags, and the numbers of protocols that have ports (IANA).
const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

impl Table {
    pub fn new(options: FlowOptions) -> Self {
        let edges = Edges::new(options.max_edges);
        Self { options, edges, ..Self::default() }
    }

    pub const fn is_on(&self) -> bool {
        self.options.max_flows > 0
    }

    pub const fn capacity(&self) -> usize {
        self.options.max_flows
    }

    pub const fn idle(&self) -> Duration {
        self.options.idle
    }

    /// An attachment is let go; what it was is of use until its last flows are told of.
    pub(super) fn end(&mut self, key: InterfaceKey, point: Point, now: Instant) {
        self.ended.insert(key, (point, now));
    }
}

impl Flow {
    fn new(record: &FlowRecord) -> Self {
        Self {
            rx: FlowCount::default(),
            tx: FlowCount::default(),
            pending: Default::default(),
            rx_flags: 0,
            tx_flags: 0,
            first: record.first,
            last: record.last,
            known: None,
        }
    }

    fn add(&mut self, record: &FlowRecord) {
        self.rx += record.rx;
        self.tx += record.tx;
        self.pending[0] += record.rx;
        self.pending[1] += record.tx;
        // Who was first is told by the CPU that was.
        if record.first <= self.first {
            self.first = record.first;
            self.rx_flags &= !FIRST;
            self.tx_flags &= !FIRST;
            self.rx_flags |= record.rx_flags & FIRST;
            self.tx_flags |= record.tx_flags & FIRST;
        }
        self.rx_flags |= record.rx_flags & !FIRST;
        self.tx_flags |= record.tx_flags & !FIRST;
        self.last = self.last.max(record.last);
    }

    /// Whether the container is the client: it sent the SYN; else the first packet; of a TCP connection that
    /// was there before, the one with the greater port.
    fn is_client(&self, id: &FlowId) -> bool {
        if (self.tx_flags | self.rx_flags) & OPENED != 0 {
            return self.tx_flags & OPENED != 0;
        }
        if id.protocol == TCP {
            return id.local.port >= id.remote.port;
        }
        self.tx_flags & FIRST != 0
    }

    /// How it stands at `now`.
    pub fn ended(&self, id: &FlowId, now: Instant, idle: Duration) -> End {
        if id.protocol == TCP && (self.rx_flags | self.tx_flags) & RST != 0 {
            End::Reset
        } else if id.protocol == TCP && self.rx_flags & self.tx_flags & FIN != 0 {
            End::Closed
        } else if now.saturating_duration_since(self.last) >= idle {
            End::Idle
        } else {
            End::Open
        }
    }
}

/// Why a flow is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It is not.
    Open,
    /// TCP: both ends have sent a FIN.
    Closed,
    /// TCP: one end has sent a RST.
    Reset,
    Idle,
}

impl End {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Idle => "idle",
        }
    }
}

impl State {
    /// Takes in what flows have counted.
    pub(super) fn flows(&mut self, records: &[FlowRecord]) {
        let mut table = std::mem::take(&mut self.flows);
        let mut touched = Vec::with_capacity(records.len());
        let mut unlisted: HashMap<FlowId, Flow> = HashMap::new();
        for record in records {
            let FlowRecord { interface, local, remote, protocol, .. } = *record;
            let id = FlowId { interface, local, remote, protocol };
            let full = table.flows.len() >= table.options.max_flows;
            let flow = if full && !table.flows.contains_key(&id) {
                unlisted.entry(id).or_insert_with(|| Flow::new(record))
            } else {
                table.flows.entry(id).or_insert_with(|| Flow::new(record))
            };
            flow.add(record);
            touched.push(id);
        }
        table.unlisted += unlisted.len() as u64;
        let mut settled = Vec::new();
        {
            let map = Map::new(self);
            let mut points: HashMap<InterfaceKey, Option<Point>> = HashMap::new();
            for id in touched {
                let Some(flow) = table.flows.get_mut(&id).or_else(|| unlisted.get_mut(&id)) else { continue };
                if flow.known.is_none() {
                    let point = points
                        .entry(id.interface)
                        .or_insert_with(|| {
                            let ended = table.ended.get(&id.interface).map(|(point, _)| point.clone());
                            self.point(id.interface).or(ended).filter(|point| class::is_settled(self, point))
                        })
                        .as_ref();
                    flow.known = point.map(|point| known(&map, point, &id, flow));
                }
                settled.extend(flow.settle(&id));
            }
        }
        for (id, mut flow) in unlisted {
            settled.extend(flow.give_up(&id));
        }
        self.flows = table;
        for settled in settled {
            self.settle(settled);
        }
    }

    /// Looks again at flows whose container was not known, and forgets those that are over.
    pub(super) fn expire_flows(&mut self, now: Instant) {
        let mut table = std::mem::take(&mut self.flows);
        let idle = table.options.idle;
        let mut settled = Vec::new();
        {
            let map = Map::new(self);
            table.flows.retain(|id, flow| {
                let over = now.saturating_duration_since(flow.last) >= idle;
                if flow.known.is_none() {
                    let ended = || table.ended.get(&id.interface).map(|(point, _)| point.clone());
                    let point = self.point(id.interface).or_else(ended);
                    flow.known = point
                        .filter(|point| over || class::is_settled(self, point))
                        .map(|point| known(&map, &point, id, flow));
                    settled.extend(flow.settle(id));
                }
                if over {
                    settled.extend(flow.give_up(id));
                }
                !over
            });
        }
        table.ended.retain(|_, (_, at)| now.saturating_duration_since(*at) < idle.max(self.grace));
        table.edges.retain(|id| self.containers.contains_key(id));
        self.flows = table;
        for settled in settled {
            self.settle(settled);
        }
    }

    /// Whether what the other end sends and receives is counted there too.
    pub(super) fn observes(&self, peer: &Peer) -> bool {
        let Peer::Container(id) = peer else { return false };
        self.interfaces.values().any(|entry| {
            entry.ended.is_none() && entry.owner.as_ref().is_some_and(|owner| owner.container == *id)
        })
    }

    /// Adds what a flow has counted to the sums.
    fn settle(&mut self, settled: Settled) {
        let Settled { id, known, rx, tx } = settled;
        let Some(known) = known else {
            self.unclassified[0] += stack(rx);
            self.unclassified[1] += stack(tx);
            return;
        };
        if let Some(container) = self.containers.get_mut(&known.container) {
            let [received, sent] = container.classes.entry((known.network.clone(), known.class)).or_default();
            *received += stack(rx);
            *sent += stack(tx);
            if container.info.publishes(id.protocol, id.local.port) {
                container.ports.add(id.protocol, id.local.port, id.remote.address, rx, tx);
            }
        }
        if !known.own {
            if let Some(container) = self.containers.get_mut(&known.container) {
                container.foreign += stack(tx);
            }
            return;
        }
        let local = Peer::Container(known.container);
        let edge = |source: &Peer, destination: &Peer| EdgeKey {
            source: source.clone(),
            destination: destination.clone(),
            protocol: id.protocol,
            port: known.port,
        };
        let observed = self.observes(&known.peer);
        if tx != FlowCount::default() {
            self.flows.edges.sent(edge(&local, &known.peer), tx, observed);
        }
        if rx != FlowCount::default() {
            self.flows.edges.received(edge(&known.peer, &local), rx, observed);
        }
    }
}

/// What is to be added to the sums.
struct Settled {
    id: FlowId,
    /// None: it was given up.
    known: Option<Known>,
    rx: FlowCount,
    tx: FlowCount,
}

impl Flow {
    /// What is in no sum yet, if it is known whose it is.
    fn settle(&mut self, id: &FlowId) -> Option<Settled> {
        let known = self.known.clone()?;
        let [rx, tx] = self.take_pending()?;
        Some(Settled { id: *id, known: Some(known), rx, tx })
    }

    /// What is in no sum yet and will not be known.
    fn give_up(&mut self, id: &FlowId) -> Option<Settled> {
        let [rx, tx] = self.take_pending()?;
        let known = self.known.clone();
        Some(Settled { id: *id, known, rx, tx })
    }

    fn take_pending(&mut self) -> Option<[FlowCount; 2]> {
        let pending = std::mem::take(&mut self.pending);
        (pending != [FlowCount::default(); 2]).then_some(pending)
    }
}

fn known(map: &Map<'_>, point: &Point, id: &FlowId, flow: &Flow) -> Known {
    let (class, peer) = map.classify(point, id.protocol, id.local, id.remote);
    let client = flow.is_client(id);
    let port = match id.protocol {
        TCP | UDP | SCTP => {
            if client {
                id.remote.port
            } else {
                id.local.port
            }
        }
        _ => 0,
    };
    let address = id.local.address;
    let own = point.of_cgroup
        || point.addresses.is_empty()
        || point.addresses.contains(&address)
        || class::is_for_neighbours(address);
    let (container, network) = (point.container.clone(), point.network.clone());
    Known { class, container, network, peer, own, port, client }
}

const fn stack(count: FlowCount) -> Count {
    Count { packets: count.packets, bytes: count.bytes }
}
