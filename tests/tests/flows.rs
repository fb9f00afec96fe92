//! Flows: every IP packet in one or in the stated remainder, each conversation once, and what is made of them.
//! Without an engine, so that it runs on any kernel.

use std::{
    io::Write as _,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    time::Duration,
};

use netobs_tests::{
    bridged::Bridged,
    frames, http, kernel,
    netns::Netns,
    pretend::Pretend,
    program::{self, Agent, Watch, container, number},
    traffic, wait_for,
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

const BRIDGE: &str = "br-flows";

/// Number n (from 0) has 10.79.0.(n + 10), and a way out by the host.
fn bridged(count: u8) -> Bridged {
    let world = Bridged::new(BRIDGE, "10.79.0", (0..count).map(|n| n + 10));
    world.host.sh(&format!("ip addr add 10.79.0.1/24 dev {BRIDGE}"));
    for container in &world.containers {
        container.netns().sh("ip route add default via 10.79.0.1");
    }
    world
}

fn address(n: usize, port: u16) -> SocketAddr {
    format!("10.79.0.{}:{port}", n + 10).parse().expect("an address")
}

/// What classes have counted in one direction, and what is in none: no IP, and the remainder.
fn accounted(container: &Value, direction: &str, unit: &str) -> u64 {
    let classes = container["classes"].as_array().expect("classes");
    let flows: u64 = classes.iter().map(|class| number(class, &format!("{direction}.{unit}"))).sum();
    let rest = ["unflowed", "ethertype.arp", "ethertype.other"];
    flows + rest.iter().map(|part| number(container, &format!("{direction}.{part}.{unit}"))).sum::<u64>()
}

/// Waits until all flows have been read: classes and remainder are the whole then, to the packet and byte.
fn assert_accounted(watch: &Watch, name: &str) -> Value {
    let mut packets = 0;
    watch.until(&format!("all packets of {name} in flows"), |snapshot| {
        let container = container(snapshot, name)?;
        for direction in ["rx", "tx"] {
            for unit in ["packets", "bytes"] {
                let whole = number(&container, &format!("{direction}.{unit}"));
                let parts = accounted(&container, direction, unit);
                assert!(parts <= whole, "{name} {direction} {unit}: {parts} of {whole}: {container}");
                if parts < whole {
                    return None;
                }
            }
        }
        // Twice the same, so that nothing is on its way.
        let quiet = std::mem::replace(&mut packets, number(&container, "rx.packets")) == packets;
        quiet.then_some(container)
    })
}

fn class(container: &Value, class: &str, path: &str) -> u64 {
    let classes = container["classes"].as_array().expect("classes");
    classes.iter().filter(|part| part["class"] == class).map(|part| number(part, path)).sum()
}

/// An Ethernet frame with a UDP datagram without payload.
fn frame(from: &str, to: &str, tag: Option<u16>, ports: (u16, u16), fragment: u16) -> Vec<u8> {
    let mac = |text: &str| -> Vec<u8> {
        text.split(':').map(|part| u8::from_str_radix(part, 16).expect("a MAC address")).collect()
    };
    let mut frame = mac(to);
    frame.extend(mac(from));
    if let Some(tag) = tag {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([0x08, 0x00]);
    let mut datagram = ports.0.to_be_bytes().to_vec();
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend([0, 8, 0, 0]);
    frame.extend(frames::ipv4(17, [10, 79, 0, 10], [10, 79, 0, 11], fragment, &datagram));
    frame
}

/// UDP, TCP in super-packets, pings, fragments, multicast, from the host and to it.
fn all_kinds(world: &Bridged) {
    traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 1000, 100);
    traffic::udp(world.netns(1), world.netns(0), address(0, 5001), 500, 1400);
    traffic::tcp(world.netns(0), world.netns(1), address(1, 5002), 20_000_000);
    world.netns(0).sh("busybox ping -q -c 5 -i 0.05 10.79.0.11 >/dev/null");
    world.netns(0).sh("busybox ping -q -c 3 -i 0.05 -s 4000 10.79.0.11 >/dev/null");
    world.netns(1).sh("busybox ping -q -c 4 -i 0.05 10.79.0.1 >/dev/null");
    send_frames(world, 10, |from, to, n| frame(from, to, None, (n, 9), 100));
    world.netns(1).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        for _ in 0..20 {
            socket.send_to(b"to all", "224.0.0.251:5353").expect("send to a group");
        }
    });
}

