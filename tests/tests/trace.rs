//! `netobs trace` on real interfaces: each packet that is asked for, once, and what became of it; nothing left
//! behind. Pretend containers and networks of our own only: others may be tested on the same host.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::Command,
    time::Duration,
};

use netobs_tests::{
    bpf,
    frames::{arp, ethernet, ipv4, ipv6, ports, tag, tcp},
    kernel::{self, assert_exact},
    netns::{BRIDGE, Netns, World},
    pretend::Pretend,
    program::{LIMIT, Watch},
    test_run::{attach_tcx, empty_program, program_id},
    trace::{Trace, Traced, filters_of},
    traffic, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A host with a bridge and containers on it that have IDs: number n (from 0) has 10.77.0.(n+10), `vethN` on
/// the host, and knows the others' addresses. Nobody sends anything of himself.
struct Place {
    host: Netns,
    containers: Vec<Pretend>,
}

impl Place {
    fn new(count: usize) -> Self {
        let host = Netns::new();
        host.sh(&format!(
            "ip link add {BRIDGE} type bridge mcast_snooping 0; ip link set {BRIDGE} multicast off; \
             ip addr add 10.77.0.1/24 dev {BRIDGE}; ip link set {BRIDGE} up"
        ));
        let mut place = Self { host, containers: Vec::new() };
        for _ in 0..count {
            place.add(Pretend::new());
        }
        place
    }

    fn add(&mut self, container: Pretend) {
        let n = self.containers.len();
        self.host.sh(&format!(
            "ip link add veth{n} type veth peer name eth0 netns {}; ip link set veth{n} master {BRIDGE} up",
            container.netns().pid()
        ));
        container.netns().sh(&format!(
            "ip link set eth0 multicast off; ip addr add 10.77.0.{}/24 dev eth0; ip link set eth0 up",
            n + 10
        ));
        for (other, known) in self.containers.iter().enumerate() {
            introduce(&container, known, other);
            introduce(known, &container, n);
        }
        self.containers.push(container);
    }

    fn name(&self, n: usize) -> &str {
        self.containers[n].name()
    }

    /// A trace of these containers, attached to all of them.
    fn trace(&self, containers: &[usize], arguments: &[&str]) -> Trace {
        let trace = Trace::start(Some(&self.host), &self.arguments(containers, arguments));
        self.attached(&trace, containers);
        trace
    }

    fn arguments<'a>(&'a self, containers: &[usize], arguments: &[&'a str]) -> Vec<&'a str> {
        let names = containers.iter().map(|n| self.name(*n));
        ["--no-engine"].into_iter().chain(names).chain(arguments.iter().copied()).collect()
    }

    fn attached(&self, trace: &Trace, containers: &[usize]) {
        let interfaces: Vec<String> = containers.iter().map(|n| format!("veth{n}")).collect();
        trace.attached(&self.host, &interfaces.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Sends frames out of a container as they are. Their receiver is nobody, so nothing answers.
    fn send(&self, from: usize, frames: Vec<Vec<u8>>) {
        traffic::raw(self.containers[from].netns(), "eth0", frames);
    }

    fn ping(&self, from: usize, to: usize, count: u32) {
        self.containers[from].netns().sh(&format!("busybox ping -q -c {count} -i 0.02 10.77.0.{}", to + 10));
    }
}

/// Tells a container another's MAC address, so that no ARP comes in between.
fn introduce(one: &Pretend, other: &Pretend, number: usize) {
    let mac = kernel::mac(other.netns(), "eth0");
    one.netns().sh(&format!("ip neigh replace 10.77.0.{} lladdr {mac} dev eth0", number + 10));
}

const A: [u8; 4] = [10, 1, 0, 1];
const B: [u8; 4] = [10, 1, 0, 2];
const FAR: [u8; 4] = [10, 9, 9, 9];

/// Frames of every kind, each of a length of its own: number n is of 100 + n bytes but for the last, which
/// end early.
fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let v4 = |protocol, from, to, payload: &[u8]| ethernet(0x0800, &ipv4(protocol, from, to, 0, payload));
    let v6 = |next, payload: &[u8]| ethernet(0x86dd, &ipv6(next, 1, 2, payload));
    let mut hop_by_hop = vec![6, 0, 1, 4, 0, 0, 0, 0];
    hop_by_hop.extend(tcp(40000, 80, 0x10, 20));
    let mut v6_later_fragment = vec![17, 0, 0, 8 << 3, 0, 0, 0, 1];
    v6_later_fragment.extend(ports(53, 53, 8));
    let kinds = vec![
        ("tcp to 80", v4(6, A, B, &tcp(40000, 80, 0x02, 20))),
        ("tcp from 80", v4(6, B, A, &tcp(80, 40000, 0x12, 20))),
        ("tcp to 443", v4(6, A, B, &tcp(40001, 443, 0x18, 20))),
        ("udp to 53", v4(17, A, B, &ports(5000, 53, 8))),
        ("udp far 53", v4(17, FAR, B, &ports(53, 5000, 8))),
        ("icmp", v4(1, A, B, &[8, 0, 0, 0, 0, 7, 0, 3])),
        ("sctp to 80", v4(132, A, FAR, &ports(40000, 80, 12))),
        ("gre", v4(47, A, B, &[0; 8])),
        ("udp fragment 1", ethernet(0x0800, &ipv4(17, A, B, 0x2000, &ports(5000, 53, 8)))),
        ("udp fragment 2", ethernet(0x0800, &ipv4(17, A, B, 0x0001, &ports(5000, 53, 8)))),
        ("icmpv6", v6(58, &[128, 0, 0, 0, 0, 7, 0, 3])),
        ("v6 udp to 53", v6(17, &ports(5000, 53, 8))),
        ("v6 tcp ext to 80", v6(0, &hop_by_hop)),
        ("v6 udp fragment 2", v6(44, &v6_later_fragment)),
        ("arp", ethernet(0x0806, &arp(A, [10, 1, 0, 7]))),
        ("vlan tcp to 80", tag(0x8100, 5, v4(6, A, B, &tcp(40000, 80, 0x10, 20)))),
        ("qinq udp to 53", tag(0x88a8, 7, tag(0x8100, 5, v4(17, A, B, &ports(5000, 53, 8))))),
        ("vlan arp", tag(0x8100, 6, ethernet(0x0806, &arp(FAR, A)))),
        ("lldp", ethernet(0x88cc, &[0; 8])),
    ];
    let mut kinds: Vec<_> = kinds
        .into_iter()
        .enumerate()
        .map(|(n, (name, mut frame))| {
            frame.resize(100 + n, 0);
            (name, frame)
        })
        .collect();
    // What ends in its header is not of any port or host.
    kinds.push(("cut v4", ethernet(0x0800, &ipv4(6, A, B, 0, &[])[..9])));
    kinds.push(("cut tcp", ethernet(0x0800, &ipv4(6, A, B, 0, &[0x9c, 0x40, 0]))));
    kinds
}

/// Filters, and the kinds that they are to let through.
fn expectations() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let all: Vec<&str> = kinds().into_iter().map(|(name, _)| name).collect();
    let but =
        |without: &[&str]| all.iter().copied().filter(|name| !without.contains(name)).collect::<Vec<_>>();
    let v4_of_b = vec![
        "tcp to 80",
        "tcp from 80",
        "tcp to 443",
        "udp to 53",
        "udp far 53",
        "icmp",
        "gre",
        "udp fragment 1",
        "udp fragment 2",
        "vlan tcp to 80",
        "qinq udp to 53",
        "cut tcp",
    ];
    vec![
        (vec![], all.clone()),
        (
            vec!["--proto", "tcp"],
            vec!["tcp to 80", "tcp from 80", "tcp to 443", "v6 tcp ext to 80", "vlan tcp to 80", "cut tcp"],
        ),
        (
            vec!["--proto", "udp"],
            vec![
                "udp to 53",
                "udp far 53",
                "udp fragment 1",
                "udp fragment 2",
                "v6 udp to 53",
                "v6 udp fragment 2",
                "qinq udp to 53",
            ],
        ),
        (vec!["--proto", "icmp"], vec!["icmp"]),
        (vec!["--proto", "icmpv6"], vec!["icmpv6"]),
        (vec!["--proto", "sctp"], vec!["sctp to 80"]),
        (vec!["--proto", "47"], vec!["gre"]),
        (vec!["--proto", "99"], vec![]),
        (
            vec!["--port", "80"],
            vec!["tcp to 80", "tcp from 80", "sctp to 80", "v6 tcp ext to 80", "vlan tcp to 80"],
        ),
        (
            vec!["--port", "53"],
            vec!["udp to 53", "udp far 53", "udp fragment 1", "v6 udp to 53", "qinq udp to 53"],
        ),
        (vec!["--port", "80", "--proto", "sctp"], vec!["sctp to 80"]),
        (vec!["--port", "81"], vec![]),
        (vec!["--host", "10.1.0.2"], v4_of_b),
        (vec!["--host", "10.9.0.0/16"], vec!["udp far 53", "sctp to 80", "vlan arp"]),
        (vec!["--host", "10.1.0.7"], vec!["arp"]),
        (vec!["--host", "fd77::2"], vec!["icmpv6", "v6 udp to 53", "v6 tcp ext to 80", "v6 udp fragment 2"]),
        (vec!["--host", "fd77::8/125"], vec![]),
        (vec!["--host", "fd77::/16", "--port", "53"], vec!["v6 udp to 53"]),
        (vec!["--ethertype", "arp"], vec!["arp", "vlan arp"]),
        (
            vec!["--ethertype", "ipv6"],
            vec!["icmpv6", "v6 udp to 53", "v6 tcp ext to 80", "v6 udp fragment 2"],
        ),
        (vec!["--ethertype", "vlan"], vec!["vlan tcp to 80", "qinq udp to 53", "vlan arp"]),
        (vec!["--ethertype", "qinq"], vec!["qinq udp to 53"]),
        (vec!["--ethertype", "0x88cc"], vec!["lldp"]),
        (
            vec!["--ethertype", "ipv4"],
            but(&[
                "icmpv6",
                "v6 udp to 53",
                "v6 tcp ext to 80",
                "v6 udp fragment 2",
                "arp",
                "vlan arp",
                "lldp",
            ]),
        ),
        (
            vec!["--ethertype", "vlan", "--proto", "tcp", "--host", "10.1.0.2", "--port", "80"],
            vec!["vlan tcp to 80"],
        ),
    ]
}

/// All filters at once, side by side at one interface.
#[test]
fn each_filter_lets_through_what_it_says_and_nothing_else() {
    const COPIES: usize = 3;
    let place = Place::new(2);
    let traces: Vec<_> = expectations()
        .into_iter()
        .map(|(filter, expected)| {
            let arguments = [&["--output", "json"], filter.as_slice()].concat();
            (place.trace(&[0], &arguments), filter, expected)
        })
        .collect();
    let kinds = kinds();
    let frames = kinds.iter().flat_map(|(_, frame)| vec![frame.clone(); COPIES]).collect();
    place.send(0, frames);
    for (trace, filter, expected) in traces {
        let traced = trace.terminate();
        let mut got: BTreeMap<u64, usize> = BTreeMap::new();
        for line in traced.json() {
            assert_eq!(
                (&line["container"], &line["direction"], &line["interface"], &line["attached_to"]),
                (&place.name(0).into(), &"tx".into(), &"eth0".into(), &"veth0".into()),
                "{line}"
            );
            *got.entry(line["length"].as_u64().expect("a length")).or_default() += 1;
        }
        let expected: BTreeMap<u64, usize> = kinds
            .iter()
            .filter(|(name, _)| expected.contains(name))
            .map(|(_, frame)| (frame.len() as u64, COPIES))
            .collect();
        assert_eq!(got, expected, "{filter:?}: lengths and how often; {}", traced.err);
        let counts = traced.counts();
        assert_eq!((counts.shown, counts.lost, counts.limited), (counts.matched, 0, 0), "{filter:?}");
    }
}

#[test]
fn every_layer_is_told() {
    let place = Place::new(1);
    let trace = place.trace(&[0], &["--output", "json"]);
    let text = place.trace(&[0], &["--output", "text"]);
    place.send(0, kinds().into_iter().map(|(_, frame)| frame).collect());
    let (json, text) = (trace.terminate().json(), text.terminate());
    let of = |kind: &str| -> (Value, String) {
        let (at, (_, frame)) =
            kinds().into_iter().enumerate().find(|(_, (name, _))| *name == kind).expect("a kind");
        let line = json[at].clone();
        assert_eq!(line["length"], frame.len());
        (line, text.lines()[at].to_owned())
    };
    let (line, text) = of("arp");
    assert_eq!(line["arp"]["sender_mac"], "02:00:00:00:00:08", "{line}");
    assert_eq!((&line["arp"]["sender"], &line["arp"]["target"]), (&"10.1.0.1".into(), &"10.1.0.7".into()));
    assert!(
        text.contains("ARP request sender 02:00:00:00:00:08 10.1.0.1 target 00:00:00:00:00:00 10.1.0.7"),
        "{text}"
    );
    let (line, text) = of("vlan tcp to 80");
    assert_eq!(
        (&line["vlan"][0]["id"], &line["ethernet"]["ethertype"]),
        (&5.into(), &"0x0800".into()),
        "{line}"
    );
    assert_eq!(line["transport"]["destination_port"], 80);
    assert!(text.contains(" vlan 5 IPv4 10.1.0.1:40000 > 10.1.0.2:80 TCP [.] seq 0"), "{text}");
    let (line, text) = of("qinq udp to 53");
    let tags: Vec<_> =
        line["vlan"].as_array().expect("tags").iter().map(|tag| (&tag["id"], &tag["ethertype"])).collect();
    assert_eq!(tags, [(&7.into(), &"0x88a8".into()), (&5.into(), &"0x8100".into())], "{line}");
    assert!(text.contains(" vlan 7 vlan 5 IPv4 "), "{text}");
    let (line, text) = of("udp fragment 2");
    assert_eq!(line["ip"]["fragment"]["offset_bytes"], 8, "{line}");
    assert!(line["transport"].is_null() && text.contains("UDP fragment 1 at 8 "), "{text}");
    let (line, text) = of("icmpv6");
    assert_eq!(line["transport"]["echo"]["sequence"], 3, "{line}");
    assert!(text.contains("IPv6 fd77::1 > fd77::2 ICMPv6 echo request id 7 seq 3"), "{text}");
    let (line, _) = of("v6 tcp ext to 80");
    assert_eq!((&line["ip"]["protocol"], &line["transport"]["flags"]), (&6.into(), &".".into()), "{line}");
    for kind in ["cut v4", "cut tcp"] {
        let (line, text) = of(kind);
        assert!(line["truncated"] == true && text.contains(" [cut] "), "{line} {text}");
    }
    assert!(text.starts_with(|c: char| c.is_ascii_digit()), "a time: {text}");
}

#[test]
fn both_sides_names_and_directions() {
    let place = Place::new(2);
    let trace = place.trace(&[0, 1], &["--output", "json", "--proto", "icmp"]);
    place.ping(0, 1, 3);
    let traced = trace.terminate();
    let told = |container: usize, direction: &str, kind: u64| {
        traced
            .json()
            .into_iter()
            .filter(|line| {
                line["container"] == place.name(container)
                    && line["direction"] == direction
                    && line["transport"]["type"] == kind
            })
            .count()
    };
    for (container, direction, kind) in [(0, "tx", 8), (1, "rx", 8), (1, "tx", 0), (0, "rx", 0)] {
        assert_eq!(told(container, direction, kind), 3, "{container} {direction} {kind}");
    }
    assert_eq!(traced.counts().shown, 12);
    let request = traced.json().into_iter().find(|line| line["transport"]["type"] == 8).expect("a request");
    assert_eq!(
        (&request["source_container"], &request["destination_container"]),
        (&place.name(0).into(), &place.name(1).into())
    );
    let trace = place.trace(&[0], &["--numeric", "--proto", "icmp", "--count", "1"]);
    place.ping(0, 1, 1);
    let traced = trace.wait();
    let line = traced.lines()[0];
    assert!(line.contains("IPv4 10.77.0.10 > 10.77.0.11 ICMP"), "{line}");
}

/// By network: its bridge and the containers on it, and not those of another.
#[test]
fn a_network_and_no_other() {
    let place = Place::new(2);
    place
        .host
        .sh("ip link add br-other type bridge; ip link set br-other up; ip link set veth1 master br-other");
    let trace = Trace::start(Some(&place.host), &["--no-engine", "--network", BRIDGE, "--output", "json"]);
    trace.attached(&place.host, &["veth0", BRIDGE]);
    assert_eq!(filters_of(&place.host, "veth1", trace.pid()), 0);
    place.host.sh("ip link set veth1 master br-world");
    trace.attached(&place.host, &["veth0", "veth1", BRIDGE]);
    place.ping(0, 1, 2);
    place.host.sh("ip link set veth1 master br-other");
    wait_for("veth1 to be let go", LIMIT, || match filters_of(&place.host, "veth1", trace.pid()) {
        0 => Ok(()),
        left => Err(left.to_string()),
    });
    let lines = trace.terminate().json();
    let seen_at = |name: &str| lines.iter().filter(|line| line["attached_to"] == name).count();
    assert_eq!(
        (seen_at("veth0"), seen_at("veth1"), seen_at(BRIDGE)),
        (4, 4, 0),
        "bridged, not through the host"
    );
}

#[test]
fn as_many_bytes_as_are_asked_for() {
    let place = Place::new(2);
    place.host.sh(&format!("ip link set veth0 mtu 65535; ip link set {BRIDGE} mtu 65535"));
    place.containers[0].netns().sh("ip link set eth0 mtu 65535");
    let lengths = [15, 60, 100, 128, 129, 512, 513, 2048, 2049, 16_384, 16_385, 65_000];
    let frames: Vec<Vec<u8>> = lengths
        .iter()
        .map(|length| {
            let mut frame = ethernet(0x88cc, &[]);
            frame.extend((0..length - 14).map(|n| n as u8));
            frame
        })
        .collect();
    let mut traces = Vec::new();
    for snaplen in ["1", "14", "128", "1000", "16384", "65535"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("packets.pcapng");
        let arguments = ["--snaplen", snaplen, "--write", file.to_str().expect("UTF-8")];
        traces.push((place.trace(&[0], &arguments), snaplen.parse::<usize>().expect("a number"), folder));
    }
    place.send(0, frames.clone());
    for (trace, snaplen, folder) in traces {
        let counts = trace.terminate().counts();
        let file = folder.path().join("packets.pcapng");
        let shown = tshark(&file, &["eth.type", "frame.len", "frame.interface_name"]);
        assert_eq!(counts.shown, lengths.len() as u64, "{shown:?}");
        let told = tshark(&file, &["frame.len", "frame.cap_len"]);
        let expected: Vec<_> =
            lengths.iter().map(|length| vec![length.to_string(), length.min(&snaplen).to_string()]).collect();
        assert_eq!(told, expected, "{snaplen}");
        // The bytes themselves are the frames'.
        let bytes = std::fs::read(&file).expect("the file");
        for frame in &frames {
            let beginning = &frame[..frame.len().min(snaplen)];
            assert!(bytes.windows(beginning.len()).any(|window| window == beginning), "{snaplen}");
        }
    }
}

/// Fields of all packets of a file, as the real tshark reads them.
fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    tshark_of(std::fs::File::open(file).expect("open").into(), fields)
}

fn tshark_of(input: std::process::Stdio, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args([
        "-n",
        "-r",
        "-",
        "-T",
        "fields",
        "-E",
        "separator=|",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=,",
    ]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.stdin(input).output().expect("run tshark");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

const FIELDS: [&str; 9] = [
    "frame.interface_name",
    "frame.time_epoch",
    "frame.len",
    "frame.cap_len",
    "frame.comment",
    "frame.packet_flags_direction",
    "ip.src",
    "ieee8021ad.id",
    "vlan.id",
];

/// Pings and frames of all kinds, and what tshark is to say of them.
fn assert_tshark_reads(place: &Place, told: &[Vec<String>]) {
    let kinds = kinds();
    assert_eq!(told.len(), kinds.len() + 12, "packets: {told:#?}");
    let mut last: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for packet in told {
        let [interface, time, ..] = packet.as_slice() else { panic!("{packet:?}") };
        let (seconds, nanoseconds) = time.split_once('.').expect("a fraction");
        assert_eq!(nanoseconds.len(), 9, "nanoseconds: {time}");
        let time = (seconds.parse().expect("a number"), nanoseconds.parse().expect("a number"));
        let before = last.insert(interface, time);
        assert!(before.is_none_or(|before| before <= time), "{interface}: {before:?} after {time:?}");
    }
    let expected: Vec<String> = (0..2).map(|n| format!("{}/eth0", place.name(n))).collect();
    let mut names: Vec<&str> = last.keys().copied().collect();
    names.sort_by_key(|name| expected.iter().position(|known| known == name));
    assert_eq!(names, expected);
    // Not all ticks of the clock are of a microsecond.
    assert!(told.iter().any(|packet| !packet[1].ends_with("000")), "{told:?}");
    let pings: Vec<_> = told.iter().filter(|packet| packet[2] == "98").collect();
    assert_eq!(pings.len(), 12);
    for ping in pings {
        let from = usize::from(ping[6] != "10.77.0.10");
        assert_eq!(ping[4], format!("{} > {}", place.name(from), place.name(1 - from)));
        let is_outbound = ping[0].starts_with(place.name(from));
        assert_eq!(ping[5], if is_outbound { "0x00000002" } else { "0x00000001" }, "{ping:?}");
    }
    for (kind, frame) in kinds {
        let length = frame.len().to_string();
        let found: Vec<_> = told.iter().filter(|packet| packet[2] == length).collect();
        let [packet] = found.as_slice() else { panic!("{kind}: {found:?}") };
        assert_eq!(packet[3], length);
        let (outer, tag) = match kind {
            "vlan tcp to 80" => ("", "5"),
            "vlan arp" => ("", "6"),
            "qinq udp to 53" => ("7", "5"),
            _ => ("", ""),
        };
        assert_eq!((packet[7].as_str(), packet[8].as_str()), (outer, tag), "{kind}");
    }
}

fn play(place: &Place) {
    place.ping(0, 1, 3);
    // Unknown receivers are flooded to all ports: from a container that is connected to nobody else's.
    place.host.sh("bridge link set dev veth1 flood off mcast_flood off");
    place.send(0, kinds().into_iter().map(|(_, frame)| frame).collect());
}

#[test]
fn tshark_reads_the_file() {
    let place = Place::new(2);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("packets.pcapng");
    let trace = place.trace(&[0, 1], &["--write", file.to_str().expect("UTF-8")]);
    play(&place);
    let counts = trace.terminate().counts();
    let told = tshark(&file, &FIELDS);
    assert_tshark_reads(&place, &told);
    assert_eq!(counts.shown, told.len() as u64);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "packets are nobody else's business");
    let output = Command::new("capinfos").arg(&file).output().expect("run capinfos");
    let told = String::from_utf8_lossy(&output.stdout);
    for expected in [
        format!("Name = {}/eth0", place.name(0)),
        format!("Description = {}/eth0@veth0", place.name(0)),
        format!("Comment = container {} ({})", place.name(0), place.containers[0].id),
        "Time precision = nanoseconds (9)".to_owned(),
        "Number of stat entries = 1".to_owned(),
        "Number of packets = 27".to_owned(),
        "Capture application: netobs 0.1.0".to_owned(),
    ] {
        assert!(told.contains(&expected), "no {expected:?} in {told}");
    }
}

#[test]
fn tshark_reads_the_pipe() {
    let place = Place::new(2);
    let arguments = place.arguments(&[0, 1], &["--write", "-"]);
    let (trace, out) = Trace::start_unread(Some(&place.host), &arguments);
    let reader = std::thread::spawn(move || tshark_of(out.into(), &FIELDS));
    place.attached(&trace, &[0, 1]);
    play(&place);
    let counts = trace.terminate().counts();
    let told = reader.join().expect("tshark");
    assert_tshark_reads(&place, &told);
    assert_eq!(counts.shown, told.len() as u64);
}

/// What is shown comes at once, not when the trace ends.
#[test]
fn a_pipe_gets_packets_while_they_pass() {
    let place = Place::new(2);
    let (trace, mut out) =
        Trace::start_unread(Some(&place.host), &place.arguments(&[0], &["--proto", "icmp"]));
    place.attached(&trace, &[0]);
    place.ping(0, 1, 1);
    let mut read = vec![0; 10_000];
    let mut got = 0;
    while read[..got].iter().filter(|byte| **byte == b'\n').count() < 2 {
        got += out.read(&mut read[got..]).expect("read");
    }
    drop(out);
    // Nobody reads any more: it ends, and that is no error.
    let traced = trace.wait();
    assert!(traced.status.success(), "{}", traced.err);
}

/// Sends datagrams to a container that has a socket for them and does not read it. Not all get to the host:
/// the queue behind the container's interface is short.
fn flood(place: &Place, from: usize, to: usize, count: u64) {
    let address: SocketAddr = format!("10.77.0.{}:9", to + 10).parse().expect("an address");
    let sink = place.containers[to].netns().run(move || UdpSocket::bind(address).expect("bind"));
    place.containers[from].netns().run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.connect(address).expect("connect");
        for _ in 0..count {
            let _ = socket.send(&[0; 18]);
        }
    });
    drop(sink);
}

