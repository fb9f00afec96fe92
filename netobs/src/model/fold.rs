//! From the state to a snapshot: who owns what, added up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Instant, SystemTime},
};

use super::{
    class::{Class, Peer},
    edge::{self, EdgeKey},
    snapshot::{
        AgentHealth, Baseline, ClassTraffic, Container, ContainerInterface, Drops, Edge, EdgeEnd, Endpoint,
        FlowHealth, Interface, Network, Published, Rates, SCHEMA_VERSION, Snapshot, by_name,
    },
    state::{ContainerEntry, InterfaceEntry, NAMESPACES, Retired, Side, State, is_live, shares_namespace},
    traffic::Traffic,
    update::{InterfaceKind, Namespace, NetworkInfo, Owner, Place, Removal},
};

/// Digits of an ID that stand for a name where there is none, as `docker ps` has it.
const SHORT_ID: usize = 12;

impl State {
    /// Everything as it is at `now`, which is `time` on the wall.
    pub fn snapshot(&self, now: Instant, time: SystemTime) -> Snapshot {
        let mut owned: BTreeMap<&str, Vec<(&InterfaceEntry, &Owner)>> = BTreeMap::new();
        for entry in self.interfaces.values() {
            if let Some(owner) = &entry.owner {
                owned.entry(owner.container.as_str()).or_default().push((entry, owner));
            }
        }
        let mut containers: Vec<Container> = self
            .containers
            .iter()
            .filter(|(_, entry)| self.shown(entry, now))
            .map(|(id, entry)| {
                self.fold_container(id, entry, owned.get(id.as_str()).map_or(&[], Vec::as_slice))
            })
            .collect();
        self.fold_events(&mut containers);
        containers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let mut networks: Vec<Network> =
            self.networks.values().map(|network| self.fold_network(network, &containers)).collect();
        networks.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let bridges: BTreeMap<u32, &str> = self
            .interfaces
            .values()
            .filter(|entry| entry.ended.is_none() && entry.info.kind == InterfaceKind::Bridge)
            .map(|entry| (entry.info.ifindex, entry.info.name.as_str()))
            .collect();
        let mut interfaces: Vec<Interface> = self
            .interfaces
            .values()
            .filter(|entry| entry.ended.is_none() && entry.info.place == Place::Host)
            .map(|entry| self.fold_interface(entry, &bridges))
            .collect();
        interfaces.sort_by(|a, b| (&a.name, a.ifindex).cmp(&(&b.name, b.ifindex)));
        Snapshot {
            version: SCHEMA_VERSION,
            time,
            interval_seconds: self.interval.map(|interval| interval.as_secs_f64()),
            agent: AgentHealth {
                attach_mode: self.attach_mode.clone(),
                attached_interfaces: self.interfaces.values().filter(|entry| entry.ended.is_none()).count(),
                unattached: self.unattached.values().cloned().collect(),
                attach_latency: self.attach_latency.clone(),
                event_overruns: self.event_overruns,
                reattached: by_name(
                    Removal::ALL.map(|why| (why.name(), self.reattached.get(&why).copied().unwrap_or(0))),
                ),
                tcp: self.tcp_status(),
                events: self.event_health(),
                http: None,
                otlp: None,
                flows: self.flows.is_on().then(|| FlowHealth {
                    listed: self.flows.flows.len(),
                    unlisted: self.flows.unlisted,
                    unclassified_rx: self.unclassified[0],
                    unclassified_tx: self.unclassified[1],
                    other_edges: self.flows.edges.other().count,
                    other_edges_once: self.flows.edges.other().once,
                }),
                unattributed_interfaces: self
                    .interfaces
                    .values()
                    .filter(|entry| {
                        entry.ended.is_none() && entry.owner.is_none() && entry.info.peer_nsid.is_some()
                    })
                    .count(),
                degraded: self
                    .degraded
                    .iter()
                    .map(|(feature, why)| ((*feature).to_owned(), why.clone()))
                    .collect(),
            },
            containers,
            networks,
            interfaces,
            edges: self.fold_edges(),
            engines: self.engines.values().cloned().collect(),
            drops: self.drop_report(now, time),
        }
    }