/// From the first container to the second.
fn send_frames(world: &Bridged, count: u16, make: impl Fn(&str, &str, u16) -> Vec<u8>) {
    let (from, to) = (kernel::mac(world.netns(0), "eth0"), kernel::mac(world.netns(1), "eth0"));
    traffic::raw(world.netns(0), "eth0", (0..count).map(|n| make(&from, &to, n)).collect());
}

/// What is beyond the host, as a namespace that it routes to: 10.88.0.2, and 10.96.0.2 behind it.
fn elsewhere(world: &Bridged) -> Netns {
    let beyond = Netns::new();
    world.host.sh(&format!(
        "ip link add out0 type veth peer name eth0 netns {}; ip addr add 10.88.0.1/24 dev out0; ip link set out0 up
         sysctl -qw net.ipv4.ip_forward=1",
        beyond.pid()
    ));
    beyond.sh("ip addr add 10.88.0.2/24 dev eth0; ip link set eth0 up; ip link set lo up
         ip addr add 10.96.0.2/32 dev lo; ip route add default via 10.88.0.1");
    world.host.sh("ip route add 10.96.0.0/16 via 10.88.0.2");
    beyond
}

/// Each class to the packet; and edges that are over the budget, in one.
#[test]
fn classes_and_edges_over_the_budget() {
    let world = bridged(2);
    let _beyond = elsewhere(&world);
    let options = [
        "--no-engine",
        "--cluster-cidr=10.96.0.0/12",
        "--max-edges=2",
        "--grace=60s",
        "--flow-interval=200ms",
    ];
    let watch = world.watch(&options);
    for (count, to) in [(6, "10.88.0.2"), (5, "10.96.0.2"), (4, "10.79.0.1"), (3, "10.79.0.11")] {
        world.netns(0).sh(&format!("busybox ping -q -c {count} -i 0.05 {to} >/dev/null"));
    }
    let a = assert_accounted(&watch, world.name(0));
    for (name, count) in [("external", 6), ("cluster", 5), ("host", 4)] {
        for direction in ["rx", "tx"] {
            assert_eq!(class(&a, name, &format!("{direction}.packets")), count, "{name} {direction}: {a}");
            assert_eq!(class(&a, name, &format!("{direction}.bytes")), count * 98, "{name}: {a}");
        }
    }
    assert!(class(&a, "same_network", "tx.packets") >= 3, "{a}");
    let snapshot = watch.until("all flows in edges", |snapshot| {
        let of_classes = |direction: &str| -> u64 {
            let names = [world.name(0), world.name(1)];
            let containers = names.map(|name| container(snapshot, name).expect("there"));
            let parts = containers.iter().flat_map(|of| of["classes"].as_array().expect("classes"));
            parts.map(|part| number(part, &format!("{direction}.packets"))).sum()
        };
        let of_edges = |side: &str| -> u64 {
            let edges = snapshot["edges"].as_array().expect("edges").iter();
            let counts = edges.chain([&snapshot["agent"]["flows"]["other_edges"]]);
            counts.map(|edge| edge[side]["packets"].as_u64().unwrap_or_default()).sum()
        };
        let all = of_edges("sent") == of_classes("tx") && of_edges("received") == of_classes("rx");
        (all && of_edges("sent") >= 21).then(|| snapshot.clone())
    });
    assert_eq!(snapshot["edges"].as_array().map(Vec::len), Some(2), "{}", snapshot["edges"]);
    assert!(number(&snapshot["agent"]["flows"]["other_edges"], "sent.packets") >= 5, "{}", snapshot["agent"]);
}

#[test]
fn every_ip_packet_is_in_a_flow_or_in_the_remainder() {
    let name = "every_ip_packet_is_in_a_flow_or_in_the_remainder";
    for mode in kernel::attach_modes(name) {
        let world = bridged(2);
        let attach = format!("--attach={mode}");
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--grace=60s", &attach]);
        watch.container(world.name(0));
        watch.container(world.name(1));
        all_kinds(&world);
        kernel::assert_exact(&world.host, &watch, &["veth0", "veth1"]);
        // Of a tag in the frame the kernel's own counter has the bytes, of which the stack knows none.
        send_frames(&world, 10, |from, to, n| frame(from, to, Some(7), (n, 9), 0));
        watch.until("tagged frames", |snapshot| {
            let b = container(snapshot, world.name(1))?;
            (number(&b, "rx.ethertype.vlan.packets") == 10).then_some(())
        });
        let a = assert_accounted(&watch, world.name(0));
        let b = assert_accounted(&watch, world.name(1));
        assert_eq!(number(&a, "tx.unflowed.packets") + number(&b, "tx.unflowed.packets"), 0, "room for all");
        assert!(class(&a, "same_network", "tx.packets") > 1000, "{a}");
        assert_eq!(class(&b, "host", "tx.packets"), 4, "pings of the host: {b}");
        assert_eq!(class(&b, "host", "rx.packets"), 4, "and its answers: {b}");
        assert_eq!(class(&a, "external", "tx.packets"), 0, "{a}");
    }
}

/// Addresses are listed again when the kernel tells of a change.
#[test]
fn an_address_that_the_host_is_given_or_loses_later() {
    let world = bridged(1);
    let beyond = elsewhere(&world);
    beyond.sh("ip addr add 192.0.2.79/32 dev lo");
    world.host.sh("ip link set lo up; ip addr add 192.0.2.79/32 dev lo; \
         ip route add 192.0.2.79/32 via 10.88.0.2; \
         sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0");
    world.host.sh(&format!("ip addr add fd79::1/64 dev {BRIDGE} nodad"));
    let sender = world.netns(0);
    sender.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0; \
         ip addr add fd79::a/64 dev eth0 nodad; ip route add default via fd79::1");
    let watch = Watch::start(Some(&world.host), &["--no-engine", "--flow-interval=1s"]);
    watch.container(world.name(0));
    let classes = |address: &str, times: u64| {
        sender.sh(&format!("busybox ping -q -c {times} -i 0.05 {address}"));
        let now = assert_accounted(&watch, world.name(0));
        ["host", "external"].map(|one| class(&now, one, "tx.packets"))
    };
    world.host.sh("ip addr add 192.0.2.77/32 dev lo");
    assert_eq!(classes("192.0.2.77", 3), [3, 0]);
    world.host.sh("ip addr del 192.0.2.79/32 dev lo");
    assert_eq!(classes("192.0.2.79", 2), [3, 2], "another machine's by now");
    world.host.sh("ip addr add 2001:db8::77/128 dev lo nodad");
    let [host, external] = classes("2001:db8::77", 4);
    // Neighbours are looked for, too.
    assert!(host >= 7 && external == 2, "{host}, {external}");
}

/// More flows than there is room for: first the cells, then the overflow map, then none.
#[test]
fn what_finds_no_room_is_stated() {
    for (max_flows, fits) in [(64, false), (8192, true)] {
        let world = bridged(2);
        let max_flows = format!("--max-flows={max_flows}");
        let options = ["--no-engine", "--grace=60s", "--flow-interval=200ms", max_flows.as_str()];
        let watch = Watch::start(Some(&world.host), &options);
        watch.container(world.name(0));
        watch.container(world.name(1));
        // One frame of each flow, and again.
        for _ in 0..3 {
            send_frames(&world, 1000, |from, to, n| frame(from, to, None, (1000 + n, 9), 0));
        }
        kernel::assert_exact(&world.host, &watch, &["veth0", "veth1"]);
        let a = assert_accounted(&watch, world.name(0));
        let b = assert_accounted(&watch, world.name(1));
        let sent = class(&a, "same_network", "tx.packets");
        let unflowed = number(&a, "tx.unflowed.packets");
        assert!(sent + unflowed >= 3000, "{a}");
        assert_eq!(unflowed == 0, fits, "{max_flows}: {unflowed} without a flow");
        assert_eq!(number(&b, "rx.unflowed.packets") == 0, fits, "{b}");
        assert!(sent >= 30, "those that there was room for: {sent}");
    }
}

fn get(world: &Bridged, agent: &Agent, path: &'static str) -> Result<String, String> {
    let port = agent.port;
    let (status, body) = world.host.run(move || http::get(port, path)).map_err(|error| error.to_string())?;
    if status == 200 { Ok(body) } else { Err(format!("{status}: {body}")) }
}

fn flows(world: &Bridged, agent: &Agent) -> Value {
    let text = get(world, agent, "/api/v1/flows").expect("flows");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The conversations of one protocol with a port of the server.
fn conversations(world: &Bridged, agent: &Agent, protocol: &str, port: Option<u16>) -> Vec<Value> {
    let all = flows(world, agent);
    let flows = all["flows"].as_array().expect("flows");
    let is = |flow: &&Value| {
        flow["protocol"] == protocol && port.is_none_or(|port| flow["server"]["port"] == port)
    };
    flows.iter().filter(is).cloned().collect()
}

fn agent_of(world: &Bridged, arguments: &[&str]) -> Agent {
    let all = [&["--no-engine", "--grace=60s"], arguments].concat();
    let agent = Agent::start_in(Some(&world.host), &all);
    wait_for("all containers", LIMIT, || {
        let text = get(world, &agent, "/metrics")?;
        let known = |name: &str| text.contains(&format!("netobs_container_info{{id=\"{name}\""));
        if world.containers.iter().all(|container| known(container.name())) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    });
    agent
}

#[test]
fn one_conversation_is_one_line_with_both_ends() {
    let world = bridged(3);
    let agent = agent_of(&world, &[]);
    traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 1000, 100);
    traffic::tcp(world.netns(1), world.netns(2), address(2, 5432), 5_000_000);
    world.netns(0).sh("busybox ping -q -c 5 -i 0.05 10.79.0.12 >/dev/null");

    let udp = conversations(&world, &agent, "udp", Some(5000));
    let [udp] = udp.as_slice() else { panic!("one line: {udp:?}") };
    assert_eq!(
        (&udp["client"]["container"], &udp["server"]["container"]),
        (&world.name(0).into(), &world.name(1).into())
    );
    assert_eq!(udp["server"]["address"], "10.79.0.11");
    assert_eq!(
        (&udp["class"], &udp["network"], &udp["state"]),
        (&"same_network".into(), &BRIDGE.into(), &"open".into())
    );
    for (end, packets) in [("sent", 1000), ("received", 1000)] {
        assert_eq!(number(udp, &format!("to_server.{end}.packets")), packets, "{udp}");
        assert_eq!(number(udp, &format!("to_server.{end}.bytes")), packets * 142, "{udp}");
        assert_eq!(number(udp, &format!("to_client.{end}.packets")), 0, "{udp}");
    }

    let tcp = conversations(&world, &agent, "tcp", Some(5432));
    let [tcp] = tcp.as_slice() else { panic!("one line: {tcp:?}") };
    assert_eq!(
        (&tcp["client"]["container"], &tcp["server"]["container"]),
        (&world.name(1).into(), &world.name(2).into())
    );
    assert!(matches!(tcp["state"].as_str(), Some("closed" | "reset")), "{tcp}");
    for flag in ["SYN", "ACK", "FIN"] {
        assert!(tcp["client_flags"].as_str().expect("flags").contains(flag), "{tcp}");
    }
    let sent = number(tcp, "to_server.sent.bytes");
    assert!(sent > 5_000_000 && sent < 5_500_000, "{tcp}");
    assert_eq!(sent, number(tcp, "to_server.received.bytes"), "{tcp}");
    // Super-packets unfolded: segments of 1,448 bytes of payload with 66 bytes of headers.
    let wire = number(tcp, "to_server.sent.wire_packets");
    assert!((5_000_000 / 1448..5_000_000 / 1448 + 200).contains(&wire), "{tcp}");
    assert!(wire > number(tcp, "to_server.sent.packets"), "{tcp}");

    let icmp = conversations(&world, &agent, "icmp", None);
    let [icmp] = icmp.as_slice() else { panic!("one line: {icmp:?}") };
    assert_eq!((&icmp["icmp"]["type"], &icmp["icmp"]["code"]), (&8.into(), &0.into()));
    assert_eq!(
        (&icmp["client"]["container"], &icmp["server"]["container"]),
        (&world.name(0).into(), &world.name(2).into())
    );
    for way in ["to_server", "to_client"] {
        for end in ["sent", "received"] {
            assert_eq!(number(icmp, &format!("{way}.{end}.packets")), 5, "{icmp}");
            assert_eq!(number(icmp, &format!("{way}.{end}.bytes")), 5 * 98, "{icmp}");
        }
    }
    let (first, last) = (icmp["first"].as_f64().expect("first"), icmp["last"].as_f64().expect("last"));
    assert!(last - first > 0.15 && last - first < 5.0, "four pauses of 50 ms: {first} to {last}");
    let age = flows(&world, &agent)["time"].as_f64().expect("time") - first;
    assert!(age > 0.1 && age < 60.0, "began {age} s ago");

    edges_are_in_the_metrics(&world, &agent);
}

fn edges_are_in_the_metrics(world: &Bridged, agent: &Agent) {
    let text = get(world, agent, "/metrics").expect("metrics");
    let edge = |unit: &str, source: usize, destination: usize, protocol: &str, port: &str| {
        let (source, destination) = (world.name(source), world.name(destination));
        let labels = format!(
            "{{source=\"{source}\",source_id=\"{source}\",destination=\"{destination}\",\
             destination_id=\"{destination}\",protocol=\"{protocol}\",port=\"{port}\"}} "
        );
        let start = format!("netobs_edge_{unit}_total{labels}");
        let line = text.lines().find(|line| line.starts_with(&start));
        line.unwrap_or_else(|| panic!("no {start} in {text}"))[start.len()..].to_owned()
    };
    assert_eq!(edge("packets", 0, 1, "udp", "5000"), "1000");
    assert_eq!(edge("bytes", 0, 1, "udp", "5000"), "142000");
    assert_eq!(edge("packets", 0, 2, "icmp", ""), "5");
    assert_eq!(edge("bytes", 2, 0, "icmp", ""), "490");
}

/// The sum of all series of a family that have these labels.
fn sum_of(metrics: &str, family: &str, labels: &[&str]) -> u64 {
    let series =
        metrics.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{')));
    let series = series.filter(|line| labels.iter().all(|label| line.contains(label)));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// In `/metrics`, classes are those of the snapshot, and all edges together are each packet once, however many of them
/// are over the budget and wherever they are observed.
#[test]
fn classes_and_edges_are_whole_in_the_metrics() {
    let world = bridged(2);
    let _beyond = elsewhere(&world);
    let agent = agent_of(&world, &["--max-edges=1", "--flow-interval=200ms", "--cluster-cidr=10.96.0.0/12"]);
    for (count, to) in [(6, "10.88.0.2"), (5, "10.96.0.2"), (4, "10.79.0.1"), (3, "10.79.0.11")] {
        world.netns(0).sh(&format!("busybox ping -q -c {count} -i 0.05 {to} >/dev/null"));
    }
    wait_for("all flows in classes and edges", LIMIT, || {
        let metrics = get(&world, &agent, "/metrics")?;
        let class = |name: &str, field: &str, class: &str| {
            let labels = [format!("container=\"{name}\""), format!("class=\"{class}\"")];
            let labels = labels.each_ref().map(String::as_str);
            sum_of(&metrics, &format!("netobs_container_class_{field}_total"), &labels)
        };
        for (name, count) in [("external", 6), ("cluster", 5), ("host", 4), ("same_network", 3)] {
            for way in ["receive", "transmit"] {
                let found =
                    ["packets", "bytes"].map(|unit| class(world.name(0), &format!("{way}_{unit}"), name));
                if found != [count, count * 98] {
                    return Err(format!("{name}, {way}: {found:?}"));
                }
            }
        }
        // Each at its source; what came from elsewhere, at its destination.
        let sent = [0, 1].map(|n| {
            let container = format!("container=\"{}\"", world.name(n));
            sum_of(&metrics, "netobs_container_class_transmit_packets_total", &[&container])
        });
        let from_elsewhere = 6 + 5 + 4;
        let edges = sum_of(&metrics, "netobs_edge_packets_total", &[]);
        if edges == sent.iter().sum::<u64>() + from_elsewhere && edges >= 2 * 18 {
            let other = sum_of(&metrics, "netobs_edge_packets_total", &["source=\"other\""]);
            assert!(other > edges / 2, "most are over the budget: {other} of {edges}");
            Ok(())
        } else {
            Err(format!("{edges} in edges, {sent:?} sent, {from_elsewhere} from elsewhere"))
        }
    });
}

/// In `/metrics`, packets in no flow are told apart by why.
#[test]
fn why_packets_are_in_no_flow() {
    const CUT: u64 = 7;
    let world = bridged(2);
    let agent = agent_of(&world, &["--max-flows=64", "--flow-interval=200ms"]);
    for _ in 0..3 {
        send_frames(&world, 1000, |from, to, n| frame(from, to, None, (1000 + n, 9), 0));
    }
    // An Ethernet header, and half of one of IPv4.
    send_frames(&world, CUT as u16, |from, to, n| frame(from, to, None, (n, 9), 0)[..24].to_vec());
    wait_for("all frames", LIMIT, || {
        let metrics = get(&world, &agent, "/metrics")?;
        for (n, way) in [(0, "transmit"), (1, "receive")] {
            let container = format!("container=\"{}\"", world.name(n));
            let unflowed = |family: &str, cause: &str| {
                sum_of(&metrics, &format!("netobs_container_{family}_total"), &[&container, cause])
            };
            let causes = format!("unflowed_cause_{way}_packets");
            let [no_room, truncated] =
                ["no_room", "truncated"].map(|cause| unflowed(&causes, &format!("cause=\"{cause}\"")));
            let whole = unflowed(&format!("{way}_unflowed_packets"), "");
            // A bridge with netfilter passes none on that is cut.
            let cut_is_right = if n == 0 { truncated == CUT } else { truncated <= CUT };
            if !cut_is_right || no_room == 0 || whole != no_room + truncated {
                return Err(format!("{way}: {no_room} and {truncated} of {whole}"));
            }
        }
        Ok(())
    });
}

/// What has overflowed is in the sums when it is read: every `--flow-interval`.
#[test]
fn what_overflows_is_read_at_the_interval() {
    let took = ["200ms", "15s"].map(|interval| {
        let world = bridged(2);
        let watch = Watch::start(
            Some(&world.host),
            &["--no-engine", "--grace=60s", "--max-flows=64", &format!("--flow-interval={interval}")],
        );
        watch.container(world.name(0));
        watch.container(world.name(1));
        send_frames(&world, 1000, |from, to, n| frame(from, to, None, (1000 + n, 9), 0));
        let sent = std::time::Instant::now();
        let a = assert_accounted(&watch, world.name(0));
        assert!(number(&a, "tx.unflowed.packets") < 1000, "some found room: {a}");
        sent.elapsed()
    });
    println!("{took:?}");
    // However long it takes until both containers are known: some of the 15 s are left.
    assert!(took[1] > took[0] + Duration::from_secs(2), "{took:?}");
}

/// A flow is open while packets come, and idle when none has come for `--flow-idle`.
#[test]
fn a_flow_without_packets_is_idle() {
    let world = bridged(2);
    let agent = agent_of(&world, &["--flow-interval=200ms", "--flow-idle=2s"]);
    let state = |port| {
        let found = conversations(&world, &agent, "udp", Some(port));
        found.first().map(|flow| flow["state"].as_str().expect("a state").to_owned())
    };
    // It may be forgotten before anybody has looked.
    let is_seen_idle = |port| {
        let start = std::time::Instant::now();
        traffic::udp(world.netns(0), world.netns(1), address(1, port), 10, 100);
        wait_for("the flow", LIMIT, || match state(port).as_deref() {
            Some("open") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        loop {
            match state(port).as_deref() {
                Some("open") => std::thread::sleep(Duration::from_millis(50)),
                Some("idle") => break,
                None => return false,
                Some(other) => panic!("{other}"),
            }
        }
        // Jiffies are no finer than 10 ms.
        assert!(start.elapsed() > Duration::from_millis(1980), "{:?}", start.elapsed());
        true
    };
    assert!((5000..5005).any(is_seen_idle));
}

/// A connection that one end gives up ends by a reset.
#[test]
fn a_connection_that_is_reset() {
    let world = bridged(2);
    let agent = agent_of(&world, &["--flow-interval=200ms"]);
    let listener = world.netns(1).run(|| TcpListener::bind(address(1, 5432)).expect("listen"));
    let client = world.netns(0).run(|| TcpStream::connect(address(1, 5432)).expect("connect"));
    let (server, _) = listener.accept().expect("accept");
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&client, sockopt::Linger, &linger).expect("give up at once");
    drop(client);
    wait_for("the end", LIMIT, || {
        let found = conversations(&world, &agent, "tcp", Some(5432));
        let [one] = found.as_slice() else { return Err(format!("{found:?}")) };
        let is_reset = one["state"] == "reset"
            && one["client_flags"].as_str().is_some_and(|flags| flags.contains("RST"));
        if is_reset { Ok(()) } else { Err(one.to_string()) }
    });
    drop(server);
}

/// `netobs flows` prints what is asked for, of the containers that are asked for.
#[test]
fn the_command_prints_conversations() {
    let world = bridged(3);
    let flows = |arguments: &[&str]| {
        let mut command = program::netobs(Some(&world.host));
        command.args(["flows", "--no-engine", "--output=json", "--count=1", "--interval=2s"]).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("run netobs flows");
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(50));
            traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 1, 100);
            traffic::udp(world.netns(1), world.netns(2), address(2, 6000), 1, 100);
        }
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success());
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let ports = |printed: &Value| {
        let all = printed["flows"].as_array().expect("flows").iter();
        let udp = all.filter(|flow| flow["protocol"] == "udp");
        let mut ports: Vec<u64> = udp.map(|flow| number(flow, "server.port")).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    assert_eq!(ports(&flows(&[])), [5000, 6000]);
    assert_eq!(ports(&flows(&[world.name(0)])), [5000]);
}

/// Addresses, ports, classes, edges and how a connection fares, all of it.
#[test]
fn over_ipv6_as_over_ipv4() {
    let world = bridged(2);
    for n in 0..2 {
        world.netns(n).sh(&format!(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0; \
             ip addr add fd79::{:x}/64 dev eth0 nodad",
            n + 10
        ));
    }
    let agent = agent_of(&world, &["--flow-interval=200ms"]);
    let to = |port: u16| SocketAddr::from((Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 11), port));
    traffic::udp(world.netns(0), world.netns(1), to(5000), 1000, 100);
    traffic::tcp(world.netns(0), world.netns(1), to(5432), 1_000_000);
    world.netns(0).sh("busybox ping6 -q -c 5 -i 0.05 fd79::b >/dev/null");

    let one = |protocol: &str, port: Option<u16>| {
        let one = wait_for(protocol, LIMIT, || {
            let mut found = conversations(&world, &agent, protocol, port);
            // Neighbours are looked for by ICMPv6, too.
            found.retain(|flow| {
                flow["server"]["address"] == "fd79::b" && (port.is_some() || flow["icmp"]["type"] == 128)
            });
            match <[Value; 1]>::try_from(found) {
                Ok([one]) if one["class"] == "same_network" => Ok(one),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(
            (&one["client"]["container"], &one["server"]["container"]),
            (&world.name(0).into(), &world.name(1).into())
        );
        assert_eq!(one["client"]["address"], "fd79::a", "{one}");
        one
    };
    let udp = one("udp", Some(5000));
    for end in ["sent", "received"] {
        let found = ["packets", "bytes"].map(|unit| number(&udp, &format!("to_server.{end}.{unit}")));
        assert_eq!(found, [1000, 1000 * 162], "Ethernet, IPv6 and UDP headers: {udp}");
    }
    let tcp = one("tcp", Some(5432));
    assert!(number(&tcp, "to_server.sent.bytes") > 1_000_000, "{tcp}");
    assert_eq!(number(&tcp, "to_server.sent.bytes"), number(&tcp, "to_server.received.bytes"), "{tcp}");
    let icmp = one("icmpv6", None);
    for way in ["to_server", "to_client"] {
        assert_eq!(number(&icmp, &format!("{way}.received.packets")), 5, "{icmp}");
        assert_eq!(number(&icmp, &format!("{way}.received.bytes")), 5 * 118, "{icmp}");
    }
    let metrics = get(&world, &agent, "/metrics").expect("metrics");
    let labels =
        [format!("source=\"{}\"", world.name(0)), "protocol=\"udp\"".to_owned(), "port=\"5000\"".to_owned()];
    let labels = labels.each_ref().map(String::as_str);
    assert_eq!(sum_of(&metrics, "netobs_edge_packets_total", &labels), 1000);
}

/// What is sent and does not arrive is in the difference of the two ends.
#[test]
fn what_was_lost_between_two_containers_shows() {
    let world = bridged(2);
    let agent = agent_of(&world, &[]);
    // Neighbours are known, so that all that is sent are the datagrams.
    let mac = kernel::mac(world.netns(1), "eth0");
    world.netns(0).sh(&format!("ip neigh replace 10.79.0.11 lladdr {mac} dev eth0"));
    traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 100, 100);
    world.host.sh("bridge link set dev veth0 isolated on; bridge link set dev veth1 isolated on");
    let sink = world.netns(1).run(|| UdpSocket::bind("0.0.0.0:6000").expect("bind"));
    world.netns(0).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:4000").expect("bind");
        for _ in 0..70 {
            socket.send_to(b"lost", "10.79.0.11:6000").expect("send");
        }
    });
    drop(sink);
    let lost = conversations(&world, &agent, "udp", Some(6000));
    let [lost] = lost.as_slice() else { panic!("one line: {lost:?}") };
    assert_eq!(number(lost, "to_server.sent.packets"), 70, "{lost}");
    assert_eq!(number(lost, "to_server.received.packets"), 0, "observed, and nothing came: {lost}");
    let arrived = conversations(&world, &agent, "udp", Some(5000));
    assert_eq!(number(&arrived[0], "to_server.received.packets"), 100, "{arrived:?}");
}

/// A flow without packets is over after the idle time; what it counted stays in the sums, also when its
/// interface goes right after its last packet.
#[test]
fn sums_outlive_flows_and_interfaces() {
    let mut world = bridged(2);
    let options = ["--no-engine", "--grace=60s", "--flow-interval=200ms", "--flow-idle=1s"];
    let watch = Watch::start(Some(&world.host), &options);
    watch.container(world.name(0));
    watch.container(world.name(1));
    traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 300, 100);
    watch.until("no flow is listed any more", |snapshot| {
        let container = container(snapshot, world.name(0))?;
        let counted = class(&container, "same_network", "tx.packets") >= 300;
        (counted && number(snapshot, "agent.flows.listed") == 0).then_some(())
    });
    let name = world.name(0).to_owned();
    traffic::udp(world.netns(0), world.netns(1), address(1, 5001), 300, 100);
    drop(world.containers.remove(0));
    let ended = watch.until("the container has ended", |snapshot| {
        let container = container(snapshot, &name)?;
        (container["rates"].is_null() && number(&container, "tx.packets") >= 600).then_some(container)
    });
    assert!(number(&ended, "tx.protocol.udp.packets") >= 600, "{ended}");
    let accounted = assert_accounted(&watch, &name);
    assert!(class(&accounted, "same_network", "tx.packets") >= 600, "{accounted}");
}