/// What the host has received of the first container, by the kernel's own count.
fn received(place: &Place) -> u64 {
    kernel::link(&place.host, "veth0").rx_packets
}

/// What passed the first two containers' interfaces on the host.
fn passed(place: &Place) -> u64 {
    let links = ["veth0", "veth1"].map(|name| kernel::link(&place.host, name));
    links.iter().map(|link| link.rx_packets + link.tx_packets).sum()
}

/// The ring is small, and nobody takes the output for a while: the rest is counted as lost, to the packet.
#[test]
fn of_a_flood_each_packet_is_delivered_or_counted_as_lost() {
    let place = Place::new(2);
    let arguments = place.arguments(&[0], &["--proto", "udp", "--buffer-size", "128k"]);
    let (trace, mut out) = Trace::start_unread(Some(&place.host), &arguments);
    place.attached(&trace, &[0]);
    let before = received(&place);
    flood(&place, 0, 1, 400_000);
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).expect("UTF-8");
        text.lines().count() as u64
    });
    // Still something to show when it is read again.
    flood(&place, 0, 1, 1000);
    let sent = received(&place) - before;
    assert!(sent > 350_000, "{sent}");
    trace.says("packets lost");
    let traced = trace.terminate();
    let counts = traced.counts();
    assert_eq!(counts.matched, sent, "{}", traced.err);
    assert_eq!((counts.delivered + counts.lost, counts.limited), (sent, 0));
    assert!(counts.lost > 0 && counts.delivered > 1000, "{counts:?}");
    assert_eq!(counts.shown, counts.delivered, "{}", traced.err);
    assert_eq!(reader.join().expect("the reader"), counts.shown);
    println!("flood with nobody reading: {counts:?}");
}