    fn fold_edges(&self) -> Vec<Edge> {
        let edge = |(key, kept): (&EdgeKey, &edge::Kept)| Edge {
            source: self.edge_end(&key.source),
            destination: self.edge_end(&key.destination),
            protocol: protocol_name(key.protocol),
            port: (key.port != 0).then_some(key.port),
            count: kept.count,
            once: kept.once,
        };
        self.flows.edges.iter().map(edge).collect()
    }

    fn edge_end(&self, peer: &Peer) -> EdgeEnd {
        match peer {
            Peer::Container(id) => {
                let pod = self.containers.get(id).and_then(|entry| entry.info.pod.as_ref());
                EdgeEnd {
                    container: Some(self.container_name(id)),
                    id: Some(id.clone()),
                    namespace: pod.map(|pod| pod.namespace.clone()),
                    pod: pod.map(|pod| pod.name.clone()),
                    ..EdgeEnd::default()
                }
            }
            Peer::Service(name) => {
                EdgeEnd { service: Some(name.to_string()), class: Some(Class::Cluster), ..EdgeEnd::default() }
            }
            Peer::Elsewhere(class) => EdgeEnd { class: Some(*class), ..EdgeEnd::default() },
        }
    }

    /// The name that outputs use, of one that may not be known any more.
    pub(super) fn container_name(&self, id: &str) -> String {
        display_name(id, self.containers.get(id).map_or("", |entry| entry.info.name.as_str()))
    }

    fn shown(&self, entry: &ContainerEntry, now: Instant) -> bool {
        entry.lived && entry.ended.is_none_or(|at| now.duration_since(at) < self.grace)
    }

