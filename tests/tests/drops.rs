//! Dropped packets on whatever kernel this is: whose they were, exact counts, what is no drop, and what
//! happens where it cannot be told. Without an engine.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use netobs_tests::{
    drops::{self, Drops, packets, reason, rows},
    http, kernel,
    netns::Netns,
    pretend::Pretend,
    program::{Agent, LIMIT, number, run},
    traffic, wait_for,
};
use serde_json::Value;

/// A host with a bridge and two containers on it: 10.79.0.11 and 10.79.0.12.
struct World {
    host: Netns,
    one: Pretend,
    two: Pretend,
}

const TWO: &str = "10.79.0.12";

impl World {
    fn new() -> Self {
        let host = Netns::new();
        host.sh("ip link add br-drops type bridge; ip addr add 10.79.0.1/24 dev br-drops; ip link set br-drops up");
        let world = Self { host, one: Pretend::new(), two: Pretend::new() };
        for (number, container) in [(11, &world.one), (12, &world.two)] {
            world.host.sh(&format!(
                "ip link add v{number} type veth peer name eth0 netns {}; \
                 ip link set v{number} master br-drops up",
                container.netns().pid()
            ));
            container.netns().sh(&format!(
                "ip addr add 10.79.0.{number}/24 dev eth0; ip link set eth0 up; \
                 ip route add default via 10.79.0.1"
            ));
        }
        world
    }

    /// Starts `netobs drops` for a time that is enough for what `act` does; its only document.
    fn during(&self, arguments: &[&str], act: impl FnOnce()) -> Value {
        let arguments = [&["--no-engine", "--output", "json", "--for", "6s"], arguments].concat();
        let mut drops = Drops::start(Some(&self.host), &arguments);
        drops.looking();
        act();
        serde_json::from_str(&drops.output()).expect("JSON")
    }

    /// Datagrams from the first container to the second, one to each of these ports.
    fn send(&self, ports: impl Iterator<Item = u16> + Send + 'static) {
        self.one.netns().run(move || {
            let socket = UdpSocket::bind("10.79.0.11:0").expect("bind");
            for port in ports {
                socket.send_to(b"drop me", (TWO, port)).expect("send");
            }
        });
    }

    /// Rows that either container has a part in.
    fn rows(&self, report: &Value) -> Vec<Value> {
        let ids = [&self.one.id, &self.two.id];
        let is = |value: &Value| ids.iter().any(|id| value == id.as_str());
        rows(report, |row| {
            is(&row["source"]["container_id"])
                || is(&row["destination"]["container_id"])
                || is(&row["at"]["container_id"])
        })
    }
}

#[test]
fn a_closed_port_in_a_container() {
    let world = World::new();
    let report = world.during(&[], || world.send(std::iter::repeat_n(9999, 7)));
    let found = world.rows(&report);
    let [row] = found.as_slice() else { panic!("one row: {report}") };
    assert_eq!(row["packets"], 7);
    assert_eq!(row["reason"], reason("NO_SOCKET"));
    assert_eq!(
        (&row["source"]["container"], &row["source"]["address"]),
        (&world.one.name().into(), &"10.79.0.11".into())
    );
    assert_eq!(
        (&row["destination"]["container"], &row["destination"]["address"]),
        (&world.two.name().into(), &TWO.into())
    );
    assert_eq!((number(row, "protocol"), number(row, "port")), (17, 9999));
    assert_eq!(row["at"]["container_id"], world.two.id.as_str());
    assert_eq!(row["at"]["interface"], "eth0");
    let inode = std::fs::read_link(format!("/proc/{}/ns/net", world.two.netns().pid())).expect("namespace");
    assert_eq!(row["at"]["namespace"], inode.to_str().expect("text"));
    assert!(
        row["place"].as_str().is_some_and(|place| place.contains("udp") && place.contains("_rcv+0x")),
        "{row}"
    );
    assert_eq!((&row["ordinary"], &row["netfilter"]), (&false.into(), &Value::Null));
}

/// A frame of a protocol that nobody handles: no addresses, so the namespace and the MAC address tell.
#[test]
fn a_frame_without_addresses_is_told_by_namespace_and_mac() {
    let world = World::new();
    let mac = |container: &Pretend| -> Vec<u8> {
        kernel::mac(container.netns(), "eth0")
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("hex"))
            .collect()
    };
    let (one, two) = (mac(&world.one), mac(&world.two));
    // IEEE's EtherType for experiments.
    let frame = [two.as_slice(), &one, &[0x88, 0xb5], &[0; 50]].concat();
    let report = world.during(&[], || traffic::raw(world.one.netns(), "eth0", vec![frame; 5]));
    let found = world.rows(&report);
    let [row] = found.as_slice() else { panic!("one row: {report}") };
    assert_eq!(row["packets"], 5);
    assert_eq!(row["reason"], reason("UNHANDLED_PROTO"));
    assert_eq!(
        (&row["source"]["container_id"], &row["source"]["address"]),
        (&world.one.id.as_str().into(), &Value::Null)
    );
    assert_eq!(row["destination"]["container_id"], Value::Null);
    assert_eq!(row["at"]["container_id"], world.two.id.as_str());
    assert_eq!(number(row, "ethertype"), 0x88b5);
}

