//! Updates and times in, snapshots out.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant, SystemTime},
};

use netobs_common::{Count, Counters, FIRST, class, l4};

use super::{
    Baseline, Container, ContainerInfo, ContainerState, Endpoint, FlowCount, FlowEnd, FlowRecord, InnerLink,
    InterfaceInfo, InterfaceKey, InterfaceKind, KernelStats, Namespace, NetworkInfo, Owner, Place, Removal,
    Sample, Snapshot, State, Update,
    flow::FlowOptions,
    snapshot::{EdgeEnd, EngineStatus},
    state::PROC,
};

const GRACE: Duration = Duration::from_secs(300);
const BRIDGE: InterfaceKey = InterfaceKey(1);
const VETH: InterfaceKey = InterfaceKey(2);
const MAC: &str = "02:42:ac:11:00:02";

struct Model {
    state: State,
    start: Instant,
    now: Instant,
}

impl Model {
    fn new() -> Self {
        let start = Instant::now();
        Self { state: State::new("auto", GRACE), start, now: start }
    }

    fn apply(&mut self, update: Update) -> &mut Self {
        self.state.apply(update, self.now);
        self
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self.state.expire(self.now);
        self
    }

    fn snapshot(&self) -> Snapshot {
        self.state.snapshot(self.now, SystemTime::UNIX_EPOCH + (self.now - self.start))
    }

    fn container(&self, name: &str) -> Option<Container> {
        self.snapshot().containers.into_iter().find(|container| container.name == name)
    }

    /// docker0 with one veth on it, which leads to ifindex `peer` in namespace 0.
    fn with_veth(&mut self, key: InterfaceKey, ifindex: u32, peer: u32) -> &mut Self {
        self.attach(key, ifindex, &format!("veth{ifindex}"), InterfaceKind::Veth, Some(peer))
    }

    fn attach(
        &mut self,
        key: InterfaceKey,
        ifindex: u32,
        name: &str,
        kind: InterfaceKind,
        peer: Option<u32>,
    ) -> &mut Self {
        let interface = InterfaceInfo {
            key,
            ifindex,
            name: name.to_owned(),
            kind,
            place: Place::Host,
            master: (kind == InterfaceKind::Veth).then_some(3),
            peer_ifindex: peer,
            peer_nsid: peer.map(|_| 0),
        };
        let baseline = Baseline { rx_packets: 7, ..Baseline::default() };
        self.apply(Update::Attached {
            interface,
            owner: None,
            baseline: Some(baseline),
            kernel: KernelStats::default(),
            latency: Some(Duration::from_micros(150)),
        })
    }
}

fn world() -> Model {
    let mut model = Model::new();
    model.attach(BRIDGE, 3, "docker0", InterfaceKind::Bridge, None).with_veth(VETH, 10, 9).apply(
        Update::Networks {
            engine: "docker".to_owned(),
            networks: vec![NetworkInfo {
                id: "n1".to_owned(),
                name: "bridge".to_owned(),
                driver: "bridge".to_owned(),
                engine: "docker".to_owned(),
                bridge: Some("docker0".to_owned()),
                ..NetworkInfo::default()
            }],
        },
    );
    model
}

fn running(name: &str, pid: u32) -> ContainerInfo {
    ContainerInfo {
        id: format!("{name:0<64}"),
        name: name.to_owned(),
        state: ContainerState::Running,
        engine: "docker".to_owned(),
        pid: Some(pid),
        network_mode: "bridge".to_owned(),
        ..ContainerInfo::default()
    }
}

fn namespace(info: &ContainerInfo, peer: u32) -> Update {
    let (name, mac) = ("eth0".to_owned(), MAC.to_owned());
    let link = InnerLink { ifindex: peer, name, mac, ..InnerLink::default() };
    let namespace = Namespace { identity: (4, 1), nsid: Some(0), links: vec![link], ..Namespace::default() };
    Update::Namespace { id: info.id.clone(), namespace }
}

/// Of TCP: the host's end has received `rx` packets of 100 bytes and sent `tx`.
fn sample(key: InterfaceKey, rx: u64, tx: u64) -> Sample {
    let count = |packets| {
        let mut counters = Counters::ZERO;
        counters.class[(class::IPV4 + l4::TCP) as usize] = Count { packets, bytes: packets * 100 };
        counters
    };
    let kernel = KernelStats { tx_dropped: 2, ..KernelStats::default() };
    Sample { key, ingress: count(rx), egress: count(tx), senders: None, kernel: Some(kernel) }
}