    fn fold_container(
        &self,
        id: &str,
        entry: &ContainerEntry,
        owned: &[(&InterfaceEntry, &Owner)],
    ) -> Container {
        let mut interfaces: BTreeMap<(String, Option<String>), ContainerInterface> =
            entry.retired.iter().map(|(key, retired)| (key.clone(), ended_interface(key, retired))).collect();
        for (live, owner) in owned {
            for (network, side) in live.of_container_earlier() {
                let key = (owner.inner.name.clone(), network.map(str::to_owned));
                let left = interfaces.entry(key.clone());
                add_earlier(left.or_insert_with(|| left_network(&key, live, owner)), side);
            }
            let key = (owner.inner.name.clone(), live.network(&entry.info));
            let side = live.of_container();
            let before = match interfaces.get(&key) {
                Some(earlier) => earlier.before.zip(side.before).map(|(before, more)| before + more),
                None => side.before,
            };
            let interface = interfaces.entry(key).or_default();
            interface.name = some(&owner.inner.name);
            interface.ifindex = Some(owner.inner.ifindex).filter(|ifindex| *ifindex != 0);
            interface.observed = Some(live.info.place);
            interface.kind = Some(live.info.kind);
            interface.network = live.network(&entry.info);
            if live.info.place == Place::Host {
                interface.host_interface = Some(live.info.name.clone());
                interface.host_ifindex = Some(live.info.ifindex);
            }
            if live.info.place == Place::Inside {
                interface.difference = live.reconciled.difference;
            }
            interface.mac = some(&owner.inner.mac);
            interface.addresses.clone_from(&owner.inner.addresses);
            interface.rx += &side.rx;
            interface.tx += &side.tx;
            interface.before = before;
            interface.rates = side.rates;
            interface.drops = sum_some(interface.drops, side.drops);
        }
        for interface in interfaces.values_mut() {
            let network = interface.network.as_deref();
            interface.driver = self
                .networks
                .values()
                .find(|known| known.engine == entry.info.engine && Some(known.name.as_str()) == network)
                .map(|known| known.driver.clone());
        }
        let interfaces: Vec<ContainerInterface> = interfaces.into_values().collect();
        let info = &entry.info;
        // What is not any more is of interest when all has ended.
        let live = is_live(info);
        let of_interfaces = interfaces.iter().filter(|interface| !live || is_there(interface));
        let told = info.endpoints.iter().filter(|endpoint| !live || !is_elsewhere(endpoint, &interfaces));
        let networks: BTreeSet<String> = of_interfaces
            .filter_map(|interface| interface.network.clone())
            .chain(told.map(|endpoint| endpoint.network.clone()))
            .collect();
        let (mut rx, mut tx) = (Traffic::default(), Traffic::default());
        let mut before = Some(Baseline::default());
        let (mut rates, mut drops) = (None, None);
        for interface in &interfaces {
            rx += &interface.rx;
            tx += &interface.tx;
            before = before.zip(interface.before).map(|(before, more)| before + more);
            rates = sum_some(rates, interface.rates);
            drops = sum_some(drops, interface.drops);
        }
        Container {
            id: id.to_owned(),
            name: display_name(id, &info.name),
            image: some(&info.image),
            state: info.state,
            engine: info.engine.clone(),
            compose: info.compose.clone(),
            pod: info.pod.as_ref().map(|pod| self.kubernetes.identified(pod)),
            network_mode: some(&info.network_mode),
            namespace: entry.namespace.as_ref().map(|namespace| format!("net:[{}]", namespace.identity.1)),
            members: self.members(id, entry),
            unobserved: self.why_unobserved(entry, &interfaces),
            networks: networks.into_iter().collect(),
            endpoints: info.endpoints.clone(),
            interfaces,
            rx,
            tx,
            before,
            rates,
            drops,
            published: self.fold_published(entry, owned),
            tcp: self.fold_tcp(entry),
            foreign_mac: owned
                .iter()
                .fold(entry.foreign_mac, |sum, (live, _)| sum_some(sum, live.foreign_mac())),
            foreign_address: self.flows.is_on().then_some(entry.foreign),
            dns: None,
            arp: None,
            classes: entry
                .classes
                .iter()
                .map(|((network, class), [rx, tx])| {
                    let network = network.clone();
                    ClassTraffic { network, class: *class, rx: *rx, tx: *tx }
                })
                .collect(),
        }
    }

    /// Names of those that are in its namespace too, without having made it.
    fn members(&self, id: &str, entry: &ContainerEntry) -> Vec<String> {
        let by_mode = format!("container:{id}");
        let mut members: Vec<String> = self
            .containers
            .iter()
            .filter(|(of, other)| {
                *of != id
                    && is_live(&other.info)
                    && is_live(&entry.info)
                    && other.info.network_mode == by_mode
            })
            .map(|(of, other)| display_name(of, &other.info.name))
            .collect();
        members.sort();
        members
    }

    fn fold_published(&self, entry: &ContainerEntry, owned: &[(&InterfaceEntry, &Owner)]) -> Vec<Published> {
        if entry.info.published.is_empty() {
            return Vec::new();
        }
        let counted = self.flows.is_on() && (!owned.is_empty() || !entry.retired.is_empty());
        entry.ports.fold(&entry.info, counted)
    }

    fn why_unobserved(&self, entry: &ContainerEntry, interfaces: &[ContainerInterface]) -> Option<String> {
        let info = &entry.info;
        if !interfaces.is_empty() {
            return None;
        }
        if info.network_mode == "none" {
            return Some("isolated: no network".to_owned());
        }
        if let Some(owner) = info.network_mode.strip_prefix("container:") {
            let name = self.containers.get(owner).map_or(owner, |owner| owner.info.name.as_str());
            return Some(format!("counted with container {name}, whose network it shares"));
        }
        // What was tried in vain says why.
        let of_it = format!("{}/", entry.info.id);
        if let Some((_, (_, why))) = self.unattached.iter().find(|(what, _)| what.starts_with(&of_it)) {
            return Some(why.clone());
        }
        is_live(info).then(|| match &entry.namespace {
            Some(namespace) if namespace.host => {
                "shares the host's network; not yet counted by its cgroup".to_owned()
            }
            Some(Namespace { unseen: Some(why), .. }) => why.clone(),
            Some(_) => "no interface of it was found".to_owned(),
            None => {
                let why =
                    self.degraded.get(NAMESPACES).map_or("no interface of it was found", String::as_str);
                why.to_owned()
            }
        })
    }