/// As fast as it goes, each output: what is not delivered is counted.
#[test]
fn at_the_highest_rate_the_sum_is_exact() {
    let place = Place::new(2);
    for output in ["text", "json", "pcapng"] {
        let trace = place.trace(&[0, 1], &["--output", output]);
        let before = passed(&place);
        let start = std::time::Instant::now();
        flood(&place, 0, 1, 500_000);
        let time = start.elapsed();
        let sent = passed(&place) - before;
        let counts = trace.terminate().counts();
        assert_eq!((counts.matched, counts.delivered + counts.lost), (sent, sent), "{counts:?}");
        assert_eq!(counts.shown, counts.delivered);
        println!("{output}: {:.0} packets/s matched, {counts:?}", sent as f64 / time.as_secs_f64());
    }
}

#[test]
fn no_more_than_the_rate() {
    let place = Place::new(2);
    let trace = place.trace(&[0], &["--proto", "udp", "--rate", "10"]);
    let (start, before) = (std::time::Instant::now(), received(&place));
    flood(&place, 0, 1, 20_000);
    let sent = received(&place) - before;
    let traced = trace.terminate();
    let seconds = start.elapsed().as_secs() + 2;
    let counts = traced.counts();
    assert_eq!((counts.matched, counts.lost), (sent, 0), "{}", traced.err);
    // One more for each CPU that asks at the same moment.
    assert!(counts.delivered >= 10 && counts.delivered <= 11 * seconds, "{counts:?} in {seconds} s");
    assert_eq!(traced.lines().len() as u64, counts.delivered);
}