/// Slots are used again only when the flows of who had them have been read.
#[test]
fn no_flow_is_told_of_another_container() {
    let mut world = bridged(1);
    // Room for the bridge and three containers at a time; many more come.
    let options = ["--no-engine", "--grace=60s", "--max-interfaces=4", "--flow-interval=30s"];
    let watch = Watch::start(Some(&world.host), &options);
    watch.container(world.name(0));
    let packets = |n: u64| 10 + n;
    let mut names = Vec::new();
    for n in 0..12u64 {
        let container = Pretend::new();
        world.host.sh(&format!(
            "ip link add vethx type veth peer name eth0 netns {}; ip link set vethx master {BRIDGE} up",
            container.netns().pid()
        ));
        container.netns().sh("ip addr add 10.79.0.99/24 dev eth0; ip link set eth0 up");
        watch.until("its interface", |snapshot| {
            let container = program::container(snapshot, container.name())?;
            (!container["interfaces"].as_array()?.is_empty()).then_some(())
        });
        traffic::udp(container.netns(), world.netns(0), address(0, 5000), packets(n), 100);
        names.push(container.name().to_owned());
        drop(container);
        watch.until("its interface is gone", |snapshot| {
            program::interface(snapshot, "vethx").is_none().then_some(())
        });
    }
    for (n, name) in names.iter().enumerate() {
        let container = watch.until(&format!("flows of {name}"), |snapshot| {
            let container = container(snapshot, name)?;
            (number(&container, "tx.packets") == accounted(&container, "tx", "packets")).then_some(container)
        });
        assert_eq!(number(&container, "tx.protocol.udp.packets"), packets(n as u64), "{container}");
    }
    drop(world.containers.pop());
}

/// What a hundred thousand flows cost, printed; asserted is that none is missing.
#[test]
fn a_hundred_thousand_flows() {
    const FLOWS: u32 = 100_000;
    let world = bridged(2);
    let agent = agent_of(&world, &["--max-flows=524288", "--flow-interval=1s", "--flow-idle=60s"]);
    let before = agent.resident_kib();
    for port in 7000..7000 + (FLOWS / 10_000) as u16 {
        send_frames(&world, 10_000, |from, to, n| frame(from, to, None, (1000 + n, port), 0));
    }
    let listed = || {
        let all = flows(&world, &agent);
        all["flows"].as_array().map_or(0, Vec::len) as u64 + number(&all, "more")
    };
    wait_for("all flows", LIMIT, || {
        let listed = listed();
        if listed >= u64::from(FLOWS) { Ok(()) } else { Err(listed.to_string()) }
    });
    let cpu = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    let ticks = cpu(agent.pid());
    std::thread::sleep(Duration::from_secs(5));
    let spent = cpu(agent.pid()) - ticks;
    let _ = writeln!(
        std::io::stdout(),
        "{FLOWS} flows at two points: {} ms of CPU in 5 drains, resident {} KiB, before {before}",
        spent * 10,
        agent.resident_kib()
    );
}
