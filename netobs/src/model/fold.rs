//! From the state to a snapshot: who owns what, added up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Instant, SystemTime},
};

use super::{
    snapshot::{
        AgentHealth, Baseline, Container, ContainerInterface, Drops, Interface, Network, Rates,
        SCHEMA_VERSION, Snapshot,
    },
    state::{ContainerEntry, InterfaceEntry, Owner, Retired, State, is_live, shares_namespace},
    traffic::Traffic,
    update::{InterfaceKind, NetworkInfo},
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
            .filter(|entry| entry.ended.is_none())
            .map(|entry| self.fold_interface(entry, &bridges))
            .collect();
        interfaces.sort_by(|a, b| (&a.name, a.ifindex).cmp(&(&b.name, b.ifindex)));
        Snapshot {
            version: SCHEMA_VERSION,
            time,
            interval_seconds: self.interval.map(|interval| interval.as_secs_f64()),
            agent: AgentHealth {
                attach_mode: self.attach_mode.clone(),
                attached_interfaces: interfaces.len(),
                unattached: self.unattached.values().cloned().collect(),
                attach_latency: self.attach_latency.clone(),
                event_overruns: self.event_overruns,
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
            engines: self.engines.values().cloned().collect(),
        }
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
            let key = (owner.inner.name.clone(), live.network.clone());
            let interface = interfaces.entry(key).or_default();
            interface.name = Some(owner.inner.name.clone());
            interface.network.clone_from(&live.network);
            interface.host_interface = Some(live.info.name.clone());
            interface.host_ifindex = Some(live.info.ifindex);
            interface.mac = Some(owner.inner.mac.clone());
            interface.addresses.clone_from(&owner.inner.addresses);
            interface.rx += &live.egress;
            interface.tx += &live.ingress;
            interface.before = interface.before + live.baseline.swapped();
            interface.rates = live.rates.map(Rates::swapped);
            interface.drops = sum_some(interface.drops, live.drops().map(Drops::swapped));
        }
        let interfaces: Vec<ContainerInterface> = interfaces.into_values().collect();
        let info = &entry.info;
        let networks: BTreeSet<String> = interfaces
            .iter()
            .filter_map(|interface| interface.network.clone())
            .chain(info.endpoints.iter().map(|endpoint| endpoint.network.clone()))
            .collect();
        let (mut rx, mut tx) = (Traffic::default(), Traffic::default());
        let mut before = Baseline::default();
        let (mut rates, mut drops) = (None, None);
        for interface in &interfaces {
            rx += &interface.rx;
            tx += &interface.tx;
            before = before + interface.before;
            rates = sum_some(rates, interface.rates);
            drops = sum_some(drops, interface.drops);
        }
        let short: String = id.chars().take(SHORT_ID).collect();
        Container {
            id: id.to_owned(),
            name: if info.name.is_empty() { short } else { info.name.clone() },
            image: some(&info.image),
            state: info.state,
            engine: info.engine.clone(),
            compose: info.compose.clone(),
            network_mode: some(&info.network_mode),
            unobserved: self.why_unobserved(entry, &interfaces),
            networks: networks.into_iter().collect(),
            endpoints: info.endpoints.clone(),
            interfaces,
            rx,
            tx,
            before,
            rates,
            drops,
        }
    }

    fn why_unobserved(&self, entry: &ContainerEntry, interfaces: &[ContainerInterface]) -> Option<String> {
        let info = &entry.info;
        if info.network_mode == "host" || entry.namespace.as_ref().is_some_and(|namespace| namespace.host) {
            return Some("shares the host's network: not counted apart from it".to_owned());
        }
        if info.network_mode == "none" {
            return Some("isolated: no network".to_owned());
        }
        if let Some(owner) = info.network_mode.strip_prefix("container:") {
            let name = self.containers.get(owner).map_or(owner, |owner| owner.info.name.as_str());
            return Some(format!("counted with container {name}, whose network it shares"));
        }
        (interfaces.is_empty() && is_live(info)).then(|| "no veth of it was found on this host".to_owned())
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
            rx: bridge.map(|bridge| bridge.ingress).unwrap_or_default(),
            tx: bridge.map(|bridge| bridge.egress).unwrap_or_default(),
            rates: bridge.and_then(|bridge| bridge.rates),
            ..Network::default()
        };
        for container in containers.iter().filter(|container| container.engine == network.engine) {
            let mut member = container.networks.contains(&network.name)
                && container.interfaces.iter().any(|interface| interface.host_interface.is_some());
            for interface in &container.interfaces {
                if interface.network.as_deref() == Some(network.name.as_str()) {
                    folded.containers_rx += &interface.rx;
                    folded.containers_tx += &interface.tx;
                    folded.containers_rates = sum_some(folded.containers_rates, interface.rates);
                    member |= interface.host_interface.is_some();
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
                Some(if info.name.is_empty() {
                    info.id.chars().take(SHORT_ID).collect()
                } else {
                    info.name.clone()
                })
            }),
            container_id: owner.map(|owner| owner.container.clone()),
            rx: entry.ingress,
            tx: entry.egress,
            baseline: entry.baseline,
            drops: entry.drops(),
        }
    }
}

fn ended_interface((name, network): &(String, Option<String>), retired: &Retired) -> ContainerInterface {
    ContainerInterface {
        name: Some(name.clone()),
        network: network.clone(),
        mac: retired.mac.clone(),
        addresses: retired.addresses.clone(),
        rx: retired.rx,
        tx: retired.tx,
        before: retired.before,
        drops: retired.drops,
        ..ContainerInterface::default()
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn sum_some<T: std::ops::Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
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

/// The other end's view: what one end sends, the other receives.
impl Rates {
    fn swapped(self) -> Self {
        Self {
            rx_packets_per_second: self.tx_packets_per_second,
            rx_bits_per_second: self.tx_bits_per_second,
            tx_packets_per_second: self.rx_packets_per_second,
            tx_bits_per_second: self.rx_bits_per_second,
        }
    }
}

impl Baseline {
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
