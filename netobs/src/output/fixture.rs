//! A small world for the tests of outputs: a bit of everything that a snapshot can hold.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use netobs_common::{Count, Counters, class, l4};

use crate::model::{
    self, AgentHealth, Baseline, Compose, Container, ContainerState, Drops, Endpoint, EngineStatus,
    FlowCount, Interface, InterfaceKind, Latency, Network, Place, Pod, Protocol, Published, Rates, Removal,
    Snapshot, Subnet, Traffic, Via, Workload,
    arp::{ArpCounts, ArpReport, Conflict},
    class::Class,
    dns::{DnsCounts, DnsLatency, Path, Role},
    edge::EdgeCount,
    event::{DnsMessages, DnsName, DnsReport, EventHealth, LostEvents},
    reconcile::Difference,
    snapshot::{
        Binding, ClassTraffic, Client, ContainerInterface, Edge, EdgeEnd, FlowHealth, HttpHealth, OtlpHealth,
        PortCount, PublishedTraffic, Sent, TcpStatus, by_name,
    },
    tcp::{Distribution, TcpConnections, TcpHealth, TcpResets},
};

/// A name that tries everything: terminal escapes, a new line, quotes, bidi, and what CSV cares for.
pub const HOSTILE: &str = "evil\x1b[2J\u{202e}\n\"q\",\\end";

/// What breaks out of quotes, labels, cells, lines, comments, tags, blocks and colours, of whatever output.
pub fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        HOSTILE,
        "\"];\nevil [label=\"x",
        "a\\",
        "a\\\"; evil; \"",
        "end",
        "subgraph; end; n0 --- n1",
        "<script>alert(1)</script>",
        "&lt;b&gt;&quot;&#34;",
        "\"`**bold**`\"",
        "]) }} %% comment",
        "%%{init: {}}%%",
        "style x:#fff;",
        "x\u{202e}\u{2066}\u{200f}\u{feff}y",
        "\x00\x07\x1b]0;title\x07\u{9b}31m",
        "\x1b]8;;http://evil/\x1b\\link\x1b]52;c;ZXZpbA==\x07\x1bP$q\x1b\\\u{90}\u{9c}\x7f",
        "\u{200b}\u{200d}\u{2060}\u{ad}\u{e0041}",
        "\r\n+ container fake (running)",
        "\r",
        "\t\x08\x0b\x0c",
        "\u{85}\u{2028}\u{2029}",
        "} 1\nevil_total{a=\"b\"} 2",
        "a\",evil=\"b",
        "# HELP evil",
        "=cmd|'/c calc'!A1",
        "+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "a,b;c\"d\",\"e",
        "{\"a\":1}",
        " ",
        "\\N\\G\\L",
        "#quot;#35;",
        "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}",
        "\u{fdfd}\u{1f468}\u{200d}\u{1f469}",
        "\u{fffd}\u{ffff}\u{10ffff}",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(10_000));
    names.push("\"".repeat(10_000));
    names.push("\x1b[2J\n".repeat(2_000));
    names.push("\u{4e00}".repeat(10_000));
    names
}

