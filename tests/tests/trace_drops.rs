//! `netobs trace --drops`: each packet of a container that the kernel drops, once, with why and where; nobody else's;
//! and what became of those that nobody took. Without an engine.

use std::{io::Read as _, net::UdpSocket, process::Command};

use netobs_tests::{
    drops::{self, reason},
    kernel,
    netns::Netns,
    pretend::Pretend,
    trace::{Trace, Traced},
    traffic,
};
use serde_json::Value;

/// A host with a bridge and three containers on it: number n (from 0) is 10.80.0.(n+11). They know each other's MAC
/// addresses, so that nothing but what is sent is dropped.
struct World {
    host: Netns,
    containers: Vec<Pretend>,
}

/// Of the frame: Ethernet, IPv4, UDP and [`PAYLOAD`].
const LENGTH: u64 = 14 + 20 + 8 + 7;
const PAYLOAD: &[u8] = b"drop me";

impl World {
    fn new() -> Self {
        let host = Netns::new();
        host.sh("ip link add br-end type bridge mcast_snooping 0; ip link set br-end multicast off; \
                 ip addr add 10.80.0.1/24 dev br-end; ip link set br-end up");
        let containers: Vec<_> = (0..3).map(|_| Pretend::new()).collect();
        for (n, container) in containers.iter().enumerate() {
            host.sh(&format!(
                "ip link add veth{n} type veth peer name eth0 netns {}; \
                 ip link set veth{n} multicast off; ip link set veth{n} master br-end up",
                container.netns().pid()
            ));
            container.netns().sh(&format!(
                "ip link set eth0 multicast off; ip addr add 10.80.0.{}/24 dev eth0; ip link set eth0 up",
                n + 11
            ));
        }
        for (one, knowing) in containers.iter().enumerate() {
            for (other, known) in containers.iter().enumerate().filter(|(other, _)| *other != one) {
                let mac = kernel::mac(known.netns(), "eth0");
                let address = other + 11;
                knowing.netns().sh(&format!("ip neigh replace 10.80.0.{address} lladdr {mac} dev eth0"));
            }
        }
        Self { host, containers }
    }

    fn name(&self, n: usize) -> &str {
        self.containers[n].name()
    }

    /// A trace of these containers that looks for drops.
    fn trace(&self, containers: &[usize], arguments: &[&str]) -> Trace {
        // All of the host's drops pass the buffer: others may make many.
        let arguments = [&["--buffer-size", "64M"], arguments].concat();
        let trace = Trace::start(Some(&self.host), &self.arguments(containers, &arguments));
        self.ready(&trace, containers);
        trace
    }

    fn arguments<'a>(&'a self, containers: &[usize], arguments: &[&'a str]) -> Vec<&'a str> {
        let names = containers.iter().map(|n| self.name(*n));
        ["--no-engine", "--drops"].into_iter().chain(names).chain(arguments.iter().copied()).collect()
    }

    fn ready(&self, trace: &Trace, containers: &[usize]) {
        let interfaces: Vec<String> = containers.iter().map(|n| format!("veth{n}")).collect();
        trace.attached(&self.host, &interfaces.iter().map(String::as_str).collect::<Vec<_>>());
        drops::looking(trace.pid());
    }

    /// Datagrams from one container to a port of another's.
    fn send(&self, from: usize, to: usize, port: u16, count: u64) {
        let address = format!("10.80.0.{}", to + 11);
        self.containers[from].netns().run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            for _ in 0..count {
                socket.send_to(PAYLOAD, (address.as_str(), port)).expect("send");
            }
        });
    }

    /// Datagrams for which a container had no socket, by the kernel's own count.
    fn without_socket(&self, container: usize) -> u64 {
        let text = self.containers[container].netns().sh("cat /proc/net/snmp");
        let line = text.lines().filter(|line| line.starts_with("Udp: ")).nth(1).expect("numbers");
        // InDatagrams NoPorts
        line.split(' ').nth(2).expect("the second").parse().expect("a number")
    }
}