/// Ports of a bridge that may not talk to each other: to the bridge the frames are another host's, as all that
/// pass it are, and dropped all the same.
#[test]
fn what_a_bridge_does_not_let_through() {
    let world = World::new();
    world.host.sh("for port in v11 v12; do ip link set $port type bridge_slave isolated on; done");
    for (from, number, to) in [(&world.one, 12, &world.two), (&world.two, 11, &world.one)] {
        let mac = kernel::mac(to.netns(), "eth0");
        from.netns().sh(&format!("ip neigh replace 10.79.0.{number} lladdr {mac} dev eth0"));
    }
    // So that the bridge knows at which port the second one is.
    world.two.netns().sh("busybox ping -q -c 1 10.79.0.1");
    let report = world.during(&[], || world.send(std::iter::repeat_n(9999, 6)));
    let found = world.rows(&report);
    let [row] = found.as_slice() else { panic!("one row: {report}") };
    assert_eq!(row["packets"], 6);
    assert_eq!(row["source"]["container_id"], world.one.id.as_str());
    assert_eq!(row["destination"]["container_id"], world.two.id.as_str());
    assert_eq!((&row["at"]["host"], &row["ordinary"]), (&true.into(), &false.into()), "{row}");
    assert!(row["place"].as_str().is_some_and(|place| place.starts_with("br_")), "{row}");
}

/// Interfaces are listed again when the kernel tells of a change.
#[test]
fn an_interface_that_gets_another_name() {
    let world = World::new();
    let to_host = |port: u16| {
        world.one.netns().run(move || {
            let socket = UdpSocket::bind("10.79.0.11:0").expect("bind");
            socket.send_to(b"drop me", ("10.79.0.1", port)).expect("send");
        });
        // Until it is read.
        std::thread::sleep(Duration::from_millis(1500));
    };
    let report = world.during(&[], || {
        to_host(9997);
        world.host.sh("ip link set br-drops down && ip link set br-drops name br-other up");
        to_host(9998);
    });
    let at = |port: u64| {
        let found =
            rows(&report, |row| row["port"] == port && row["source"]["container_id"] == *world.one.id);
        let [row] = found.as_slice() else { panic!("one row of {port}: {report}") };
        row["at"]["interface"].clone()
    };
    assert_eq!([at(9997), at(9998)], ["br-drops", "br-other"]);
}

const CONNECTIONS: u64 = 3;

fn ping_and_talk(world: &World) {
    world.one.netns().sh(&format!("busybox ping -q -c 3 -i 0.1 {TWO}"));
    let address = format!("{TWO}:5001").parse().expect("address");
    for _ in 0..CONNECTIONS {
        traffic::tcp(world.one.netns(), world.two.netns(), address, 100_000);
    }
}

#[test]
fn ordinary_ends_are_no_drops() {
    let world = World::new();
    let report = world.during(&[], || ping_and_talk(&world));
    // Without reasons the last packet of a connection looks like one that nobody listens for.
    let is_last = |row: &Value| {
        !drops::has_reasons() && row["place"].as_str().is_some_and(|place| place.starts_with("tcp_v4_rcv+"))
    };
    let (last, found): (Vec<Value>, Vec<Value>) = world.rows(&report).into_iter().partition(is_last);
    assert_eq!(found, Vec::<Value>::new());
    assert!(packets(&last) <= CONNECTIONS, "{report}");
    assert!(number(&report, "ordinary") >= 3, "{report}");
}

#[test]
fn ordinary_ends_are_shown_when_asked_for() {
    let world = World::new();
    let report = world.during(&["--all"], || ping_and_talk(&world));
    let replies = rows(&report, |row| {
        row["source"]["container_id"] == world.two.id.as_str()
            && row["destination"]["container_id"] == world.one.id.as_str()
            && row["icmp_type"] == 0
    });
    assert_eq!(packets(&replies), 3, "{report}");
    let as_wanted = |row: &Value| row["ordinary"] == true && row["reason"] == reason("NO_SOCKET");
    assert!(replies.iter().all(as_wanted), "{replies:?}");
    assert!(
        !drops::has_reasons() || world.rows(&report).iter().all(|row| row["ordinary"] == true),
        "{report}"
    );
    assert_eq!(number(&report, "ordinary"), 0, "none is hidden");
}

fn whole(report: &Value) -> u64 {
    packets(report["rows"].as_array().expect("rows"))
        + ["ordinary", "unlisted", "forgotten", "lost.full", "lost.busy"]
            .map(|part| number(report, part))
            .iter()
            .sum::<u64>()
}

