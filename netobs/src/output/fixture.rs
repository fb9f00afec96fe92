//! A small world for the tests of outputs: a bit of everything that a snapshot can hold.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use netobs_common::{Count, Counters, class, l4};

use crate::model::{
    self, AgentHealth, Baseline, Compose, Container, ContainerState, Drops, Endpoint, EngineStatus,
    FlowCount, Interface, InterfaceKind, Latency, Network, Place, Protocol, Published, Rates, Snapshot,
    Subnet, Traffic, Via,
    arp::{ArpCounts, ArpReport, Conflict},
    class::Class,
    dns::{DnsCounts, DnsLatency, Path, Role},
    edge::EdgeCount,
    event::{DnsMessages, DnsName, DnsReport, EventHealth, LostEvents},
    snapshot::{
        Binding, ClassTraffic, Client, ContainerInterface, Edge, EdgeEnd, FlowHealth, PortCount,
        PublishedTraffic, TcpStatus,
    },
    tcp::{Distribution, TcpConnections, TcpHealth, TcpResets},
};

/// A name that tries everything: terminal escapes, a new line, quotes, bidi, and what CSV cares for.
pub const HOSTILE: &str = "evil\x1b[2J\u{202e}\n\"q\",\\end";

pub fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// TCP, UDP over IPv6, ARP and a broadcast, all times `n`; every eighth TCP packet a super-packet.
pub fn traffic(n: u64) -> Traffic {
    let mut raw = Counters::ZERO;
    let count = |packets, bytes| Count { packets, bytes };
    raw.class[(class::IPV4 + l4::TCP) as usize] = count(8 * n, 8 * 1000 * n);
    raw.class[(class::IPV6 + l4::UDP) as usize] = count(2 * n, 2 * 100 * n);
    raw.class[class::ARP as usize] = count(n, 42 * n);
    raw.unfolded_bytes = 3 * 54 * n;
    raw.tcp_zero_window = n;
    raw.broadcast = count(n, 42 * n);
    raw.tcp_syn = n;
    raw.size[0] = n;
    raw.size[1] = 2 * n;
    raw.size[4] = 8 * n;
    raw.size[8] = 3 * n;
    raw.truncated = n / 10;
    raw.unflowed = count(n / 5, 100 * (n / 5));
    Traffic::from(&raw)
}

pub fn rates(scale: f64) -> Rates {
    Rates {
        rx_packets_per_second: 100.0 * scale,
        rx_bits_per_second: 1_250_000.0 * scale,
        tx_packets_per_second: 50.0 * scale,
        tx_bits_per_second: 20_000.0 * scale,
    }
}

/// A running container with one interface on `network` and traffic of size `n`.
pub fn container(digit: char, name: &str, network: &str, n: u64) -> Container {
    let drops = Some(Drops { rx_dropped: 3, tx_dropped: 1, rx_errors: 0, tx_errors: 2 });
    Container {
        id: id(digit),
        name: name.into(),
        image: Some("nginx:1.27".into()),
        state: ContainerState::Running,
        engine: "docker".into(),
        compose: Some(Compose { project: "shop".into(), service: "web".into() }),
        network_mode: Some(network.into()),
        networks: vec![network.into()],
        endpoints: vec![Endpoint {
            network: network.into(),
            network_id: id('e'),
            addresses: vec!["172.18.0.2".parse().expect("address")],
            mac: Some("02:42:ac:12:00:02".into()),
        }],
        before: Some(Baseline::default()),
        interfaces: vec![ContainerInterface {
            ifindex: Some(2),
            observed: Some(Place::Host),
            kind: Some(InterfaceKind::Veth),
            driver: Some("bridge".into()),
            before: Some(Baseline::default()),
            name: Some("eth0".into()),
            network: Some(network.into()),
            host_interface: Some(format!("veth{digit}")),
            host_ifindex: Some(17),
            mac: Some("02:42:ac:12:00:02".into()),
            addresses: vec!["172.18.0.2".parse().expect("address"), "fd00::2".parse().expect("address")],
            rx: traffic(n),
            tx: traffic(2 * n),
            rates: Some(rates(1.0)),
            drops,
        }],
        rx: traffic(n),
        tx: traffic(2 * n),
        rates: Some(rates(1.0)),
        drops,
        ..Container::default()
    }
}