/// Lines that tell of a drop.
fn dropped(traced: &Traced) -> Vec<Value> {
    let lines = traced.json();
    assert!(lines.iter().all(|line| line["event"].is_null() || line["event"] == "drop"));
    lines.into_iter().filter(|line| line["event"] == "drop").collect()
}

/// What is said of drops at the end.
struct Ends {
    shown: u64,
    events: u64,
    delivered: u64,
    lost: u64,
    others: u64,
}

fn ends(traced: &Traced) -> Ends {
    let number = |after: &str| -> u64 {
        let before = traced.err.split_once(after).map(|(before, _)| before);
        before.and_then(|before| before.rsplit(' ').next()).map_or(0, |word| word.parse().expect("a number"))
    };
    assert!(traced.err.contains(" drops shown"), "{}", traced.err);
    let line = traced.err.split_once(" drops shown").expect("said").1;
    let of_line = |after: &str| -> u64 {
        let before = line.split_once(after).unwrap_or_else(|| panic!("{after}: {}", traced.err)).0;
        before.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    };
    let ends = Ends {
        shown: number(" drops shown"),
        events: of_line(" drops = "),
        delivered: of_line(" delivered + "),
        lost: of_line(" lost (buffer full)"),
        others: number(" drops delivered and not shown: nobody's"),
    };
    assert_eq!(ends.events, ends.delivered + ends.lost, "{}", traced.err);
    ends
}