#[test]
fn a_container_receives_what_the_hosts_end_sends() {
    let mut model = world();
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Samples(vec![sample(VETH, 3, 5)]));
    let web = model.container("web").expect("web");
    assert_eq!((web.rx.packets, web.tx.packets), (5, 3));
    let before = web.before.expect("known");
    assert_eq!((before.rx_packets, before.tx_packets), (0, 7));
    assert_eq!(web.drops.map(|drops| (drops.rx_dropped, drops.tx_dropped)), Some((2, 0)));
    assert_eq!(web.networks, ["bridge"]);
    assert_eq!(web.interfaces[0].host_interface.as_deref(), Some("veth10"));
    let network = &model.snapshot().networks[0];
    assert_eq!((network.containers.as_slice(), network.containers_rx.packets), (&["web".to_owned()][..], 5));
}

#[test]
fn the_name_comes_after_the_counters() {
    let mut model = world();
    model.apply(Update::Samples(vec![sample(VETH, 3, 5)]));
    assert_eq!(model.state.unbound_namespaces().len(), 1);
    assert_eq!(model.snapshot().agent.unattributed_interfaces, 1);
    let info = running("late", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    assert_eq!(model.container("late").expect("late").tx.packets, 3, "applied backwards");
    assert!(model.state.unbound_namespaces().is_empty());
}

#[test]
fn rates_are_of_the_time_between_two_samples() {
    let mut model = world();
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Samples(vec![sample(VETH, 10, 0)]));
    assert_eq!(model.container("web").expect("web").rates, None);
    model.later(2).apply(Update::Samples(vec![sample(VETH, 30, 0)]));
    let rates = model.container("web").expect("web").rates.expect("rates");
    assert_eq!((rates.tx_packets_per_second, rates.tx_bits_per_second), (10.0, 8000.0));
    assert_eq!(model.snapshot().interval_seconds, Some(2.0));
}

#[test]
fn a_restart_goes_on_counting_and_the_end_has_a_grace_period() {
    let mut model = world();
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Detached(Box::new(sample(VETH, 3, 5))));
    // Another namespace, with the same number, another veth and process.
    let again = running("web", 2);
    model
        .with_veth(InterfaceKey(3), 12, 11)
        .apply(Update::Container(again.clone()))
        .apply(namespace(&again, 11));
    model.apply(Update::Samples(vec![sample(InterfaceKey(3), 1, 1)]));
    let web = model.container("web").expect("web");
    assert_eq!((web.rx.packets, web.tx.packets, web.interfaces.len()), (6, 4, 1));
    model.apply(Update::Detached(Box::new(sample(InterfaceKey(3), 2, 2))));
    model.apply(Update::Removed { id: info.id });
    model.later(GRACE.as_secs() - 1);
    let web = model.container("web").expect("still within its grace period");
    assert_eq!((web.state, web.rx.packets), (ContainerState::Removed, 7));
    model.later(1);
    assert_eq!(model.container("web"), None);
}

#[test]
fn a_stopped_container_is_hidden_and_not_forgotten() {
    let mut model = world();
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Detached(Box::new(sample(VETH, 3, 5))));
    model.apply(Update::Container(ContainerInfo {
        state: ContainerState::Exited,
        pid: None,
        ..info.clone()
    }));
    model.later(GRACE.as_secs());
    assert_eq!(model.container("web"), None);
    model.apply(Update::Container(info));
    assert_eq!(model.container("web").expect("started again").rx.packets, 5);
}

#[test]
fn what_had_exited_before_is_not_shown() {
    let mut model = world();
    let info = ContainerInfo { state: ContainerState::Exited, pid: None, ..running("old", 1) };
    model.apply(Update::Container(info));
    assert_eq!(model.container("old"), None);
}

