//! Flows of containers: who talks to whom, and what follows from it: classes, edges, published ports.
//!
//! A flow's packets wait in it until it is known whose it is, and are then added to all that is made of flows:
//! so that what is attached first and named later misses nothing.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use netobs_common::{FIRST, OPENED};

use super::{
    class::{self, Class, Map, Peer, Point},
    edge::{EdgeKey, Edges},
    kept::Kept,
    published::Surroundings,
    state::{ContainerEntry, InterfaceEntry, State},
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

/// A flow as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    pub rx: FlowCount,
    pub tx: FlowCount,
    pub rx_flags: u8,
    pub tx_flags: u8,
    /// As [`FlowRecord`] has them.
    pub rx_zero_windows: u64,
    pub tx_zero_windows: u64,
    pub first: Instant,
    pub last: Instant,
    /// None until it is known whose it is. Until then it is in no sum; from then on all of it is.
    pub known: Option<&'a Arc<Known>>,
    /// Whether the container's end is the client; once it is known.
    pub client: bool,
}

/// What many flows have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Known {
    pub class: Class,
    pub container: String,
    pub network: Option<String>,
    pub peer: Peer,
    /// The container sends and receives it under an address of its own: it doesn't merely pass it on.
    pub own: bool,
}

impl Known {
    /// The container at the other end.
    pub fn peer(&self) -> Option<&str> {
        match &self.peer {
            Peer::Container(id) => Some(id),
            Peer::Service(_) | Peer::Elsewhere(_) => None,
        }
    }
}

/// By network and class, from the container's side: received, sent.
pub type ByClass = BTreeMap<(Option<String>, Class), [Count; 2]>;

#[derive(Debug, Default)]
pub struct Table {
    options: FlowOptions,
    pub(super) flows: Kept,
    pub(super) edges: Edges,
    /// Attachments that were let go, and when: their flows may yet be told of.
    pub(super) ended: BTreeMap<InterfaceKey, (Point, Instant)>,
    /// Flows that were not listed, as there were too many.
    pub(super) unlisted: u64,
}

/// TCP flags, and the numbers of protocols that have ports (IANA).
const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;
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

impl Flow<'_> {
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

/// Whether the container at a flow's other end is still there.
#[derive(Clone, Copy, Debug)]
enum Peering {
    /// Or it is none.
    Lasts,
    Ended(Instant),
    /// It is not told of any more.
    Forgotten,
}

impl Peering {
    /// Whether all packets since one at `last` are of a later time.
    fn is_over(self, last: Instant) -> bool {
        match self {
            Self::Lasts => false,
            Self::Ended(at) => at < last,
            Self::Forgotten => true,
        }
    }
}