    fn fold_network(&self, network: &NetworkInfo, containers: &[Container]) -> Network {
        let bridge = self.interfaces.values().find(|entry| {
            entry.ended.is_none()
                && entry.info.kind == InterfaceKind::Bridge
                && Some(entry.info.name.as_str()) == network.bridge.as_deref()
        });
        let mut folded = Network {
            id: network.id.clone(),
            name: network.name.clone(),
            driver: network.driver.clone(),
            engine: network.engine.clone(),
            bridge: network.bridge.clone(),
            internal: network.internal,
            subnets: network.subnets.clone(),
            options: network.options.clone(),
            rx: bridge.map(|bridge| bridge.ingress).unwrap_or_default(),
            tx: bridge.map(|bridge| bridge.egress).unwrap_or_default(),
            rates: bridge.and_then(|bridge| bridge.rates),
            ..Network::default()
        };
        for container in containers.iter().filter(|container| container.engine == network.engine) {
            let connected =
                |interface: &ContainerInterface| interface.rates.is_some() || interface.ifindex.is_some();
            let mut member =
                container.networks.contains(&network.name) && container.interfaces.iter().any(connected);
            for interface in &container.interfaces {
                if interface.network.as_deref() == Some(network.name.as_str()) {
                    folded.containers_rx += &interface.rx;
                    folded.containers_tx += &interface.tx;
                    folded.containers_rates = sum_some(folded.containers_rates, interface.rates);
                    member |= connected(interface);
                }
            }
            let shares = self.containers.get(&container.id).is_some_and(|e| shares_namespace(&e.info));
            if member && !shares {
                folded.containers.push(container.name.clone());
            }
        }
        folded.containers.sort();
        folded
    }

    fn fold_interface(&self, entry: &InterfaceEntry, bridges: &BTreeMap<u32, &str>) -> Interface {
        let bridge = entry.info.master.and_then(|master| bridges.get(&master)).map(|name| (*name).to_owned());
        let owner = entry.owner.as_ref();
        Interface {
            name: entry.info.name.clone(),
            ifindex: entry.info.ifindex,
            kind: entry.info.kind,
            bridge,
            network: entry.network.clone(),
            container: owner.and_then(|owner| {
                let info = &self.containers.get(&owner.container)?.info;
                Some(display_name(&info.id, &info.name))
            }),
            container_id: owner.map(|owner| owner.container.clone()),
            rx: entry.ingress,
            tx: entry.egress,
            baseline: entry.baseline.unwrap_or_default(),
            reattached: entry.reattached,
            missed: entry.missed,
            difference: entry.reconciled.difference,
            drops: entry.drops(),
        }
    }
}

fn is_there(interface: &ContainerInterface) -> bool {
    interface.ifindex.is_some() || interface.kind == Some(InterfaceKind::Cgroup)
}

/// Whether the interface that an engine put on a network has been moved to another.
fn is_elsewhere(endpoint: &Endpoint, interfaces: &[ContainerInterface]) -> bool {
    interfaces.iter().filter(|interface| is_there(interface)).any(|interface| {
        let network = interface.network.as_deref();
        network.is_some_and(|network| network != endpoint.network)
            && interface.addresses.iter().any(|address| endpoint.addresses.contains(address))
    })
}

/// An interface on a network that it has left; nothing counted yet.
fn left_network(
    (name, network): &(String, Option<String>),
    live: &InterfaceEntry,
    owner: &Owner,
) -> ContainerInterface {
    ContainerInterface {
        name: Some(name.clone()),
        observed: Some(live.info.place),
        kind: Some(live.info.kind),
        network: network.clone(),
        mac: some(&owner.inner.mac),
        before: Some(Baseline::default()),
        ..ContainerInterface::default()
    }
}