#[test]
fn a_used_again_namespace_number_is_not_the_old_containers() {
    let mut model = world();
    let old = running("old", 1);
    model.apply(Update::Container(old.clone())).apply(namespace(&old, 9));
    // The old one has ended, which nobody has told yet; its namespace's number is another's now.
    model.with_veth(InterfaceKey(3), 12, 11);
    let new = running("new", 2);
    model.apply(Update::Container(new.clone())).apply(namespace(&new, 11));
    model.apply(Update::Samples(vec![sample(VETH, 1, 1), sample(InterfaceKey(3), 5, 5)]));
    assert_eq!(model.container("old").expect("old").rx.packets, 1);
    assert_eq!(model.container("new").expect("new").rx.packets, 5);
}

#[test]
fn a_bridge_without_a_name_is_where_its_containers_are() {
    let mut model = Model::new();
    model.attach(BRIDGE, 3, "cni-podman0", InterfaceKind::Bridge, None).with_veth(VETH, 10, 9);
    let network = NetworkInfo {
        id: "n1".to_owned(),
        name: "shop".to_owned(),
        driver: "bridge".to_owned(),
        engine: "docker".to_owned(),
        ..NetworkInfo::default()
    };
    let networks = || Update::Networks { engine: "docker".to_owned(), networks: vec![network.clone()] };
    let info = running("web", 1);
    model.apply(networks()).apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    assert_eq!(model.snapshot().networks[0].bridge, None, "nothing says that it is on this network");
    let endpoint = Endpoint {
        network: "shop".to_owned(),
        network_id: "n1".to_owned(),
        mac: Some(MAC.to_owned()),
        ..Endpoint::default()
    };
    let on_shop = ContainerInfo { endpoints: vec![endpoint], ..info.clone() };
    model.apply(Update::Container(on_shop)).apply(namespace(&info, 9));
    assert_eq!(model.snapshot().networks[0].bridge.as_deref(), Some("cni-podman0"));
    assert_eq!(model.container("web").expect("web").networks, ["shop"]);
    model.apply(networks());
    assert_eq!(model.snapshot().networks[0].bridge.as_deref(), Some("cni-podman0"), "and again");
}

#[test]
fn members_of_a_namespace_are_counted_once() {
    let mut model = world();
    // By `/proc` the member was found first.
    let member = ContainerInfo { engine: PROC.to_owned(), ..running("member", 2) };
    model.apply(Update::Container(member.clone())).apply(namespace(&member, 9));
    let owner = running("owner", 1);
    let member = ContainerInfo { network_mode: format!("container:{}", owner.id), ..running("member", 2) };
    model.apply(Update::Container(owner.clone())).apply(Update::Container(member.clone()));
    model.apply(namespace(&member, 9)).apply(namespace(&owner, 9));
    model.apply(Update::Samples(vec![sample(VETH, 1, 1)]));
    assert_eq!(model.container("owner").expect("owner").rx.packets, 1);
    let member = model.container("member").expect("member");
    assert_eq!(member.rx.packets, 0);
    assert_eq!(member.unobserved.as_deref(), Some("counted with container owner, whose network it shares"));
}

#[test]
fn an_engines_list_is_complete_and_proc_knows_less() {
    let mut model = world();
    model.apply(Update::Container(running("gone", 1)));
    model.apply(Update::Containers { engine: "docker".to_owned(), containers: vec![running("stays", 2)] });
    assert_eq!(model.container("gone").expect("in grace").state, ContainerState::Removed);
    let nameless = ContainerInfo { name: String::new(), engine: PROC.to_owned(), ..running("stays", 2) };
    model.apply(Update::Container(nameless));
    assert_eq!(model.container("stays").expect("keeps its name").engine, "docker");
    let endpoint = "unix:///docker.sock".to_owned();
    assert!(!model.state.settled(std::slice::from_ref(&endpoint)), "nobody knows yet who is there");
    let mut status = EngineStatus {
        name: "docker".to_owned(),
        endpoint: endpoint.clone(),
        connected: true,
        ..EngineStatus::default()
    };
    model.apply(Update::Engine(status.clone()));
    assert!(model.state.settled(std::slice::from_ref(&endpoint)));
    status.name = "podman".to_owned();
    model.apply(Update::Engine(status.clone()));
    assert_eq!(model.snapshot().engines, [status.clone()], "one engine, by its new name");
    assert!(!model.state.settled(std::slice::from_ref(&endpoint)), "it has not told its containers");
    status.connected = false;
    model.apply(Update::Engine(status));
    assert!(model.state.settled(std::slice::from_ref(&endpoint)));
    model.apply(Update::NoEngine { endpoint: endpoint.clone() });
    assert!(model.state.settled(&[endpoint]), "it is known that nobody is there");
    assert_eq!(model.snapshot().engines, [], "and nothing to say of it");
}