/// A flow that began so long ago does not wait any longer for more to be told of its container: there are some that no
/// engine tells of.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a flow is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
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
        let mut settled = Settled::default();
        {
            // Of all containers: made where something is not known yet.
            let map = LazyCell::new(|| Map::new(self));
            let mut points: HashMap<InterfaceKey, Option<Point>> = HashMap::new();
            let mut unlisted = Kept::default();
            // Not told of yet, or to be told of again.
            let mut unsettled = Vec::new();
            let mut peers: HashMap<*const Known, Peering> = HashMap::new();
            for record in records {
                let id = record.id();
                let found = table.flows.find(&id);
                let full = found.is_none() && table.flows.len() >= table.options.max_flows;
                let flows = if full { &mut unlisted } else { &mut table.flows };
                let found = if full { flows.find(&id) } else { found };
                let at = found.unwrap_or_else(|| flows.insert(record));
                let outlives = flows.standing(at).is_some_and(|Standing { known, .. }| {
                    let peering = peers.entry(Arc::as_ptr(known)).or_insert_with(|| self.peering(known));
                    peering.is_over(flows.get(at).1.last)
                });
                flows.add(at, record);
                match flows.standing(at) {
                    Some(standing) if !outlives => settled.add(&id, &standing, record.rx, record.tx),
                    _ => unsettled.push((full, at, record, outlives)),
                }
            }
            // When all is in of what tells who the client is: a flow may be told of by several CPUs.
            for (full, at, record, outlives) in unsettled {
                let id = record.id();
                let flows = if full { &mut unlisted } else { &mut table.flows };
                if !outlives && flows.standing(at).is_some() {
                    continue;
                }
                let point = points.entry(id.interface).or_insert_with(|| {
                    let ended = table.ended.get(&id.interface).map(|(point, _)| point.clone());
                    self.point(id.interface).or(ended).filter(|point| class::is_settled(self, point))
                });
                match point {
                    Some(point) if outlives => tell_again(flows, at, &map, point),
                    Some(point) => tell(flows, at, &map, point, &mut settled),
                    None => {}
                }
                if outlives && let Some(standing) = flows.standing(at) {
                    settled.add(&id, &standing, record.rx, record.tx);
                }
            }
            table.unlisted += unlisted.len() as u64;
            for (_, flow) in unlisted.iter().filter(|(_, flow)| flow.known.is_none()) {
                settled.give_up(&flow);
            }
        }
        self.flows = table;
        self.settle(settled);
    }

    /// How it stands with the other end.
    fn peering(&self, known: &Known) -> Peering {
        match known.peer().map(|peer| self.containers.get(peer)) {
            None => Peering::Lasts,
            Some(None) => Peering::Forgotten,
            Some(Some(entry)) => entry.ended.map_or(Peering::Lasts, Peering::Ended),
        }
    }

    /// Looks again at flows whose container was not known, and forgets those that are over.
    pub(super) fn expire_flows(&mut self, now: Instant) {
        let mut table = std::mem::take(&mut self.flows);
        let idle = table.options.idle;
        let mut settled = Settled::default();
        {
            // Of all containers: made where something is not known yet.
            let map = LazyCell::new(|| Map::new(self));
            let mut points: HashMap<InterfaceKey, Option<Point>> = HashMap::new();
            // From the last: what takes the place of one that is dropped has been looked at.
            for at in (0..table.flows.len() as u32).rev() {
                let (id, flow) = table.flows.get(at);
                let over = now.saturating_duration_since(flow.last) >= idle;
                let waited = now.saturating_duration_since(flow.first) >= PATIENCE;
                if flow.known.is_none() {
                    let point = points.entry(id.interface).or_insert_with(|| {
                        let ended = || table.ended.get(&id.interface).map(|(point, _)| point.clone());
                        self.point(id.interface).or_else(ended)
                    });
                    match point.as_ref().filter(|point| over || waited || class::is_settled(self, point)) {
                        Some(point) => tell(&mut table.flows, at, &map, point, &mut settled),
                        None if over => settled.give_up(&flow),
                        None => {}
                    }
                }
                if over {
                    table.flows.remove(at);
                }
            }
        }
        table.flows.shrink();
        table.ended.retain(|_, (_, at)| now.saturating_duration_since(*at) < idle.max(self.grace));
        table.edges.retain(|id| self.containers.contains_key(id));
        self.flows = table;
        self.settle(settled);
    }

    /// Adds what flows have counted to the sums.
    fn settle(&mut self, settled: Settled) {
        let observed = Observed::of(&self.interfaces, &self.flows.ended);
        let Settled { sums, ports, unknown: [rx, tx] } = settled;
        self.unclassified[0] += rx;
        self.unclassified[1] += tx;
        let mut surroundings: HashMap<&str, Surroundings<'_>> = HashMap::new();
        for (known, id, rx, tx) in &ports {
            if let Some(ContainerEntry { info, ports, .. }) = self.containers.get_mut(&known.container) {
                let surroundings = surroundings.entry(&known.container).or_insert_with(|| {
                    let networks = self.networks.values();
                    Surroundings::of(info, networks, &self.host_addresses, &self.proxies)
                });
                ports.add(info, surroundings, id, *rx, *tx);
            }
        }
        for ((Same(known), protocol, port), [rx, tx]) in sums {
            let Known { class, container, network, peer, own } = &*known;
            if let Some(container) = self.containers.get_mut(container) {
                let [received, sent] = container.classes.entry((network.clone(), *class)).or_default();
                *received += stack(rx);
                *sent += stack(tx);
                if !own {
                    container.foreign += stack(tx);
                }
                if (protocol, port) == (TCP, DNS_PORT) {
                    container.dns_over_tcp += stack(rx);
                    container.dns_over_tcp += stack(tx);
                }
            }
            if !own {
                continue;
            }
            let local = Peer::Container(container.clone());
            let edge = |source: &Peer, destination: &Peer| EdgeKey {
                source: source.clone(),
                destination: destination.clone(),
                protocol,
                port,
            };
            let observed = observed.has(peer);
            if tx != FlowCount::default() {
                self.flows.edges.sent(edge(&local, peer), tx, observed);
            }
            if rx != FlowCount::default() {
                self.flows.edges.received(edge(peer, &local), rx, observed);
            }
        }
    }
}