#[test]
fn it_ends_where_it_is_told_to() {
    let place = Place::new(2);
    let trace = place.trace(&[0], &["--proto", "icmp", "--count", "3"]);
    place.ping(0, 1, 5);
    let traced = trace.wait();
    assert_eq!((traced.counts().shown, traced.lines().len()), (3, 3), "{}", traced.err);

    for output in ["text", "pcapng"] {
        let trace = place.trace(&[0], &["--output", output, "--max-bytes", "2k"]);
        place.ping(0, 1, 20);
        let traced = trace.wait();
        let counts = traced.counts();
        assert!(traced.out.len() <= 2048 && traced.out.len() > 1500, "{output}: {}", traced.out.len());
        assert!(counts.shown < counts.matched, "{output}: {}", traced.err);
    }

    let start = std::time::Instant::now();
    let traced = place.trace(&[0], &["--duration", "1500ms"]).wait();
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(traced.counts().shown, 0);
}

#[test]
fn nothing_is_left_behind() {
    let place = Place::new(2);
    let left =
        |pid| ["veth0", "veth1", BRIDGE].iter().map(|name| filters_of(&place.host, name, pid)).sum::<usize>();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let trace = place.trace(&[0, 1], &[]);
        let pid = trace.pid();
        assert_eq!(left(pid), 4, "the two containers and not the bridge");
        trace.signal(signal);
        assert!(trace.wait().status.success());
        assert_eq!(left(pid), 0, "{signal}");
    }
    let trace = place.trace(&[0, 1], &[]);
    let killed = trace.pid();
    trace.signal(Signal::SIGKILL);
    trace.wait();
    assert_eq!(left(killed), 4, "nobody to remove them");
    // Another trace of one container, and then an agent: each removes all that is dead's.
    let next = place.trace(&[0], &[]);
    assert_eq!((left(killed), left(next.pid())), (0, 2));
    next.signal(Signal::SIGKILL);
    let killed = next.pid();
    next.wait();
    let watch = Watch::start(Some(&place.host), &["--no-engine"]);
    assert_eq!(left(killed), 0);
    // And nobody removes what a living one has.
    let trace = place.trace(&[0], &[]);
    assert_eq!((left(trace.pid()), left(watch.pid())), (2, 6));
    let other = place.trace(&[1], &[]);
    assert_eq!((left(trace.pid()), left(watch.pid()), left(other.pid())), (2, 6, 2));
}