#[test]
fn what_was_counted_on_a_bridge_stays_there() {
    const OTHER: InterfaceKey = InterfaceKey(4);
    let mut model = world();
    model.attach(OTHER, 5, "br-other", InterfaceKind::Bridge, None);
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    let port_of = |model: &Model, master| {
        let info = model.state.interfaces[&VETH].info.clone();
        InterfaceInfo { master, ..info }
    };
    let by_network = |model: &Model| -> Vec<(String, u64, u64)> {
        let web = model.container("web").expect("web");
        let interfaces = web.interfaces.iter();
        interfaces
            .map(|one| (one.network.clone().unwrap_or_default(), one.rx.packets, one.tx.packets))
            .collect()
    };
    let on = |network: &str, rx, tx| (network.to_owned(), rx, tx);
    // By way of no bridge at all, as `ip link set nomaster` leaves it.
    let nowhere = port_of(&model, None);
    model.apply(Update::Changed(nowhere, Box::new(sample(VETH, 3, 5))));
    assert_eq!(by_network(&model), [on("bridge", 5, 3)]);
    let other = port_of(&model, Some(5));
    model.apply(Update::Changed(other, Box::new(sample(VETH, 4, 6))));
    model.apply(Update::Samples(vec![sample(VETH, 14, 26)]));
    assert_eq!(by_network(&model), [on("br-other", 20, 10), on("bridge", 6, 4)]);
    let web = model.container("web").expect("web");
    assert_eq!(
        (web.rx.packets, web.tx.packets, web.networks.as_slice()),
        (26, 14, &["br-other".to_owned()][..])
    );
    assert_eq!(
        (web.before.map(|before| before.tx_packets), web.drops.map(|drops| drops.rx_dropped)),
        (Some(7), Some(2))
    );
    assert_eq!(web.interfaces[1].ifindex, None, "left");
    let snapshot = model.snapshot();
    let veth = snapshot.interfaces.iter().find(|one| one.name == "veth10").expect("veth10");
    assert_eq!((veth.rx.packets, veth.tx.packets, veth.network.as_deref()), (14, 26, Some("br-other")));
    let network = &snapshot.networks[0];
    assert_eq!((network.containers.len(), network.containers_rx.packets), (0, 6));
    // Back again, and to an end: added up by network.
    let back = port_of(&model, Some(3));
    model.apply(Update::Changed(back, Box::new(sample(VETH, 15, 27))));
    model.apply(Update::Samples(vec![sample(VETH, 16, 29)]));
    assert_eq!(by_network(&model), [on("br-other", 21, 11), on("bridge", 8, 5)]);
    model.apply(Update::Detached(Box::new(sample(VETH, 17, 30))));
    assert_eq!(by_network(&model), [on("br-other", 21, 11), on("bridge", 9, 6)]);
    let web = model.container("web").expect("web");
    assert_eq!(
        (web.before.map(|before| before.tx_packets), web.drops.map(|drops| drops.rx_dropped)),
        (Some(7), Some(2))
    );
    // To a bridge that is not observed: not the one that it has left.
    model.with_veth(InterfaceKey(6), 12, 9).apply(namespace(&info, 9));
    let unknown = InterfaceInfo { master: Some(99), ..model.state.interfaces[&InterfaceKey(6)].info.clone() };
    model.apply(Update::Changed(unknown, Box::new(sample(InterfaceKey(6), 1, 1))));
    model.apply(Update::Samples(vec![sample(InterfaceKey(6), 3, 3)]));
    assert_eq!(by_network(&model), [on("", 2, 2), on("br-other", 21, 11), on("bridge", 10, 7)]);
}