/// Port 80 on the host's 8080: one client by address translation, others by the engine's proxy.
fn published() -> Published {
    let address = |text: &str| text.parse().expect("address");
    let count = |n| PortCount { rx_packets: n, rx_bytes: 100 * n, tx_packets: n, tx_bytes: 1000 * n };
    Published {
        protocol: Protocol::Tcp,
        container_port: 80,
        bindings: ["0.0.0.0", "::"].map(|any| Binding { address: Some(address(any)), port: 8080 }).into(),
        traffic: Some(PublishedTraffic {
            via: [(Via::Client, count(4)), (Via::DockerProxy, count(6))].into(),
            clients: vec![
                Client { address: address("172.18.0.1"), via: Via::DockerProxy, count: count(6) },
                Client { address: address("192.0.2.7"), via: Via::Client, count: count(4) },
            ],
        }),
    }
}

/// Four connects, of which the duration of one is not known; none accepted.
fn tcp() -> TcpHealth {
    let mut client_handshake =
        Distribution { sum_us: 300 + 90 + 20_000_000, unmeasured: 1, ..Distribution::default() };
    for bucket in [0, 2, 15] {
        client_handshake.buckets[bucket] = 1;
    }
    let connections = TcpConnections {
        client_handshake,
        refused: 5,
        timed_out: 6,
        failed: 7,
        given_up: 8,
        ..TcpConnections::default()
    };
    TcpHealth {
        connections: Some(connections),
        retransmitted_segments: Some(9),
        resets: Some(TcpResets { sent: 10, received: 11 }),
    }
}

/// Ten queries with nine responses, of 300 µs each.
fn dns() -> DnsReport {
    let mut latency = DnsLatency { sum_ns: 9 * 300_000, ..DnsLatency::default() };
    latency.buckets[2] = 9;
    let responses = [("NOERROR", 8), ("NXDOMAIN", 1)].into();
    let counts = DnsCounts { queries: 10, responses, unanswered: 1, latency, ..DnsCounts::default() };
    DnsReport {
        messages: vec![DnsMessages { role: Role::Client, via: Path::Embedded, pending: 0, counts }],
        malformed: 4,
        names: Some(vec![DnsName { name: "db".into(), queries: 9 }]),
        other_names: 1,
        ..DnsReport::default()
    }
}

fn arp() -> ArpReport {
    ArpReport {
        counts: ArpCounts {
            requests_tx: 7,
            replies_rx: 5,
            unanswered: 2,
            duplicates: 1,
            ..ArpCounts::default()
        },
        conflicts: vec![Conflict {
            address: std::net::Ipv4Addr::new(172, 18, 0, 2),
            network: Some("shop_default".into()),
            macs: vec!["02:42:ac:12:00:02".into(), "02:42:ac:12:00:09".into()],
            containers: vec!["web-1".into()],
        }],
    }
}

