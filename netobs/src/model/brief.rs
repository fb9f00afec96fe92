//! Containers that were gone before anybody could look into their namespace. Their interfaces on bridges are told
//! by what the engine said: which container was on which network at that time.

use std::time::{Duration, Instant};

use netobs_common::mac_word;

use super::{
    sender::mac_bytes,
    state::{InterfaceEntry, State},
    update::{InnerLink, InterfaceKey, InterfaceKind, Owner, Place},
};

/// A veth is there before the engine says that its container is connected: no longer than that.
const BEFORE: Duration = Duration::from_secs(10);

/// How long an end is waited with for what may yet be told of others.
const SETTLED: Duration = Duration::from_secs(1);

/// A container on the network of a bridge, into whose namespace nobody has looked.
struct Missing {
    container: String,
    network: String,
    bridge: String,
    since: Instant,
    mac: Option<u64>,
    ended: Option<Instant>,
}

/// A veth that has come to a bridge, and of which nobody knows whose it is.
struct Unbound {
    key: InterfaceKey,
    bridge: String,
    since: Instant,
    /// Of its first frame.
    mac: Option<u64>,
    ended: Option<Instant>,
}

impl Missing {
    /// Whether a veth may be of this container: it was there when that was connected, and came before that ended.
    /// What was told late seems to have come and ended later than it did, which leaves more that may be.
    fn may_have(&self, veth: &Unbound) -> bool {
        let others = self.mac.zip(veth.mac).is_some_and(|(own, seen)| own != seen);
        let long_before = veth.since + BEFORE < self.since;
        let over_before = veth.ended.is_some_and(|at| at < self.since);
        let after = self.ended.is_some_and(|at| veth.since > at);
        self.bridge == veth.bridge && !others && !long_before && !over_before && !after
    }
}

impl State {
    /// An engine has connected a container with a network.
    pub(super) fn connected(&mut self, container: &str, network: String, at: Instant) {
        if let Some(entry) = self.containers.get_mut(container).filter(|entry| !entry.looked_into) {
            entry.connected.insert(network, at);
            entry.process_over = None;
        }
    }

    /// Gives interfaces that are gone to the containers that they can only have been of: one that is gone too, and
    /// no other on that network at that time. Where that does not tell, nobody gets them.
    pub fn adopt(&mut self, now: Instant) {
        let settled =
            |ended: Option<Instant>| ended.is_some_and(|at| now.saturating_duration_since(at) >= SETTLED);
        let veths = self.unbound();
        // One that could not be attached may be what a container had.
        if !veths.iter().any(|veth| settled(veth.ended)) || !self.unattached.is_empty() {
            return;
        }
        let missing = self.missing();
        for veth in veths.iter().filter(|veth| settled(veth.ended)) {
            let mut owners = missing.iter().filter(|one| one.may_have(veth));
            let (Some(owner), None) = (owners.next(), owners.next()) else { continue };
            let only = veths.iter().filter(|veth| owner.may_have(veth)).count() == 1;
            if only && settled(owner.ended) {
                self.give(veth.key, owner, now);
            }
        }
    }

    fn unbound(&self) -> Vec<Unbound> {
        let bridges = self.bridges();
        let is_unbound = |entry: &InterfaceEntry| {
            entry.owner.is_none()
                && entry.info.place == Place::Host
                && entry.info.kind != InterfaceKind::Bridge
        };
        let unbound = self.interfaces.iter().filter(|(_, entry)| is_unbound(entry));
        unbound
            .filter_map(|(key, entry)| {
                Some(Unbound {
                    key: *key,
                    bridge: bridges.get(&entry.last_master()?)?.clone(),
                    since: entry.since?,
                    mac: entry.comparison.usual(),
                    ended: entry.ended,
                })
            })
            .collect()
    }

    fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (id, entry) in &self.containers {
            for (network, since) in &entry.connected {
                let known = self.networks.get(&(entry.info.engine.clone(), network.clone()));
                let Some(bridge) = known.and_then(|network| network.bridge.clone()) else { continue };
                let endpoint = entry.info.endpoints.iter().find(|endpoint| endpoint.network_id == *network);
                let mac = endpoint.and_then(|endpoint| mac_bytes(endpoint.mac.as_deref()?));
                missing.push(Missing {
                    container: id.clone(),
                    network: network.clone(),
                    bridge,
                    since: *since,
                    mac: mac.map(mac_word),
                    ended: entry.process_over,
                });
            }
        }
        missing
    }

    fn give(&mut self, key: InterfaceKey, owner: &Missing, now: Instant) {
        let Missing { container, network, .. } = owner;
        let (Some(entry), Some(interface)) =
            (self.containers.get_mut(container), self.interfaces.get_mut(&key))
        else {
            return;
        };
        entry.connected.remove(network);
        entry.lived = true;
        entry.ended.get_or_insert(now);
        let endpoint = entry.info.endpoints.iter().find(|endpoint| endpoint.network_id == *network);
        // What it was called inside, nobody has seen.
        let inner = InnerLink {
            ifindex: interface.info.peer_ifindex.unwrap_or_default(),
            mac: endpoint.and_then(|endpoint| endpoint.mac.clone()).unwrap_or_default(),
            addresses: endpoint.map(|endpoint| endpoint.addresses.clone()).unwrap_or_default(),
            ..InnerLink::default()
        };
        interface.owner = Some(Owner { container: container.clone(), inner });
        self.hand_over(key, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use netobs_common::{Count, Counters, class, l4};

    use super::*;
    use crate::model::{
        Baseline, Container, ContainerInfo, ContainerState, Endpoint, InterfaceInfo, KernelStats, Namespace,
        NetworkInfo, Sample, Senders, Update,
    };

    const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// docker0, whose network's ID is `n1`.
    struct Model {
        state: State,
        now: Instant,
    }

    impl Model {
        fn new() -> Self {
            let mut model = Self { state: State::new("auto", Duration::from_secs(300)), now: Instant::now() };
            model.attach(1, "docker0", InterfaceKind::Bridge);
            let network = NetworkInfo {
                id: "n1".to_owned(),
                name: "bridge".to_owned(),
                driver: "bridge".to_owned(),
                engine: "docker".to_owned(),
                bridge: Some("docker0".to_owned()),
                ..NetworkInfo::default()
            };
            model.apply(Update::Networks { engine: "docker".to_owned(), networks: vec![network] });
            // One that was there before is nobody's of these.
            model.attach(2, "veth2", InterfaceKind::Veth);
            model.apply(Update::Containers { engine: "docker".to_owned(), containers: Vec::new() });
            model
        }

        fn apply(&mut self, update: Update) {
            self.state.apply(update, self.now);
        }

        fn later(&mut self, duration: Duration) {
            self.now += duration;
            self.state.adopt(self.now);
        }

        fn attach(&mut self, key: u64, name: &str, kind: InterfaceKind) {
            let veth = kind == InterfaceKind::Veth;
            let interface = InterfaceInfo {
                key: InterfaceKey(key),
                ifindex: key as u32,
                name: name.to_owned(),
                kind,
                place: Place::Host,
                master: veth.then_some(1),
                peer_ifindex: veth.then_some(9),
                peer_nsid: veth.then_some(key as i32),
            };
            self.apply(Update::Attached {
                interface,
                owner: None,
                baseline: Some(Baseline::default()),
                kernel: KernelStats::default(),
                latency: None,
            });
        }

        /// A veth of this number, and its container's name.
        fn begin(&mut self, n: u64, endpoints: Vec<Endpoint>) -> ContainerInfo {
            self.attach(n, &format!("veth{n}"), InterfaceKind::Veth);
            let info = ContainerInfo {
                id: format!("{n:064}"),
                name: format!("c{n}"),
                state: ContainerState::Created,
                engine: "docker".to_owned(),
                endpoints,
                ..ContainerInfo::default()
            };
            self.apply(Update::Container(info.clone()));
            self.apply(Update::Connected {
                container: info.id.clone(),
                network: "n1".to_owned(),
                at: self.now,
            });
            info
        }

        /// It has sent `n` packets, from this address.
        fn end(&mut self, n: u64, info: &ContainerInfo, mac: [u8; 6]) {
            let mut ingress = Counters::ZERO;
            ingress.class[(class::IPV4 + l4::ICMP) as usize] = Count { packets: n, bytes: n * 98 };
            let senders = Senders { usual: Some(mac_word(mac)), ..Senders::default() };
            self.apply(Update::Detached(Box::new(Sample {
                key: InterfaceKey(n),
                ingress,
                egress: Counters::ZERO,
                senders: Some(senders),
                kernel: None,
            })));
            self.apply(Update::Container(ContainerInfo { state: ContainerState::Exited, ..info.clone() }));
            self.apply(Update::Removed { id: info.id.clone() });
        }

        fn shown(&self, n: u64) -> Option<Container> {
            let snapshot = self.state.snapshot(self.now, SystemTime::UNIX_EPOCH);
            snapshot.containers.into_iter().find(|container| container.name == format!("c{n}"))
        }

        fn sent(&self, n: u64) -> Option<u64> {
            self.shown(n).map(|container| container.tx.packets)
        }
    }

    #[test]
    fn the_only_one_that_it_can_have_been() {
        let mut model = Model::new();
        for n in 10..20 {
            let info = model.begin(n, Vec::new());
            model.end(n, &info, FIRST);
            model.later(SETTLED / 2);
            assert_eq!(model.sent(n), None, "something may yet be told");
            model.later(SETTLED);
            assert_eq!(model.sent(n), Some(n));
        }
        let container = model.shown(10).expect("shown");
        assert_eq!(container.networks, ["bridge"]);
        assert_eq!(container.interfaces[0].name, None, "nobody has seen it");
        let snapshot = model.state.snapshot(model.now, SystemTime::UNIX_EPOCH);
        assert_eq!(snapshot.agent.unattributed_interfaces, 1, "the one that was there before");
    }

    #[test]
    fn one_after_the_other() {
        let mut model = Model::new();
        for n in 10..13 {
            let info = model.begin(n, Vec::new());
            model.later(SETTLED / 10);
            model.end(n, &info, FIRST);
            model.later(SETTLED / 10);
        }
        model.later(SETTLED);
        assert_eq!([10, 11, 12].map(|n| model.sent(n)), [Some(10), Some(11), Some(12)]);
    }

    #[test]
    fn two_at_a_time_are_told_apart_by_addresses_alone() {
        let endpoint = |mac: &str| Endpoint {
            network: "bridge".to_owned(),
            network_id: "n1".to_owned(),
            addresses: vec!["172.17.0.2".parse().expect("an address")],
            mac: Some(mac.to_owned()),
        };
        for known in [false, true] {
            let mut model = Model::new();
            let of = |mac| if known { vec![endpoint(mac)] } else { Vec::new() };
            let (one, two) =
                (model.begin(10, of("02:00:00:00:00:01")), model.begin(11, of("02:00:00:00:00:02")));
            model.end(11, &two, SECOND);
            model.later(SETTLED);
            model.end(10, &one, FIRST);
            model.later(SETTLED);
            let expected = if known { (Some(10), Some(11)) } else { (None, None) };
            assert_eq!((model.sent(10), model.sent(11)), expected);
        }
    }

    #[test]
    fn one_that_goes_on_may_be_whose_it_was() {
        let mut model = Model::new();
        let short = model.begin(10, Vec::new());
        let long = model.begin(11, Vec::new());
        model.end(10, &short, FIRST);
        model.later(SETTLED);
        assert_eq!(model.sent(10), None);
        // Its own is found, and so this one is nobody else's.
        let link = InnerLink { ifindex: 9, name: "eth0".to_owned(), ..InnerLink::default() };
        let namespace = Namespace { nsid: Some(11), links: vec![link], ..Namespace::default() };
        model.apply(Update::Namespace { id: long.id, namespace });
        model.later(Duration::ZERO);
        assert_eq!(model.sent(10), Some(10));
    }

    #[test]
    fn who_was_looked_into_gets_no_other() {
        let mut model = Model::new();
        let info = model.begin(10, Vec::new());
        let link = InnerLink { ifindex: 9, name: "eth0".to_owned(), ..InnerLink::default() };
        let namespace = Namespace { nsid: Some(10), links: vec![link], ..Namespace::default() };
        model.apply(Update::Namespace { id: info.id.clone(), namespace });
        model.end(10, &info, FIRST);
        model.apply(Update::Connected {
            container: info.id.clone(),
            network: "n1".to_owned(),
            at: model.now,
        });
        model.attach(11, "veth11", InterfaceKind::Veth);
        model.end(11, &info, FIRST);
        model.later(SETTLED);
        assert_eq!(model.sent(10), Some(10));
    }

    #[test]
    fn long_before_and_where_one_was_not_attached() {
        let mut model = Model::new();
        model.attach(9, "veth9", InterfaceKind::Veth);
        model.now += BEFORE + SETTLED;
        let info = model.begin(10, Vec::new());
        model.end(10, &info, FIRST);
        let failed = |name: &str| Update::AttachFailed {
            what: name.to_owned(),
            name: name.to_owned(),
            reason: "no room".to_owned(),
        };
        model.apply(failed("veth12"));
        model.later(SETTLED);
        assert_eq!(model.sent(10), None, "its own may be the one that failed");
        model.apply(Update::Vanished { what: "veth12".to_owned() });
        model.later(Duration::ZERO);
        assert_eq!(model.sent(10), Some(10), "the veth that was long there is not in its way");
    }
}