/// What passed while others had removed our programs is told of where the interface was then.
#[test]
fn what_was_missed_is_stated() {
    let mut model = world();
    let info = running("web", 1);
    model.apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Samples(vec![sample(VETH, 10, 0)]));
    let again = |rx_packets| Update::Reattached {
        interface: Some(VETH),
        why: Removal::QdiscRemoved,
        baseline: Some(Baseline { rx_packets, uncertain_packets: 1, ..Baseline::default() }),
    };
    // It was 7 before.
    model.apply(again(12));
    let veth = |model: &Model| model.snapshot().interfaces.into_iter().find(|one| one.name == "veth10");
    let now = veth(&model).expect("attached");
    assert_eq!((now.reattached, now.missed.rx_packets, now.missed.uncertain_packets), (1, 5, 1));
    assert_eq!(now.baseline.rx_packets, 12);
    model.attach(InterfaceKey(8), 4, "br-other", InterfaceKind::Bridge, None);
    let moved = InterfaceInfo {
        key: VETH,
        ifindex: 10,
        name: "veth10".to_owned(),
        kind: InterfaceKind::Veth,
        place: Place::Host,
        master: Some(4),
        peer_ifindex: Some(9),
        peer_nsid: Some(0),
    };
    model.apply(Update::Changed(moved, Box::new(sample(VETH, 10, 0)))).apply(again(15));
    let web = model.container("web").expect("web");
    let before = |network: &str| {
        let on = web.interfaces.iter().find(|one| one.network.as_deref() == Some(network));
        on.and_then(|one| one.before).map(|before| before.tx_packets)
    };
    assert_eq!((before("bridge"), before("br-other")), (Some(12), Some(3)));
    // The kernel's counters of a name server's filter are not known.
    model.apply(Update::Reattached { interface: None, why: Removal::FilterRemoved, baseline: None });
    // A packet that was on its way has been counted since: nothing is unmissed.
    model.apply(again(14));
    let now = veth(&model).expect("attached");
    assert_eq!((now.reattached, now.missed.rx_packets, now.baseline.rx_packets), (3, 8, 15));
    let counts = model.snapshot().agent.reattached;
    let of = |why: Removal| counts[why.name()];
    assert_eq!((of(Removal::QdiscRemoved), of(Removal::FilterRemoved), of(Removal::Displaced)), (3, 1, 0));
}

#[test]
fn processes_are_looked_after_while_their_engine_is_away() {
    let mut model = world();
    let status = |connected| {
        Update::Engine(EngineStatus { name: "docker".to_owned(), connected, ..EngineStatus::default() })
    };
    let info = running("web", 1);
    model.apply(status(true)).apply(Update::Container(info.clone())).apply(namespace(&info, 9));
    model.apply(Update::Container(running("never-found", 2)));
    model.apply(Update::Container(ContainerInfo { engine: PROC.to_owned(), ..running("nameless", 3) }));
    let looked_after = |model: &Model| -> Vec<u32> {
        let all = model.state.processes_without_engine();
        all.into_iter().map(|process| process.pid).collect()
    };
    assert_eq!(looked_after(&model), [3], "the engine tells of its own");
    model.apply(status(false));
    assert_eq!(looked_after(&model), [3, 1]);
    model.apply(Update::Ended { id: info.id.clone() });
    model.apply(Update::Ended { id: running("nameless", 3).id });
    assert_eq!(model.container("web").expect("within its grace period").state, ContainerState::Exited);
    assert_eq!(model.container("nameless").expect("the same").state, ContainerState::Removed);
    model.apply(Update::Container(running("web", 4)));
    assert_eq!(model.container("web").expect("started again").state, ContainerState::Running);
}

#[test]
fn what_is_not_attached_is_said_until_it_is() {
    let mut model = Model::new();
    let failed =
        || Update::AttachFailed { what: "9".to_owned(), name: "veth9".to_owned(), reason: "full".to_owned() };
    let vanished = || Update::Vanished { what: "9".to_owned() };
    model.apply(failed());
    assert_eq!(model.snapshot().agent.unattached, [("veth9".to_owned(), "full".to_owned())]);
    model.apply(vanished());
    assert!(model.snapshot().agent.unattached.is_empty());
    model.apply(Update::Degraded { feature: "processes", why: "no /proc".to_owned() });
    assert_eq!(model.snapshot().agent.degraded.len(), 1);
    model.apply(Update::Works { feature: "processes" }).apply(Update::EventsLost);
    assert!(model.snapshot().agent.degraded.is_empty());
    assert_eq!(model.snapshot().agent.event_overruns, 1);
}