/// One that starts while nobody opens the pipe, or whose output nobody takes, ends all the same.
#[test]
fn a_reader_that_sleeps_does_not_keep_it() {
    let place = Place::new(2);
    let (trace, out) = Trace::start_unread(Some(&place.host), &place.arguments(&[0], &["--proto", "udp"]));
    place.attached(&trace, &[0]);
    flood(&place, 0, 1, 5000);
    let pid = trace.pid();
    trace.signal(Signal::SIGTERM);
    let traced = trace.wait();
    assert_eq!(filters_of(&place.host, "veth0", pid), 0);
    assert!(!traced.status.success() && traced.err.contains("nobody takes the output"), "{}", traced.err);
    drop(out);
}

#[test]
fn beside_it_the_agents_counts_stay_exact() {
    let place = World::new(2);
    let watch = Watch::start(Some(&place.host), &["--no-engine"]);
    watch.interface("veth0");
    let trace = Trace::start(
        Some(&place.host),
        &["--no-engine", "--network", BRIDGE, "--output", "json", "--proto", "icmp"],
    );
    trace.attached(&place.host, &["veth0", "veth1", BRIDGE]);
    place.containers[0].sh("busybox ping -q -c 10 -i 0.02 10.77.0.11");
    let to: SocketAddr = "10.77.0.11:9000".parse().expect("an address");
    traffic::udp(&place.containers[0], &place.containers[1], to, 20_000, 100);
    traffic::tcp(&place.containers[0], &place.containers[1], to, 20_000_000);
    assert_exact(&place.host, &watch, &["veth0", "veth1", BRIDGE]);
    let traced = trace.terminate();
    assert_eq!((traced.json().len(), traced.counts().matched), (40, 40), "{}", traced.err);
    place.containers[0].sh("busybox ping -q -c 10 -i 0.02 10.77.0.11");
    assert_exact(&place.host, &watch, &["veth0", "veth1", BRIDGE]);
}