/// More kinds at a time than there is room for: what is shown and what is lost is all there was.
#[test]
fn what_does_not_fit_is_counted() {
    const PORTS: u16 = 500;
    let world = World::new();
    let agent = Agent::start_in(Some(&world.host), &["--no-engine", "--max-drop-kinds", "16"]);
    let report = || -> Result<Value, String> {
        let text =
            world.host.run(move || http::get(9810, "/api/v1/drops")).map_err(|error| error.to_string())?;
        serde_json::from_str(&text.1).map_err(|error| error.to_string())
    };
    wait_for("the agent", LIMIT, report);
    world.send(20_000..20_000 + PORTS);
    wait_for("all of them, one way or the other", LIMIT, || {
        let report = report()?;
        let reasons = report["reasons"].as_array().expect("reasons");
        let events: u64 = reasons.iter().map(|reason| number(reason, "events")).sum();
        assert_eq!(events, number(&report, "events"));
        let of_ports = packets(&rows(&report, |row| {
            row["destination"]["container_id"] == world.two.id.as_str() && number(row, "port") >= 20_000
        }));
        let lost = number(&report, "lost.full");
        let all_seen = of_ports + lost >= u64::from(PORTS) && of_ports > 0 && of_ports < u64::from(PORTS);
        // Others' packets are being counted at the same time: only when none is, the sum is the whole.
        if all_seen && number(&report, "pending") == 0 && whole(&report) == events {
            Ok(())
        } else {
            Err(format!("{of_ports} and {lost} lost; {} of {events}: {report}", whole(&report)))
        }
    });
    drop(agent);
}

#[test]
fn without_type_information_everything_else_works() {
    let world = World::new();
    let garbage = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(garbage.path(), [0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).expect("write");
    let garbage = garbage.path().to_str().expect("text").to_owned();
    for file in ["/nowhere/btf", "/dev/null", &garbage] {
        let output = run(&["drops", "--no-engine", "--btf", file]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(file) && said.contains("type information"),
            "{said}"
        );
        assert!(!said.contains("panicked"), "{said}");
        let agent = Agent::start_in(Some(&world.host), &["--no-engine", "--btf", file]);
        let get = |path: &'static str| {
            wait_for(path, LIMIT, || {
                let answer = world.host.run(move || http::get(9810, path));
                answer.map_err(|error| error.to_string()).map(|(_, body)| body)
            })
        };
        let report: Value = serde_json::from_str(&get("/api/v1/drops")).expect("JSON");
        assert!(report["problem"].as_str().is_some_and(|problem| problem.contains(file)), "{report}");
        assert_eq!(report["rows"], serde_json::json!([]));
        let metrics = get("/metrics");
        assert!(metrics.contains("netobs_degraded{feature=\"drops\"} 1"), "{metrics}");
        assert!(!metrics.contains("netobs_drops_"), "{metrics}");
        let snapshot: Value = serde_json::from_str(&get("/api/v1/snapshot")).expect("JSON");
        let names: Vec<&Value> =
            snapshot["interfaces"].as_array().expect("interfaces").iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["br-drops", "v11", "v12"]);
        drop(agent);
    }
}

#[test]
fn an_agent_that_is_not_to_look_does_not() {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--no-drops"]);
    let get = |path: &'static str| {
        wait_for(path, LIMIT, || {
            let answer = host.run(move || http::get(9810, path));
            answer.map_err(|error| error.to_string()).map(|(_, body)| body)
        })
    };
    let report: Value = serde_json::from_str(&get("/api/v1/drops")).expect("JSON");
    assert_eq!(report["problem"], "not looked for");
    assert!(!get("/metrics").contains("drops\""));
    let links = std::fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).expect("fdinfo");
    let looks = |file: std::fs::DirEntry| {
        std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains("kfree_skb"))
    };
    assert!(!links.flatten().any(looks), "nothing is loaded");
}

#[test]
fn as_they_come() {
    let world = World::new();
    let mut drops = Drops::start(
        Some(&world.host),
        &["--no-engine", "--interval", "100ms", "--output", "csv", "--count", "3"],
    );
    drops.looking();
    let one = world.one.name().to_owned();
    // Each round is printed by itself; others' drops may be, too.
    let ended = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&ended);
    let sender = world.one.netns().spawn(move || {
        let socket = UdpSocket::bind("10.79.0.11:0").expect("bind");
        while !until.load(Ordering::Relaxed) {
            socket.send_to(b"drop me", (TWO, 9998)).expect("send");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let text = drops.output();
    ended.store(true, Ordering::Relaxed);
    sender.join().expect("the sender");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("time,new,packets,reason,"), "{text}");
    let columns = lines[0].split(',').count();
    let ours: Vec<Vec<&str>> =
        lines[1..].iter().filter(|line| line.contains(&one)).map(|line| line.split(',').collect()).collect();
    assert!(!ours.is_empty() && ours.iter().all(|line| line.len() == columns), "{text}");
    let mut total = 0;
    for line in &ours {
        let (new, packets): (u64, u64) = (line[1].parse().expect("new"), line[2].parse().expect("packets"));
        total += new;
        assert!(new > 0 && packets == total, "{text}");
    }
}