#[test]
fn interfaces_of_unknown_containers_end_with_the_grace_period_too() {
    let mut model = world();
    model.apply(Update::Detached(Box::new(sample(VETH, 3, 5))));
    assert_eq!(model.snapshot().interfaces.len(), 1, "the bridge");
    assert_eq!(model.state.interfaces.len(), 2);
    model.later(GRACE.as_secs());
    assert_eq!(model.state.interfaces.len(), 1);
}

/// Two containers, `client` and `server`, each behind a veth.
fn two_ends() -> (Model, [FlowEnd; 2]) {
    let mut model = Model::new();
    model.state = State::new("auto", GRACE).with_flows(FlowOptions::default());
    let end = |last, port| FlowEnd { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port };
    let ends = [end(1, 40_000), end(2, 80)];
    for (key, name, end) in [(VETH, "client", ends[0]), (SERVER, "server", ends[1])] {
        model.with_end(key, name, end);
    }
    (model, ends)
}

const SERVER: InterfaceKey = InterfaceKey(3);

impl Model {
    fn with_end(&mut self, key: InterfaceKey, name: &str, end: FlowEnd) -> &mut Self {
        self.apply(Update::Container(running(name, 1)));
        let inner = InnerLink { ifindex: 2, addresses: vec![end.address], ..InnerLink::default() };
        let interface = InterfaceInfo {
            key,
            ifindex: 10 + key.0 as u32,
            name: format!("veth{}", key.0),
            kind: InterfaceKind::Veth,
            place: Place::Host,
            master: None,
            peer_ifindex: Some(2),
            peer_nsid: Some(0),
        };
        let owner = Some(Owner { container: running(name, 1).id, inner });
        let kernel = KernelStats::default();
        self.apply(Update::Attached { interface, owner, baseline: None, kernel, latency: None })
    }

    /// Packets of a flow as one end has counted them by now.
    fn flow(&mut self, key: InterfaceKey, local: FlowEnd, remote: FlowEnd, rx: u64, tx: u64) -> &mut Self {
        let count = |n: u64| FlowCount { packets: n, bytes: 100 * n, wire_packets: n, wire_bytes: 100 * n };
        self.apply(Update::Flows(vec![FlowRecord {
            interface: key,
            local,
            remote,
            protocol: 17,
            rx: count(rx),
            tx: count(tx),
            rx_flags: if tx == 0 { FIRST } else { 0 },
            tx_flags: if tx == 0 { 0 } else { FIRST },
            rx_zero_windows: 0,
            tx_zero_windows: 0,
            first: self.now,
            last: self.now,
        }]))
    }

    /// Source, destination, and packets once.
    fn edges(&self) -> Vec<(String, String, u64)> {
        let name = |end: EdgeEnd| {
            end.container.or_else(|| end.class.map(|class| class.name().to_owned())).expect("an end")
        };
        let edges = self.snapshot().edges;
        edges.into_iter().map(|edge| (name(edge.source), name(edge.destination), edge.once.packets)).collect()
    }
}

/// What both ends have of it is added up at the source, whoever is told of first, and at the one that is left when one of
/// them has gone.
#[test]
fn an_edge_has_each_packet_once_also_at_the_end() {
    let (mut model, [client, server]) = two_ends();
    let both = |model: &mut Model, n| {
        model.flow(VETH, client, server, 0, n).flow(SERVER, server, client, n, 0);
    };
    let edge = |packets| vec![("client".to_owned(), "server".to_owned(), packets)];
    both(&mut model, 10);
    both(model.later(60), 1);
    assert_eq!(model.edges(), edge(11));
    model.apply(Update::Detached(Box::new(sample(VETH, 11, 0))));
    both(&mut model, 4);
    assert_eq!(model.edges(), edge(15));
}