/// Where others use TCX, and where it is asked for.
#[test]
fn by_tcx_as_well() {
    let modes = kernel::attach_modes("by_tcx_as_well");
    let place = Place::new(2);
    for mode in modes {
        let arguments = ["--attach", mode, "--proto", "icmp", "--output", "json"];
        let trace = Trace::start(Some(&place.host), &place.arguments(&[0], &arguments));
        let lines = wait_for("packets", LIMIT, || {
            // The kernel drops what comes out of an interface while a clsact qdisc is made for it.
            place.containers[0].netns().sh("busybox ping -q -c 1 -W 1 10.77.0.11 || true");
            let shown = trace.lines_so_far();
            if shown > 0 { Ok(shown) } else { Err("none".to_owned()) }
        });
        assert!(lines > 0);
        let before = trace.lines_so_far();
        place.ping(0, 1, 5);
        wait_for("all packets", LIMIT, || match trace.lines_so_far() - before {
            10 => Ok(()),
            other => Err(other.to_string()),
        });
        let traced = trace.terminate();
        assert_eq!(traced.counts().matched, traced.json().len() as u64, "{mode}");
    }
}

/// The kernel drops what comes out of an interface while a clsact qdisc is made for it: where there is traffic when a
/// container is selected, there is none.
#[test]
fn who_is_traced_loses_nothing() {
    if !kernel::attach_modes("who_is_traced_loses_nothing").contains(&"tcx") {
        return;
    }
    let place = Place::new(2);
    place.ping(1, 0, 1);
    let _load = traffic::flood(place.containers[1].netns(), "10.77.0.10:4000".parse().expect("an address"));
    let ifindex = kernel::ifindex(&place.host, "veth0");
    let before = kernel::tx_dropped(&place.host, "veth0");
    for _ in 0..3 {
        let trace = Trace::start(Some(&place.host), &place.arguments(&[0], &["--proto", "icmp"]));
        wait_for("links", LIMIT, || match bpf::tcx_links(trace.pid(), ifindex).len() {
            2 => Ok(()),
            other => Err(other.to_string()),
        });
        trace.terminate();
    }
    assert_eq!(kernel::tx_dropped(&place.host, "veth0"), before);
}