fn add_earlier(interface: &mut ContainerInterface, side: Side) {
    interface.rx += &side.rx;
    interface.tx += &side.tx;
    interface.before = interface.before.zip(side.before).map(|(before, more)| before + more);
    interface.drops = sum_some(interface.drops, side.drops);
}

fn ended_interface((name, network): &(String, Option<String>), retired: &Retired) -> ContainerInterface {
    ContainerInterface {
        name: some(name),
        observed: retired.place,
        kind: retired.kind,
        network: network.clone(),
        mac: some(&retired.inner.mac),
        addresses: retired.inner.addresses.clone(),
        rx: retired.rx,
        tx: retired.tx,
        before: retired.before,
        drops: retired.drops,
        ..ContainerInterface::default()
    }
}

/// By IANA number; the number itself for those that have no common name.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// The name, or the short ID where there is none.
pub(super) fn display_name(id: &str, name: &str) -> String {
    if name.is_empty() { id.chars().take(SHORT_ID).collect() } else { name.to_owned() }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn sum_some<T: std::ops::Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

impl std::ops::Add for Rates {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rx_packets_per_second: self.rx_packets_per_second + other.rx_packets_per_second,
            rx_bits_per_second: self.rx_bits_per_second + other.rx_bits_per_second,
            tx_packets_per_second: self.tx_packets_per_second + other.tx_packets_per_second,
            tx_bits_per_second: self.tx_bits_per_second + other.tx_bits_per_second,
        }
    }
}

impl std::ops::Add for Baseline {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            uncertain_packets: self.uncertain_packets + other.uncertain_packets,
        }
    }
}

impl std::ops::Add for Drops {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rx_dropped: self.rx_dropped + other.rx_dropped,
            tx_dropped: self.tx_dropped + other.tx_dropped,
            rx_errors: self.rx_errors + other.rx_errors,
            tx_errors: self.tx_errors + other.tx_errors,
        }
    }
}

impl Drops {
    /// What of them came after `earlier`.
    pub(super) const fn since(self, earlier: Self) -> Self {
        Self {
            rx_dropped: self.rx_dropped.saturating_sub(earlier.rx_dropped),
            tx_dropped: self.tx_dropped.saturating_sub(earlier.tx_dropped),
            rx_errors: self.rx_errors.saturating_sub(earlier.rx_errors),
            tx_errors: self.tx_errors.saturating_sub(earlier.tx_errors),
        }
    }
}

/// The other end's view: what one end sends, the other receives.
impl Rates {
    pub(super) fn swapped(self) -> Self {
        Self {
            rx_packets_per_second: self.tx_packets_per_second,
            rx_bits_per_second: self.tx_bits_per_second,
            tx_packets_per_second: self.rx_packets_per_second,
            tx_bits_per_second: self.rx_bits_per_second,
        }
    }
}

impl Baseline {
    /// What of it came after `earlier`. How far off it may be is as of the whole.
    pub(super) const fn since(self, earlier: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_sub(earlier.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(earlier.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(earlier.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(earlier.tx_bytes),
            uncertain_packets: self.uncertain_packets.saturating_sub(earlier.uncertain_packets),
        }
    }

    pub(super) fn swapped(self) -> Self {
        Self {
            rx_packets: self.tx_packets,
            rx_bytes: self.tx_bytes,
            tx_packets: self.rx_packets,
            tx_bytes: self.rx_bytes,
            uncertain_packets: self.uncertain_packets,
        }
    }
}

impl Drops {
    pub(super) fn swapped(self) -> Self {
        Self {
            rx_dropped: self.tx_dropped,
            tx_dropped: self.rx_dropped,
            rx_errors: self.tx_errors,
            tx_errors: self.rx_errors,
        }
    }
}