/// The fixture with one foreign name everywhere where there can be one.
pub fn named(name: &str) -> Snapshot {
    let mut snapshot = snapshot();
    let old = "shop_default";
    for container in &mut snapshot.containers {
        container.image = Some(name.into());
        container.namespace = Some("net:[4026532310]".into());
        container.engine = name.into();
        container.compose = Some(Compose { project: name.into(), service: name.into() });
        container.pod = Some(Pod {
            namespace: name.into(),
            name: name.into(),
            uid: name.into(),
            container: (container.name != "db").then(|| name.into()),
            labels: BTreeMap::from([(name.into(), name.into())]),
            owner: Some(Workload { kind: name.into(), name: name.into() }),
            node: Some(name.into()),
        });
        container.unobserved = container.unobserved.as_ref().map(|_| name.into());
        container.networks.iter_mut().chain(&mut container.network_mode).for_each(|one| *one = name.into());
        container.endpoints.iter_mut().for_each(|one| one.network = name.into());
        container.interfaces.iter_mut().filter(|one| one.network.as_deref() == Some(old)).for_each(|one| {
            one.network = Some(name.into());
            one.name = one.name.as_ref().map(|_| name.into());
            one.host_interface = one.host_interface.as_ref().map(|_| name.into());
        });
        for asked in container.dns.iter_mut().flat_map(|dns| dns.names.iter_mut().flatten()) {
            asked.name = name.into();
        }
        for conflict in container.arp.iter_mut().flat_map(|arp| &mut arp.conflicts) {
            conflict.network = Some(name.into());
            conflict.containers = vec![name.into()];
        }
        if container.name != "job" {
            container.name = name.into();
        }
    }
    for network in &mut snapshot.networks {
        if network.name == old {
            network.name = name.into();
        }
        network.driver = name.into();
        network.engine = name.into();
        network.containers.iter_mut().for_each(|one| *one = name.into());
        network.options.insert(name.into(), name.into());
    }
    for interface in &mut snapshot.interfaces {
        interface.network = interface.network.as_ref().map(|_| name.into());
        interface.container = interface.container.as_ref().map(|_| name.into());
        if interface.name == "vethlost" {
            interface.name = name.into();
        }
    }
    for edge in &mut snapshot.edges {
        for end in [&mut edge.source, &mut edge.destination] {
            end.container = end.container.as_ref().map(|_| name.into());
            (end.namespace, end.pod) = (end.container.clone(), end.container.clone());
            end.service = end.service.as_ref().map(|_| name.into());
        }
    }
    for engine in &mut snapshot.engines {
        engine.name = name.into();
        engine.version = engine.version.as_ref().map(|_| name.into());
        engine.problem = engine.problem.as_ref().map(|_| name.into());
    }
    snapshot.agent.unattached = vec![(name.into(), name.into())];
    snapshot.agent.degraded = vec![("drops".into(), name.into())];
    snapshot
}

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
            difference: None,
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
    let responses = by_name([("NOERROR", 8), ("NXDOMAIN", 1)]);
    let counts =
        DnsCounts { queries: 10, tcp_queries: 2, responses, unanswered: 1, latency, ..DnsCounts::default() };
    DnsReport {
        messages: vec![DnsMessages { role: Role::Client, via: Path::Embedded, pending: 0, counts }],
        malformed: 4,
        over_tcp: Some(crate::model::Count { packets: 12, bytes: 900 }),
        unread_segments: 3,
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
    let from_another = model::Count { packets: 2, bytes: 120 };
    web.foreign_mac = Some(model::ForeignMac { count: from_another, unjudged_packets: 1 });
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
        reattached: 1,
        missed: Baseline { rx_packets: 2, rx_bytes: 196, ..Baseline::default() },
        difference: Some(Difference {
            rx_packets: if name == "vetha" { 3 } else { 0 },
            tx_bytes: if name == "vetha" { -60 } else { 0 },
            ..Difference::default()
        }),
        drops: Some(Drops::default()),
    };
    let mut bridge = interface("br-eeeeeeeeeeee", 4, InterfaceKind::Bridge, None);
    bridge.network = Some("shop_default".into());
    snapshot.interfaces = vec![
        bridge,
        interface("vetha", 17, InterfaceKind::Veth, Some(("web-1", 'a'))),
        interface("vethlost", 23, InterfaceKind::Veth, None),
    ];
    let outside = EdgeEnd { class: Some(Class::External), ..EdgeEnd::default() };
    let end = |name: &str, digit| EdgeEnd {
        container: Some(name.into()),
        id: Some(id(digit)),
        ..EdgeEnd::default()
    };
    let count = |n| Some(FlowCount { packets: n, bytes: 100 * n, wire_packets: 2 * n, wire_bytes: 150 * n });
    let edge = |source, destination, sent, received| Edge {
        source,
        destination,
        protocol: "tcp".into(),
        port: Some(5432),
        count: EdgeCount { sent, received },
        once: sent.or(received).unwrap_or_default(),
    };
    let service =
        EdgeEnd { service: Some("shop/db".into()), class: Some(Class::Cluster), ..EdgeEnd::default() };
    snapshot.edges = vec![
        edge(end("web-1", 'a'), service, count(4), None),
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
        reattached: by_name(Removal::ALL.map(|why| (why.name(), u64::from(why == Removal::Displaced)))),
        attach_mode: "tcx".into(),
        attached_interfaces: 3,
        unattached: vec![("vethx".into(), "no such device".into())],
        unattributed_interfaces: 1,
        degraded: vec![("btf".into(), "no /sys/kernel/btf/vmlinux".into())],
        attach_latency: Latency::default(),
        flows: Some(FlowHealth { listed: 3, unlisted: 1, ..FlowHealth::default() }),
        tcp: Some(TcpStatus { lost: by_name([("full", 0), ("flow", 2)]) }),
        events: Some(EventHealth { lost: LostEvents { dns: 2, embedded_dns: 0, arp: 1 }, strays: 0 }),
        http: Some(HttpHealth { connections: 2, closed_crowded: 3, closed_slow: 4 }),
        otlp: Some(OtlpHealth {
            metrics: Sent { sent: 700, waiting: 50, lost: by_name([("queue_full", 8), ("refused", 0)]) },
            logs: Some(Sent { sent: 60, waiting: 5, lost: by_name([("rejected", 1)]) }),
            waiting_bytes: 9000,
            failed_requests: 3,
        }),
    };
    for us in [80, 300, 400, 2_000_000] {
        snapshot.agent.attach_latency.observe(Duration::from_micros(us));
    }
    snapshot
}