/// Super-packets are one packet, and it is said how many they stand for.
#[test]
fn super_packets_tell_their_segments() {
    let place = Place::new(2);
    let trace = place.trace(&[0], &["--proto", "tcp", "--output", "json"]);
    let to: SocketAddr = "10.77.0.11:9000".parse().expect("an address");
    traffic::tcp(place.containers[0].netns(), place.containers[1].netns(), to, 5_000_000);
    let lines = trace.terminate().json();
    let most = lines.iter().filter_map(|line| line["segments"].as_u64()).max();
    assert!(most.is_some_and(|segments| segments > 10), "{most:?}");
    let syn = lines.iter().filter(|line| line["transport"]["flags"] == "S").count();
    assert_eq!(syn, 1);
}

/// Containers that come while it runs, and one that is named before there is one.
#[test]
fn who_comes_later_is_traced_too() {
    let mut place = Place::new(1);
    let late = Pretend::new();
    let name = late.name().to_owned();
    let arguments = ["--no-engine", &name, "--output", "json", "--proto", "icmp"];
    let trace = Trace::start(Some(&place.host), &arguments);
    let all = Trace::start(Some(&place.host), &["--no-engine", "--network", BRIDGE, "--output", "json"]);
    all.attached(&place.host, &["veth0"]);
    place.add(late);
    trace.attached(&place.host, &["veth1"]);
    all.attached(&place.host, &["veth0", "veth1"]);
    place.ping(0, 1, 2);
    // Connected to a second network while it runs.
    place.host.sh(&format!(
        "ip link add second type veth peer name eth1 netns {}; ip link set second up",
        place.containers[1].netns().pid()
    ));
    trace.attached(&place.host, &["veth1", "second"]);
    let lines = trace.terminate().json();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines.iter().all(|line| line["container"] == name), "{lines:?}");
    // And one that goes.
    place.host.sh("ip link del veth1");
    let traced = all.terminate();
    let of_late =
        traced.json().into_iter().filter(|line| line["container"] == name && line["ip"]["protocol"] == 1);
    assert_eq!(of_late.count(), 4, "{}", traced.err);
}

/// Where the host has no interface of the container's.
#[test]
fn inside_its_namespace() {
    let host = Netns::new();
    host.sh("ip link add parent type veth peer name other; ip link set parent up; ip link set other up");
    let containers = [Pretend::new(), Pretend::new()];
    for (n, container) in containers.iter().enumerate() {
        host.sh(&format!(
            "ip link add new0 link parent type macvlan mode bridge; ip link set new0 netns {}",
            container.netns().pid()
        ));
        container.netns().sh(&format!(
            "ip link set new0 name eth0; ip addr add 10.78.0.{}/24 dev eth0; ip link set eth0 up",
            n + 1
        ));
    }
    let arguments = ["--no-engine", containers[0].name(), "--output", "json", "--proto", "icmp"];
    let trace = Trace::start(Some(&host), &arguments);
    trace.attached(containers[0].netns(), &["eth0"]);
    let pid = trace.pid();
    containers[0].netns().sh("busybox ping -q -c 4 -i 0.02 10.78.0.2");
    let traced = trace.terminate();
    let lines = traced.json();
    let count = |direction: &str| lines.iter().filter(|line| line["direction"] == direction).count();
    assert_eq!((count("tx"), count("rx"), lines.len()), (4, 4, 8), "{}", traced.err);
    assert!(lines.iter().all(|line| line["place"] == "inside" && line["attached_to"] == "eth0"), "{lines:?}");
    assert_eq!(filters_of(containers[0].netns(), "eth0", pid), 0);
}