#[test]
fn each_drop_of_a_container_and_nobody_elses() {
    let world = World::new();
    let traces = [0, 1, 2].map(|n| world.trace(&[n], &["--output", "json"]));
    world.send(0, 1, 9999, 7);
    world.send(0, 2, 9998, 5);
    world.send(2, 2, 9997, 2);
    let [by_sender, by_receiver, by_other] = traces.map(Trace::terminate);
    for (traced, expected) in [
        (&by_sender, vec![(9999, 7), (9998, 5)]),
        (&by_receiver, vec![(9999, 7)]),
        (&by_other, vec![(9998, 5), (9997, 2)]),
    ] {
        let lines = dropped(traced);
        let of_port = |port: u16| lines.iter().filter(|line| line["port"] == port).count();
        for (port, count) in &expected {
            assert_eq!(of_port(*port), *count, "port {port}: {}", traced.err);
        }
        assert_eq!(lines.len(), expected.iter().map(|(_, count)| count).sum::<usize>(), "{lines:#?}");
        let ends = ends(traced);
        assert_eq!((ends.shown, ends.lost), (lines.len() as u64, 0));
        assert_eq!(ends.delivered, ends.shown + ends.others, "{}", traced.err);
    }
    for line in dropped(&by_receiver) {
        assert_eq!((&line["reason"], &line["ordinary"]), (&reason("NO_SOCKET").into(), &false.into()));
        let party = |party: &Value| (party["container"].clone(), party["address"].clone());
        assert_eq!(party(&line["source"]), (world.name(0).into(), "10.80.0.11".into()));
        assert_eq!(party(&line["destination"]), (world.name(1).into(), "10.80.0.12".into()));
        assert_eq!(line["at"]["container_id"], world.containers[1].id.as_str());
        assert_eq!((&line["at"]["interface"], &line["protocol"]), (&"eth0".into(), &17.into()));
        let place = line["place"].as_str().expect("a place");
        assert!(place.contains("udp") && place.contains("_rcv+0x"), "{place}");
        assert_eq!((&line["length"], &line["captured"]), (&LENGTH.into(), &LENGTH.into()), "{line}");
        assert_eq!(line["ethernet"]["ethertype"], "0x0800");
        assert_eq!(line["ip"]["destination"], "10.80.0.12");
        assert_eq!(
            (&line["transport"]["destination_port"], &line["truncated"]),
            (&9999.into(), &false.into())
        );
    }
    // In their order among what passes: each datagram, then its end.
    let lines = by_receiver.json();
    let times: Vec<&str> = lines.iter().map(|line| line["time"].as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    let ids_of = |event: Value| -> Vec<usize> {
        let of = |line: &&Value| line["event"] == event && line["transport"]["destination_port"] == 9999;
        lines
            .iter()
            .filter(of)
            .map(|line| times.iter().position(|time| line["time"] == *time).expect("a time"))
            .collect()
    };
    let (passed, ended) = (ids_of(Value::Null), ids_of("drop".into()));
    assert_eq!((passed.len(), ended.len()), (7, 7));
    assert!(passed.iter().zip(&ended).all(|(passed, ended)| passed < ended), "{passed:?} {ended:?}");
}

#[test]
fn filters_are_the_same_as_of_packets() {
    let world = World::new();
    let cases = [
        (&["--port", "9999"][..], 7),
        (&["--port", "1"], 0),
        (&["--proto", "udp", "--host", "10.80.0.12"], 7),
        (&["--proto", "tcp"], 0),
        (&["--host", "10.80.0.13"], 5),
        (&["--host", "10.80.0.12/31"], 12),
        (&["--ethertype", "ipv4"], 12),
        (&["--ethertype", "arp"], 0),
        (&["--count", "3", "--port", "9999", "--ethertype", "0x0800"], 3),
    ];
    let traces = cases.map(|(filter, expected)| {
        let arguments = [&["--output", "json"], filter].concat();
        (world.trace(&[0], &arguments), filter, expected)
    });
    world.send(0, 1, 9999, 7);
    world.send(0, 2, 9998, 5);
    for (trace, filter, expected) in traces {
        if filter[0] == "--count" {
            // Packets that pass are among them.
            let traced = trace.wait();
            assert_eq!(traced.json().len(), expected, "{}", traced.err);
            continue;
        }
        let traced = trace.terminate();
        assert_eq!(dropped(&traced).len(), expected, "{filter:?}: {}", traced.err);
    }
}

#[test]
fn without_drops_nothing_is_said_of_them() {
    let world = World::new();
    let trace = Trace::start(Some(&world.host), &["--no-engine", world.name(1), "--output", "json"]);
    trace.attached(&world.host, &["veth1"]);
    world.send(0, 1, 9999, 3);
    let traced = trace.terminate();
    assert!(dropped(&traced).is_empty() && !traced.err.contains("drops"), "{}", traced.err);
    assert!(traced.json().len() >= 3);
}

#[test]
fn text_says_why_where_and_whose() {
    let world = World::new();
    let [named, numeric] = [&[][..], &["--numeric"]].map(|arguments| world.trace(&[1], arguments));
    world.send(0, 1, 9999, 4);
    let begin = format!(" dropped {} at eth0 in {} by ", reason("NO_SOCKET"), world.name(1));
    for (trace, rest) in [
        (named, format!(" ({}) > 10.80.0.12:9999 ({}) UDP length {LENGTH}", world.name(0), world.name(1))),
        (numeric, format!(" > 10.80.0.12:9999 UDP length {LENGTH}")),
    ] {
        let traced = trace.terminate();
        let lines: Vec<&str> = traced.lines().into_iter().filter(|line| line.contains(" dropped ")).collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        for line in lines {
            assert!(line.contains(&begin) && line.ends_with(&rest), "{line}");
            assert!(line.contains(", ") && line.contains(" IPv4 10.80.0.11:"), "{line}");
        }
    }
}

/// As the real tshark reads it.
#[test]
fn pcapng_has_them_at_an_interface_of_their_own() {
    let world = World::new();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("drops.pcapng");
    let trace = world.trace(&[1], &["--write", file.to_str().expect("UTF-8")]);
    world.send(0, 1, 9999, 6);
    let traced = trace.terminate();
    assert_eq!((ends(&traced).shown, ends(&traced).lost), (6, 0), "{}", traced.err);
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r", file.to_str().expect("UTF-8"), "-T", "fields", "-E", "separator=|"]);
    for field in
        ["frame.interface_name", "frame.len", "frame.cap_len", "ip.dst", "udp.dstport", "frame.comment"]
    {
        tshark.args(["-e", field]);
    }
    let output = tshark.output().expect("run tshark");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let of_drops: Vec<&str> = text.lines().filter(|line| line.starts_with("dropped|")).collect();
    assert_eq!(of_drops.len(), 6, "{text}");
    let begin = format!(
        "dropped|{LENGTH}|{LENGTH}|10.80.0.12|9999|dropped {} at eth0 in {} by ",
        reason("NO_SOCKET"),
        world.name(1)
    );
    let end = format!(", {} 10.80.0.11 on br-end > {} 10.80.0.12 on br-end", world.name(0), world.name(1));
    for line in of_drops {
        assert!(line.starts_with(&begin) && line.contains(&end), "{line}");
    }
    let passed =
        text.lines().filter(|line| line.starts_with(&format!("{}/eth0|", world.name(1)))).count() as u64;
    assert_eq!(passed, traced.counts().shown);
}

#[test]
fn a_firewall_is_told_with_its_hook() {
    let world = World::new();
    world.containers[1].netns().sh("iptables -A INPUT -p udp --dport 7777 -j DROP");
    let trace = world.trace(&[1], &["--output", "json"]);
    world.send(0, 1, 7777, 9);
    let traced = trace.terminate();
    let lines = dropped(&traced);
    assert_eq!(lines.len(), 9, "{}", traced.err);
    for line in lines {
        assert_eq!(line["reason"], reason("NETFILTER_DROP"));
        assert_eq!((&line["netfilter"]["hook"], &line["port"]), (&"input".into(), &7777.into()), "{line}");
    }
}

/// A frame for a MAC address of nobody's is flooded, and dropped where it is no one's.
#[test]
fn ordinary_ends_only_when_asked_for() {
    let world = World::new();
    let [asked, not_asked] =
        [&["--all-drops"][..], &[]].map(|more| world.trace(&[1], &[&["--output", "json"], more].concat()));
    let mut frame = vec![2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 0x98, 0x08, 0x00];
    frame.extend(netobs_tests::frames::ipv4(17, [10, 80, 0, 11], [10, 80, 0, 99], 0, &[0; 26]));
    traffic::raw(world.containers[0].netns(), "eth0", vec![frame; 8]);
    let (asked, not_asked) = (asked.terminate(), not_asked.terminate());
    let of_two = |line: &Value| line["at"]["container_id"] == world.containers[1].id.as_str();
    let lines: Vec<_> = dropped(&asked).into_iter().filter(of_two).collect();
    assert_eq!(lines.len(), 8, "{}", asked.err);
    // Only the reason tells that it is one.
    let is_ordinary = drops::has_reasons();
    assert!(
        lines.iter().all(|line| line["ordinary"] == is_ordinary && line["ip"]["destination"] == "10.80.0.99")
    );
    assert_eq!(dropped(&not_asked).into_iter().filter(of_two).count(), if is_ordinary { 0 } else { 8 });
}

/// The ring is small, and nobody takes the output for a while: each is shown, or counted as lost.
#[test]
fn what_nobody_reads_in_time_is_counted() {
    const SENT: u64 = 60_000;
    let world = World::new();
    let arguments = world.arguments(&[1], &["--buffer-size", "128k"]);
    let (trace, mut out) = Trace::start_unread(Some(&world.host), &arguments);
    world.ready(&trace, &[1]);
    world.send(0, 1, 9999, SENT);
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).expect("UTF-8");
        text.lines().filter(|line| line.contains(" dropped ")).count() as u64
    });
    let sent = world.without_socket(1);
    // Once a second, while it runs.
    trace.says(" drops lost: ");
    let traced = trace.terminate();
    let ends = ends(&traced);
    let told = reader.join().expect("the reader");
    println!("{sent} without a socket: {}", traced.err);
    assert!(sent > SENT / 2, "{sent}");
    assert_eq!(told, ends.shown, "{}", traced.err);
    assert_eq!(ends.delivered, ends.shown + ends.others, "nothing is forgotten: {}", traced.err);
    assert!(ends.shown > 100 && ends.lost > 100, "{}", traced.err);
    // The host's other drops may be among those that were lost.
    assert!(ends.shown <= sent && ends.shown + ends.lost >= sent, "{sent}: {}", traced.err);
}