pub fn snapshot() -> Snapshot {
    let mut ended = container('d', "job", "shop_default", 7);
    ended.state = ContainerState::Exited;
    ended.rates = None;
    let mut host =
        Container { id: id('b'), name: "host-net".into(), engine: "docker".into(), ..Container::default() };
    host.network_mode = Some("host".into());
    host.unobserved = Some("host networking".into());
    let mut database = container('c', "db", "shop_default", 1000);
    database.rates = Some(rates(4.0));
    database.compose = Some(Compose { project: "shop".into(), service: "db".into() });
    // Two interfaces whose names could not be learned: one series, added up.
    let mut unknown = database.interfaces[0].clone();
    unknown.name = None;
    unknown.host_interface = None;
    database.interfaces = vec![database.interfaces[0].clone(), unknown.clone(), unknown];
    let mut web = container('a', "web-1", "shop_default", 100);
    web.published = vec![published()];
    web.tcp = Some(tcp());
    web.foreign_address = Some(model::Count { packets: 3, bytes: 300 });
    web.dns = Some(dns());
    web.arp = Some(arp());
    let part = |n| model::Count { packets: n, bytes: 100 * n };
    let class =
        |class, n| ClassTraffic { network: Some("shop_default".into()), class, rx: part(n), tx: part(2 * n) };
    web.classes = vec![class(Class::SameNetwork, 5), class(Class::External, 6)];
    let mut snapshot = Snapshot::empty(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250));
    snapshot.interval_seconds = Some(1.0);
    snapshot.containers = vec![database, container('f', HOSTILE, "bridge", 1), host, ended, web];
    snapshot.networks = vec![
        Network {
            id: id('9'),
            name: "bridge".into(),
            driver: "bridge".into(),
            engine: "docker".into(),
            bridge: Some("docker0".into()),
            containers: vec![HOSTILE.into()],
            ..Network::default()
        },
        Network {
            id: id('e'),
            name: "shop_default".into(),
            driver: "bridge".into(),
            engine: "docker".into(),
            bridge: Some("br-eeeeeeeeeeee".into()),
            internal: true,
            options: BTreeMap::from([("com.docker.network.driver.mtu".into(), "1400".into())]),
            subnets: vec![Subnet { subnet: "172.18.0.0/16".into(), gateway: Some("172.18.0.1".into()) }],
            containers: vec!["db".into(), "web-1".into()],
            rx: traffic(5),
            tx: traffic(6),
            rates: Some(rates(0.5)),
            containers_rx: traffic(1100),
            containers_tx: traffic(2200),
            containers_rates: Some(rates(5.0)),
        },
    ];
    let interface = |name: &str, ifindex, kind, owner: Option<(&str, char)>| Interface {
        name: name.into(),
        ifindex,
        kind,
        bridge: (kind == InterfaceKind::Veth).then(|| "br-eeeeeeeeeeee".into()),
        network: owner.map(|_| "shop_default".into()),
        container: owner.map(|(name, _)| name.into()),
        container_id: owner.map(|(_, digit)| id(digit)),
        rx: traffic(2),
        tx: traffic(1),
        baseline: Baseline {
            rx_packets: 5,
            rx_bytes: 600,
            tx_packets: 7,
            tx_bytes: 800,
            uncertain_packets: 0,
        },
        drops: Some(Drops::default()),
    };
    let mut bridge = interface("br-eeeeeeeeeeee", 4, InterfaceKind::Bridge, None);
    bridge.network = Some("shop_default".into());
    snapshot.interfaces = vec![
        bridge,
        interface("vetha", 17, InterfaceKind::Veth, Some(("web-1", 'a'))),
        interface("vethlost", 23, InterfaceKind::Veth, None),
    ];
    let outside = EdgeEnd { container: None, id: None, class: Some(Class::External) };
    let end = |name: &str, digit| EdgeEnd { container: Some(name.into()), id: Some(id(digit)), class: None };
    let count = |n| Some(FlowCount { packets: n, bytes: 100 * n, wire_packets: 2 * n, wire_bytes: 150 * n });
    let edge = |source, destination, sent, received| Edge {
        source,
        destination,
        protocol: "tcp".into(),
        port: Some(5432),
        count: EdgeCount { sent, received },
    };
    snapshot.edges = vec![
        edge(end("web-1", 'a'), end("db", 'c'), count(10), count(9)),
        edge(end("db", 'c'), end("web-1", 'a'), count(7), count(7)),
        edge(outside.clone(), end(HOSTILE, 'f'), None, count(3)),
        edge(end(HOSTILE, 'f'), outside, count(2), None),
    ];
    snapshot.engines = vec![
        EngineStatus {
            name: "docker".into(),
            endpoint: "unix:///var/run/docker.sock".into(),
            connected: true,
            version: Some("27.1.1".into()),
            problem: None,
        },
        EngineStatus {
            name: "podman".into(),
            endpoint: "unix:///run/podman/podman.sock".into(),
            connected: false,
            version: None,
            problem: Some("permission denied: add the user to its group".into()),
        },
    ];
    snapshot.agent = AgentHealth {
        event_overruns: 0,
        attach_mode: "tcx".into(),
        attached_interfaces: 3,
        unattached: vec![("vethx".into(), "no such device".into())],
        unattributed_interfaces: 1,
        degraded: vec![("btf".into(), "no /sys/kernel/btf/vmlinux".into())],
        attach_latency: Latency::default(),
        flows: Some(FlowHealth { listed: 3, unlisted: 1, ..FlowHealth::default() }),
        tcp: Some(TcpStatus { lost: BTreeMap::from([("full", 0), ("flow", 2)]) }),
        events: Some(EventHealth { lost: LostEvents { dns: 2, embedded_dns: 0, arp: 1 }, strays: 0 }),
    };
    for us in [80, 300, 400, 2_000_000] {
        snapshot.agent.attach_latency.observe(Duration::from_micros(us));
    }
    snapshot
}