/// Who has taken over an address of a container that has ended gets what is sent there from then on, though it be of the
/// same flow.
#[test]
fn a_flow_outlives_the_container_that_it_led_to() {
    let (mut model, [client, server]) = two_ends();
    let edge = |to: &str, packets| ("client".to_owned(), to.to_owned(), packets);
    model.flow(VETH, client, server, 0, 10);
    let removed = Update::Removed { id: running("server", 1).id };
    model.later(1).apply(Update::Detached(Box::new(sample(SERVER, 10, 0)))).apply(removed);
    model.later(1).flow(VETH, client, server, 0, 5);
    assert_eq!(model.edges(), [edge("server", 15)], "nobody else has the address");
    model.with_end(InterfaceKey(4), "successor", server);
    model.later(1).flow(VETH, client, server, 0, 3).flow(InterfaceKey(4), server, client, 3, 0);
    assert_eq!(model.edges(), [edge("server", 15), edge("successor", 3)]);
    // Kept up until the first is not told of any more.
    for _ in 0..20 {
        model.later(20).flow(VETH, client, server, 0, 1);
    }
    assert_eq!(model.edges(), [edge("successor", 23)]);
}

/// The same where nobody has the address now: it is no container's.
#[test]
fn a_flow_to_a_container_that_is_forgotten_is_in_an_edge_that_stays() {
    let (mut model, [client, server]) = two_ends();
    model.flow(VETH, client, server, 0, 1);
    let removed = Update::Removed { id: running("server", 1).id };
    model.later(1).apply(Update::Detached(Box::new(sample(SERVER, 0, 0)))).apply(removed);
    for _ in 0..20 {
        model.later(20).flow(VETH, client, server, 0, 1);
    }
    let edges = model.edges();
    let [(source, destination, packets)] = edges.as_slice() else { panic!("{edges:?}") };
    assert_eq!((source.as_str(), destination.as_str()), ("client", "external"));
    let total = 21;
    assert!((1..total).contains(packets), "what came after it was forgotten: {edges:?}");
    model.later(20).flow(VETH, client, server, 0, 1);
    assert_eq!(model.edges()[0].2, packets + 1);
}

#[test]
fn conversations_are_those_with_the_most_bytes() {
    let (mut model, [client, server]) = two_ends();
    for n in 0..1000u16 {
        let client = FlowEnd { port: 2000 + n, ..client };
        model.flow(VETH, client, server, 0, 1 + u64::from(n) * 7919 % 1000);
    }
    for limit in [0, 1, 3, 200, 999, 1000, usize::MAX] {
        let told = model.state.conversations(model.now, SystemTime::UNIX_EPOCH, |_| true, limit);
        let packets: Vec<u64> = told.flows.iter().map(super::conversation::Conversation::packets).collect();
        let most: Vec<u64> = (1..=1000).rev().take(limit).collect();
        assert_eq!((packets, told.more), (most, 1000 - limit.min(1000)), "{limit}");
    }
}

/// What is observed inside a container has no bridge: the engine says which network it is on, as long as it is.
#[test]
fn what_was_counted_inside_stays_with_its_network() {
    let mut model = Model::new();
    let address = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
    let endpoint = Endpoint { network: "mv".to_owned(), addresses: vec![address], ..Endpoint::default() };
    let connected = ContainerInfo { endpoints: vec![endpoint], ..running("web", 1) };
    let inner =
        InnerLink { name: "eth0".to_owned(), ifindex: 2, addresses: vec![address], ..InnerLink::default() };
    let interface = InterfaceInfo {
        key: VETH,
        ifindex: 2,
        name: "eth0".to_owned(),
        kind: InterfaceKind::Macvlan,
        place: Place::Inside,
        master: None,
        peer_ifindex: None,
        peer_nsid: None,
    };
    let owner = Some(Owner { container: connected.id.clone(), inner });
    let (baseline, kernel) = (Some(Baseline::default()), KernelStats::default());
    model.apply(Update::Container(connected));
    model.apply(Update::Attached { interface, owner, baseline, kernel, latency: None });
    model.apply(Update::Samples(vec![sample(VETH, 5, 6)]));
    let network = |model: &Model| -> Vec<Option<String>> {
        let interfaces = model.container("web").expect("known").interfaces;
        interfaces.into_iter().map(|interface| interface.network).collect()
    };
    assert_eq!(network(&model), [Some("mv".to_owned())]);
    model.apply(Update::Container(running("web", 1)));
    assert_eq!(network(&model), [Some("mv".to_owned())], "disconnected, and not yet let go");
    model.apply(Update::Detached(Box::new(sample(VETH, 5, 6))));
    assert_eq!(network(&model), [Some("mv".to_owned())], "and let go");
}