#[test]
fn by_cgroup() {
    let host = Netns::new();
    host.sh("ip addr add 10.79.0.1/24 dev lo");
    let container = Pretend::on_host(&host);
    let ping = |bytes: u32| format!("busybox ping -q -c 5 -i 0.02 -s {bytes} 10.79.0.1");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("packets.pcapng");
    let arguments = ["--no-engine", container.name(), "--proto", "icmp"];
    let written = ["--write", file.to_str().expect("UTF-8")];
    let to_file = Trace::start(Some(&host), &[&arguments[..], &written].concat());
    let trace = Trace::start(Some(&host), &[&arguments[..], &["--output", "json"]].concat());
    wait_for("packets", LIMIT, || {
        container.sh(&host, &ping(56));
        let size = std::fs::metadata(&file).map_or(0, |file| file.len());
        if size > 200 && trace.lines_so_far() > 0 { Ok(()) } else { Err(format!("{size} bytes")) }
    });
    container.sh(&host, &ping(200));
    // Another's, who is not in the cgroup.
    host.sh(&ping(300));
    let lines = trace.terminate().json();
    assert!(lines.iter().all(|line| line["place"] == "cgroup" && line["ethernet"].is_null()), "{lines:?}");
    let of = |length: u64, direction: &str, kind: u64| {
        lines
            .iter()
            .filter(|line| {
                line["length"] == length
                    && line["direction"] == direction
                    && line["transport"]["type"] == kind
            })
            .count()
    };
    assert_eq!((of(228, "tx", 8), of(228, "rx", 0)), (5, 5), "from the IP header on");
    assert_eq!((of(328, "tx", 8), of(328, "rx", 0), of(328, "rx", 8)), (0, 0, 0));
    let counts = to_file.terminate().counts();
    let told = tshark(&file, &["frame.interface_name", "ip.dst", "frame.len", "icmp.type"]);
    assert_eq!(told.len() as u64, counts.shown);
    assert!(told.iter().all(|packet| packet[0] == format!("{}/cgroup", container.name())), "{told:?}");
    let requests = told.iter().filter(|packet| packet[1..] == ["10.79.0.1", "228", "8"]);
    assert!(requests.count() >= 5, "{told:?}");
}

/// Programs by the kernel's statistics: runs, and nanoseconds in them.
fn run_statistics(ids: &BTreeSet<u32>) -> (u64, u64) {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| ids.contains(&program.id()))
        .map(|program| (program.run_count(), program.run_time().as_nanos() as u64))
        .fold((0, 0), |(runs, ns), (more_runs, more_ns)| (runs + more_runs, ns + more_ns))
}

/// Programs that a process has loaded.
fn programs_of(pid: u32) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    ids
}

/// A million packets that nobody asked for: no event. What that costs is printed, beside an empty program
/// and beside no program, in turns; the kernel's statistics are on for all three.
#[test]
fn a_million_packets_that_are_not_asked_for() {
    const PACKETS: u64 = 150_000;
    const ROUNDS: usize = 7;
    let place = Place::new(2);
    let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("run statistics");
    let run = || {
        let (before, start) = (passed(&place), std::time::Instant::now());
        flood(&place, 0, 1, PACKETS);
        let time = start.elapsed();
        let sent = passed(&place) - before;
        time.as_secs_f64() * 1e9 / sent as f64
    };
    // What else the machine does only adds to it.
    let least = |values: Vec<f64>| values.into_iter().fold(f64::INFINITY, f64::min);
    let has_tcx = kernel::attach_modes("a_million_packets_that_are_not_asked_for").contains(&"tcx");
    let filters: [&[&str]; 2] =
        [&["--ethertype", "0x88cc"], &["--proto", "udp", "--port", "4789", "--host", "10.77.0.0/24"]];
    let mut not_asked_for = 0;
    for filter in filters {
        let (mut off, mut on, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        let (mut of_trace, mut of_empty) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            off.push(run());
            let before = passed(&place);
            let trace = place.trace(&[0, 1], filter);
            let programs = programs_of(trace.pid());
            on.push(run());
            let (runs, ns) = run_statistics(&programs);
            assert_eq!(runs, passed(&place) - before, "each packet is looked at once at each interface");
            not_asked_for += runs;
            of_trace.push(ns as f64 / runs as f64);
            let traced = trace.terminate();
            assert_eq!((traced.counts().matched, traced.out.len()), (0, 0), "{filter:?}: {}", traced.err);
            if has_tcx {
                let (program, links) = attach_empty(&place);
                empty.push(run());
                let (runs, ns) = run_statistics(&BTreeSet::from([program_id(program.as_fd())]));
                of_empty.push(ns as f64 / runs as f64);
                drop(links);
            }
        }
        let (off, on) = (least(off), least(on));
        println!(
            "{filter:?}, least of {ROUNDS}: {off:.0} ns a packet and interface without, {on:.0} with trace ({:+.1}%); in the program \
             {:.1} ns",
            100.0 * (on / off - 1.0),
            least(of_trace)
        );
        if has_tcx {
            println!(
                "    an empty program: {:.0} ns a packet and interface; in the program {:.1} ns",
                least(empty),
                least(of_empty)
            );
        }
    }
    assert!(not_asked_for >= 1_000_000, "{not_asked_for}");
    drop(statistics);
}

/// A program that does nothing, where a trace would be.
fn attach_empty(place: &Place) -> (OwnedFd, Vec<OwnedFd>) {
    place.host.run(|| {
        let program = empty_program().expect("load an empty program");
        let mut links = Vec::new();
        for name in ["veth0", "veth1"] {
            let ifindex = nix::net::if_::if_nametoindex(name).expect("its index");
            for ingress in [true, false] {
                links.push(attach_tcx(program.as_fd(), ifindex, ingress).expect("attach"));
            }
        }
        (program, links)
    })
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, expected) in [
        (&["--port", "53", "--proto", "icmp"][..], "--port is of TCP, UDP and SCTP"),
        (&["--host", "10.0.0.0/33"], "up to 32"),
        (&["--ethertype", "ipx"], "0x0600"),
        (&["--snaplen", "65536"], "65535"),
        (&["--write", "/nowhere/at/all"], "open /nowhere/at/all"),
    ] {
        let traced = Trace::start(None, &[&["--no-engine", "nobody"], arguments].concat()).wait();
        assert!(!traced.status.success());
        assert!(traced.err.contains(expected), "{arguments:?}: {}", traced.err);
    }
    let host = Netns::new();
    let trace = Trace::start(Some(&host), &["--no-engine", "nobody\x1b[31m", "--duration", "10ms"]);
    let traced: Traced = trace.wait();
    assert!(traced.err.contains("waiting for container nobody\\x1b[31m"), "{}", traced.err);
}