/// Containers whose packets are counted where they are, or were until lately: the last of them are told of later.
pub(super) struct Observed<'a>(foldhash::HashSet<&'a str>);

impl<'a> Observed<'a> {
    pub fn of(
        interfaces: &'a BTreeMap<InterfaceKey, InterfaceEntry>,
        ended: &'a BTreeMap<InterfaceKey, (Point, Instant)>,
    ) -> Self {
        let live = interfaces.values().filter(|entry| entry.ended.is_none());
        let live = live.filter_map(|entry| Some(entry.owner.as_ref()?.container.as_str()));
        Self(live.chain(ended.values().map(|(point, _)| point.container.as_str())).collect())
    }

    /// Whether what the other end of a flow sends and receives is counted there, too.
    pub fn has(&self, peer: &Peer) -> bool {
        matches!(peer, Peer::Container(id) if self.0.contains(id.as_str()))
    }
}

/// What a flow is known to be, and what that makes of its ends.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    pub known: &'a Arc<Known>,
    /// As [`Flow::client`].
    pub client: bool,
    /// The container's port is one that is published.
    pub published: bool,
}

/// The same of one table: told apart by where it is.
struct Same(Arc<Known>);

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Same {}

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// What is to be added to the sums: added up by what many flows have in common first.
#[derive(Default)]
struct Settled {
    /// By protocol and port of the service.
    sums: foldhash::HashMap<(Same, u8, u16), [FlowCount; 2]>,
    /// Of published ports, whose clients are told apart.
    ports: Vec<(Arc<Known>, FlowId, FlowCount, FlowCount)>,
    /// Of flows of which it will not be known whose they were.
    unknown: [Count; 2],
}

impl Settled {
    fn add(&mut self, id: &FlowId, standing: &Standing<'_>, rx: FlowCount, tx: FlowCount) {
        let port = match id.protocol {
            TCP | UDP | SCTP if standing.client => id.remote.port,
            TCP | UDP | SCTP => id.local.port,
            _ => 0,
        };
        let known = || Arc::clone(standing.known);
        let sums = self.sums.entry((Same(known()), id.protocol, port)).or_default();
        sums[0] += rx;
        sums[1] += tx;
        if standing.published {
            self.ports.push((known(), *id, rx, tx));
        }
    }

    fn give_up(&mut self, flow: &Flow<'_>) {
        self.unknown[0] += stack(flow.rx);
        self.unknown[1] += stack(flow.tx);
    }
}

/// Finds out what a flow is, and has all of it added up.
fn tell(flows: &mut Kept, at: u32, map: &Map<'_>, point: &Point, settled: &mut Settled) {
    let (id, flow) = flows.get(at);
    let (class, peer) = map.classify(point, id.protocol, id.local, id.remote);
    let address = id.local.address;
    let own = point.of_cgroup
        || point.addresses.is_empty()
        || point.addresses.contains(&address)
        || class::is_for_neighbours(address);
    let client = flow.is_client(&id);
    let published = map.is_published(point, id.protocol, id.local.port);
    let (container, network) = (point.container.clone(), point.network.clone());
    flows.tell(at, Known { class, container, network, peer, own }, client, published);
    let (_, flow) = flows.get(at);
    if let Some(standing) = flows.standing(at) {
        settled.add(&id, &standing, flow.rx, flow.tx);
    }
}

/// What a flow is from now on, whose other end was a container that has ended: its address may be another's by now.
/// As long as nobody else has it, the name stays, but for a container that is not told of any more.
fn tell_again(flows: &mut Kept, at: u32, map: &Map<'_>, point: &Point) {
    let (id, flow) = flows.get(at);
    let (Some(known), Some(standing)) = (flow.known, flows.standing(at)) else { return };
    let (class, peer) = map.classify(point, id.protocol, id.local, id.remote);
    let is_forgotten = known.peer().is_some_and(|peer| !map.knows(peer));
    if is_forgotten || matches!(peer, Peer::Container(_)) {
        let known = Known { class, peer, ..Known::clone(known) };
        let (client, published) = (standing.client, standing.published);
        flows.tell(at, known, client, published);
    }
}

const fn stack(count: FlowCount) -> Count {
    Count { packets: count.packets, bytes: count.bytes }
}
